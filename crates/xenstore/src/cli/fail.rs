//! Why a command ends early, and with which exit code.

use std::io;
use xenstore::Error;
use xenstore::error::describe;

/// A command's failure.
#[derive(Debug)]
pub(super) struct Fail {
    /// For stderr, behind the program's name.
    pub(super) message: Option<Vec<u8>>,
    /// What to do about it, for people at a terminal.
    pub(super) advice: Option<String>,
    /// The exit code.
    pub(super) code: u8,
}

impl Fail {
    /// As errx(3) with exit code 1.
    pub(super) fn exactly(message: impl Into<Vec<u8>>) -> Self {
        Self { message: Some(message.into()), advice: None, code: 1 }
    }

    /// As err(3) with exit code 1: the system's words for the error behind the message.
    pub(super) fn with_errno(message: impl Into<Vec<u8>>, error: &Error) -> Self {
        let mut message = message.into();
        message.extend_from_slice(format!(": {}", describe(error.errno())).as_bytes());
        Self::exactly(message).because(error)
    }

    /// For people, what the error itself says.
    pub(super) fn because(self, error: &Error) -> Self {
        self.advised(error.to_string())
    }

    pub(super) fn advised(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::exactly(error.to_string())
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // What a shell shows for a program that SIGPIPE ended, as it ends Debian's.
            return Self { message: None, advice: None, code: 141 };
        }
        Self::exactly(format!("writing the output: {error}"))
    }
}
