//! Large subtrees that were removed. Their nodes are taken off their owners' accounts in slices, and who watches them is
//! told then.

use super::Server;
use super::event::Firing;
use crate::churn::Churn;
use crate::id::{ConnId, DomId};
use crate::limits::DISOWN_MAX;
use crate::path::Path;
use crate::quota::Quota;
use crate::tree::{Done, Node, Traversal};
use crate::watch::Spot;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Nodes that are looked at for the cost of one simple request.
const NODES_A_UNIT: u32 = 4;

/// A large subtree that was removed.
pub(super) struct Removal {
    /// The path at which it was.
    path: Rc<[u8]>,
    top: Node,
    /// The path, relative to the top, of the last node that is off its owner's account; `None` before the first.
    last: Option<Vec<u8>>,
    /// The connection that is charged for the work, and its domain.
    author: Option<(ConnId, DomId)>,
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

/// The spots of the index of watches on the way to a node, the top's first, each with the length of its path.
struct Way<'w>(Vec<(usize, Option<Spot<'w>>)>);

impl<'w> Way<'w> {
    /// The way to the node at this path, relative to the top whose spot is `top`.
    fn to(top: Option<Spot<'w>>, path: &[u8]) -> Self {
        let mut way = Self(Vec::from([(0, top)]));
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain((!path.is_empty()).then_some(path.len())) {
            way.enter(path.get(..end).unwrap_or_default());
        }
        way
    }

    /// The spot of the node at this path, to which the walk has come.
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

impl Server {
    /// Lets go of what an operation at `path` has removed.
    pub(super) fn discard_done(&mut self, path: Path<'_>, done: Done, author: Option<ConnId>) {
        self.note_removed(path, &done, author);
        if let Done::Removed(gone) = done {
            self.rubbish.discard_node(gone);
        }
    }

    /// Notes what an operation has removed, where its nodes are on their owners' accounts yet.
    pub(super) fn note_removed(&mut self, path: Path<'_>, done: &Done, author: Option<ConnId>) {
        if let Done::Removed(gone) = done
            && gone.is_large()
        {
            // That was looked at three times.
            self.content.charge_work(3 * DISOWN_MAX);
            let author = author.and_then(|conn| Some((conn, self.conns.get(conn)?.domid)));
            let (path, top) = (Rc::from(path.as_bytes()), gone.clone());
            self.removals.push_back(Removal { path, top, last: None, author });
            self.note_orphans();
        }
    }

    /// Takes nodes of the oldest removed subtree off their owners' accounts, and tells who watches them, as much as a
    /// slice may cost.
    pub(super) fn disown_some(&mut self) {
        let Some(mut removal) = self.removals.pop_front() else { return };
        let slice = self.config.slice_cost;
        let mut left = slice.saturating_mul(NODES_A_UNIT);
        let mut walk = removal.rest();
        let mut churn = Churn::default();
        let mut firing: Vec<Firing> = Vec::new();
        let mut audience = core::mem::take(&mut self.audience);
        let top = self.watches.spot(Path::checked(&removal.path));
        let mut way = top.map(|_| Way::to(top, removal.last.as_deref().unwrap_or_default()));
        let mut is_done = false;
        while left > 0 {
            let Some(node) = walk.next() else {
                is_done = true;
                break;
            };
            left = left.saturating_sub(1);
            let (owner, weight) = (node.perms().owner(), node.weight());
            churn.removed = churn.removed.saturating_add(weight);
            if !self.content.domains.is_orphans(&owner) {
                self.content.domains.charge(owner.domid, Quota::Nodes, -1);
                self.content.domains.charge(owner.domid, Quota::Memory, weight.saturating_neg());
            }
            // The top's own watches were told at once.
            let watched = way.as_mut().filter(|_| !walk.path().is_empty());
            let spot = watched.and_then(|way| way.enter(walk.path()));
            if let Some(spot) = spot.filter(|spot| spot.is_watched()) {
                left = left.saturating_sub(NODES_A_UNIT);
                self.find_watches(spot, node, &mut audience, &mut firing);
            }
        }
        let last = Vec::from(walk.path());
        self.audience = audience;
        let spent = slice.saturating_sub(left / NODES_A_UNIT);
        if let Some((conn, domid)) = removal.author
            && let Some(connection) = self.conns.get_mut(conn).filter(|conn| conn.domid == domid)
        {
            connection.owed = connection.owed.saturating_add(spent);
        }
        // Who has removed them may be gone.
        self.note_replaced(None, churn);
        self.push_events(&firing);
        if is_done {
            self.rubbish.discard_node(removal.top);
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
        self.content.domains.has_orphans = !self.burials.is_empty() || !self.removals.is_empty();
    }
}
