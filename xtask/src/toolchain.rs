//! The build with the version of Rust that the manifest states.

use crate::Result;
use crate::workspace::Workspace;
use std::process::{Command, ExitCode};

/// Runs `cargo xtask rust-version`: checks that the workspace builds with its `rust-version`.
///
/// If that is the version in use, every other step shows it. Else rustup installs the toolchain,
/// and all targets are checked with it, in a folder of their own.
pub(crate) fn run() -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let stated = &workspace.rust_version;
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .arg("--version")
        .output()
        .map_err(|error| format!("rustc --version: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if is_version(&said, stated) {
        println!("rust-version {stated} is the version in use: every build of this run is of it");
        return Ok(ExitCode::SUCCESS);
    }
    let install = ["toolchain", "install", stated, "--profile", "minimal"];
    let installed = Command::new("rustup").args(install).status();
    if !installed.map_err(|error| format!("rustup, for Rust {stated}: {error}"))?.success() {
        return Err(format!("rustup does not install Rust {stated}; it has said why").into());
    }
    let mut check = Command::new("rustup");
    check.args(["run", stated, "cargo", "check", "--workspace", "--all-targets", "--locked"]);
    check.arg("--target-dir").arg(workspace.target.join("rust-version"));
    // The variables of this toolchain's cargo would select it again.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        check.env_remove(name);
    }
    let status = check.current_dir(&workspace.root).status()?;
    Ok(ExitCode::from(u8::from(!status.success())))
}

/// True if the output of `rustc --version` is of this version, which may omit the last number.
fn is_version(said: &str, stated: &str) -> bool {
    let version = said.split(' ').nth(1).unwrap_or_default();
    let whole = version == stated;
    let released = !version.contains('-');
    whole || released && version.strip_prefix(stated).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::is_version;

    #[test]
    fn a_version_may_leave_out_its_last_number() {
        let said = "rustc 1.95.0 (59807616e 2026-04-14)";
        assert!(is_version(said, "1.95") && is_version(said, "1.95.0"));
        assert!(!is_version(said, "1.9") && !is_version(said, "1.96") && !is_version("", "1.95"));
        assert!(!is_version("rustc 1.96.0-nightly", "1.96"), "not yet released");
    }
}
