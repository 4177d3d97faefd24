//! Errors of the hypervisor and of the driver in front of it.

use crate::status::GrantStatus;
use std::{fmt, io};

/// A refusal, named as Xen's `errno.h` and Linux's drivers name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// `EPERM`: this domain may not do that.
    Perm,
    /// `ENOENT`: no such port or grant.
    NoEnt,
    /// `ESRCH`: no such domain.
    Srch,
    /// `ENOMEM`: no memory left for it.
    NoMem,
    /// `EACCES`: the grant or the port is another domain's.
    Access,
    /// `EBUSY`: in use.
    Busy,
    /// `EEXIST`: bound already.
    Exist,
    /// `ENODEV`: this machine has no such device; Xen is not there.
    NoDev,
    /// `EINVAL`: no such thing, or not in this state.
    Inval,
    /// `ENOSPC`: the table of ports or grants is full.
    NoSpc,
    /// `ENOSPC`: more pages were to be granted than there are.
    NoPages {
        /// Pages that were asked for.
        asked: u32,
        /// Pages that are free.
        free: u32,
        /// Pages that there are, free or not.
        of: u32,
    },
    /// `ENOSYS`: this hypervisor does not know the call.
    NoSys,
    /// The hypervisor's status of a grant operation.
    Grant(GrantStatus),
    /// Any other number of errno(3).
    Other(i32),
}

/// Each named error with its number on Linux and what it means here.
const NAMED: [(Error, i32, &str); 11] = [
    (Error::Perm, 1, "EPERM: not permitted to this domain"),
    (Error::NoEnt, 2, "ENOENT: no such port or grant"),
    (Error::Srch, 3, "ESRCH: no such domain"),
    (Error::NoMem, 12, "ENOMEM: out of memory"),
    (Error::Access, 13, "EACCES: it belongs to another domain"),
    (Error::Busy, 16, "EBUSY: in use"),
    (Error::Exist, 17, "EEXIST: bound already"),
    (Error::NoDev, 19, "ENODEV: no such device; is Xen there?"),
    (Error::Inval, 22, "EINVAL: no such thing, or not in this state"),
    (Error::NoSpc, 28, "ENOSPC: no free port or grant entry"),
    (Error::NoSys, 38, "ENOSYS: the hypervisor does not know the call"),
];

impl Error {
    /// The number of this error in Linux's errno(3).
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Other(number) => number,
            Self::Grant(GrantStatus::BadDomain) => 3,
            Self::Grant(GrantStatus::Again) => 11,
            Self::Grant(GrantStatus::PermissionDenied) => 13,
            Self::Grant(GrantStatus::NoSpace | GrantStatus::NoDeviceSpace)
            | Self::NoPages { .. } => 28,
            named => NAMED.iter().find(|(error, ..)| *error == named).map_or(22, |row| row.1),
        }
    }

    /// The error with this number of Linux's errno(3).
    #[must_use]
    pub fn from_errno(number: i32) -> Self {
        NAMED.iter().find(|row| row.1 == number).map_or(Self::Other(number), |row| row.0)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or(Self::Other(5), Self::from_errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) => io::Error::from_raw_os_error(*number).fmt(f),
            Self::Grant(status) => status.fmt(f),
            Self::NoPages { asked, free, of } => {
                write!(
                    f,
                    "ENOSPC: {asked} pages to grant were asked for, and {free} of {of} are free"
                )
            }
            named => f.write_str(NAMED.iter().find(|row| row.0 == *named).map_or("?", |row| row.2)),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for (error, number, text) in NAMED {
            assert_eq!(Error::from_errno(number), error);
            assert_eq!(error.errno(), number);
            assert_eq!(error.to_string(), text);
        }
        let no_pages = Error::NoPages { asked: 3, free: 2, of: 1016 };
        assert_eq!(no_pages.errno(), Error::NoSpc.errno());
        let text = "ENOSPC: 3 pages to grant were asked for, and 2 of 1016 are free";
        assert_eq!(no_pages.to_string(), text);
        assert_eq!(Error::from_errno(9), Error::Other(9));
        assert_eq!(Error::Other(9).errno(), 9);
    }
}
