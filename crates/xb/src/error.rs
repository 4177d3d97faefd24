//! The errors of the toolstack, as sentences that help and exit codes.

use crate::devd::SupervisorRefusal;
use crate::devices::BackendChoiceError;
use std::fmt;
use std::time::Duration;

/// The number of an error where nothing has answered in time.
pub(crate) const TIMED_OUT: i32 = rustix::io::Errno::TIMEDOUT.raw_os_error();

/// The cause of a command's failure.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A configuration makes no sense.
    Config(crate::config::Error),
    /// A domain that cannot serve a device was named for that.
    BackendChoice(BackendChoiceError),
    /// This machine has no backends to supervise.
    Supervisor(SupervisorRefusal),
    /// The store refused, or is gone.
    Store(xenstore::Error),
    /// The hypervisor refused.
    Platform {
        /// The operation that failed, and its domain.
        what: String,
        /// The hypervisor's error.
        error: xen::Error,
    },
    /// There is no such domain, device or host.
    NotFound(String),
    /// A domain has ended by itself before something could be done with it: a sentence.
    Ended(String),
    /// A domain was destroyed by somebody else while something was done with it.
    Destroyed {
        /// Its name or number.
        domain: String,
        /// The reason why it had ended before, if it had: a word of
        /// [`reason_word`](crate::domain::reason_word).
        ended: Option<String>,
    },
    /// It cannot be done in the present state: a sentence with the next step for the user.
    Refused(String),
    /// The domain has a device of this number already: a sentence with the next step for the user.
    AlreadyThere(String),
    /// It did not happen in time.
    Timeout {
        /// The event that was awaited.
        what: String,
        /// The time that was waited.
        after: Duration,
        /// The reason, with the command that helps, if it is known.
        reason: Option<String>,
    },
    /// Ctrl-C.
    Interrupted,
}

impl Error {
    /// True if something did not happen in time.
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            // A refusal is an answer, whatever its number.
            Self::Store(error) => error.refusal().is_none() && error.errno() == TIMED_OUT,
            Self::Platform { error, .. } => error.errno() == TIMED_OUT,
            _ => false,
        }
    }

    /// Returns the exit status of a process that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            error if error.is_late() => 3,
            Self::NotFound(_)
            | Self::Destroyed { .. }
            | Self::BackendChoice(BackendChoiceError::NoDomain { .. }) => 4,
            Self::Interrupted => 130,
            _ => 1,
        }
    }

    /// Returns this error with the reason that `find` knows, if a wait has run out and its reason is
    /// not known yet.
    #[must_use]
    pub(crate) fn with_reason(self, find: impl FnOnce() -> Option<String>) -> Self {
        match self {
            Self::Timeout { what, after, reason } => {
                Self::Timeout { what, after, reason: reason.or_else(find) }
            }
            error => error,
        }
    }

    /// Returns this error with the outcome of undoing the steps before it.
    #[must_use]
    pub fn with_undoing(self, undone: Result<(), Self>) -> Self {
        match undone {
            Ok(()) => self,
            Err(left) => {
                Self::Refused(format!("{self}; and what was begun cannot be undone: {left}"))
            }
        }
    }

    /// Returns the error that a domain was destroyed by somebody else.
    pub(crate) fn destroyed(domain: impl Into<String>) -> Self {
        Self::Destroyed { domain: domain.into(), ended: None }
    }

    /// Converts an error in the `map_err` of domain control.
    pub fn platform(what: impl Into<String>) -> impl FnOnce(xen::Error) -> Self {
        let what = what.into();
        move |error| Self::Platform { what, error }
    }

    /// Converts an error in the `map_err` of I/O; `what` is the operation and its file.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Refused(format!("{what}: {}", crate::text::cause(&error)))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::BackendChoice(error) => error.fmt(f),
            Self::Supervisor(refusal) => refusal.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Platform { what, error } => write!(f, "{what}: {error}"),
            Self::NotFound(text)
            | Self::Refused(text)
            | Self::AlreadyThere(text)
            | Self::Ended(text) => f.write_str(text),
            Self::Destroyed { domain, ended: None } => {
                write!(f, "{domain} was destroyed meanwhile")
            }
            Self::Destroyed { domain, ended: Some(reason) } => {
                write!(f, "{domain} has ended ({reason}) and was destroyed meanwhile")
            }
            Self::Timeout { what, after, reason } => {
                write!(f, "{what}: not within {}; ", crate::text::took(*after))?;
                f.write_str(reason.as_deref().unwrap_or("--timeout allows more"))
            }
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::BackendChoice(error) => Some(error),
            Self::Supervisor(refusal) => Some(refusal),
            Self::Store(error) => Some(error),
            Self::Platform { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Store(error)
    }
}

impl From<SupervisorRefusal> for Error {
    fn from(refusal: SupervisorRefusal) -> Self {
        Self::Supervisor(refusal)
    }
}

impl From<BackendChoiceError> for Error {
    fn from(error: BackendChoiceError) -> Self {
        Self::BackendChoice(error)
    }
}

impl From<crate::config::Error> for Error {
    fn from(error: crate::config::Error) -> Self {
        Self::Config(error)
    }
}

impl From<xenbus::Error> for Error {
    fn from(error: xenbus::Error) -> Self {
        match error {
            xenbus::Error::Store(error) => Self::Store(error),
            error => Self::Refused(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_is_the_status_of_what_was_not_in_time_alone() {
        let late =
            || Error::Timeout { what: "it is there".into(), after: Duration::ZERO, reason: None };
        let text = || "it is so".to_owned();
        for (error, code) in [
            (late(), 3),
            (Error::Platform { what: text(), error: xen::Error::from_errno(TIMED_OUT) }, 3),
            (Error::Platform { what: text(), error: xen::Error::Busy }, 1),
            // What is left behind counts more than the reason.
            (late().with_undoing(Err(late())), 1),
            (late().with_undoing(Ok(())), 3),
            (Error::Refused(text()), 1),
            (Error::AlreadyThere(text()), 1),
            (Error::Ended(text()), 1),
            (Error::NotFound(text()), 4),
            (Error::destroyed("web"), 4),
            (Error::Interrupted, 130),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
