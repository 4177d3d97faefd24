//! The life of domains, as the hypervisor tells it.
//!
//! Source: `VIRQ_DOM_EXC` in `xen/include/public/xen.h`, `XEN_DOMCTL_get_domain_state` and
//! `XEN_DOMCTL_getdomaininfo` in `domctl.h`, Linux `drivers/xen/xenfs` (`xsd_kva`, `xsd_port`).

use crate::shared::SharedPage;
use crate::{DomId, Error, Port};

/// What became of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DomainEvent {
    /// It has shut down or crashed; it still exists. May be said again as long as that is so: whether
    /// it is news is for the store to know.
    Shutdown(DomId),
    /// It does not exist any more. Its number may be another domain's already.
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

/// Which domains there are.
pub trait DomainWatch {
    /// What tells the domain of this number from all that had it before (Xen's `unique_id`); `None`
    /// where the hypervisor knows no domain of this number at the moment.
    fn identity(&mut self, domid: DomId) -> Option<u64>;

    /// The next change since it was last asked; to be called after every
    /// [`Virq::DomExc`](crate::evtchn::Virq::DomExc) until there is none.
    ///
    /// # Errors
    /// What the hypervisor answered.
    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error>;

    /// The ring of the caller's own domain; `None` where its kernel has none. Given out once.
    ///
    /// # Errors
    /// What the kernel answered.
    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error>;
}
