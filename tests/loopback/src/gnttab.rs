//! Grants of pages of this process.
#![allow(unsafe_code)]

use crate::Host;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use xen::gnttab::{Access, GrantMap, GrantOffer, Mapping, Offered, Status};
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};
use xen::{DomId, Error, GrantRef};

/// A page, kept as long as anyone offers it or has it mapped.
#[derive(Debug)]
struct Frame(SharedPage);

// SAFETY: the frame's own page is never used to copy; it is only where the views lead to.
unsafe impl Sync for Frame {}

/// Pages that are mapped one by one: the heap would spend two on each that is aligned.
struct Anonymous;

impl Unmap for Anonymous {
    fn unmap(&self, base: NonNull<u8>) {
        // SAFETY: `Frame::new` has mapped this page, and its last use is over.
        let _ = unsafe { munmap(base.as_ptr().cast(), PAGE_SIZE) };
    }
}

impl Frame {
    /// A page of zeroes.
    fn new() -> Result<Self, Error> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), PAGE_SIZE, prot, MapFlags::PRIVATE) };
        let base = base.ok().and_then(|base| NonNull::new(base.cast())).ok_or(Error::NoMem)?;
        // SAFETY: a page that can be written, until its owner unmaps it; this is the first view of it.
        Ok(Self(unsafe { SharedPage::from_mapped(base, Access::ReadWrite, Arc::new(Anonymous)) }))
    }
}

/// What a domain has granted.
#[derive(Debug)]
pub(crate) struct Entry {
    peer: DomId,
    access: Access,
    frame: Arc<Frame>,
}

/// The granter's view; its end is the end of the grant.
struct Offer {
    host: Host,
    key: (DomId, GrantRef),
    _frame: Arc<Frame>,
}

impl Unmap for Offer {
    fn unmap(&self, _: NonNull<u8>) {
        self.host.tables().grants.remove(&self.key);
    }
}

/// The mapping domain's view.
struct Map {
    host: Host,
    _frame: Arc<Frame>,
}

impl Unmap for Map {
    fn unmap(&self, _: NonNull<u8>) {
        self.host.tables().mapped -= 1;
    }
}

/// What `domid` grants and maps.
#[derive(Debug)]
pub struct Grants {
    host: Host,
    domid: DomId,
}

impl Grants {
    pub(crate) fn new(host: Host, domid: DomId) -> Self {
        Self { host, domid }
    }
}

impl GrantOffer for Grants {
    fn offer(&mut self, peer: DomId, access: Access) -> Result<Offered, Error> {
        let frame = Arc::new(Frame::new()?);
        let base = frame.0.as_ptr();
        let grant = {
            let mut tables = self.host.tables();
            tables.last_grant = tables.last_grant.max(GrantRef::FIRST_FREE.0) + 1;
            let grant = GrantRef(tables.last_grant);
            let entry = Entry { peer, access, frame: Arc::clone(&frame) };
            tables.grants.insert((self.domid, grant), entry);
            grant
        };
        let key = (self.domid, grant);
        let owner = Arc::new(Offer { host: self.host.clone(), key, _frame: frame });
        // SAFETY: the owner keeps the frame, which is a page that can be written; the peers of the
        // tests order their copies by ring indices, or are hostile on purpose, in one thread.
        let page = unsafe { SharedPage::from_mapped(base, Access::ReadWrite, owner) };
        Ok(Offered::new(peer, grant, page))
    }
}

impl GrantMap for Grants {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: Access) -> Result<Mapping, Error> {
        let frame = {
            let mut tables = self.host.tables();
            if tables.mapped_max.is_some_and(|most| tables.mapped >= most) {
                return Err(Error::Grant(Status::NoSpace));
            }
            if tables.refused.contains(&grant) {
                return Err(Error::Grant(Status::GeneralError));
            }
            let entry = tables.grants.get(&(domid, grant));
            let entry = entry.filter(|entry| entry.peer == self.domid);
            let entry = entry.ok_or(Error::Grant(Status::BadGntref))?;
            if access == Access::ReadWrite && entry.access == Access::Read {
                return Err(Error::Grant(Status::PermissionDenied));
            }
            let frame = Arc::clone(&entry.frame);
            tables.mapped += 1;
            frame
        };
        let base = frame.0.as_ptr();
        let owner = Arc::new(Map { host: self.host.clone(), _frame: frame });
        // SAFETY: as in `offer`.
        let page = unsafe { SharedPage::from_mapped(base, access, owner) };
        Ok(Mapping::new(domid, grant, page))
    }
}
