//! Grants of pages of this process.

use crate::Host;
use crate::frame::{Frame, GrantEntry};
use std::sync::Arc;
use xen::gnttab::{GrantMap, GrantOffer, GrantStatus, Mapping, OfferedPage, PageAccess};
use xen::{DomId, Error, GrantRef};

/// The grants and mappings of `domid`.
#[derive(Debug)]
pub struct Grants {
    host: Host,
    domid: DomId,
}

impl Host {
    /// Returns the grants to and by `domid`.
    #[must_use]
    pub fn gnttab(&self, domid: DomId) -> Grants {
        Grants { host: self.clone(), domid }
    }
}

impl GrantOffer for Grants {
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error> {
        let frame = Arc::new(Frame::new()?);
        let grant = {
            let mut tables = self.host.tables();
            tables.last_grant = tables.last_grant.max(GrantRef::FIRST_FREE.0) + 1;
            let grant = GrantRef(tables.last_grant);
            let entry = GrantEntry { peer, access, frame: Arc::clone(&frame) };
            tables.grants.insert((self.domid, grant), entry);
            grant
        };
        let (host, key) = (self.host.clone(), (self.domid, grant));
        let page = frame.view(PageAccess::ReadWrite, move || _ = host.tables().grants.remove(&key));
        Ok(OfferedPage::new(peer, grant, page))
    }
}

impl GrantMap for Grants {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> Result<Mapping, Error> {
        let frame = {
            let mut tables = self.host.tables();
            if tables.mapped_max.is_some_and(|most| tables.mapped >= most) {
                return Err(Error::Grant(GrantStatus::NoSpace));
            }
            if tables.refused.contains(&grant) {
                return Err(Error::Grant(GrantStatus::GeneralError));
            }
            let entry = tables.grants.get(&(domid, grant));
            let entry = entry.filter(|entry| entry.peer == self.domid);
            let entry = entry.ok_or(Error::Grant(GrantStatus::BadGntref))?;
            if access == PageAccess::ReadWrite && entry.access == PageAccess::Read {
                return Err(Error::Grant(GrantStatus::PermissionDenied));
            }
            let frame = Arc::clone(&entry.frame);
            tables.mapped += 1;
            frame
        };
        let host = self.host.clone();
        let page = frame.view(access, move || host.tables().mapped -= 1);
        Ok(Mapping::new(domid, grant, page))
    }
}
