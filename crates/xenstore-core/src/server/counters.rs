//! Totals of the store's work.

/// The totals since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// The requests answered or queued.
    pub requests: u64,
    /// The watch events queued.
    pub events: u64,
    /// The watch events that were not queued because an equal one waited already.
    pub events_merged: u64,
    /// The transactions committed.
    pub commits: u64,
    /// The transactions refused with EAGAIN.
    pub conflicts: u64,
    /// The requests that had to wait for a turn.
    pub delayed: u64,
    /// The microseconds that they waited.
    pub waited_us: u64,
}
