//! Causes of the host and its daemons.

use crate::doctor::subject::{FaultSubject, Remedy};
use std::path::PathBuf;
use xen::DomId;

/// A fault of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostFault {
    /// No daemon of it runs.
    Down {
        /// Its folder.
        folder: PathBuf,
    },
    /// A daemon does not run.
    DaemonDown {
        /// The daemon's name.
        daemon: String,
        /// Its part in the host, in words.
        part: String,
    },
    /// A daemon is stopped, by SIGSTOP or a debugger.
    DaemonStopped {
        /// The daemon's name.
        daemon: String,
        /// Its process.
        pid: i32,
    },
    /// A domain that no longer exists has left nodes.
    Remains {
        /// Its number.
        domid: DomId,
    },
}

impl HostFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Down { .. } => "host-down",
            Self::DaemonDown { .. } => "daemon-down",
            Self::DaemonStopped { .. } => "daemon-stopped",
            Self::Remains { .. } => "remains",
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Down { folder } => format!("no host is up in {}", folder.display()),
            Self::DaemonDown { daemon, part } => format!("the {part} ({daemon}) does not run"),
            Self::DaemonStopped { daemon, pid } => {
                format!("{daemon} (process {pid}) is stopped and does nothing")
            }
            Self::Remains { domid } => {
                format!("domain {domid} is gone, and devices and nodes of it are left")
            }
        }
    }

    pub(super) fn remedy(&self, of: &FaultSubject) -> Remedy {
        match self {
            Self::Down { .. } | Self::DaemonDown { .. } => of.xb("start it with", "host up"),
            Self::DaemonStopped { pid, .. } => {
                Remedy::new("let it go on with", format!("kill -CONT {pid}"))
            }
            Self::Remains { domid } if of.hosted => {
                of.xb("remove them with", &format!("destroy {domid}"))
            }
            Self::Remains { domid } => {
                Remedy::new("remove them with", format!("xenstore-rm /libxl/{domid}"))
            }
        }
    }
}
