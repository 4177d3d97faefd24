//! `cargo xtask deb`: the Debian packages of `packaging/debian`, built with `dpkg-deb`.
//!
//! | module | what it is |
//! |---|---|
//! | `recipe` | the files of a package, by the recipe in its folder |
//! | `control` | the fields and digests that dpkg reads |
//! | `notices` | the licences of all code that is linked into the programs |
//! | `sources` | the origin of everything that goes into packages |

mod control;
mod notices;
mod recipe;
mod sources;

use crate::Result;
use crate::command::succeed;
use crate::workspace::{Workspace, cargo};
use recipe::StagingFolder;
use sources::PackageSources;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The folder of the packages' recipes, below the workspace's root.
pub(crate) const RECIPES: &str = "packaging/debian";
/// The folder of the packages' files while they are built, below that of the packages.
const STAGE: &str = "stage";
/// The programs of all packages.
const PROGRAMS: &[&str] =
    &["xenstored", "xenstore", "xen-blockd", "xenconsoled", "xen-hosted", "xb"];

const HELP: &str = "\
cargo xtask deb [OPTION]

  --quick     programs of the profile `release`: built sooner, without optimisation at link time
  --check     builds as with --quick, and installs, upgrades and removes the packages in a Debian root that is
              made for it below target/; needs Debian's packages of the lab, which it fetches if they are missing

The packages are put into target/debian. Install them with: sudo apt install ./target/debian/*.deb
";

/// The cargo profile of the programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Optimised at link time, as programs are installed.
    Dist,
    /// Built by most other chores, too.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dist => "dist",
            Self::Release => "release",
        }
    }
}

/// Runs `cargo xtask deb`.
pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        [] => print_built(&build(Profile::Dist, &place()?)?),
        ["--quick"] => print_built(&build(Profile::Release, &place()?)?),
        ["--help" | "-h"] => print!("{HELP}"),
        _ => return Err(format!("deb: no such option\n{HELP}").into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the folder of built packages.
pub(crate) fn place() -> Result<PathBuf> {
    Ok(Workspace::load()?.target.join("debian"))
}

fn print_built(files: &[PathBuf]) {
    for file in files {
        println!("{}", file.display());
    }
}

/// Builds all packages into the folder `place`, and returns their files. Nothing else is left there.
pub(crate) fn build(profile: Profile, place: &Path) -> Result<Vec<PathBuf>> {
    let workspace = Workspace::load()?;
    build_programs(&workspace, profile)?;
    let programs = workspace.target.join(profile.name());
    let sources = PackageSources::collect(workspace, programs)?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    let mut names: Vec<_> = fs::read_dir(sources.root.join(RECIPES))?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let files = names.iter().map(|name| package(&sources, place, name)).collect();
    fs::remove_dir_all(place.join(STAGE))?;
    files
}

fn build_programs(workspace: &Workspace, profile: Profile) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked", "--profile", profile.name()]);
    for name in PROGRAMS {
        command.args(["--bin", name]);
    }
    if !command.current_dir(&workspace.root).status()?.success() {
        return Err("the programs of the packages do not build; cargo has said why".into());
    }
    Ok(())
}

/// Builds one package in `place`; returns its file.
fn package(sources: &PackageSources, place: &Path, name: &str) -> Result<PathBuf> {
    let recipe = sources.root.join(RECIPES).join(name);
    let mut stage = StagingFolder::new(sources, place.join(STAGE).join(name))?;
    stage.follow(&recipe.join("files"))?;
    stage.document(name)?;
    control::write(sources, &recipe, &stage)?;
    let file = place.join(format!("{name}_{}_{}.deb", sources.version, sources.architecture));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(stage.root()).arg(&file);
    succeed(build.stdout(std::process::Stdio::null()))?;
    Ok(file)
}
