//! Errors of Xen's devices and interfaces on this machine.

use std::fmt;

/// The reason that a device of Xen could not be opened or does not work.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A device or file of Xen cannot be used.
    Device {
        /// Its path.
        path: &'static str,
        /// The error of the kernel.
        error: xen::Error,
        /// Advice on the likely cause.
        hint: &'static str,
    },
    /// The hypervisor speaks no version of its control interface that is known here.
    Version {
        /// The version of the hypervisor in its own words, such as `4.17.5`.
        xen: String,
        /// The interface.
        interface: &'static str,
        /// The versions that were tried.
        tried: &'static [u32],
    },
    /// The hypervisor refuses what domain 0 may do.
    Refused {
        /// The call that was refused.
        what: &'static str,
        /// The error of the hypervisor.
        error: xen::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { path, error, hint } => write!(f, "{path}: {error}; {hint}"),
            Self::Version { xen, interface, tried } => {
                let tried: Vec<String> = tried.iter().map(|one| format!("{one:#x}")).collect();
                let tried = tried.join(", ");
                write!(
                    f,
                    "Xen {xen} speaks no known version of {interface}: tried {tried} (Xen 4.17 to 4.23)"
                )
            }
            Self::Refused { what, error } => {
                write!(f, "the hypervisor refuses {what}: {error}; is this domain 0, and root?")
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_version_names_what_was_tried() {
        let error =
            Error::Version { xen: "5.1.0".to_owned(), interface: "domctl", tried: &[0x15, 0x16] };
        assert_eq!(
            error.to_string(),
            "Xen 5.1.0 speaks no known version of domctl: tried 0x15, 0x16 (Xen 4.17 to 4.23)"
        );
    }
}
