//! A device: opened, called, mapped.
#![allow(unsafe_code)]

use crate::Error;
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use xen::gnttab::PageAccess;
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};

/// The most likely causes of a refusal to open a device.
const HINT: &str = "Xen's drivers must be loaded (modules xen-evtchn, xen-gntdev, xen-gntalloc, \
                    xen-privcmd) and the caller must be root";

/// Converts an error of rustix to this project's type.
pub(crate) fn errno(error: rustix::io::Errno) -> xen::Error {
    xen::Error::from_errno(error.raw_os_error())
}

/// An open device of Xen.
#[derive(Debug)]
pub(crate) struct DeviceFile(OwnedFd);

impl DeviceFile {
    /// Opens `path` for reading and writing, not blocking.
    pub(crate) fn open(path: &'static str) -> Result<Self, Error> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        open(path, flags, Mode::empty()).map(Self).map_err(|error| Error::Device {
            path,
            error: errno(error),
            hint: HINT,
        })
    }

    /// Makes a request; returns the result of the driver if it is not negative.
    ///
    /// # Safety
    /// `argument` is what the request takes, also in size, and pointers in it are good for what the
    /// request does through them.
    pub(crate) unsafe fn call<T>(&self, request: u32, argument: &mut T) -> Result<i32, xen::Error> {
        let argument: *mut T = argument;
        // SAFETY: the caller vouches for the argument; it lives until the call returns.
        unsafe { self.call_at(request, argument.cast()) }
    }

    /// As [`DeviceFile::call`], with the argument's address: for those that end in an array.
    ///
    /// # Safety
    /// As [`DeviceFile::call`].
    pub(crate) unsafe fn call_at(
        &self,
        request: u32,
        argument: *mut c_void,
    ) -> Result<i32, xen::Error> {
        // SAFETY: the caller vouches for request and argument.
        unsafe { ioctl(&self.0, IoctlRequest { number: request, argument }) }.map_err(errno)
    }

    /// Maps `pages` pages at `offset` of the device, shared.
    pub(crate) fn map(
        &self,
        offset: u64,
        pages: usize,
        access: PageAccess,
    ) -> Result<Region, xen::Error> {
        let protection = match access {
            PageAccess::Read => ProtFlags::READ,
            PageAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let len = pages.checked_mul(PAGE_SIZE).ok_or(xen::Error::Inval)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, &self.0, offset) };
        Region::new(base.map_err(errno)?, len, access)
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One request, as rustix wants it.
struct IoctlRequest {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: the output is the plain number that the driver returned; `DeviceFile::call` has its callers
// vouch for the argument.
unsafe impl Ioctl for IoctlRequest {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// Mapped pages; dropping it unmaps them.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    access: PageAccess,
}

// SAFETY: nothing about a mapping belongs to a thread; what is done through it is `SharedPage`'s.
unsafe impl Send for Region {}
// SAFETY: as above; a shared region can only be unmapped, by its last owner.
unsafe impl Sync for Region {}

impl Region {
    fn new(base: *mut c_void, len: usize, access: PageAccess) -> Result<Self, xen::Error> {
        let base = NonNull::new(base.cast::<u8>()).ok_or(xen::Error::NoMem)?;
        Ok(Self { base, len, access })
    }

    /// Zeroed memory of this process alone, in whole pages.
    pub(crate) fn anonymous(len: usize) -> Result<Self, xen::Error> {
        let len = len.next_multiple_of(PAGE_SIZE);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE) };
        Self::new(base.map_err(errno)?, len, PageAccess::ReadWrite)
    }

    /// Returns the address of the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its pages; it is unmapped as a whole, when the last of them is dropped.
    pub(crate) fn into_pages(self) -> impl Iterator<Item = SharedPage> {
        let owner = Arc::new(self);
        (0..owner.len / PAGE_SIZE).map(move |at| {
            // SAFETY: `at` counts pages of the region.
            let base = unsafe { owner.base.add(at * PAGE_SIZE) };
            let access = owner.access;
            // SAFETY: the kernel maps whole pages; they stay until the last page lets go of the
            // region, and each is given out once.
            unsafe { SharedPage::from_mapped(base, access, Arc::clone(&owner) as Arc<dyn Unmap>) }
        })
    }
}

impl Unmap for Region {
    /// Nothing yet: the region goes when its last page has.
    fn unmap(&self, _: NonNull<u8>) {}
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `DeviceFile::map` or `anonymous`; no page of it is left.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
