//! Large subtrees that were removed. Their nodes are taken off their owners' accounts in slices.

use super::Server;
use crate::limits::DISOWN_MAX;
use crate::quota::Quota;
use crate::tree::{Churn, Done, Node, Traversal};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Nodes that are taken off the accounts for the cost of one simple request.
const NODES_A_UNIT: u32 = 4;

/// A large subtree that was removed.
pub(super) struct Removal {
    top: Node,
    /// The path, relative to the top, of the last node that is off its owner's account; `None` before the first.
    last: Option<Vec<u8>>,
}

/// All of them, the oldest first.
pub(super) type Removals = VecDeque<Removal>;

impl Removal {
    fn rest(&self) -> Traversal<'_> {
        match &self.last {
            None => Traversal::whole(&self.top),
            Some(last) => Traversal::after(&self.top, last),
        }
    }
}

impl Server {
    /// Lets go of what an operation has removed.
    pub(super) fn discard_done(&mut self, done: Done) {
        self.note_removed(&done);
        if let Done::Removed(gone) = done {
            self.free_node(gone);
        }
    }

    /// Notes what an operation has removed, where its nodes are on their owners' accounts yet.
    pub(super) fn note_removed(&mut self, done: &Done) {
        if let Done::Removed(gone) = done
            && gone.is_large()
        {
            // What was looked at to know that, twice.
            self.charge_work(2 * DISOWN_MAX);
            self.removals.push_back(Removal { top: gone.clone(), last: None });
            self.note_orphans();
        }
    }

    /// Takes nodes of the oldest removed subtree off their owners' accounts, as many as a slice may cost.
    pub(super) fn disown_some(&mut self) {
        let Some(mut removal) = self.removals.pop_front() else { return };
        let mut walk = removal.rest();
        let mut churn = Churn::default();
        let mut is_done = false;
        for _ in 0..self.config.slice_cost.saturating_mul(NODES_A_UNIT) {
            let Some(node) = walk.next() else {
                is_done = true;
                break;
            };
            let (owner, weight) = (node.perms().owner(), node.weight());
            churn.removed = churn.removed.saturating_add(weight);
            if !self.domains.is_orphans(&owner) {
                self.domains.charge(owner.domid, Quota::Nodes, -1);
                self.domains.charge(owner.domid, Quota::Memory, weight.saturating_neg());
            }
        }
        let last = Vec::from(walk.path());
        // Who has removed them may be gone.
        self.note_replaced(None, churn);
        if is_done {
            self.free_node(removal.top);
        } else {
            removal.last = Some(last);
            self.removals.push_front(removal);
        }
        self.note_orphans();
    }

    /// Has all removed nodes taken off their owners' accounts, however long it takes.
    pub(super) fn finish_removals(&mut self) {
        while !self.removals.is_empty() {
            self.disown_some();
        }
    }

    /// Nodes may belong to domains that are gone as long as there is something to be looked through.
    pub(super) fn note_orphans(&mut self) {
        self.domains.has_orphans = !self.burials.is_empty() || !self.removals.is_empty();
    }
}
