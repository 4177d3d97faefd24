//! The numbers of domains and connections.

/// A domain's number (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DomId(pub u16);

/// A connection's index. Indices are small and are reused once a connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);
