//! The id of a transaction in requests, and the choice of its end.

/// A transaction's id; [`TransactionId::NONE`] for requests outside any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// No transaction.
    pub const NONE: Self = Self(0);
}

/// The end of a transaction: its changes take effect or are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionEnd {
    /// The changes take effect, all at once.
    Commit,
    /// The changes are dropped.
    Abort,
}
