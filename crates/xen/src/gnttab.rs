//! Grants, seen from the side that maps them.
//!
//! Source: `xen/include/public/grant_table.h`, Linux `include/uapi/xen/gntdev.h`.

use crate::shared::SharedPage;
use crate::{DomId, Error, GrantRef};

/// What the mapping side wants to do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

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

/// Maps pages that other domains have granted to this one.
pub trait GrantMap {
    /// Maps one page.
    ///
    /// # Errors
    /// [`Error::Srch`] no such domain, [`Error::Inval`] no such grant or not for this domain,
    /// [`Error::NoSpc`] no free entry for it.
    fn map(&mut self, domid: DomId, grant: GrantRef, access: Access) -> Result<Mapping, Error>;
}
