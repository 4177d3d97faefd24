//! The beginning of a connection's turn, and its end.

/// The readiness of a socket to take bytes, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writable {
    Known,
    Unknown,
}

/// Why no further request was handed in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// No complete message is left.
    Starved,
    /// The budget of the round is used up.
    OverBudget,
    /// The core wants no more for now.
    Unwanted,
    /// The connection is ended, or gone.
    Ended,
}

/// A request whose answer the output is looked at for.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) kind: u32,
    pub(super) req_id: u32,
}
