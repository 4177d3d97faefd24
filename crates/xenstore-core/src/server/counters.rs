//! Totals of what the store has done.

/// Totals since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests answered or queued.
    pub requests: u64,
    /// Watch events queued.
    pub events: u64,
    /// Watch events that were not queued as the same one waited already.
    pub events_merged: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions refused with EAGAIN.
    pub conflicts: u64,
    /// Requests that had to wait for a turn.
    pub delayed: u64,
    /// Microseconds that they waited.
    pub waited_us: u64,
}
