//! What a walk reads, and the ways that it may take.

use crate::transaction::TransactionId;

/// What a walk reads of each node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Values.
    Values,
    /// Values and permissions.
    ValuesAndPerms,
}

/// Which ways a walk may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The bulk read where the daemon has it.
    Fastest,
    /// One request for each value and listing.
    Plain,
}

/// How to walk.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Within which transaction: there the whole walk sees the store at one moment.
    pub tx: TransactionId,
    /// What to read.
    pub read: Read,
    /// Which way to take.
    pub way: Way,
    /// Most requests in flight at a time on the plain way.
    pub in_flight_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tx: TransactionId::NONE, read: Read::Values, way: Way::Fastest, in_flight_max: 128 }
    }
}
