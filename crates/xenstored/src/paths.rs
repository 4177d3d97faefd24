//! The paths of the socket and of relative trace files.
//!
//! Source: `tools/include/xen-tools/xenstore-common.h`, `tools/libs/store`.

use crate::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The default directory of the socket (`XEN_RUN_STORED`).
const RUN_DIR: &str = "/run/xenstored";
/// The default directory of relative trace files (`XEN_LIB_STORED`).
const LIB_DIR: &str = "/var/lib/xenstored";

/// The environment of a process, besides its command line.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `XENSTORED_PATH`: the socket.
    pub path: Option<OsString>,
    /// `XENSTORED_RUNDIR`: the directory of the socket.
    pub run_dir: Option<OsString>,
    /// `XENSTORED_ROOTDIR`: the directory of relative trace files.
    pub root_dir: Option<OsString>,
    /// `XDG_RUNTIME_DIR`: an ordinary user's own `/run`.
    pub user_run_dir: Option<OsString>,
    /// `XENSTORED_UNFILTERED`: set if the daemon is to keep its privileges, for a kernel that
    /// cannot take them away.
    pub unfiltered: Option<OsString>,
    /// The current directory, for relative names.
    pub directory: PathBuf,
    /// The access to `/run/xenstored`: it can be used or created, or not.
    pub system: System,
}

/// The access to the system's own directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// They may be written.
    Writable,
    /// They may not be written. The daemon runs for an ordinary user.
    Closed,
}

impl Environment {
    /// Returns the environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            path: get("XENSTORED_PATH"),
            run_dir: get("XENSTORED_RUNDIR"),
            root_dir: get("XENSTORED_ROOTDIR"),
            user_run_dir: get("XDG_RUNTIME_DIR"),
            unfiltered: get("XENSTORED_UNFILTERED"),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            system: if writable(Path::new(RUN_DIR)) || writable(Path::new("/run")) {
                System::Writable
            } else {
                System::Closed
            },
        }
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Returns the socket's path.
///
/// # Errors
/// [`Error::Usage`] if an ordinary user has no directory for it.
pub(crate) fn socket(environment: &Environment) -> Result<PathBuf, Error> {
    if let Some(path) = &environment.path {
        return Ok(environment.directory.join(path));
    }
    if let Some(dir) = &environment.run_dir {
        return Ok(environment.directory.join(dir).join("socket"));
    }
    if environment.system == System::Writable {
        return Ok(Path::new(RUN_DIR).join("socket"));
    }
    match &environment.user_run_dir {
        Some(dir) => Ok(environment.directory.join(dir).join("xenstored/socket")),
        None => Err(Error::Usage(format!(
            "{RUN_DIR} cannot be written; set XENSTORED_PATH to the socket's path, or \
             XENSTORED_RUNDIR to a directory for it"
        ))),
    }
}

/// Returns the directory of trace files with relative names.
pub(crate) fn root_dir(environment: &Environment) -> PathBuf {
    match &environment.root_dir {
        Some(dir) => environment.directory.join(dir),
        None if environment.system == System::Writable => PathBuf::from(LIB_DIR),
        None => environment.directory.clone(),
    }
}
