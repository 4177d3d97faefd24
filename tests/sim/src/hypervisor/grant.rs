//! A grant and its page.

use crate::page::{DomainFrame, Pin};
use std::sync::Arc;
use xen::DomId;
use xen::gnttab::{GrantStatus, PageAccess};

/// An entry in use.
pub(crate) struct Grant {
    pub(super) peer: DomId,
    pub(super) access: PageAccess,
    pub(super) frame: Arc<DomainFrame>,
    pub(super) pin: Arc<Pin>,
}

impl Grant {
    /// True if the entry can be used for another grant.
    pub(super) fn is_over(&self) -> bool {
        self.pin.is_ended() && self.pin.mappings() == 0
    }

    /// True if any domain has it mapped.
    pub(super) fn is_mapped(&self) -> bool {
        self.pin.mappings() > 0
    }

    /// Checks that `peer` may map the grant with this access. A grant that is mapped already is not
    /// checked again, unless this is its first writable mapping.
    pub(super) fn check(&self, peer: DomId, access: PageAccess) -> Result<(), GrantStatus> {
        let pinned = self.pin.mappings() > 0;
        if self.peer != peer || (!pinned && self.pin.is_ended()) {
            return Err(GrantStatus::GeneralError);
        }
        let writes = access == PageAccess::ReadWrite && self.pin.writers() == 0;
        if writes && (self.access == PageAccess::Read || self.pin.is_ended()) {
            return Err(GrantStatus::GeneralError);
        }
        Ok(())
    }
}
