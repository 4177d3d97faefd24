//! Finds the watches that fire at a change.

use super::sessions::Sessions;
use crate::domain::Domains;
use crate::id::{ConnId, DomId};
use crate::limits::DOMID_ANY;
use crate::path::{Path, push_decimal};
use crate::perms::{AccessRights, Caller, Perms};
use crate::quota::Quota;
use crate::tree::{Effect, Node, Tree};
use crate::watch::{self, Audience, Spot, WatchId, Watches};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The special paths.
pub(super) const INTRODUCE: &[u8] = b"@introduceDomain";
pub(super) const RELEASE: &[u8] = b"@releaseDomain";

/// The nodes of which a caller must be able to read one to be told of a change.
#[derive(Clone, Copy)]
struct Sight<'a> {
    node: Option<&'a Node>,
    parent: Option<&'a Node>,
    before: Option<&'a Perms>,
}

impl Sight<'_> {
    /// True if the caller may read the node itself, in its present or former state, or its parent.
    fn allows(&self, caller: &Caller) -> bool {
        let nodes = self.node.into_iter().chain(self.parent).map(|node| &**node.perms());
        caller.privileged
            || nodes.chain(self.before).any(|perms| perms.access(caller).has(AccessRights::READ))
    }

    /// Collects in `to` the domains that may be allowed to read. A write must not take longer for
    /// watches of domains that are not allowed, so only the watches of these domains are
    /// considered.
    fn audience<'d>(&self, domains: &Domains, to: &'d mut Vec<DomId>) -> Audience<'d> {
        let nodes = self.node.into_iter().chain(self.parent).map(|node| &**node.perms());
        to.clear();
        to.extend([domains.store_domain, domains.priv_domain]);
        for perms in nodes.chain(self.before) {
            let owner = perms.owner();
            let others = perms.entries().skip(1).filter(|perm| perm.access.has(AccessRights::READ));
            for perm in others.chain([&owner]) {
                to.push(perm.domid);
            }
            if owner.access.has(AccessRights::READ) || to.contains(&DomId(DOMID_ANY)) {
                return Audience::Everybody;
            }
        }
        domains.add_targeting(to);
        to.sort_unstable();
        to.dedup();
        Audience::Domains(to)
    }
}

fn sight<'a>(tree: &'a Tree, path: Path<'_>, done: &'a Effect) -> Sight<'a> {
    let walk = tree.walk(path);
    match done {
        Effect::Removed(gone) => Sight { node: Some(gone), parent: Some(walk.node), before: None },
        Effect::Permitted(old) => {
            Sight { node: Some(walk.node), parent: walk.parent, before: Some(old) }
        }
        _ if walk.missing > 0 => Sight { node: None, parent: None, before: None },
        _ => Sight { node: Some(walk.node), parent: walk.parent, before: None },
    }
}

/// A watch that fires, and the path in its event.
pub(super) type Firing = (WatchId, Rc<[u8]>);

/// The watches of all connections.
#[derive(Default)]
pub(super) struct Announcer {
    pub(super) watches: Watches,
    // These are kept between changes, so that they need not be allocated for each.
    matching: Vec<WatchId>,
    audience: Vec<DomId>,
}

impl Announcer {
    /// Sets a watch, and charges it to `domid`. `key` is [`watch::key`] of its path and token.
    pub(super) fn set(
        &mut self,
        (conn, domid): (ConnId, DomId),
        path: Path<'_>,
        key: Rc<[u8]>,
        hidden: usize,
        depth: Option<u32>,
        sessions: &mut Sessions,
    ) -> WatchId {
        let weight = watch::weight(&key);
        let id = self.watches.add((conn, domid), path, key.clone(), hidden, depth);
        if let Some(connection) = sessions.conns.get_mut(conn) {
            connection.watches.insert(key, id);
        }
        sessions.content.domains.charge(domid, Quota::Watches, 1);
        sessions.content.domains.charge(domid, Quota::Memory, weight);
        id
    }

    /// Removes a watch from the index and from the account.
    pub(super) fn forget(&mut self, id: WatchId, domid: DomId, domains: &mut Domains) {
        if let Some(watch) = self.watches.remove(id) {
            domains.charge(domid, Quota::Watches, -1);
            domains.charge(domid, Quota::Memory, watch.weight().saturating_neg());
        }
    }

    /// Finds the watches of `path` and of the nodes above it, after the operation `done`.
    #[inline(never)]
    pub(super) fn find_at(
        &mut self,
        path: Path<'_>,
        done: &Effect,
        sessions: &Sessions,
    ) -> Vec<Firing> {
        let mut matching = core::mem::take(&mut self.matching);
        matching.clear();
        let content = &sessions.content;
        let sight = sight(&content.tree, path, done);
        let may_see = sight.audience(&content.domains, &mut self.audience);
        self.watches.matching(path, may_see, &mut matching);
        let told: Rc<[u8]> = Rc::from(path.as_bytes());
        let firing = matching.drain(..).map(|id| (id, told.clone()));
        // Watches of one connection are mostly adjacent, and share the answer.
        let mut last = None;
        let sees = |(id, _): &Firing| {
            let conn = self.watches.get(*id).map(|watch| watch.conn);
            match last {
                Some((known, sees)) if known == conn => sees,
                _ => last.insert((conn, self.may_see(*id, &sight, sessions))).1,
            }
        };
        let firing = firing.filter(sees).collect();
        self.matching = matching;
        firing
    }

    /// Finds the watches of nodes below a removed one, whose events have their own path, and
    /// returns the number of places visited. Visits the places that have both nodes and watches, by
    /// the smaller set of the two.
    pub(super) fn find_below(
        &mut self,
        path: Path<'_>,
        gone: &Node,
        sessions: &Sessions,
    ) -> (Vec<Firing>, usize) {
        let mut firing: Vec<Firing> = Vec::new();
        let mut visited = 0usize;
        let mut audience = core::mem::take(&mut self.audience);
        let mut stack: Vec<(Spot<'_>, &Node)> = Vec::new();
        stack.extend(self.watches.spot(path).map(|spot| (spot, gone)));
        while let Some((spot, node)) = stack.pop() {
            let Some(children) = node.child_list() else { continue };
            let from = stack.len();
            if children.len() < spot.len() {
                stack.extend(
                    children.iter().filter_map(|child| Some((spot.get(child.name())?, child))),
                );
            } else {
                stack.extend(
                    spot.iter().filter_map(|(name, spot)| Some((spot, children.get(name)?))),
                );
            }
            visited = visited.saturating_add(children.len().min(spot.len()) as usize);
            for (spot, node) in stack.get(from..).unwrap_or_default() {
                if spot.is_watched() {
                    self.find_watches(*spot, node, sessions, &mut audience, &mut firing);
                }
            }
        }
        // They are sorted in the order in which they were set, as all others.
        firing.sort_unstable_by_key(|(id, _)| *id);
        self.audience = audience;
        (firing, visited)
    }

    /// Collects the watches of a removed node that fire, with their own path.
    pub(super) fn find_watches(
        &self,
        spot: Spot<'_>,
        node: &Node,
        sessions: &Sessions,
        audience: &mut Vec<DomId>,
        firing: &mut Vec<Firing>,
    ) {
        let sight = Sight { node: Some(node), parent: None, before: None };
        let may_see = sight.audience(&sessions.content.domains, audience);
        let seen = spot.watches(may_see).filter(|id| self.may_see(*id, &sight, sessions));
        let told = |id| Some((id, Rc::from(self.watches.get(id)?.path())));
        firing.extend(seen.filter_map(told));
    }

    /// Finds the watches of `@introduceDomain` and `@releaseDomain` that fire. The event of a watch
    /// on the plain name has that name; the event of a watch with a depth or a domid has the domid.
    pub(super) fn find_special(
        &self,
        name: &'static [u8],
        domid: DomId,
        sessions: &Sessions,
    ) -> Vec<Firing> {
        let content = &sessions.content;
        let mut numbered = Vec::from(name);
        numbered.push(b'/');
        push_decimal(u64::from(domid.0), &mut numbered);
        let told: (Rc<[u8]>, Rc<[u8]>) = (Rc::from(name), Rc::from(numbered));
        let numbered = Path::checked(&told.1);
        let (mut matching, mut audience) = (Vec::new(), Vec::new());
        let sight = Sight { node: content.tree.special(name), parent: None, before: None };
        let may_see = sight.audience(&content.domains, &mut audience);
        self.watches.matching(numbered, may_see, &mut matching);
        let firing = matching.iter().filter_map(|id| {
            let watch = self.watches.get(*id)?;
            let wants_number = watch.path() == numbered.as_bytes() || watch.depth.is_some();
            let told = if wants_number { &told.1 } else { &told.0 };
            self.may_see(*id, &sight, sessions).then(|| (*id, told.clone()))
        });
        // A watch without depth is on the plain name: `matching` returns it, whatever a depth means
        // for special paths.
        firing.collect()
    }

    fn may_see(&self, id: WatchId, sight: &Sight<'_>, sessions: &Sessions) -> bool {
        let domains = &sessions.content.domains;
        let watch = self.watches.get(id);
        let connection = watch.and_then(|watch| sessions.conns.get(watch.conn));
        connection.is_some_and(|connection| {
            domains.is_privileged(connection.domid)
                || sight.allows(&domains.caller(connection.domid))
        })
    }
}
