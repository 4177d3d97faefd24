//! The parts of a node that a walk reads, and the ways that it may take.

use crate::transaction::TransactionId;

/// The parts of each node that a walk reads.
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

/// The options of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Within which transaction: there the whole walk sees the store at one moment.
    pub tx: TransactionId,
    /// The parts of each node that are read.
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
