//! The search for nodes that a dead domain owned outside its home: in the whole tree, some of it in each round.
//!
//! Its nodes are charged to nobody any more. The next domain of its number is another one ([`Incarnation`]), to which
//! they do not belong.

use super::Server;
use super::config::Orphans;
use super::event::{INTRODUCE, RELEASE};
use crate::id::DomId;
use crate::limits::DOMID_ANY;
use crate::path::{Path, home_of};
use crate::perms::Incarnation;
use crate::quota::Quota;
use crate::transaction::Change;
use crate::tree::Traversal;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Nodes that are looked at for the cost of one simple request.
const LOOKS_A_UNIT: usize = 4;

/// A search for a dead domain's nodes.
pub(super) struct Burial {
    domid: DomId,
    incarnation: Incarnation,
    /// The path of the node from which on it searches.
    top: Rc<[u8]>,
    /// The path of the node that was looked at last, relative to the top; `None` before the first.
    last: Option<Vec<u8>>,
}

/// All of them, the oldest first.
pub(super) type Burials = VecDeque<Burial>;

impl Burial {
    fn new(domid: DomId, incarnation: Incarnation, top: &[u8]) -> Self {
        Self { domid, incarnation, top: Rc::from(top), last: None }
    }
}

impl Server {
    /// Removes what a dead domain owned, or gives it to the privileged domain. A domain that owns nothing costs nothing;
    /// else its home is looked through at once, as far as a slice goes, and all of the tree in the next rounds where it
    /// owns more than was found there.
    pub(super) fn remove_nodes_of(&mut self, domid: DomId) {
        let owned = |server: &Self| {
            server.content.domains.get(domid).map_or(0, |domain| domain.usage.now(Quota::Nodes))
        };
        if owned(self) <= 0 {
            return;
        }
        if domid.0 == DOMID_ANY {
            // No domain: only the privileged domain can have given it nodes, which bear no incarnation by which they
            // would be found later.
            let mut burial = Burial::new(domid, Incarnation::NEVER, b"/");
            while !self.bury(&mut burial) {}
        } else {
            let mut home = Vec::new();
            home_of(domid.0, &mut home);
            let spent = core::mem::take(&mut self.content.cost);
            self.bury(&mut Burial::new(domid, self.content.domains.incarnation(domid), &home));
            self.content.cost = self.content.cost.saturating_add(spent);
        }
        for special in [INTRODUCE, RELEASE] {
            let owner = self.content.tree.special(special).map(|node| node.perms().owner().domid);
            if owner == Some(domid) {
                let churn = self.content.inherit(Path::checked(special));
                self.note_replaced(None, churn);
            }
        }
        if owned(self) > 0 && domid.0 != DOMID_ANY {
            let incarnation = self.content.domains.incarnation(domid);
            self.burials.push_back(Burial::new(domid, incarnation, b"/"));
            self.note_orphans();
        }
    }

    /// Removes a node of a dead domain's, or gives it away.
    fn bury_node(&mut self, path: Path<'_>) {
        // The root cannot be removed.
        if self.config.orphans == Orphans::Keep || path.is_root() {
            let churn = self.content.inherit(path);
            self.note_replaced(None, churn);
            return;
        }
        let own = self.content.own_caller();
        let done = self.content.change(&own, path, &Change::Remove);
        self.book(None);
        if let Ok(done) = done {
            self.fire(path, &done);
            self.discard_done(path, done, None);
        }
    }

    /// Goes on with the oldest searches, as much as a slice may cost.
    pub(super) fn bury_some(&mut self) {
        let spent = core::mem::take(&mut self.content.cost);
        while self.content.cost < self.config.slice_cost
            && let Some(mut burial) = self.burials.pop_front()
        {
            if !self.bury(&mut burial) {
                self.burials.push_front(burial);
                break;
            }
        }
        self.note_orphans();
        self.content.cost = spent;
    }

    /// Goes on with a search, and removes what it finds, until the cost at hand is that of a slice. True where nothing is
    /// left.
    fn bury(&mut self, burial: &mut Burial) -> bool {
        let slice = self.config.slice_cost;
        let mut looks = 0usize;
        loop {
            let Some(top) = self.content.tree.get(Path::checked(&burial.top)) else { return true };
            let mut walk = match &burial.last {
                None => Traversal::whole(top),
                Some(last) => Traversal::after(top, last),
            };
            let is_found = loop {
                let Some(node) = walk.next() else { return true };
                looks = looks.saturating_add(1);
                let owner = node.perms().owner();
                if (owner.domid, owner.incarnation) == (burial.domid, burial.incarnation) {
                    break true;
                }
                if looks.is_multiple_of(LOOKS_A_UNIT) {
                    self.content.cost = self.content.cost.saturating_add(1);
                    if self.content.cost >= slice {
                        break false;
                    }
                }
            };
            let last = Vec::from(walk.path());
            if is_found {
                let mut path = Vec::from(&*burial.top);
                if !last.is_empty() {
                    if path != b"/" {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&last);
                }
                self.bury_node(Path::checked(&path));
            }
            burial.last = Some(last);
            if self.content.cost >= slice {
                return false;
            }
        }
    }

    /// Has all that dead domains owned removed, however long it takes.
    pub(super) fn finish_burials(&mut self) {
        while !self.burials.is_empty() {
            self.bury_some();
        }
    }
}
