//! Large subtrees that were removed. Their nodes are taken off their owners' accounts in slices,
//! and their watches fire at that time.

use super::announcer::{Announcer, Firing};
use super::sessions::Sessions;
use crate::churn::Churn;
use crate::id::{ConnId, DomId};
use crate::path::Path;
use crate::quota::Quota;
use crate::tree::{Node, Traversal};
use crate::watch::Spot;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The nodes visited for the cost of one simple request.
const NODES_A_UNIT: u32 = 4;

/// A large subtree that was removed.
pub(super) struct Removal {
    /// The path of its top.
    path: Rc<[u8]>,
    top: Node,
    /// The path, relative to the top, of the last node that is off its owner's account; `None` before the first.
    last: Option<Vec<u8>>,
    /// The connection that is charged for the work, and its domain.
    author: Option<(ConnId, DomId)>,
}

/// The spots in the index of watches on the path to a node, the top's first, each with the length
/// of its path.
struct SpotPath<'w>(Vec<(usize, Option<Spot<'w>>)>);

impl<'w> SpotPath<'w> {
    /// Returns the spots on the path to this node. The path is relative to the top, whose spot is
    /// `top`.
    fn to(top: Option<Spot<'w>>, path: &[u8]) -> Self {
        let mut way = Self(Vec::from([(0, top)]));
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain((!path.is_empty()).then_some(path.len())) {
            way.enter(path.get(..end).unwrap_or_default());
        }
        way
    }

    /// Returns the spot of the node at this path, which the walk has reached.
    fn enter(&mut self, path: &[u8]) -> Option<Spot<'w>> {
        let end = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = end
            .map_or((0, path), |end| (end, path.get(end.saturating_add(1)..).unwrap_or_default()));
        while self.0.last().is_some_and(|(len, _)| *len > above) {
            self.0.pop();
        }
        let spot = self.0.last().and_then(|(_, spot)| spot.as_ref()?.get(name));
        self.0.push((path.len(), spot));
        spot
    }
}

impl Removal {
    /// Returns the removal of the subtree at `path`, with the connection and domain that are
    /// charged for it.
    pub(super) fn new(path: Path<'_>, top: Node, author: Option<(ConnId, DomId)>) -> Self {
        Self { path: Rc::from(path.as_bytes()), top, last: None, author }
    }

    /// Returns the connection that is charged for the work, and its domain.
    pub(super) fn author(&self) -> Option<(ConnId, DomId)> {
        self.author
    }

    /// Returns the nodes, to be freed.
    pub(super) fn into_top(self) -> Node {
        self.top
    }

    fn rest(&self) -> Traversal<'_> {
        match &self.last {
            None => Traversal::whole(&self.top),
            Some(last) => Traversal::after(&self.top, last),
        }
    }

    /// Takes nodes off their owners' accounts and finds their watches, as much as a slice may cost.
    pub(super) fn disown(
        &mut self,
        slice: u32,
        sessions: &mut Sessions,
        announcer: &Announcer,
    ) -> RemovalSlice {
        let mut left = slice.saturating_mul(NODES_A_UNIT);
        let mut walk = self.rest();
        let mut churn = Churn::default();
        let (mut firing, mut audience) = (Vec::new(), Vec::new());
        let top = announcer.watches.spot(Path::checked(&self.path));
        let mut way = top.map(|_| SpotPath::to(top, self.last.as_deref().unwrap_or_default()));
        let mut is_done = false;
        while left > 0 {
            let Some(node) = walk.next() else {
                is_done = true;
                break;
            };
            left = left.saturating_sub(1);
            let (owner, weight) = (node.perms().owner(), node.weight());
            churn.removed = churn.removed.saturating_add(weight);
            let domains = &mut sessions.content.domains;
            if !domains.is_orphaned(&owner) {
                domains.charge(owner.domid, Quota::Nodes, -1);
                domains.charge(owner.domid, Quota::Memory, weight.saturating_neg());
            }
            // The top's own watches fired at once.
            let watched = way.as_mut().filter(|_| !walk.path().is_empty());
            let spot = watched.and_then(|way| way.enter(walk.path()));
            if let Some(spot) = spot.filter(|spot| spot.is_watched()) {
                left = left.saturating_sub(NODES_A_UNIT);
                announcer.find_watches(spot, node, sessions, &mut audience, &mut firing);
            }
        }
        self.last = Some(Vec::from(walk.path()));
        let cost = slice.saturating_sub(left / NODES_A_UNIT);
        RemovalSlice { churn, firing, cost, is_done }
    }
}

/// The result of one slice of a removal.
pub(super) struct RemovalSlice {
    pub(super) churn: Churn,
    /// The watches that fire.
    pub(super) firing: Vec<Firing>,
    pub(super) cost: u32,
    /// True if no node is left.
    pub(super) is_done: bool,
}
