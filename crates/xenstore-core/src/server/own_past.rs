//! The snapshots of one guest, and what it has itself replaced since.

use alloc::collections::BTreeSet;

/// The part of the past that the snapshots of one guest keep alive, as far as its own requests have replaced it.
#[derive(Default)]
pub(super) struct OwnPast {
    /// `replaced` when each was taken, and the transaction's number.
    open: BTreeSet<(u64, u32)>,
    /// Bytes that its requests have replaced while there were any.
    replaced: u64,
    /// Bytes that it is charged for.
    charged: i64,
}

impl OwnPast {
    /// Bytes that it had replaced until now.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Bytes that it is charged for.
    pub(super) fn charged(&self) -> i64 {
        self.charged
    }

    /// Bytes that the oldest of its snapshots keeps alive of what it has replaced.
    pub(super) fn kept(&self) -> i64 {
        let oldest = self.open.first().map(|(replaced, _)| self.replaced.saturating_sub(*replaced));
        i64::try_from(oldest.unwrap_or(0)).unwrap_or(i64::MAX)
    }

    /// The transaction that has the oldest of its snapshots.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.open.first().map(|(_, id)| *id)
    }

    /// Notes a snapshot that was taken when it had replaced so many bytes.
    pub(super) fn open(&mut self, replaced: u64, id: u32) {
        self.open.insert((replaced, id));
    }

    /// Forgets a snapshot.
    pub(super) fn close(&mut self, replaced: u64, id: u32) {
        self.open.remove(&(replaced, id));
    }

    /// Notes bytes that it has replaced; whether it has a snapshot that may keep them.
    pub(super) fn note(&mut self, bytes: u64) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.replaced = self.replaced.saturating_add(bytes);
        true
    }

    /// Makes the charge what it should be; by how much that is more.
    pub(super) fn recharge(&mut self) -> i64 {
        let kept = self.kept();
        kept.saturating_sub(core::mem::replace(&mut self.charged, kept))
    }
}
