//! Pages that several domains see. Each mapping is a view of the page's bytes.
//!
//! The whole host is one thread, so copies of two views never overlap in time. This is the only module
//! with `unsafe`: the `xen` crate asks its providers to vouch for what they map.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use xen::gnttab::PageAccess;
use xen::shared::{SharedPage, Unmap};

/// The counts of a grant's mappings, and its end. Shared with the views, which outlive a domain.
#[derive(Debug, Default)]
pub(crate) struct Pin {
    readers: AtomicU32,
    writers: AtomicU32,
    ended: AtomicBool,
}

impl Pin {
    /// Returns the number of mappings.
    pub(crate) fn mappings(&self) -> u32 {
        self.readers.load(SeqCst) + self.writers.load(SeqCst)
    }

    /// Returns the number of writable mappings.
    pub(crate) fn writers(&self) -> u32 {
        self.writers.load(SeqCst)
    }

    /// True if the granter has ended the grant.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Ends the grant on the granter's side.
    pub(crate) fn end(&self) {
        self.ended.store(true, SeqCst);
    }

    fn count(&self, access: PageAccess) -> &AtomicU32 {
        match access {
            PageAccess::Read => &self.readers,
            PageAccess::ReadWrite => &self.writers,
        }
    }
}

/// The kind of a view, which determines the effect of its end.
enum ViewKind {
    /// The domain's own view of its page, whose end has no effect.
    Look,
    /// A mapping, whose end decrements the count of mappings.
    Mapping(Arc<Pin>, PageAccess),
    /// An offer, whose end ends the grant.
    Offer(Arc<Pin>),
}

/// A page of a domain's memory, zeroes at first.
pub(crate) struct DomainFrame {
    page: Mutex<SharedPage>,
}

struct FrameView {
    /// Kept until the view is gone.
    _frame: Arc<DomainFrame>,
    kind: ViewKind,
}

impl Unmap for FrameView {
    fn unmap(&self, _: NonNull<u8>) {
        match &self.kind {
            ViewKind::Look => {}
            ViewKind::Mapping(pin, access) => {
                pin.count(*access).fetch_sub(1, SeqCst);
            }
            ViewKind::Offer(pin) => pin.end(),
        }
    }
}

impl DomainFrame {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { page: Mutex::new(SharedPage::private()) })
    }

    /// Returns the domain's own view of its page.
    pub(crate) fn look(self: &Arc<Self>) -> SharedPage {
        self.view(PageAccess::ReadWrite, ViewKind::Look)
    }

    /// Returns the granting side's view, which ends the grant when it is dropped.
    pub(crate) fn offered(self: &Arc<Self>, pin: &Arc<Pin>) -> SharedPage {
        self.view(PageAccess::ReadWrite, ViewKind::Offer(Arc::clone(pin)))
    }

    /// Returns a mapping.
    pub(crate) fn mapped(self: &Arc<Self>, pin: &Arc<Pin>, access: PageAccess) -> SharedPage {
        pin.count(access).fetch_add(1, SeqCst);
        self.view(access, ViewKind::Mapping(Arc::clone(pin), access))
    }

    fn view(self: &Arc<Self>, access: PageAccess, kind: ViewKind) -> SharedPage {
        let base = self.page.lock().unwrap_or_else(PoisonError::into_inner).as_ptr();
        let owner = Arc::new(FrameView { _frame: Arc::clone(self), kind });
        // SAFETY: the page is a whole one, and the view keeps it until it is unmapped. Views are
        // used by one thread, so their copies never overlap in time.
        unsafe { SharedPage::from_mapped(base, access, owner) }
    }
}
