//! Nodes that have been removed from a tree and are not freed yet.
//!
//! A subtree of 100,000 nodes takes milliseconds to free. Therefore it is freed piece by piece, as
//! much at a time as the caller allows.

use super::child_list::Pieces;
use super::node::Node;
use alloc::vec::Vec;

/// The nodes that are freed for the cost of one simple request.
const NODES_A_UNIT: u32 = 4;

/// The lists of children to be freed, with all nodes below them. Parts that a snapshot shares stay.
#[derive(Default)]
pub(crate) struct Debris(Vec<Pieces<Node>>);

impl Debris {
    /// Adds a node, with all nodes below it.
    pub(crate) fn push(&mut self, node: Node) {
        self.0.extend(node.into_pieces());
    }

    /// True if nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Frees as much as `left` allows, in simple requests, and subtracts the cost from it.
    pub(crate) fn free_some(&mut self, left: &mut u32) {
        while *left > 0
            && let Some(pieces) = self.0.pop()
        {
            let nodes = pieces.take_apart(&mut self.0, Node::into_pieces);
            *left = left.saturating_sub(nodes / NODES_A_UNIT).saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domains;
    use crate::id::DomId;
    use crate::ledger::{Deltas, Ledger};
    use crate::path::Path;
    use crate::perms::{Caller, Incarnation};
    use crate::tree::{Effect, NodeWrite, Tree};
    use alloc::rc::Rc;
    use std::format;

    const OWN: Caller =
        Caller { domid: DomId(0), incarnation: Incarnation(1), target: None, privileged: true };

    /// Parts that a snapshot shares are not touched. The rest is freed in pieces, however deep or
    /// wide it is.
    #[test]
    fn it_is_freed_piece_by_piece() {
        let mut domains = Domains::new(DomId(0), DomId(0), crate::digest::Secret::default());
        let (mut deltas, mut scratch) = (Deltas::default(), Vec::new());
        let mut ledger = Ledger::new(&mut domains, &mut deltas, &mut scratch);
        let mut tree = Tree::new(DomId(0), Incarnation(1), &mut ledger);
        for at in 0..5000 {
            let path = format!("/x/{}/{at}/a/b", at % 7);
            tree.put(&OWN, Path::checked(path.as_bytes()), NodeWrite::Value(b"v"), &mut ledger)
                .unwrap();
        }
        let shared = tree.clone();
        let path = b"/x/new";
        tree.put(&OWN, Path::checked(path), NodeWrite::Value(b"v"), &mut ledger).unwrap();
        let Ok(Effect::Removed(gone)) = tree.remove(&OWN, Path::checked(b"/x"), &mut ledger) else {
            panic!("it is there");
        };
        let one = shared.get(Path::checked(b"/x/3/3")).unwrap();
        let holders = Rc::strong_count(one.child_list().unwrap());
        let mut debris = Debris::default();
        debris.push(gone);
        let mut rounds = 0;
        while !debris.is_empty() {
            debris.free_some(&mut 1);
            rounds += 1;
        }
        // This is the list of `x`. Everything below it is shared.
        assert_eq!(rounds, 1);
        assert_eq!(Rc::strong_count(one.child_list().unwrap()), holders);
        debris.push(shared.into_root());
        rounds = 0;
        while !debris.is_empty() {
            debris.free_some(&mut 100);
            rounds += 1;
        }
        // These are the 5000 lists of `a` and of `b`, and those above them, of 5000 nodes.
        assert!((100..=120).contains(&rounds), "{rounds}");
    }
}
