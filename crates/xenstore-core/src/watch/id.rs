//! The ids of watches.

/// The id of a watch. Ids sort in the order in which the watches were set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WatchId {
    /// The number of watches that were set before. It is never reused.
    pub(super) number: u64,
    /// The slot in the list of all watches. It is reused once the watch is removed.
    pub(super) slot: u32,
}

impl WatchId {
    /// An id that sorts before all others.
    pub(super) const FIRST: Self = Self { number: 0, slot: 0 };
    /// An id that sorts after all others.
    pub(super) const LAST: Self = Self { number: u64::MAX, slot: u32::MAX };
}

#[cfg(test)]
impl WatchId {
    pub(super) fn for_test(number: u64) -> Self {
        Self { number, slot: 0 }
    }
}
