//! The number of bytes that changes of a tree copy, make and remove.
//!
//! A change copies the parts that a snapshot shares, so the old parts remain as long as the
//! snapshot does. The bytes counted here are charged to the domain that keeps the copies, or the
//! old parts, alive.

use alloc::rc::Rc;

/// The bytes of a block besides its entries: the reference counts, its own fields, the allocator's
/// overhead.
const BLOCK_OVERHEAD: usize = 128;
/// The bytes of a value's block besides the value.
const VALUE_OVERHEAD: usize = 48;

/// The number of bytes that changes have moved.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Churn {
    /// The bytes of blocks and values that were copied because a snapshot shared them.
    pub(crate) copied: i64,
    /// The bytes of nodes that were made, without their values.
    pub(crate) made: i64,
    /// The bytes of nodes that were removed, with all nodes below them.
    pub(crate) removed: i64,
}

/// Something that snapshots share.
pub(crate) trait CopyOnWrite: Clone {
    /// Returns the bytes of its entries.
    fn entries_size(&self) -> usize;
}

impl Churn {
    fn copy(&mut self, bytes: usize) {
        self.copied = self.copied.saturating_add(bytes as i64);
    }

    /// Returns the block for a change: a copy if a snapshot shares it.
    pub(crate) fn make_owned<'b, B: CopyOnWrite>(&mut self, block: &'b mut Rc<B>) -> &'b mut B {
        if Rc::strong_count(block) > 1 {
            self.copy(block.entries_size().saturating_add(BLOCK_OVERHEAD));
        }
        Rc::make_mut(block)
    }

    /// Does the same as [`Churn::make_owned`], for a block that is not used any more.
    pub(crate) fn take<B: CopyOnWrite>(&mut self, block: Rc<B>) -> B {
        if Rc::strong_count(&block) > 1 {
            self.copy(block.entries_size().saturating_add(BLOCK_OVERHEAD));
        }
        Rc::unwrap_or_clone(block)
    }

    /// Counts an old value of so many bytes that remains besides the one that replaces it.
    pub(crate) fn keep_value(&mut self, bytes: usize) {
        self.copy(bytes.saturating_add(VALUE_OVERHEAD));
    }

    /// Adds the bytes of other changes.
    pub(crate) fn add(&mut self, other: Self) {
        self.copied = self.copied.saturating_add(other.copied);
        self.made = self.made.saturating_add(other.made);
        self.removed = self.removed.saturating_add(other.removed);
    }

    /// Returns the bytes that an earlier snapshot may keep alive.
    pub(crate) fn replaced(self) -> i64 {
        self.copied.saturating_add(self.removed)
    }

    /// Returns the bytes of a transaction's own tree besides the parts that it shares.
    pub(crate) fn own_size(self) -> i64 {
        self.copied.saturating_add(self.made)
    }
}
