//! A page that is granted: the views of both ends lead to one place.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};
use xen::{DomId, Error};

/// A page, kept as long as anyone offers it or maps it.
#[derive(Debug)]
pub(crate) struct Frame(SharedPage);

// SAFETY: the frame's own page is never used to copy; it is only where the views lead to.
unsafe impl Sync for Frame {}

/// Pages that are mapped one by one: the heap would spend two on each that is aligned.
struct AnonymousPage;

impl Unmap for AnonymousPage {
    fn unmap(&self, base: NonNull<u8>) {
        // SAFETY: `Frame::new` has mapped this page, and its last use is over.
        let _ = unsafe { munmap(base.as_ptr().cast(), PAGE_SIZE) };
    }
}

impl Frame {
    /// Maps a page of zeroes.
    pub(crate) fn new() -> Result<Self, Error> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), PAGE_SIZE, prot, MapFlags::PRIVATE) };
        let base = base.ok().and_then(|base| NonNull::new(base.cast())).ok_or(Error::NoMem)?;
        // SAFETY: a page that can be written, until its owner unmaps it; this is the first view of it.
        Ok(Self(unsafe {
            SharedPage::from_mapped(base, PageAccess::ReadWrite, Arc::new(AnonymousPage))
        }))
    }

    /// Returns a view of the page, which keeps the frame; `end` is called after the view's last
    /// use.
    pub(crate) fn view(
        self: Arc<Self>,
        access: PageAccess,
        end: impl Fn() + Send + Sync + 'static,
    ) -> SharedPage {
        let base = self.0.as_ptr();
        let owner = Arc::new(MappedView { _frame: self, end });
        // SAFETY: the owner keeps the frame, which is a page that can be written; the peers of the
        // tests order their copies by ring indices, or are hostile on purpose, in one thread.
        unsafe { SharedPage::from_mapped(base, access, owner) }
    }
}

/// The part of a view that keeps the frame and calls the view's end when it is dropped.
struct MappedView<F> {
    _frame: Arc<Frame>,
    end: F,
}

impl<F: Fn() + Send + Sync> Unmap for MappedView<F> {
    fn unmap(&self, _: NonNull<u8>) {
        (self.end)();
    }
}

/// The grants of a domain.
#[derive(Debug)]
pub(crate) struct GrantEntry {
    pub(crate) peer: DomId,
    pub(crate) access: PageAccess,
    pub(crate) frame: Arc<Frame>,
}
