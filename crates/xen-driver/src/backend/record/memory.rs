//! The pages of a file, mapped.
#![allow(unsafe_code)]

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};

/// Pages of a file, mapped together, unmapped together.
struct FileMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl Send for FileMapping {}
// SAFETY: there is no access through it but by the pages.
unsafe impl Sync for FileMapping {}

impl Unmap for FileMapping {
    /// The last page that is dropped drops the whole mapping.
    fn unmap(&self, _: NonNull<u8>) {}
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map_file` with this length; the pages that pointed there are gone, as
        // each of them holds this owner.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Maps these pages of `file`, which has them, to be read and written.
pub(crate) fn map_file(
    file: BorrowedFd<'_>,
    pages: Range<usize>,
) -> Result<Vec<SharedPage>, Errno> {
    let (first, count) = ((pages.start * PAGE_SIZE) as u64, pages.len());
    let len = count * PAGE_SIZE;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let base =
        unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, file, first) }?;
    let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::FAULT)?;
    let owner = Arc::new(FileMapping { base, len });
    let page = |number: usize| {
        // SAFETY: inside the mapping, which is aligned and lives as long as the owner; nobody else
        // holds a view of these pages in this process.
        unsafe {
            let at = base.add(number * PAGE_SIZE);
            SharedPage::from_mapped(at, PageAccess::ReadWrite, Arc::clone(&owner) as _)
        }
    };
    Ok((0..count).map(page).collect())
}
