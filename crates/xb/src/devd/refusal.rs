//! The reasons why a machine has no backends to supervise.

use std::fmt;

/// The reason why a supervisor of backends makes no sense on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SupervisorRefusal {
    /// It is domain 0 of a Xen host.
    ControlDomain,
    /// It is no domain, and no hosted host is named.
    NoDomain,
}

impl fmt::Display for SupervisorRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlDomain => {
                "xb devd is for driver domains, and this is domain 0 of a Xen host: here systemd \
                 starts xen-blockd (systemctl enable --now xen-blockd), and xl runs scripts"
            }
            Self::NoDomain => {
                "xb devd runs in a driver domain of Xen, and this machine is no domain; for a \
                 hosted host, xb host up starts it (--host DIR names another one)"
            }
        })
    }
}

impl std::error::Error for SupervisorRefusal {}
