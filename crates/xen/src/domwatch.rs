//! The life of domains, as the hypervisor tells it.
//!
//! Source: `VIRQ_DOM_EXC` in `xen/include/public/xen.h`, `XEN_DOMCTL_get_domain_state` and
//! `XEN_DOMCTL_getdomaininfo` in `domctl.h`, Linux `drivers/xen/xenfs` (`xsd_kva`, `xsd_port`).

use crate::shared::SharedPage;
use crate::{DomId, Error, Port};

/// The reason of a domain's shutdown (`SHUTDOWN_*`, `xen/include/public/sched.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ShutdownReason {
    /// It has ended.
    Poweroff,
    /// It wants to be started again.
    Reboot,
    /// It has stopped to be saved.
    Suspend,
    /// It has crashed.
    Crash,
    /// Its watchdog has bitten.
    Watchdog,
    /// It wants a new start that keeps its memory.
    SoftReset,
    /// A code that is newer than this list.
    Other(u8),
}

/// Each reason with its number in `sched.h`.
const REASONS: [(ShutdownReason, u8); 6] = [
    (ShutdownReason::Poweroff, 0),
    (ShutdownReason::Reboot, 1),
    (ShutdownReason::Suspend, 2),
    (ShutdownReason::Crash, 3),
    (ShutdownReason::Watchdog, 4),
    (ShutdownReason::SoftReset, 5),
];

impl ShutdownReason {
    /// The reason with this number in `sched.h`.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        REASONS.iter().find(|row| row.1 == code).map_or(Self::Other(code), |row| row.0)
    }

    /// The number of this reason in `sched.h`.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Other(code) => code,
            named => REASONS.iter().find(|row| row.0 == named).map_or(0, |row| row.1),
        }
    }
}

/// A change in the life of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DomainEvent {
    /// The domain exists now, and did not at the last poll.
    Came(DomId),
    /// The domain has shut down or crashed; it still exists. May be reported again as long as that
    /// is so: the store decides if it is news.
    Shutdown(DomId, ShutdownReason),
    /// The domain does not exist any more. Its number may belong to another domain already.
    Died(DomId),
}

/// The ring between the domain that the store runs in and that domain's own kernel.
#[derive(Debug)]
pub struct OwnRing {
    /// The page (`/proc/xen/xsd_kva`).
    pub page: SharedPage,
    /// The unbound port at which the kernel waits (`/proc/xen/xsd_port`).
    pub port: Port,
}

/// A watch over the domains of the host.
pub trait DomainWatch {
    /// Returns the number that tells the domain from all that had `domid` before it (Xen's
    /// `unique_id`); `None` if the hypervisor knows no domain of this number at the moment.
    fn identity(&mut self, domid: DomId) -> Option<u64>;

    /// Returns the next change since the last poll; to be called after every
    /// [`Virq::DomExc`](crate::evtchn::Virq::DomExc) until there is none.
    ///
    /// # Errors
    /// The error of the hypervisor.
    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error>;

    /// Returns the ring of the caller's own domain, once; `None` where its kernel has none.
    ///
    /// # Errors
    /// The error of the kernel.
    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(ShutdownReason::from_code(code).code(), code);
        }
        assert_eq!(ShutdownReason::from_code(3), ShutdownReason::Crash);
    }
}
