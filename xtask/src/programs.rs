//! Builds a program of `tests` with optimisation and runs it.

use crate::Result;
use crate::workspace::{Workspace, cargo};
use std::process::ExitCode;

/// Runs `cargo xtask sim` or `cargo xtask held`: the program of the package of that name.
pub(crate) fn run(package: &str, options: &[&str]) -> Result<ExitCode> {
    let mut program = cargo();
    program.args(["run", "--quiet", "--release", "--package", package, "--"]).args(options);
    let status = program.current_dir(Workspace::load()?.root).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
