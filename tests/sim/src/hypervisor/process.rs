//! A process of a domain, as the hypervisor knows it.

use xen::DomId;

/// The holder of a domain's traits: one process of one domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DomainProcess {
    pub(crate) domid: DomId,
    pub(crate) identity: u64,
}
