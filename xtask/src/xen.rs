//! `cargo xtask xen`: real Xen, a Linux dom0 and stock Linux guests, under QEMU's software emulation.
//!
//! | module | what it is |
//! |---|---|
//! | `fetch` | Debian's packages, as the machine's own apt finds them, unpacked and never installed |
//! | `packages` | which packages, and the root that they are unpacked into |
//! | `image` | the initramfs of dom0 and of the guests, by the recipes in `tests/xen` |
//! | `modules` | the kernel's modules that an image needs |
//! | `cpio` | the format of an initramfs |
//! | `disk` | the disks of the boot `block`, made and checked |
//! | `boot` | one boot: QEMU, its console, its bound on time |
//! | `judge` | what a boot has shown; daemons side by side |
//! | `speed` | our block backend beside the kernel's |
//! | `trees` | what the store shows under two daemons |

mod boot;
mod cpio;
mod disk;
mod fetch;
mod image;
mod judge;
mod modules;
mod packages;
mod speed;
mod trees;

use crate::Result;
use crate::workspace::{Workspace, cargo};
use boot::Boot;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const HELP: &str = "\
cargo xtask xen [OPTION...]: our xenstored as the store of a real Xen host

  --store ours|c|both  whose xenstored runs the host; both is the default, and compares them
  --boot NAME          only this boot: sysv, systemd or block
  --only NAME          only the steps with NAME in their name, and those that they need
  --update             fetch the archive's current packages again, where they are here already
  --json               the result as JSON, on standard output
  --list               the boots and their steps

It fetches Debian's packages into target/xen-lab, where they stay, and installs nothing. What each boot showed is
in target/xen-lab/results; README.md in tests/xen tells what runs.
";

/// The programs of this workspace that go into dom0's image: package, binary.
const PROGRAMS: &[(&str, &str)] = &[
    ("xenstored", "xenstored"),
    ("xenstore", "xenstore"),
    ("xen-block", "xen-blockd"),
    ("xen-block", "xen-blkfront"),
    ("xen-hosted", "xen-hosted"),
    ("xb", "xb"),
    ("conformance", "platform-dom0"),
    ("conformance", "conformance-dom0"),
];

/// The tests of this workspace that run in dom0, each a program.
const TESTS: &[(&str, &[&str])] = &[("xen-hosted", &["limits", "shares", "hostile", "platform"])];

/// Whose daemon is the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// This workspace's.
    Ours,
    /// Debian's, in C.
    C,
}

impl Store {
    /// As the command line and the results name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::C => "c",
        }
    }
}

/// What the command line asks for.
struct Options {
    stores: Vec<Store>,
    boot: Option<String>,
    only: Option<String>,
    update: fetch::Wanted,
    report: judge::Report,
}

/// Where everything is.
pub(crate) struct Lab {
    /// The workspace's root.
    pub(crate) project: PathBuf,
    /// `target/xen-lab`.
    pub(crate) dir: PathBuf,
    /// Where cargo puts what is built for release.
    pub(crate) programs: PathBuf,
}

impl Lab {
    /// The unpacked packages.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The recipes, and what runs in dom0 and in guests.
    pub(crate) fn recipes(&self) -> PathBuf {
        self.project.join("tests/xen")
    }
}

/// `cargo xtask xen`.
pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let lab = Lab {
        dir: workspace.target.join("xen-lab"),
        programs: workspace.target.join("release"),
        project: workspace.root,
    };
    if words.iter().any(|word| ["--help", "-h"].contains(word)) {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    if words.contains(&"--list") {
        for boot in boot::ALL {
            println!("{}: {}", boot.name, boot.steps(&lab)?.join(" "));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = parse(words)?;
    let begin = Instant::now();
    let versions = fetch::packages(&lab, options.update)?;
    build(&lab)?;
    image::build(&lab)?;
    let mut outcomes = Vec::new();
    for store in &options.stores {
        for boot in boot::ALL.iter().filter(|boot| boot.can(*store) && wanted(boot, &options)) {
            outcomes.push(boot.run(&lab, *store, options.only.as_deref())?);
        }
    }
    if outcomes.is_empty() {
        return Err("no boot has such a name; --list tells them".into());
    }
    judge::judge(&lab, &outcomes, &versions, begin.elapsed(), options.report)
}

fn wanted(boot: &Boot, options: &Options) -> bool {
    options.boot.as_deref().is_none_or(|name| name == boot.name)
}

fn parse(words: &[&str]) -> Result<Options> {
    let mut options = Options {
        stores: vec![Store::C, Store::Ours],
        boot: None,
        only: None,
        update: fetch::Wanted::AnyVersion,
        report: judge::Report::Text,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match *word {
            "--store" => {
                options.stores = match *value()? {
                    "ours" => vec![Store::Ours],
                    "c" => vec![Store::C],
                    "both" => vec![Store::C, Store::Ours],
                    other => return Err(format!("--store {other}: ours, c or both").into()),
                }
            }
            "--boot" => options.boot = Some((*value()?).to_owned()),
            "--only" => options.only = Some((*value()?).to_owned()),
            "--update" => options.update = fetch::Wanted::CurrentVersion,
            "--json" => options.report = judge::Report::Json,
            other => return Err(format!("xen: there is no option {other}\n{HELP}").into()),
        }
    }
    Ok(options)
}

/// Builds what goes into dom0.
fn build(lab: &Lab) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release"]);
    for (package, binary) in PROGRAMS {
        command.args(["--package", package, "--bin", binary]);
    }
    if !command.current_dir(&lab.project).status()?.success() {
        return Err("the programs for dom0 do not build; cargo has said why".into());
    }
    for (package, names) in TESTS {
        build_tests(lab, package, names)?;
    }
    build_guest(lab)
}

/// Builds tests of a package, and puts their programs, which cargo calls as it likes, under their names in `tests`.
fn build_tests(lab: &Lab, package: &str, names: &[&str]) -> Result<()> {
    let place = lab.dir.join("tests");
    let mut command = cargo();
    command.args(["test", "--no-run", "--release", "--message-format=json-render-diagnostics"]);
    command.args(["--package", package]);
    for name in names {
        command.args(["--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).current_dir(&lab.project).output()?;
    if !output.status.success() {
        return Err(format!("the tests of {package} do not build; cargo has said why").into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let built: Vec<serde_json::Value> = messages.collect();
    for name in names {
        let one = built.iter().find(|one| one["target"]["name"] == **name);
        let program = one.and_then(|one| one["executable"].as_str());
        let program = program.ok_or(format!("cargo built no {name}"))?;
        image::strip(program.as_ref(), &place.join(name))?;
    }
    Ok(())
}

/// Builds the guest of the conformance suite, a workspace of its own, and what helps `xl` with it.
fn build_guest(lab: &Lab) -> Result<()> {
    let sources = lab.recipes().join("guest");
    let (built, place) = (lab.dir.join("guest-build"), lab.dir.join("conformance"));
    let mut command = cargo();
    command.args(["build", "--release", "--target-dir"]).arg(&built).current_dir(&sources);
    if !command.status()?.success() {
        return Err("tests/xen/guest does not build; cargo has said why".into());
    }
    std::fs::create_dir_all(&place)?;
    std::fs::copy(built.join("release/ring-agent"), place.join("ring-agent"))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(place.join("xl-shim.so"));
    if !cc.arg(sources.join("xl-shim.c")).status()?.success() {
        return Err("xl-shim.c does not compile; cc has said why".into());
    }
    Ok(())
}

/// Progress goes to standard error, so that `--json` has standard output for itself.
pub(crate) fn say(what: &str) {
    eprintln!("xen: {what}");
}
