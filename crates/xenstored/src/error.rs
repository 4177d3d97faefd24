//! The errors that keep the daemon from running.

use std::fmt;

/// Why the daemon does not run.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the environment asks for something that cannot be.
    Usage(String),
    /// It could not be set up.
    Start(String),
    /// It had to stop.
    Run(String),
}

impl Error {
    /// The daemon could not be set up, because of `why`.
    pub fn start(why: impl Into<String>) -> Self {
        Self::Start(why.into())
    }

    /// A request that cannot be granted, because of `why`.
    pub(crate) fn usage(why: impl Into<String>) -> Self {
        Self::Usage(why.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => write!(f, "{text} (xenstored --help shows all options)"),
            Self::Start(text) | Self::Run(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
