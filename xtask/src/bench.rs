//! Builds the programs that a bench compares, then runs it.
//!
//! A bench measures what is installed, so it is built with the profile `dist`. With `--quick` it only has to run: the
//! profile `release` does for that, and is built already where `.ci/run` has come so far.

use crate::Result;
use crate::figures::{self, TABLES};
use crate::workspace::{Workspace, cargo};
use std::process::{Command, ExitCode};

/// The programs of this workspace that the store bench starts.
const PROGRAMS: [&str; 3] = ["xenstored", "xenstored-testbed", "xenstore"];
/// The bench itself.
const STORE_BENCH: &str = "store-bench";

/// The bench of the hosted platform, and the broker that has to lie beside it.
const PLATFORM_BENCH: [&str; 2] = ["platform-bench", "xen-hosted"];

/// The bench of block devices, and the store's daemon beside it.
const BLOCK_BENCH: [&str; 2] = ["block-bench", "testbed"];

/// `cargo xtask bench store`.
pub(crate) fn store(options: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let beside = |binary: &String| PROGRAMS.contains(&binary.as_str());
    let packages = workspace.packages.iter();
    let packages = packages.filter(|package| package.binaries.iter().any(beside));
    let packages: Vec<&str> =
        packages.map(|package| package.name.as_str()).chain([STORE_BENCH]).collect();
    run(&workspace, &packages, STORE_BENCH, options)
}

/// `cargo xtask bench platform`.
pub(crate) fn platform(options: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    run(&workspace, &PLATFORM_BENCH, PLATFORM_BENCH[0], options)
}

/// `cargo xtask bench block`.
pub(crate) fn block(options: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    run(&workspace, &BLOCK_BENCH, BLOCK_BENCH[0], options)
}

/// `cargo xtask bench xb`.
pub(crate) fn xb(options: &[&str]) -> Result<ExitCode> {
    of_xb("guests", options)
}

/// `cargo xtask bench console`.
pub(crate) fn console(options: &[&str]) -> Result<ExitCode> {
    of_xb("consoles", options)
}

/// Runs a bench of the package `xb`, which has cargo build the daemons that it needs.
fn of_xb(name: &str, options: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let (publication, options) = Publication::asked_for(options)?;
    let mut bench = cargo();
    bench.args(["bench", "--package", "xb", "--bench", name, "--profile", profile(&options)]);
    bench.arg("--").args(options).current_dir(&workspace.root);
    publication.run(&workspace, bench)
}

/// `cargo xtask bench --readme`.
pub(crate) fn readme() -> Result<ExitCode> {
    figures::write(&Workspace::load()?.root)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds `packages`, and runs `program` of them.
fn run(
    workspace: &Workspace,
    packages: &[&str],
    program: &str,
    options: &[&str],
) -> Result<ExitCode> {
    let (publication, options) = Publication::asked_for(options)?;
    let mut build = cargo();
    let profile = profile(&options);
    build.args(["build", "--profile", profile]);
    for package in packages {
        build.args(["--package", package]);
    }
    build.current_dir(&workspace.root);
    if !build.status()?.success() {
        return Err("the programs to compare do not build; cargo has said why".into());
    }
    let mut bench = Command::new(workspace.target.join(profile).join(program));
    bench.args(options);
    publication.run(workspace, bench)
}

/// The destination of a bench's table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publication {
    /// The terminal.
    Terminal,
    /// docs/performance.md, and README.md for a few figures of it.
    Readme,
}

impl Publication {
    /// Takes `--readme` out of the options.
    fn asked_for<'a>(options: &[&'a str]) -> Result<(Self, Vec<&'a str>)> {
        let rest: Vec<&str> = options.iter().copied().filter(|one| *one != "--readme").collect();
        if rest.len() == options.len() {
            return Ok((Self::Terminal, rest));
        }
        if rest.iter().any(|option| ["--quick", "--only"].contains(option)) {
            return Err(
                "--readme writes figures of whole runs: leave out --quick and --only".into()
            );
        }
        Ok((Self::Readme, rest))
    }

    /// Runs a bench to its end; its exit status.
    fn run(self, workspace: &Workspace, mut bench: Command) -> Result<ExitCode> {
        if self == Self::Readme {
            bench.arg("--into").arg(workspace.root.join(TABLES));
        }
        let status = bench.status()?;
        if self == Self::Readme && status.code().is_some() {
            figures::write(&workspace.root)?;
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    }
}

/// The profile to build with, which is also the name of its folder.
fn profile(options: &[&str]) -> &'static str {
    if options.contains(&"--quick") { "release" } else { "dist" }
}
