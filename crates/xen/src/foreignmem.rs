//! Another domain's memory, for the domain that the hypervisor trusts with it (domain 0).
//!
//! Source: `xen/include/public/memory.h`, Linux `include/uapi/xen/privcmd.h`.

use crate::gnttab::PageAccess;
use crate::shared::SharedPage;
use crate::{DomId, Error, Gfn};

/// Maps pages that were not granted, as a domain builder or an old console daemon does. Drivers use
/// [`GrantMap`](crate::gnttab::GrantMap) instead.
pub trait ForeignMemory {
    /// Maps the page at `gfn` of `domid`; dropping it unmaps.
    ///
    /// # Errors
    /// [`Error::Perm`] not privileged over that domain, [`Error::Srch`] no such domain,
    /// [`Error::Inval`] no page there.
    fn map(&mut self, domid: DomId, gfn: Gfn, access: PageAccess) -> Result<SharedPage, Error>;
}
