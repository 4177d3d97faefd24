//! The causes for which a device does not work. Each is a value that carries what was found, and has
//! a sentence and a remedy.

mod backend;
mod guest;
mod host;
mod nodes;
mod target;

use super::subject::{FaultSubject, Remedy};

pub use backend::BackendFault;
pub use guest::GuestFault;
pub use host::HostFault;
pub use nodes::NodeFault;
pub use target::TargetFault;

/// A cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FaultCause {
    /// Of the host and its daemons.
    Host(HostFault),
    /// Of the backend's process or domain.
    Backend(BackendFault),
    /// Of what the backend serves, or of its hotplug script.
    Target(TargetFault),
    /// Of the guest.
    Guest(GuestFault),
    /// Of the device's nodes.
    Nodes(NodeFault),
}

impl FaultCause {
    /// Returns its name for programs: `backend-down`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Host(fault) => fault.name(),
            Self::Backend(fault) => fault.name(),
            Self::Target(fault) => fault.name(),
            Self::Guest(fault) => fault.name(),
            Self::Nodes(fault) => fault.name(),
        }
    }

    /// True if the same facts show a device or a domain that is about to come, to connect or to go.
    #[must_use]
    pub fn is_of_progress(&self) -> bool {
        matches!(
            self,
            Self::Host(HostFault::Remains { .. })
                | Self::Backend(BackendFault::Undecided | BackendFault::NoneInDomain { .. })
                | Self::Guest(GuestFault::NoDriver)
                | Self::Nodes(NodeFault::EndMissing { .. })
        )
    }

    /// Returns what it does to a device, as the verb of a sentence.
    #[must_use]
    pub fn effect(&self) -> &'static str {
        match self {
            Self::Backend(BackendFault::Throttled { .. }) => "is slow",
            Self::Backend(BackendFault::SupervisorSilent { .. }) => "is not looked after",
            Self::Guest(GuestFault::InUse { .. } | GuestFault::Keeps) => "is not let go of",
            Self::Nodes(NodeFault::Barred(_)) => "is hindered",
            Self::Target(_) | Self::Nodes(_) | Self::Guest(GuestFault::Refuses { .. }) => {
                "is not connected"
            }
            _ => "waits",
        }
    }

    /// Returns what was found, as a clause.
    #[must_use]
    pub fn text(&self, of: &FaultSubject) -> String {
        match self {
            Self::Host(fault) => fault.text(),
            Self::Backend(fault) => fault.text(),
            Self::Target(fault) => fault.text(),
            Self::Guest(fault) => fault.text(of),
            Self::Nodes(fault) => fault.text(),
        }
    }

    /// Returns the command that helps.
    #[must_use]
    pub fn remedy(&self, of: &FaultSubject) -> Remedy {
        match self {
            Self::Host(fault) => fault.remedy(of),
            Self::Backend(fault) => fault.remedy(of),
            Self::Target(fault) => fault.remedy(of),
            Self::Guest(fault) => fault.remedy(of),
            Self::Nodes(fault) => fault.remedy(of),
        }
    }
}
