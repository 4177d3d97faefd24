//! The errors of system calls, as the platform's.

use rustix::io::Errno;
use xen::Error;

/// The error with the number of a system call's.
#[cold]
pub(crate) fn from_errno(error: Errno) -> Error {
    Error::from_errno(error.raw_os_error())
}
