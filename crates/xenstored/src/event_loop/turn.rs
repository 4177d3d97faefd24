//! The states at the beginning and at the end of a connection's turn.

/// The readiness of a socket to take bytes, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writable {
    Known,
    Unknown,
}

/// The reason why a turn stopped giving requests to the core.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// No complete message is left.
    Starved,
    /// The budget of the round is used up.
    OverBudget,
    /// The core accepts no more for now.
    Unwanted,
    /// The connection is ended, or gone.
    Ended,
}

/// A request whose answer is searched for in the output.
#[derive(Clone, Copy)]
pub(super) struct ExpectedReply {
    pub(super) kind: u32,
    pub(super) req_id: u32,
}
