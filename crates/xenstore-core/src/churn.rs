//! Bytes that changes of a tree copy, make and remove.
//!
//! A change copies what a snapshot shares, so that the old remains as long as the snapshot does. What is counted here
//! is charged to who keeps the copies, or the old ones, alive.

use alloc::rc::Rc;

/// Bytes of a block beside its entries: what counts the holders, its own fields, what the allocator adds.
const BLOCK_OVERHEAD: usize = 128;
/// Bytes of a value's block beside the value.
const VALUE_OVERHEAD: usize = 48;

/// Bytes that changes have moved.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Churn {
    /// Of blocks and values that were copied as a snapshot shared them.
    pub(crate) copied: i64,
    /// Of nodes that were made, without their values.
    pub(crate) made: i64,
    /// Of nodes that were removed, with all below them.
    pub(crate) removed: i64,
}

/// Something that snapshots share.
pub(crate) trait Shared: Clone {
    /// Bytes of its entries.
    fn entries_size(&self) -> usize;
}

impl Churn {
    fn copy(&mut self, bytes: usize) {
        self.copied = self.copied.saturating_add(bytes as i64);
    }

    /// The block to be changed: a copy of it where a snapshot shares it.
    pub(crate) fn own<'b, B: Shared>(&mut self, block: &'b mut Rc<B>) -> &'b mut B {
        if Rc::strong_count(block) > 1 {
            self.copy(block.entries_size().saturating_add(BLOCK_OVERHEAD));
        }
        Rc::make_mut(block)
    }

    /// As [`Churn::own`], for a block that is used no more.
    pub(crate) fn take<B: Shared>(&mut self, block: Rc<B>) -> B {
        if Rc::strong_count(&block) > 1 {
            self.copy(block.entries_size().saturating_add(BLOCK_OVERHEAD));
        }
        Rc::unwrap_or_clone(block)
    }

    /// A value of so many bytes remains beside the one that replaces it.
    pub(crate) fn keep_value(&mut self, bytes: usize) {
        self.copy(bytes.saturating_add(VALUE_OVERHEAD));
    }

    /// Adds what other changes have moved.
    pub(crate) fn add(&mut self, other: Self) {
        self.copied = self.copied.saturating_add(other.copied);
        self.made = self.made.saturating_add(other.made);
        self.removed = self.removed.saturating_add(other.removed);
    }

    /// Bytes that a snapshot of before may keep alive.
    pub(crate) fn replaced(self) -> i64 {
        self.copied.saturating_add(self.removed)
    }

    /// Bytes that a tree which only its changer sees takes beside what it shares.
    pub(crate) fn own_size(self) -> i64 {
        self.copied.saturating_add(self.made)
    }
}
