//! Grants: pages that one domain lets another reach, seen from both sides.
//!
//! The side that maps (a backend) takes [`GrantMap`], the side that offers (a frontend)
//! [`GrantOffer`]. Dropping a [`Mapping`] unmaps it, dropping an [`OfferedPage`] page ends its grant.
//!
//! Source: `xen/include/public/grant_table.h`, Linux `include/uapi/xen/gntdev.h` and `gntalloc.h`.

pub use crate::status::{GrantStatus, STATUSES};
pub use crate::types::PageAccess;

use crate::shared::{PageError, SharedPage};
use crate::{DomId, Error, GrantRef};

/// One granted page, mapped; dropping it unmaps.
#[derive(Debug)]
pub struct Mapping {
    page: SharedPage,
    domid: DomId,
    grant: GrantRef,
}

impl Mapping {
    /// A mapping of `grant` of `domid` at `page`; for providers.
    #[must_use]
    pub fn new(domid: DomId, grant: GrantRef, page: SharedPage) -> Self {
        Self { page, domid, grant }
    }

    /// The domain that granted the page.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// The reference that was mapped.
    #[must_use]
    pub fn grant(&self) -> GrantRef {
        self.grant
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> &SharedPage {
        &self.page
    }

    /// The page alone; dropping that unmaps.
    #[must_use]
    pub fn into_page(self) -> SharedPage {
        self.page
    }
}

/// One piece of a copy between a granted page and a buffer of this process.
#[derive(Clone, Copy, Debug)]
pub struct CopySegment {
    /// The domain that granted the page.
    pub domid: DomId,
    /// The page.
    pub grant: GrantRef,
    /// Offset in the page, in bytes.
    pub offset: u16,
    /// Length in bytes; `offset + len` is at most 4096.
    pub len: u16,
    /// Offset in the buffer, in bytes.
    pub at: usize,
    /// The outcome, filled in by the copy.
    pub status: Result<(), GrantStatus>,
}

impl CopySegment {
    /// `len` bytes at `offset` of a page, and at `at` of the buffer.
    #[must_use]
    pub fn new(domid: DomId, grant: GrantRef, offset: u16, len: u16, at: usize) -> Self {
        Self { domid, grant, offset, len, at, status: Ok(()) }
    }
}

/// Reaches pages that other domains have granted to this one.
pub trait GrantMap {
    /// Maps one page.
    ///
    /// # Errors
    /// [`Error::Grant`] with the hypervisor's reason where the platform passes it on, else
    /// [`Error::Srch`] no such domain, [`Error::Inval`] no such grant or not for this domain,
    /// [`Error::NoSpc`] no free entry for it.
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> Result<Mapping, Error>;

    /// Maps many pages of one domain: one result each, in order, pushed onto `into`. A page that
    /// cannot be mapped does not affect the others.
    fn map_batch(
        &mut self,
        domid: DomId,
        grants: &[GrantRef],
        access: PageAccess,
        into: &mut Vec<Result<Mapping, Error>>,
    ) {
        into.extend(grants.iter().map(|grant| self.map(domid, *grant, access)));
    }

    /// Copies from granted pages into `to`. Each segment gets its status. A platform that can do so
    /// without mapping the pages does.
    ///
    /// # Errors
    /// None of the segments was tried: [`Error::Inval`] a segment leaves the buffer, or the error
    /// of the driver.
    fn copy_out(&mut self, segments: &mut [CopySegment], to: &mut [u8]) -> Result<(), Error> {
        check_buffer(segments, to.len())?;
        for segment in segments {
            let mapped = self.map(segment.domid, segment.grant, PageAccess::Read);
            let piece = &mut to[segment.at..][..usize::from(segment.len)];
            segment.status = copied(mapped, |page| page.copy_out(segment.offset.into(), piece));
        }
        Ok(())
    }

    /// Copies `from` into granted pages. Each segment gets its status. A platform that can do so
    /// without mapping the pages does.
    ///
    /// # Errors
    /// As [`GrantMap::copy_out`].
    fn copy_in(&mut self, segments: &mut [CopySegment], from: &[u8]) -> Result<(), Error> {
        check_buffer(segments, from.len())?;
        for segment in segments {
            let mapped = self.map(segment.domid, segment.grant, PageAccess::ReadWrite);
            let piece = &from[segment.at..][..usize::from(segment.len)];
            segment.status = copied(mapped, |page| page.copy_in(segment.offset.into(), piece));
        }
        Ok(())
    }
}

/// Checks that all segments lie inside a buffer of `len` bytes.
///
/// # Errors
/// [`Error::Inval`] where one does not.
pub fn check_buffer(segments: &[CopySegment], len: usize) -> Result<(), Error> {
    let inside = |segment: &CopySegment| {
        segment.at.checked_add(segment.len.into()).is_some_and(|end| end <= len)
    };
    if segments.iter().all(inside) { Ok(()) } else { Err(Error::Inval) }
}

/// The status of one segment, copied by mapping its page.
fn copied(
    mapped: Result<Mapping, Error>,
    copy: impl FnOnce(&SharedPage) -> Result<(), PageError>,
) -> Result<(), GrantStatus> {
    match mapped {
        Ok(mapping) => copy(mapping.page()).map_err(|_| GrantStatus::BadCopyArg),
        Err(Error::Grant(status)) => Err(status),
        Err(Error::Srch) => Err(GrantStatus::BadDomain),
        Err(_) => Err(GrantStatus::GeneralError),
    }
}

/// A page of this domain that another may reach; dropping it ends the grant.
///
/// The memory belongs to the provider, which uses it for nothing else as long as the other domain
/// has it mapped: ending a grant never waits, and a domain that keeps its mapping keeps that page
/// and nothing more.
#[derive(Debug)]
pub struct OfferedPage {
    page: SharedPage,
    peer: DomId,
    grant: GrantRef,
}

impl OfferedPage {
    /// `page`, granted to `peer` under `grant`; for providers. Dropping the page ends the grant.
    #[must_use]
    pub fn new(peer: DomId, grant: GrantRef, page: SharedPage) -> Self {
        Self { page, peer, grant }
    }

    /// Returns the domain that may reach the page.
    #[must_use]
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// Returns the reference, which the peer needs to map the page.
    #[must_use]
    pub fn grant(&self) -> GrantRef {
        self.grant
    }

    /// The page, to be read and written by this side.
    #[must_use]
    pub fn page(&self) -> &SharedPage {
        &self.page
    }
    /// The page alone; dropping that ends the grant.
    #[must_use]
    pub fn into_page(self) -> SharedPage {
        self.page
    }
}

/// Grants pages of this domain to others.
pub trait GrantOffer {
    /// A page of zeroes that `peer` may map or copy.
    ///
    /// # Errors
    /// [`Error::NoSpc`] or [`Error::NoPages`] no free grant entry or page, [`Error::Srch`] no such domain where the
    /// platform looks (Xen does not: a grant to nobody is one that nobody can map).
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error>;

    /// `count` such pages, pushed onto `into`: all of them or none.
    ///
    /// # Errors
    /// As [`GrantOffer::offer`].
    fn offer_batch(
        &mut self,
        peer: DomId,
        access: PageAccess,
        count: usize,
        into: &mut Vec<OfferedPage>,
    ) -> Result<(), Error> {
        let before = into.len();
        for _ in 0..count {
            match self.offer(peer, access) {
                Ok(offered) => into.push(offered),
                Err(error) => {
                    into.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One page of one domain.
    struct OnePage(SharedPage);

    impl GrantMap for OnePage {
        fn map(&mut self, domid: DomId, grant: GrantRef, _: PageAccess) -> Result<Mapping, Error> {
            if domid != DomId(3) {
                return Err(Error::Grant(GrantStatus::BadDomain));
            }
            let page = SharedPage::private();
            let mut bytes = [0; 4096];
            self.0.copy_out(0, &mut bytes).unwrap();
            page.copy_in(0, &bytes).unwrap();
            Ok(Mapping::new(domid, grant, page))
        }
    }

    #[test]
    fn a_copy_says_what_became_of_each_segment() {
        let page = SharedPage::private();
        page.copy_in(4000, b"granted").unwrap();
        let mut grants = OnePage(page);
        let mut bytes = [0; 16];
        let piece = |domid, offset, at| CopySegment::new(DomId(domid), GrantRef(9), offset, 7, at);
        let mut segments = [piece(3, 4000, 2), piece(4, 0, 0), piece(3, 4090, 9)];
        grants.copy_out(&mut segments, &mut bytes).unwrap();
        assert_eq!(segments[0].status, Ok(()));
        assert_eq!(segments[1].status, Err(GrantStatus::BadDomain));
        assert_eq!(segments[2].status, Err(GrantStatus::BadCopyArg));
        assert_eq!(&bytes, b"\0\0granted\0\0\0\0\0\0\0");
        for at in [10, usize::MAX] {
            let outside = grants.copy_out(&mut [piece(3, 0, at)], &mut bytes);
            assert_eq!(outside, Err(Error::Inval));
        }
    }
}
