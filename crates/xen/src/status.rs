//! The statuses of grant operations.
//!
//! Source: `xen/include/public/grant_table.h`.

use std::fmt;

/// The outcome of a grant operation, where it was not done (`GNTST_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(i16)]
#[non_exhaustive]
pub enum GrantStatus {
    /// `GNTST_general_error`: refused, and most often so: not granted, granted to another domain, or
    /// more was asked for than was granted.
    GeneralError = -1,
    /// `GNTST_bad_domain`: no such domain.
    BadDomain = -2,
    /// `GNTST_bad_gntref`: a reference beyond the granter's table.
    BadGntref = -3,
    /// `GNTST_bad_handle`: no such mapping.
    BadHandle = -4,
    /// `GNTST_bad_virt_addr`: not an address to map at.
    BadVirtAddr = -5,
    /// `GNTST_bad_dev_addr`: not an address for a device.
    BadDevAddr = -6,
    /// `GNTST_no_device_space`: no room in the I/O MMU.
    NoDeviceSpace = -7,
    /// `GNTST_permission_denied`: the hypervisor's security policy is against it.
    PermissionDenied = -8,
    /// `GNTST_bad_page`: the granted page is not one.
    BadPage = -9,
    /// `GNTST_bad_copy_arg`: a copy that leaves its page.
    BadCopyArg = -10,
    /// `GNTST_address_too_big`: the page is beyond what can be addressed.
    AddressTooBig = -11,
    /// `GNTST_eagain`: the page is not there at the moment; to be tried again.
    Again = -12,
    /// `GNTST_no_space`: no entry left to track the mapping (`maptrack`).
    NoSpace = -13,
}

/// Each status with its name in `grant_table.h`.
pub const STATUSES: [(GrantStatus, &str); 13] = [
    (GrantStatus::GeneralError, "GNTST_general_error"),
    (GrantStatus::BadDomain, "GNTST_bad_domain"),
    (GrantStatus::BadGntref, "GNTST_bad_gntref"),
    (GrantStatus::BadHandle, "GNTST_bad_handle"),
    (GrantStatus::BadVirtAddr, "GNTST_bad_virt_addr"),
    (GrantStatus::BadDevAddr, "GNTST_bad_dev_addr"),
    (GrantStatus::NoDeviceSpace, "GNTST_no_device_space"),
    (GrantStatus::PermissionDenied, "GNTST_permission_denied"),
    (GrantStatus::BadPage, "GNTST_bad_page"),
    (GrantStatus::BadCopyArg, "GNTST_bad_copy_arg"),
    (GrantStatus::AddressTooBig, "GNTST_address_too_big"),
    (GrantStatus::Again, "GNTST_eagain"),
    (GrantStatus::NoSpace, "GNTST_no_space"),
];

impl GrantStatus {
    /// `Ok` for 0 (`GNTST_okay`), else the status with this code; a code that is not in the list
    /// is a general error.
    ///
    /// # Errors
    /// The status.
    pub fn from_code(code: i16) -> Result<(), Self> {
        if code == 0 {
            return Ok(());
        }
        let known = STATUSES.iter().find(|(status, _)| *status as i16 == code);
        Err(known.map_or(Self::GeneralError, |(status, _)| *status))
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = STATUSES.iter().find(|(status, _)| status == self);
        f.write_str(named.map_or("GNTST_?", |(_, name)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_round_trip() {
        for (status, name) in STATUSES {
            assert_eq!(GrantStatus::from_code(status as i16), Err(status));
            assert_eq!(status.to_string(), name);
        }
        assert_eq!(GrantStatus::from_code(0), Ok(()));
        assert_eq!(GrantStatus::from_code(-99), Err(GrantStatus::GeneralError));
        assert_eq!(
            GrantStatus::from_code(1),
            Err(GrantStatus::GeneralError),
            "XSA-316: a positive status"
        );
    }
}
