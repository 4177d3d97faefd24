//! The errors that stop the daemon or its start.

use std::fmt;

/// The reason why the daemon does not run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the environment contains a request that cannot be granted.
    Usage(String),
    /// The daemon could not be set up.
    Start(String),
    /// A running daemon holds the pid file, so no other was set up. The program ends with status 0,
    /// as C xenstored does.
    Running(String),
    /// The daemon had to stop.
    Run(String),
}

impl Error {
    /// Returns the error of a daemon that could not be set up, with the reason `why`.
    pub fn start(why: impl Into<String>) -> Self {
        Self::Start(why.into())
    }

    /// Returns the error of a request that cannot be granted, with the reason `why`.
    pub(crate) fn usage(why: impl Into<String>) -> Self {
        Self::Usage(why.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => write!(f, "{text} (xenstored --help shows all options)"),
            Self::Start(text) | Self::Running(text) | Self::Run(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<daemon::Error> for Error {
    fn from(error: daemon::Error) -> Self {
        match error {
            daemon::Error::Running { .. } => Self::Running(error.to_string()),
            _ => Self::start(error.to_string()),
        }
    }
}
