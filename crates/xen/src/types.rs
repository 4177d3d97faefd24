//! The numbers that Xen gives to things, each in a type of its own, and the two ways to map a page.

use std::fmt;

/// A domain's number (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DomId(pub u16);

impl DomId {
    /// The domain that holds the policy and, unless driver domains do, the devices.
    pub const DOM0: Self = Self(0);
    /// The calling domain, where a call takes that (`DOMID_SELF`, `xen.h`).
    pub const SELF: Self = Self(0x7ff0);
    /// No domain (`DOMID_INVALID`, `xen.h`).
    pub const INVALID: Self = Self(0x7ff4);
    /// First number that is no real domain (`DOMID_FIRST_RESERVED`, `xen.h`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);

    /// True if a domain can have this number.
    #[must_use]
    pub fn is_real(self) -> bool {
        self < Self::FIRST_RESERVED
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A grant reference (`grant_ref_t`): an index into the granting domain's grant table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// References below are reserved, and never handed out by
    /// [`GrantOffer`](crate::gnttab::GrantOffer) (`GNTTAB_NR_RESERVED_ENTRIES`, `grant_table.h`).
    pub const FIRST_FREE: Self = Self(8);
    /// The reference that the domain builder reserves for the console page
    /// (`GNTTAB_RESERVED_CONSOLE`, `grant_table.h`).
    pub const CONSOLE: Self = Self(0);
    /// The reference that the domain builder reserves for the XenStore page
    /// (`GNTTAB_RESERVED_XENSTORE`, `grant_table.h`).
    pub const XENSTORE: Self = Self(1);
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event channel port (`evtchn_port_t`), in the domain that holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port(pub u32);

impl Port {
    /// No port: Xen gives out none of this number.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A guest frame number (`xen_pfn_t`): a page as the guest counts its own memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gfn(pub u64);

/// The access of the mapping side to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageAccess {
    /// Read only (`GTF_readonly`, `GNTMAP_readonly`).
    Read,
    /// Read and write.
    ReadWrite,
}
