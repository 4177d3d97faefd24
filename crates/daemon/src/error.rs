//! The errors of a daemon's start.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The reason why a daemon cannot start.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The child that serves in the background cannot be started.
    Background {
        /// The option that keeps the program in the foreground.
        foreground: &'static str,
        /// The reason.
        error: io::Error,
    },
    /// The directory `/` cannot be entered.
    Directory(io::Error),
    /// The standard streams cannot be replaced by `/dev/null`.
    Null(io::Error),
    /// A running daemon holds the pid file.
    Running {
        /// The name of the program.
        name: &'static str,
        /// The content of the pid file.
        pid: String,
        /// The pid file.
        path: PathBuf,
    },
    /// The pid file cannot be read or written.
    PidFile {
        /// The pid file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The handlers of signals cannot be installed.
    Signals(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Background { foreground, error } => {
                write!(f, "cannot start in the background: {error}; try {foreground}")
            }
            Self::Directory(error) => write!(f, "chdir /: {error}"),
            Self::Null(error) => write!(f, "/dev/null: {error}"),
            Self::Running { name, pid, path } => write!(
                f,
                "a running {name} (pid {pid}) holds {} and goes on; to start another, choose another --pid-file",
                path.display()
            ),
            Self::PidFile { path, error } => write!(f, "pid file {}: {error}", path.display()),
            Self::Signals(error) => write!(f, "signals: {error}"),
        }
    }
}

impl std::error::Error for Error {}
