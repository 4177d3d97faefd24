//! A grant and its page.

use crate::page::{Frame, Pin};
use std::sync::Arc;
use xen::DomId;
use xen::gnttab::{Access, Status};

/// An entry in use.
pub(crate) struct Grant {
    pub(super) peer: DomId,
    pub(super) access: Access,
    pub(super) frame: Arc<Frame>,
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
    pub(super) fn check(&self, peer: DomId, access: Access) -> Result<(), Status> {
        let pinned = self.pin.mappings() > 0;
        if self.peer != peer || (!pinned && self.pin.is_ended()) {
            return Err(Status::GeneralError);
        }
        let writes = access == Access::ReadWrite && self.pin.writers() == 0;
        if writes && (self.access == Access::Read || self.pin.is_ended()) {
            return Err(Status::GeneralError);
        }
        Ok(())
    }
}
