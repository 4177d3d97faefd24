//! The programs that `xb` runs: beside it where it is installed, built by cargo where cargo runs it.

use super::daemons::{DAEMONS, Program};
use crate::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The tool that `xb store` runs.
pub(crate) const XENSTORE: Program = Program::Beside { file: "xenstore", package: "xenstore" };

/// The file and the package of each program that is not this one.
fn others() -> impl Iterator<Item = (&'static str, &'static str)> {
    let programs = DAEMONS.iter().map(|daemon| daemon.program).chain([XENSTORE]);
    programs.filter_map(|program| match program {
        Program::Own => None,
        Program::Beside { file, package } => Some((file, package)),
    })
}

/// Has cargo build the programs, where it is cargo that runs this one. That takes as long as it takes, so it comes
/// before anything that is to be done in time.
///
/// # Errors
/// A sentence that says what cargo said.
pub(crate) fn make() -> Result<(), Error> {
    /// Once in a process: nothing is changed meanwhile.
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    let Some(cargo) = cargo() else { return Ok(()) };
    // Each time, as those that are there may be older than this program.
    MADE.get_or_init(|| build(&cargo, &own()?)).clone().map_err(Error::Refused)
}

/// This program's own path.
fn own() -> Result<PathBuf, String> {
    std::env::current_exe()
        .map_err(|error| format!("this program's own path: {}", crate::text::cause(&error)))
}

/// The path of a program.
///
/// # Errors
/// A sentence that says how it is installed, or what cargo said.
pub(crate) fn find(program: Program) -> Result<PathBuf, Error> {
    let Program::Beside { file, package } = program else {
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

/// The cargo that runs this program, if one does. A program that cargo runs inherits its variables to all that it
/// starts, so this may also be an installed `xb` in the tests of something else: then the manifest is another.
fn cargo() -> Option<OsString> {
    let ours = std::env::var_os("CARGO_MANIFEST_DIR")? == env!("CARGO_MANIFEST_DIR");
    std::env::var_os("CARGO").filter(|_| ours)
}

/// Has cargo build the programs into the folder that this one is in.
fn build(cargo: &OsString, own: &Path) -> Result<(), String> {
    let profile = own.parent().and_then(Path::file_name).unwrap_or_default();
    let profile = if profile == "debug" { "dev".into() } else { profile.to_owned() };
    let mut command = Command::new(cargo);
    command.args(["build", "--bins", "--profile"]).arg(profile);
    if others().any(|(file, _)| !own.with_file_name(file).exists()) {
        // That takes a minute or two, and cargo tells how far it is.
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
