//! The reasons why a domain cannot be the backend of a device.

use crate::text;
use std::fmt;

/// The reason why a domain cannot be the backend of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BackendChoiceError {
    /// There is no such domain.
    NoDomain {
        /// Its name or number.
        backend: String,
    },
    /// It is the domain that uses the device.
    Itself {
        /// Its name.
        domain: String,
    },
    /// It uses itself a device that the user of this one serves, perhaps through others.
    Circle {
        /// Its name.
        backend: String,
        /// The user of the device.
        user: String,
    },
}

impl fmt::Display for BackendChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomain { backend } => {
                let backend = text::clean(backend);
                write!(f, "backend={backend}: there is no domain {backend}; xb list shows all")
            }
            Self::Itself { domain } => {
                let domain = text::clean(domain);
                write!(f, "backend={domain}: a domain cannot serve itself; name another one")
            }
            Self::Circle { backend, user } => {
                let (backend, user) = (text::clean(backend), text::clean(user));
                write!(
                    f,
                    "backend={backend}: it would be a circle, as {backend} uses itself what {user} \
                     serves; name another one"
                )
            }
        }
    }
}

impl std::error::Error for BackendChoiceError {}
