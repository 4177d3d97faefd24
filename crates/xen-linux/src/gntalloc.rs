//! Pages granted to other domains, through `/dev/xen/gntalloc`.
//!
//! The kernel chooses the references, none of them reserved, and keeps a page that its peer still
//! has mapped when the grant is ended, until it is unmapped.
#![allow(unsafe_code)]

use crate::abi;
use crate::sys::DeviceFile;
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::{DomId, Error, GrantRef};

/// The device.
#[derive(Debug)]
pub struct Gntalloc {
    device: DeviceFile,
}

impl Gntalloc {
    /// Opens the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn open() -> Result<Self, crate::Error> {
        Ok(Self { device: DeviceFile::open("/dev/xen/gntalloc")? })
    }
}

impl GrantOffer for Gntalloc {
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error> {
        let flags = match access {
            PageAccess::Read => 0,
            PageAccess::ReadWrite => abi::GNTALLOC_FLAG_WRITABLE,
        };
        let mut asked =
            abi::ioctl_gntalloc_alloc_gref { domid: peer.0, flags, count: 1, ..Default::default() };
        // SAFETY: the structure of the request, with room for the one reference asked for.
        unsafe { self.device.call(abi::IOCTL_GNTALLOC_ALLOC_GREF, &mut asked) }?;
        let region = self.device.map(asked.index, 1, PageAccess::ReadWrite);
        // The mapping keeps the grant; unmapping ends it.
        let mut undo = abi::ioctl_gntalloc_dealloc_gref { index: asked.index, count: asked.count };
        // SAFETY: the structure of the request; it holds no pointer.
        let _ = unsafe { self.device.call(abi::IOCTL_GNTALLOC_DEALLOC_GREF, &mut undo) };
        let page = region?.into_pages().next().ok_or(Error::Inval)?;
        Ok(OfferedPage::new(peer, GrantRef(asked.gref_ids[0]), page))
    }
}
