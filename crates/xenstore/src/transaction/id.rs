//! A transaction as requests name it, and its end.

/// A transaction's number; [`TransactionId::NONE`] for requests outside any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// No transaction.
    pub const NONE: Self = Self(0);
}

/// The fate of a transaction's changes at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// They take effect, all at once.
    Commit,
    /// They are dropped.
    Abort,
}
