//! The names of watches.

/// A watch; they are in the order in which they were set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WatchId {
    /// The number of watches that were set before; never used again.
    pub(super) number: u64,
    /// Its place in the list of all watches; used again once the watch is gone.
    pub(super) slot: u32,
}

impl WatchId {
    /// Sorts before all others.
    pub(super) const FIRST: Self = Self { number: 0, slot: 0 };
    /// Sorts behind all others.
    pub(super) const LAST: Self = Self { number: u64::MAX, slot: u32::MAX };
}

#[cfg(test)]
impl WatchId {
    pub(super) fn for_test(number: u64) -> Self {
        Self { number, slot: 0 }
    }
}
