//! The programs that `xb` runs: those in its own folder where it is installed, those that cargo
//! builds where cargo runs it.

use super::daemons::{DAEMONS, DaemonProgram};
use crate::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The tool that `xb store` runs.
pub(crate) const XENSTORE: DaemonProgram =
    DaemonProgram::Beside { file: "xenstore", package: "xenstore-client" };

/// Returns the file and the package of each program that is not this one.
fn others() -> impl Iterator<Item = (&'static str, &'static str)> {
    let programs = DAEMONS.iter().map(|daemon| daemon.program).chain([XENSTORE]);
    programs.filter_map(|program| match program {
        DaemonProgram::Own => None,
        DaemonProgram::Beside { file, package } => Some((file, package)),
    })
}

/// Makes cargo build the programs, where cargo runs this one. That may take any time, so it comes
/// before all steps with a time limit.
///
/// # Errors
/// A sentence with cargo's message.
pub(crate) fn make() -> Result<(), Error> {
    /// The result of the build, done once in a process: the sources do not change meanwhile.
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    let Some(cargo) = cargo() else { return Ok(()) };
    // Built each time, as existing programs may be older than this one.
    MADE.get_or_init(|| build(&cargo, &own()?)).clone().map_err(Error::Refused)
}

/// Returns this program's own path.
fn own() -> Result<PathBuf, String> {
    std::env::current_exe()
        .map_err(|error| format!("this program's own path: {}", crate::text::cause(&error)))
}

/// Returns the path of a program.
///
/// # Errors
/// A sentence that says how to install it, or cargo's message.
pub(crate) fn find(program: DaemonProgram) -> Result<PathBuf, Error> {
    let DaemonProgram::Beside { file, package } = program else {
        return own().map_err(Error::Refused);
    };
    make()?;
    let path = own().map_err(Error::Refused)?.with_file_name(file);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::NotFound(format!(
        "{} is not there; install it beside xb with: cargo install --profile dist --path crates/{package}",
        path.display()
    )))
}

/// Returns the cargo that runs this program, if one does. All programs that cargo's child starts
/// inherit its variables, so this may also be an installed `xb` in the tests of another project:
/// then the manifest is another.
fn cargo() -> Option<OsString> {
    let ours = std::env::var_os("CARGO_MANIFEST_DIR")? == env!("CARGO_MANIFEST_DIR");
    std::env::var_os("CARGO").filter(|_| ours)
}

/// Makes cargo build the programs into the folder of this one.
fn build(cargo: &OsString, own: &Path) -> Result<(), String> {
    let profile = own.parent().and_then(Path::file_name).unwrap_or_default();
    let profile = if profile == "debug" { "dev".into() } else { profile.to_owned() };
    let mut command = Command::new(cargo);
    command.args(["build", "--bins", "--profile"]).arg(profile);
    if others().any(|(file, _)| !own.with_file_name(file).exists()) {
        // The build takes a minute or two, and cargo prints its progress.
        eprintln!("xb: building the daemons, once");
    } else {
        command.arg("--quiet");
    }
    for (_, package) in others() {
        command.args(["-p", package]);
    }
    if let Some(dir) = own.parent().and_then(Path::parent) {
        command.arg("--target-dir").arg(dir);
    }
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cargo build of the daemons: {status}")),
        Err(error) => Err(format!("cargo build: {}", crate::text::cause(&error))),
    }
}
