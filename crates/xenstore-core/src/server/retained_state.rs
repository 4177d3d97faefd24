//! The snapshots of one guest, and the state that it has replaced itself since.

use alloc::collections::BTreeSet;

/// The part of the old state that the snapshots of one guest keep alive and that its own requests
/// have replaced.
#[derive(Default)]
pub(super) struct RetainedState {
    /// The value of `replaced` at each snapshot, and the transaction's number.
    open: BTreeSet<(u64, u32)>,
    /// The bytes that its requests have replaced while it had any snapshot.
    replaced: u64,
    /// The bytes charged to it.
    charged: i64,
}

impl RetainedState {
    /// Returns the bytes that it had replaced until now.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Returns the bytes charged to it.
    pub(super) fn charged(&self) -> i64 {
        self.charged
    }

    /// Returns the bytes of its replaced state that the oldest of its snapshots keeps alive.
    pub(super) fn kept(&self) -> i64 {
        let oldest = self.open.first().map(|(replaced, _)| self.replaced.saturating_sub(*replaced));
        i64::try_from(oldest.unwrap_or(0)).unwrap_or(i64::MAX)
    }

    /// Returns the transaction with the oldest of its snapshots.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.open.first().map(|(_, id)| *id)
    }

    /// Adds a snapshot that was taken when it had replaced so many bytes.
    pub(super) fn open(&mut self, replaced: u64, id: u32) {
        self.open.insert((replaced, id));
    }

    /// Removes a snapshot.
    pub(super) fn close(&mut self, replaced: u64, id: u32) {
        self.open.remove(&(replaced, id));
    }

    /// Counts bytes that it has replaced. Returns true if it has a snapshot that may keep them.
    pub(super) fn note(&mut self, bytes: u64) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.replaced = self.replaced.saturating_add(bytes);
        true
    }

    /// Updates the charge, and returns the difference.
    pub(super) fn recharge(&mut self) -> i64 {
        let kept = self.kept();
        kept.saturating_sub(core::mem::replace(&mut self.charged, kept))
    }
}
