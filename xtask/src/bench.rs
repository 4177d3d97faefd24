//! Builds the programs that a bench compares, then runs it.

use crate::Result;
use crate::workspace::{Workspace, cargo};
use std::process::{Command, ExitCode};

/// The programs of this workspace that the store bench starts, if there are such packages.
const PROGRAMS: [&str; 3] = ["xenstored", "xenstored-testbed", "xenstore"];
/// The bench itself.
const STORE_BENCH: &str = "store-bench";

/// `cargo xtask bench store`.
pub(crate) fn store(options: &[&str]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", STORE_BENCH]);
    for package in &workspace.packages {
        if package.binaries.iter().any(|binary| PROGRAMS.contains(&binary.as_str())) {
            build.args(["--package", &package.name]);
        }
    }
    build.current_dir(&workspace.root);
    if !build.status()?.success() {
        return Err("the programs to compare do not build".into());
    }
    let mut bench = Command::new(workspace.target.join("release").join(STORE_BENCH));
    bench.args(options);
    let status = bench.status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
