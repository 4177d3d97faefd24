//! Errors of a device.

use crate::state::IllegalMove;
use std::fmt;
use xen::Port;
use xen_io::ring::RingError;

/// The errno(3) number for a fault of what a driver itself uses, such as the file of a disk.
pub const EIO: i32 = 5;

/// The reason that a device is not, or no longer, connected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The store refused, or is gone.
    Store(xenstore::Error),
    /// The peer made a move that the tables do not know.
    Illegal(IllegalMove),
    /// A node that is needed is not there.
    Missing {
        /// Its path.
        path: String,
    },
    /// The value of a node is invalid.
    Bad {
        /// Its path.
        path: String,
        /// The beginning of its value.
        value: Vec<u8>,
        /// The value that was expected.
        wanted: &'static str,
    },
    /// An operation on event channels or grants has failed.
    Platform {
        /// The operation that failed.
        what: &'static str,
        /// The error of the hypervisor.
        error: xen::Error,
    },
    /// A ring cannot be used: the other end has broken it, or it was never a ring.
    Ring(RingError),
    /// The peer begins anew again and again without ever being connected.
    Flaps {
        /// The number of restarts.
        restarts: u32,
    },
    /// The port that the other end names is bound already, or is not offered to this domain.
    PortTaken(Port),
    /// The hotplug script of a backend has failed, with this message.
    Hotplug(String),
    /// The device, or a resource of its driver, is in use elsewhere for now: its user, and a
    /// remedy.
    Busy(String),
    /// A resource of the driver is not there, and may come back: the driver's message.
    Away(String),
    /// The other end has given the device up, with this message.
    Theirs {
        /// The errno(3) number before the message.
        errno: i32,
        /// The message.
        text: String,
    },
    /// The message of a driver.
    Driver(String),
}

impl Error {
    /// Adds the operation that failed, for the `map_err` of event channels and grants.
    pub fn platform(what: &'static str) -> impl FnOnce(xen::Error) -> Self {
        move |error| Self::Platform { what, error }
    }

    /// The errno(3) number that stands before the text in an `error` node, as Linux's `xenbus_dev_error` has it. It is
    /// [`EIO`] for what the driver itself uses, and another for what the other end has offered.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Platform { error, .. } => error.errno(),
            Self::Store(error) => error.errno(),
            Self::Theirs { errno, .. } => *errno,
            Self::Missing { .. } => xen::Error::NoEnt.errno(),
            Self::Busy(_) => xen::Error::Busy.errno(),
            Self::Away(_) | Self::Driver(_) => EIO,
            _ => xen::Error::Inval.errno(),
        }
    }

    /// True if the connection to the store has failed: nothing can be done about any device.
    #[must_use]
    pub fn is_store_gone(&self) -> bool {
        use xenstore::Error::{Conflict, NulByte, Refused, TooLong, Unsteady};
        let Self::Store(error) = self else { return false };
        // These are about one request, and some were never sent.
        !matches!(
            error,
            Refused { .. } | Conflict { .. } | NulByte { .. } | TooLong { .. } | Unsteady { .. }
        )
    }
}

/// Most bytes of a peer's value that an error repeats.
pub(crate) const VALUE_MAX: usize = 64;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Illegal(illegal) => illegal.fmt(f),
            Self::Missing { path } => write!(f, "{path} is not there"),
            Self::Bad { path, value, wanted } => {
                write!(f, "{path} is \"{}\"; {wanted} is needed", value.escape_ascii())
            }
            Self::Platform { what, error } => write!(f, "{what}: {error}"),
            Self::Ring(error @ RingError::Index { .. }) => {
                write!(f, "the other end has broken the ring: {error}")
            }
            Self::Ring(error) => write!(f, "the ring: {error}"),
            Self::Flaps { restarts } => write!(
                f,
                "the other end began anew {restarts} times without connecting; \
                 detach and attach the device to try again"
            ),
            Self::PortTaken(port) => write!(
                f,
                "binding event channel {port} of the other end: it is bound already, or is not for this domain"
            ),
            Self::Hotplug(text) => write!(f, "the hotplug script failed: {text}"),
            Self::Busy(text) => write!(f, "EBUSY: {text}"),
            Self::Away(text) | Self::Driver(text) | Self::Theirs { text, .. } => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Illegal(illegal) => Some(illegal),
            Self::Platform { error, .. } => Some(error),
            Self::Ring(error) => Some(error),
            _ => None,
        }
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::Store(error)
    }
}

impl From<RingError> for Error {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl From<IllegalMove> for Error {
    fn from(illegal: IllegalMove) -> Self {
        Self::Illegal(illegal)
    }
}
