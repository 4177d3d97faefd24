//! Mapped memory: memfds that processes share, words in them, and their pages.
#![allow(unsafe_code)]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Result;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};

/// Makes a new memfd of `len` bytes that can be sealed.
pub(crate) fn memfd(name: &str, len: usize) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let fd = match memfd_create(name, flags) {
        // Linux before 6.3 does not know the last flag.
        Err(rustix::io::Errno::INVAL) => {
            memfd_create(name, flags.difference(MemfdFlags::NOEXEC_SEAL))?
        }
        other => other?,
    };
    ftruncate(&fd, len as u64)?;
    Ok(fd)
}

/// A shared mapping of a memfd whose size is sealed, or of one that nobody else can shrink.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for Map {}
// SAFETY: what it hands out by reference are atomics; pages are handed out by `page` alone.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes at `offset` of `fd`.
    ///
    /// # Errors
    /// The error of mmap(2).
    pub(crate) fn new(fd: impl AsFd, offset: u64, len: usize, access: PageAccess) -> Result<Self> {
        let protection = match access {
            PageAccess::Read => ProtFlags::READ,
            PageAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, fd, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// Returns the word at `offset`, a multiple of 4 inside the mapping.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "a word inside the mapping");
        // SAFETY: mapped, aligned, and reached as an atomic by all who follow the layout.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Returns the double word at `offset`, a multiple of 8 inside the mapping.
    pub(crate) fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "a long inside the mapping");
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Returns the number of the mapping's page that `base` points to.
    pub(crate) fn page_number(&self, base: NonNull<u8>) -> usize {
        (base.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize) / PAGE_SIZE
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; pages of it keep their owner, which keeps it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A holder of a mapping. It is told when one of the mapping's pages is no longer used.
pub(crate) trait MapOwner: Unmap + 'static {
    /// Returns the mapping that the pages are of; always the same one.
    fn map(&self) -> &Map;
}

/// Returns page number `at` of the mapping that `owner` keeps, which is mapped with `access` at
/// least.
pub(crate) fn page<O: MapOwner>(owner: &Arc<O>, at: usize, access: PageAccess) -> SharedPage {
    let map = owner.map();
    assert!((at + 1) * PAGE_SIZE <= map.len, "a page inside the mapping");
    // SAFETY: aligned as mmap(2) aligns, inside the mapping, and mapped until the owner is dropped,
    // which the page keeps. Copies to the same bytes are ordered by what the protocols on top
    // write in their index words.
    unsafe {
        let base = map.base.add(at * PAGE_SIZE);
        SharedPage::from_mapped(base, access, Arc::clone(owner) as Arc<dyn Unmap>)
    }
}
