//! Searches for nodes that a dead domain owned outside its home, in the whole tree, a part of it in
//! each round.
//!
//! These nodes are charged to no domain any more. The next domain of the number is another
//! [`Incarnation`], and does not own them.

use super::content::Content;
use crate::id::DomId;
use crate::path::Path;
use crate::perms::Incarnation;
use crate::tree::Traversal;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The nodes that are searched for the cost of one simple request.
const LOOKS_A_UNIT: usize = 4;

/// A search for a dead domain's nodes.
pub(super) struct OrphanSearch {
    domid: DomId,
    incarnation: Incarnation,
    /// The path of the node at which the search starts.
    top: Rc<[u8]>,
    /// The path of the node that was searched last, relative to the top; `None` before the first.
    last: Option<Vec<u8>>,
}

/// The outcome of one part of a search.
pub(super) enum SearchOutcome {
    /// The path of a node that the dead domain owned.
    Found(Vec<u8>),
    /// The slice is over.
    Paused,
    /// The whole tree has been searched.
    Ended,
}

impl OrphanSearch {
    pub(super) fn new(domid: DomId, incarnation: Incarnation, top: &[u8]) -> Self {
        Self { domid, incarnation, top: Rc::from(top), last: None }
    }

    /// Continues the search, until the cost of the request at hand is that of a slice. `looks`
    /// counts the nodes that were searched.
    pub(super) fn search(
        &mut self,
        looks: &mut usize,
        slice: u32,
        content: &mut Content,
    ) -> SearchOutcome {
        let Content { tree, cost, .. } = content;
        let Some(top) = tree.get(Path::checked(&self.top)) else { return SearchOutcome::Ended };
        let mut walk = match &self.last {
            None => Traversal::whole(top),
            Some(last) => Traversal::after(top, last),
        };
        let is_found = loop {
            let Some(node) = walk.next() else { return SearchOutcome::Ended };
            *looks = looks.saturating_add(1);
            let owner = node.perms().owner();
            if (owner.domid, owner.incarnation) == (self.domid, self.incarnation) {
                break true;
            }
            if looks.is_multiple_of(LOOKS_A_UNIT) {
                *cost = cost.saturating_add(1);
                if *cost >= slice {
                    break false;
                }
            }
        };
        let last = Vec::from(walk.path());
        let found = match is_found {
            true => SearchOutcome::Found(self.absolute(&last)),
            false => SearchOutcome::Paused,
        };
        self.last = Some(last);
        found
    }

    /// Returns the path of a node from its path relative to the top.
    fn absolute(&self, relative: &[u8]) -> Vec<u8> {
        let mut path = Vec::from(&*self.top);
        if !relative.is_empty() {
            if path != b"/" {
                path.push(b'/');
            }
            path.extend_from_slice(relative);
        }
        path
    }
}
