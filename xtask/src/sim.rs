//! Builds the simulator with optimisation and runs it over many seeds.

use crate::Result;
use crate::workspace::{Workspace, cargo};
use std::process::ExitCode;

/// `cargo xtask sim`.
pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    let mut simulate = cargo();
    simulate.args(["run", "--quiet", "--release", "--package", "sim", "--"]).args(options);
    let status = simulate.current_dir(Workspace::load()?.root).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
