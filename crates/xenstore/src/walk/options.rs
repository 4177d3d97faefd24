//! The options of a walk: the parts of a node to read, and the permitted method.

use crate::transaction::TransactionId;

/// The parts of each node that a walk reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeParts {
    /// Values.
    Values,
    /// Values and permissions.
    ValuesAndPerms,
}

/// The methods that a walk may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The bulk read if the daemon has it.
    Fastest,
    /// One request for each value and listing.
    Plain,
}

/// The options of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The transaction of the walk's requests. In a transaction the whole walk sees the store at
    /// one moment.
    pub tx: TransactionId,
    /// The parts of each node that are read.
    pub parts: NodeParts,
    /// The permitted method.
    pub method: Method,
    /// The most requests in flight at a time without the bulk read.
    pub in_flight_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tx: TransactionId::NONE,
            parts: NodeParts::Values,
            method: Method::Fastest,
            in_flight_max: 128,
        }
    }
}
