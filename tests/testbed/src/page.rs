//! Mapping the page of a file, shared with whoever maps it, too.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use xen::Error;
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};

/// Maps the first page of `file`, which must not become shorter while it is mapped.
///
/// # Errors
/// [`Error::Inval`] where the file is shorter than a page, or what mmap(2) answered.
pub fn map(file: &File) -> Result<SharedPage, Error> {
    if file.metadata()?.len() < PAGE_SIZE as u64 {
        return Err(Error::Inval);
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { mmap(null_mut(), PAGE_SIZE, access, MapFlags::SHARED, file, 0) }
        .map_err(|error| Error::from_errno(error.raw_os_error()))?;
    let base = NonNull::new(base.cast::<u8>()).ok_or(Error::NoMem)?;
    // SAFETY: one whole page, readable and writable until it is unmapped; this process reaches it
    // through the returned value alone.
    Ok(unsafe { SharedPage::from_mapped(base, PageAccess::ReadWrite, Arc::new(Munmap)) })
}

/// Ends a mapping of one page.
struct Munmap;

impl Unmap for Munmap {
    fn unmap(&self, base: NonNull<u8>) {
        // SAFETY: mapped by `map` with this size, and the page's owner has ended.
        let _ = unsafe { munmap(base.as_ptr().cast(), PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_and_its_page_are_the_same_bytes() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(map(&file).unwrap_err(), Error::Inval, "an empty file has no page");
        file.set_len(PAGE_SIZE as u64).unwrap();
        let page = map(&file).unwrap();
        page.copy_in(10, b"ring").unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 10).unwrap();
        assert_eq!(&bytes, b"ring");
    }
}
