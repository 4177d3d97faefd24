//! The failure of a command: its message and its exit code.

use std::io;
use xenstore::Error;
use xenstore::error::describe;

/// A command's failure.
#[derive(Debug)]
pub(super) struct CommandFailure {
    /// The message for stderr, after the program's name.
    pub(super) message: Option<Vec<u8>>,
    /// Advice for people at a terminal on the next step.
    pub(super) advice: Option<String>,
    /// The exit code.
    pub(super) code: u8,
}

impl CommandFailure {
    /// Returns a failure that is reported as by errx(3), with exit code 1.
    pub(super) fn with_message(message: impl Into<Vec<u8>>) -> Self {
        Self { message: Some(message.into()), advice: None, code: 1 }
    }

    /// Returns a failure that is reported as by err(3), with exit code 1: the system's text for the
    /// error follows the message.
    pub(super) fn with_errno(message: impl Into<Vec<u8>>, error: &Error) -> Self {
        let mut message = message.into();
        message.extend_from_slice(format!(": {}", describe(error.errno())).as_bytes());
        Self::with_message(message).with_advice_on(error)
    }

    /// Adds the error's own text and advice, for people.
    pub(super) fn with_advice_on(self, error: &Error) -> Self {
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

impl From<Error> for CommandFailure {
    fn from(error: Error) -> Self {
        Self::with_message(error.to_string())
    }
}

impl From<io::Error> for CommandFailure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // The exit status that a shell shows for a program that SIGPIPE ended. Debian's
            // programs end that way.
            return Self { message: None, advice: None, code: 141 };
        }
        Self::with_message(format!("writing the output: {error}"))
    }
}
