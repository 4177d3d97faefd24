//! A page that another party can change at any time.
//!
//! [`SharedPage`] copies bytes in and out and never hands out a reference: a reference would promise
//! the compiler that the bytes stand still. Bytes are copied by volatile accesses, each of which the
//! compiler makes once and as written, so a peer that writes meanwhile yields old or new bytes and
//! nothing worse; the index words are atomics, loaded with acquire and stored with release order.
//! (Not atomics throughout: those of different sizes must not overlap.) This is the only module of
//! the crate with `unsafe`.
#![allow(unsafe_code)]

use crate::types::PageAccess;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, fence};

/// Size and alignment of a page in bytes (`XC_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// The provider of mapped pages, to which they are given back. Shared by the pages of one provider,
/// so that mapping a page allocates nothing.
pub trait Unmap: Send + Sync {
    /// Gives back the page at `base`; called once for each page, when its last use is over.
    fn unmap(&self, base: NonNull<u8>);

    /// Notes a refused write to a page that is mapped for reading only, for providers that count
    /// them.
    fn write_refused(&self) {}
}

/// Pages of this process's own heap.
struct Heap;

/// An access that a page does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PageError {
    /// It does not lie inside the page, or a word is not aligned.
    OutOfPage {
        /// Offset of the access in the page, in bytes.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
    },
    /// The page is mapped for reading only.
    ReadOnly,
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfPage { offset, len } => {
                write!(f, "{len} bytes at {offset} of a page of {PAGE_SIZE}")
            }
            Self::ReadOnly => f.write_str("the page is mapped for reading only"),
        }
    }
}

impl std::error::Error for PageError {}

/// One mapped page of [`PAGE_SIZE`] bytes; dropping it unmaps.
pub struct SharedPage {
    base: NonNull<u8>,
    access: PageAccess,
    owner: Arc<dyn Unmap>,
}

// SAFETY: nothing about the page belongs to a thread, and its owner is `Send`. (It is not
// `Sync`: two threads of this process could copy to the same bytes at once.)
unsafe impl Send for SharedPage {}

impl fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPage")
            .field("base", &self.base)
            .field("access", &self.access)
            .finish()
    }
}

impl SharedPage {
    /// Takes over a mapped page; `owner` unmaps it when the last use is over.
    ///
    /// # Safety
    /// `base` is aligned to [`PAGE_SIZE`] and points to that many bytes, readable and, where
    /// `access` says so, writable until `owner` is told to unmap it. Where this process has other
    /// views of the page, their copies to the same bytes are ordered by the index words.
    pub unsafe fn from_mapped(
        base: NonNull<u8>,
        access: PageAccess,
        owner: Arc<dyn Unmap>,
    ) -> Self {
        Self { base, access, owner }
    }

    /// A page of zeroes in this process's own memory, shared with nobody.
    #[must_use]
    pub fn private() -> Self {
        let layout = page_layout();
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        // SAFETY: aligned and sized by the layout, and no other pointer to it is kept.
        unsafe { Self::from_mapped(base, PageAccess::ReadWrite, Arc::new(Heap)) }
    }

    /// Returns the address of the page, for a system call that reads or writes it (direct I/O into
    /// a granted page). The caller is responsible for each use of the pointer: the bytes change at
    /// any time.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the access that the page is mapped for.
    #[must_use]
    pub fn access(&self) -> PageAccess {
        self.access
    }

    /// Copies bytes from `offset` of the page into `to`.
    ///
    /// # Errors
    /// [`PageError`]; nothing is copied then.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), PageError> {
        check(offset, to.len())?;
        let head = head_len(offset, to.len());
        let (first, rest) = to.split_at_mut(head);
        let (words, last) = rest.as_chunks_mut::<8>();
        for (at, byte) in first.iter_mut().enumerate() {
            *byte = self.load_byte(offset + at);
        }
        let mut at = offset + head;
        for word in words {
            *word = self.load_word(at).to_ne_bytes();
            at += 8;
        }
        for byte in last {
            *byte = self.load_byte(at);
            at += 1;
        }
        Ok(())
    }

    /// Copies `from` into the page at `offset`.
    ///
    /// # Errors
    /// [`PageError`]; nothing is copied then.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), PageError> {
        self.writable()?;
        check(offset, from.len())?;
        let head = head_len(offset, from.len());
        let (first, rest) = from.split_at(head);
        let (words, last) = rest.as_chunks::<8>();
        for (at, byte) in first.iter().enumerate() {
            self.store_byte(offset + at, *byte);
        }
        let mut at = offset + head;
        for word in words {
            self.store_word(at, u64::from_ne_bytes(*word));
            at += 8;
        }
        for byte in last {
            self.store_byte(at, *byte);
            at += 1;
        }
        Ok(())
    }

    /// The 32-bit word at `offset`, a multiple of 4, loaded in acquire order: what its writer put
    /// into the page before it is seen by the accesses that follow.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn load_u32(&self, offset: usize) -> Result<u32, PageError> {
        // The page may be mapped for reading only, where Rust allows no load but a relaxed one.
        let value = self.index(offset)?.load(Relaxed);
        fence(Acquire);
        Ok(value)
    }

    /// Stores the 32-bit word at `offset`, a multiple of 4, in release order: a reader that sees it
    /// sees all that was put into the page before it.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<(), PageError> {
        self.writable()?;
        self.index(offset)?.store(value, Release);
        Ok(())
    }

    fn writable(&self) -> Result<(), PageError> {
        match self.access {
            PageAccess::ReadWrite => Ok(()),
            PageAccess::Read => {
                self.owner.write_refused();
                Err(PageError::ReadOnly)
            }
        }
    }

    /// The byte at a checked offset.
    fn load_byte(&self, offset: usize) -> u8 {
        debug_assert!(offset < PAGE_SIZE);
        // SAFETY: the caller has checked the offset; the page lives as long as `self`.
        unsafe { self.base.add(offset).read_volatile() }
    }

    fn store_byte(&self, offset: usize, byte: u8) {
        debug_assert!(offset < PAGE_SIZE);
        // SAFETY: as in `load_byte`.
        unsafe { self.base.add(offset).write_volatile(byte) }
    }

    /// The eight bytes at a checked offset, which is a multiple of 8.
    fn load_word(&self, offset: usize) -> u64 {
        debug_assert!(offset.is_multiple_of(8) && offset <= PAGE_SIZE - 8);
        // SAFETY: the caller has checked offset and alignment; the page is aligned to 4096.
        unsafe { self.base.add(offset).cast::<u64>().read_volatile() }
    }

    fn store_word(&self, offset: usize, word: u64) {
        debug_assert!(offset.is_multiple_of(8) && offset <= PAGE_SIZE - 8);
        // SAFETY: as in `load_word`.
        unsafe { self.base.add(offset).cast::<u64>().write_volatile(word) }
    }

    /// The word at an offset that has not been checked yet.
    fn index(&self, offset: usize) -> Result<&AtomicU32, PageError> {
        check(offset, 4)?;
        if !offset.is_multiple_of(4) {
            return Err(PageError::OutOfPage { offset, len: 4 });
        }
        // SAFETY: inside the page and aligned, as just checked; the page is aligned to 4096.
        Ok(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) })
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        self.owner.unmap(self.base);
    }
}

impl Unmap for Heap {
    fn unmap(&self, base: NonNull<u8>) {
        // SAFETY: this owner is given to pages of `private` alone, which allocated it with the
        // same layout; it is called once.
        unsafe { dealloc(base.as_ptr(), page_layout()) }
    }
}

/// The layout of one page.
fn page_layout() -> Layout {
    // SAFETY: the alignment is a power of two and the size is a multiple of it.
    unsafe { Layout::from_size_align_unchecked(PAGE_SIZE, PAGE_SIZE) }
}

/// Checks that `len` bytes at `offset` lie inside a page.
fn check(offset: usize, len: usize) -> Result<(), PageError> {
    match offset.checked_add(len) {
        Some(end) if end <= PAGE_SIZE => Ok(()),
        _ => Err(PageError::OutOfPage { offset, len }),
    }
}

/// Returns the number of the `len` bytes at `offset` that come before the first multiple of 8.
fn head_len(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(8) - offset).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn bytes_go_in_and_out_at_every_alignment() {
        let page = SharedPage::private();
        for offset in 0..10 {
            for len in 0..30 {
                let from: Vec<u8> = (0..len).map(|at| (at + offset + 1) as u8).collect();
                page.copy_in(offset, &from).unwrap();
                let mut to = vec![0; len];
                page.copy_out(offset, &mut to).unwrap();
                assert_eq!(from, to, "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn nothing_outside_the_page() {
        let page = SharedPage::private();
        let mut two = [0; 2];
        for offset in [PAGE_SIZE - 1, PAGE_SIZE, usize::MAX] {
            assert_eq!(page.copy_in(offset, &two), Err(PageError::OutOfPage { offset, len: 2 }));
            assert_eq!(
                page.copy_out(offset, &mut two),
                Err(PageError::OutOfPage { offset, len: 2 })
            );
        }
        for offset in [1, 2, PAGE_SIZE - 3, PAGE_SIZE, usize::MAX - 3] {
            assert_eq!(page.load_u32(offset), Err(PageError::OutOfPage { offset, len: 4 }));
            assert_eq!(page.store_u32(offset, 1), Err(PageError::OutOfPage { offset, len: 4 }));
        }
        page.copy_in(PAGE_SIZE - 2, b"ab").unwrap();
        page.copy_out(PAGE_SIZE - 2, &mut two).unwrap();
        assert_eq!(&two, b"ab");
        page.copy_in(PAGE_SIZE, b"").unwrap();
    }

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let page = SharedPage::private();
        page.store_u32(PAGE_SIZE - 4, 0x0102_0304).unwrap();
        let mut bytes = [0; 4];
        page.copy_out(PAGE_SIZE - 4, &mut bytes).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 0x0102_0304);
        assert_eq!(page.load_u32(PAGE_SIZE - 4), Ok(0x0102_0304));
    }

    /// Another view of a page, which keeps the page.
    struct PageView {
        page: Mutex<Option<SharedPage>>,
        unmapped: AtomicU32,
    }

    impl Unmap for PageView {
        fn unmap(&self, base: NonNull<u8>) {
            let page = self.page.lock().unwrap().take();
            assert_eq!(page.map(|page| page.base), Some(base));
            self.unmapped.fetch_add(1, SeqCst);
        }
    }

    fn view(page: SharedPage, access: PageAccess) -> (SharedPage, Arc<PageView>) {
        let base = page.base;
        let owner =
            Arc::new(PageView { page: Mutex::new(Some(page)), unmapped: AtomicU32::new(0) });
        // SAFETY: the owner keeps the page until the view is dropped.
        (unsafe { SharedPage::from_mapped(base, access, Arc::clone(&owner) as _) }, owner)
    }

    /// A second view of `page`, which must outlive it.
    fn borrowed(page: &SharedPage) -> SharedPage {
        struct Nothing;
        impl Unmap for Nothing {
            fn unmap(&self, _: NonNull<u8>) {}
        }
        // SAFETY: the caller keeps `page`; the tests order the bytes by an index word.
        unsafe { SharedPage::from_mapped(page.base, PageAccess::ReadWrite, Arc::new(Nothing)) }
    }

    #[test]
    fn a_release_store_carries_the_bytes_before_it() {
        let page = SharedPage::private();
        let writer = borrowed(&page);
        let thread = std::thread::spawn(move || {
            writer.copy_in(3, b"all of it").unwrap();
            writer.store_u32(2048, 9).unwrap();
        });
        while page.load_u32(2048) != Ok(9) {
            std::thread::yield_now();
        }
        let mut bytes = [0; 9];
        page.copy_out(3, &mut bytes).unwrap();
        assert_eq!(&bytes, b"all of it");
        thread.join().unwrap();
    }

    #[test]
    fn a_page_is_unmapped_once() {
        let (page, owner) = view(SharedPage::private(), PageAccess::ReadWrite);
        page.copy_in(0, b"x").unwrap();
        drop(page);
        assert_eq!(owner.unmapped.load(SeqCst), 1);
    }

    #[test]
    fn a_page_for_reading_is_not_written() {
        let (page, _owner) = view(SharedPage::private(), PageAccess::Read);
        assert_eq!(page.copy_in(0, b"x"), Err(PageError::ReadOnly));
        assert_eq!(page.store_u32(0, 1), Err(PageError::ReadOnly));
        assert_eq!(page.load_u32(0), Ok(0));
    }
}
