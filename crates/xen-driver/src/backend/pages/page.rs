//! A page that several requests may name at a time.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use xen::gnttab::PageAccess;
use xen::shared::{PageError, SharedPage};

/// A page that requests name: a guest's, mapped, or one of this process. Cloned, it stays mapped until
/// the last clone is gone.
#[derive(Clone, Debug)]
pub struct RequestPage(Arc<SyncPage>);

#[derive(Debug)]
struct SyncPage(SharedPage);

// SAFETY: a `SharedPage` is not `Sync` only because copies of two threads could meet in the same bytes.
// These pages are written by a guest, or by the kernel for it, at any time, so every byte may be old or
// new anyway; each access is one volatile access, and no reference to the bytes exists.
unsafe impl Sync for SyncPage {}

impl RequestPage {
    /// Takes over a page.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self(Arc::new(SyncPage(page)))
    }

    /// A page of zeroes of this process.
    #[must_use]
    pub fn private() -> Self {
        Self::new(SharedPage::private())
    }

    /// Copies bytes out of the page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), PageError> {
        self.0.0.copy_out(offset, to)
    }

    /// Copies bytes into the page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), PageError> {
        self.0.0.copy_in(offset, from)
    }

    /// The address of its first byte, for system calls that read or write it where it is. It is there as long as this
    /// page or a clone of it.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.0.0.as_ptr()
    }

    /// The access with which it is mapped.
    #[must_use]
    pub fn access(&self) -> PageAccess {
        self.0.0.access()
    }

    /// True if a request that has not ended names it.
    #[must_use]
    pub fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}
