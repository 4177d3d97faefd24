//! The search for nodes that a dead domain owned outside its home: in the whole tree, some of it in each round.
//!
//! Its nodes are charged to nobody any more. The next domain of its number is another one ([`Incarnation`]), to which
//! they do not belong.

use super::event::{INTRODUCE, RELEASE};
use super::{DomId, Orphans, Server};
use crate::limits::DOMID_ANY;
use crate::path::{Path, home_of};
use crate::perms::{Caller, Incarnation};
use crate::quota::Quota;
use crate::tree::{Go, Traversal};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Nodes that are looked at for the cost of one simple request.
const LOOKS_A_UNIT: usize = 4;

/// A domain whose nodes are looked for.
pub(super) struct Burial {
    domid: DomId,
    incarnation: Incarnation,
    /// The path of the node that was looked at last, relative to the root; `None` before the first.
    last: Option<Vec<u8>>,
}

/// All of them, the oldest first.
pub(super) type Burials = VecDeque<Burial>;

impl Server {
    /// Removes what a dead domain owned, or gives it to the privileged domain. A domain that owns nothing costs nothing;
    /// else its home is looked through at once, and the rest in slices where it owns more than was there.
    pub(super) fn remove_nodes_of(&mut self, domid: DomId) {
        let owned = |server: &Self| {
            server.domains.get(domid).map_or(0, |domain| domain.usage.now(Quota::Nodes))
        };
        if owned(self) <= 0 {
            return;
        }
        let mut home = Vec::new();
        home_of(domid.0, &mut home);
        // No domain: its nodes bear no incarnation by which they would be found later.
        let start = if domid.0 == DOMID_ANY { Path::ROOT } else { Path::checked(&home) };
        self.remove_owned_below(domid, start);
        for special in [INTRODUCE, RELEASE] {
            let owner = self.tree.special(special).map(|node| node.perms().owner().domid);
            if owner == Some(domid) {
                self.inherit(Path::checked(special));
            }
        }
        if owned(self) > 0 {
            let incarnation = self.domains.incarnation(domid);
            self.burials.push_back(Burial { domid, incarnation, last: None });
            self.domains.has_orphans = true;
        }
    }

    fn remove_owned_below(&mut self, domid: DomId, start: Path<'_>) {
        let keep = self.config.orphans == Orphans::Keep;
        let mut found: Vec<Rc<[u8]>> = Vec::new();
        self.tree.visit(start, |path, node| {
            if node.perms().owner().domid != domid {
                return Go::On;
            }
            found.push(Rc::from(path));
            // The root cannot be removed, and what is below it has owners of its own.
            if keep || path == b"/" { Go::On } else { Go::Past }
        });
        for path in found {
            self.bury_node(Path::checked(&path));
        }
    }

    /// Removes a node of a dead domain's, or gives it away.
    fn bury_node(&mut self, path: Path<'_>) {
        // The root cannot be removed.
        if self.config.orphans == Orphans::Keep || path.is_root() {
            self.inherit(path);
            return;
        }
        let own = self.own_caller();
        let done = self.with_ledger(|tree, ledger| tree.remove(&own, path, ledger));
        self.book(None);
        if let Ok(done) = done {
            self.fire(path, &done);
            self.discard_done(done);
        }
    }

    /// Goes on with the oldest burial, as much as a slice may cost.
    pub(super) fn bury_some(&mut self) {
        let spent = core::mem::take(&mut self.cost);
        let slice = self.config.slice_cost;
        while self.cost < slice
            && let Some(Burial { domid, incarnation, last }) = self.burials.pop_front()
        {
            let most = (slice.saturating_sub(self.cost) as usize).saturating_mul(LOOKS_A_UNIT);
            let mut walk = match &last {
                None => Traversal::whole(self.tree.root()),
                Some(last) => Traversal::after(self.tree.root(), last),
            };
            let mut looks = 0usize;
            let mut found = false;
            while looks < most && !found {
                let Some(node) = walk.next() else { break };
                looks = looks.saturating_add(1);
                let owner = node.perms().owner();
                found = (owner.domid, owner.incarnation) == (domid, incarnation);
            }
            let last = Vec::from(walk.path());
            let units = u32::try_from(looks / LOOKS_A_UNIT).unwrap_or(u32::MAX);
            self.cost = self.cost.saturating_add(units);
            if found {
                let path: Vec<u8> = [b"/", last.as_slice()].concat();
                self.bury_node(Path::checked(&path));
            }
            if found || looks >= most {
                self.burials.push_front(Burial { domid, incarnation, last: Some(last) });
            }
        }
        self.domains.has_orphans = !self.burials.is_empty();
        self.cost = spent;
    }

    /// Has all that dead domains owned removed, however long it takes.
    pub(super) fn finish_burials(&mut self) {
        while !self.burials.is_empty() {
            self.bury_some();
        }
    }

    /// Gives a node to the privileged domain.
    fn inherit(&mut self, path: Path<'_>) {
        let (own, heir) = (self.own_caller(), self.domains.priv_domain);
        let incarnation = self.domains.incarnation(heir);
        let Some(perms) =
            self.tree.get(path).map(|node| node.perms().with_owner(heir, incarnation))
        else {
            return;
        };
        // The privileged domain is refused nothing, and lives.
        let _ =
            self.with_ledger(|tree, ledger| tree.set_perms(&own, path, &Rc::new(perms), ledger));
        self.book(None);
    }

    /// The caller of what nobody asked for.
    fn own_caller(&self) -> Caller {
        self.domains.caller(self.domains.priv_domain)
    }
}
