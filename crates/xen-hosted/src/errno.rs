//! The errors of system calls as errors of the platform.

use rustix::io::Errno;
use xen::Error;

/// Returns the platform's error with the number of a system call's error.
#[cold]
pub(crate) fn from_errno(error: Errno) -> Error {
    Error::from_errno(error.raw_os_error())
}
