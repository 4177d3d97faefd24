//! Watch events: who is told of a change, and what becomes of those who do not read.

use super::Server;
use crate::domain::Domains;
use crate::id::{ConnId, DomId};
use crate::limits::{DOMID_ANY, UNREAD_MAX_BYTES};
use crate::notice::{Ended, Notice};
use crate::path::{Path, push_decimal};
use crate::perms::{Access, Caller, Perms};
use crate::quota::{Kind, Quota};
use crate::tree::{Done, Node, Tree};
use crate::watch::{Audience, Spot, Watch, WatchId};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The special events.
pub(super) const INTRODUCE: &[u8] = b"@introduceDomain";
pub(super) const RELEASE: &[u8] = b"@releaseDomain";

/// What a caller must be able to read to be told of a change.
#[derive(Clone, Copy)]
struct Sight<'a> {
    node: Option<&'a Node>,
    parent: Option<&'a Node>,
    before: Option<&'a Perms>,
}

impl Sight<'_> {
    /// The node itself, as it is or was, or its parent.
    fn allows(&self, caller: &Caller) -> bool {
        let nodes = self.node.into_iter().chain(self.parent).map(|node| &**node.perms());
        caller.privileged
            || nodes.chain(self.before).any(|perms| perms.access(caller).has(Access::READ))
    }

    /// Collects in `to` the domains that may be allowed to look. A write must not take longer for watches of those who
    /// are not, so only these domains' are looked at.
    fn audience<'d>(&self, domains: &Domains, to: &'d mut Vec<DomId>) -> Audience<'d> {
        let nodes = self.node.into_iter().chain(self.parent).map(|node| &**node.perms());
        to.clear();
        to.extend([domains.store_domain, domains.priv_domain]);
        for perms in nodes.chain(self.before) {
            let owner = perms.owner();
            let others = perms.entries().skip(1).filter(|perm| perm.access.has(Access::READ));
            for perm in others.chain([&owner]) {
                to.push(perm.domid);
            }
            if owner.access.has(Access::READ) || to.contains(&DomId(DOMID_ANY)) {
                return Audience::Everybody;
            }
        }
        domains.add_targeting(to);
        to.sort_unstable();
        to.dedup();
        Audience::Domains(to)
    }
}

/// A watch that fires, and the path that is told.
pub(super) type Firing = (WatchId, Rc<[u8]>);

impl Server {
    /// Tells everybody concerned of what was done to `path`.
    pub(super) fn fire(&mut self, path: Path<'_>, done: &Done) {
        if matches!(done, Done::Unchanged) || self.watches.len() == 0 {
            return;
        }
        if self.watches.may_match(path) {
            self.fire_at(path, done);
        }
        // Who watches something in a large subtree is told in slices.
        if let Done::Removed(gone) = done
            && !gone.is_large()
        {
            self.fire_below(path, gone);
        }
    }

    /// Tells those who watch `path` or something above it.
    #[inline(never)]
    fn fire_at(&mut self, path: Path<'_>, done: &Done) {
        let mut matching = core::mem::take(&mut self.matching);
        let mut audience = core::mem::take(&mut self.audience);
        matching.clear();
        let firing: Vec<Firing> = {
            let sight = sight(&self.content.tree, path, done);
            let may_see = sight.audience(&self.content.domains, &mut audience);
            self.watches.matching(path, may_see, &mut matching);
            let told: Rc<[u8]> = Rc::from(path.as_bytes());
            let firing = matching.drain(..).map(|id| (id, told.clone()));
            // Watches of one connection stand side by side mostly, and share the answer.
            let mut last = None;
            let sees = |(id, _): &Firing| {
                let conn = self.watches.get(*id).map(|watch| watch.conn);
                match last {
                    Some((known, sees)) if known == conn => sees,
                    _ => last.insert((conn, self.may_see(*id, &sight))).1,
                }
            };
            firing.filter(sees).collect()
        };
        self.push_events(&firing);
        (self.matching, self.audience) = (matching, audience);
    }

    /// The watches of nodes below a removed one are told their own path. Goes where something was and
    /// something is watched, by the fewer of both.
    fn fire_below(&mut self, path: Path<'_>, gone: &Node) {
        let mut firing: Vec<Firing> = Vec::new();
        let mut visited = 0usize;
        let mut audience = core::mem::take(&mut self.audience);
        let mut stack: Vec<(Spot<'_>, &Node)> = Vec::new();
        stack.extend(self.watches.spot(path).map(|spot| (spot, gone)));
        while let Some((spot, node)) = stack.pop() {
            let Some(dir) = node.dir() else { continue };
            let from = stack.len();
            if dir.len() < spot.len() {
                stack.extend(dir.iter().filter_map(|child| Some((spot.get(child.name())?, child))));
            } else {
                stack.extend(spot.iter().filter_map(|(name, spot)| Some((spot, dir.get(name)?))));
            }
            visited = visited.saturating_add(dir.len().min(spot.len()) as usize);
            for (spot, node) in stack.get(from..).unwrap_or_default() {
                if spot.is_watched() {
                    self.find_watches(*spot, node, &mut audience, &mut firing);
                }
            }
        }
        // In the order in which they were set, as all others.
        firing.sort_unstable_by_key(|(id, _)| *id);
        self.audience = audience;
        self.content.charge_work(visited);
        self.push_events(&firing);
    }

    /// Collects the watches of a removed node that are told of it: their own path.
    pub(super) fn find_watches(
        &self,
        spot: Spot<'_>,
        node: &Node,
        audience: &mut Vec<DomId>,
        firing: &mut Vec<Firing>,
    ) {
        let sight = Sight { node: Some(node), parent: None, before: None };
        let may_see = sight.audience(&self.content.domains, audience);
        let seen = spot.watches(may_see).filter(|id| self.may_see(*id, &sight));
        let told = |id| Some((id, Rc::from(self.watches.get(id)?.path())));
        firing.extend(seen.filter_map(told));
    }

    /// `@introduceDomain` and `@releaseDomain`: those who watch the plain name are told that, those who
    /// watch with a depth or a domid are told the domid.
    pub(super) fn fire_special(&mut self, name: &'static [u8], domid: DomId) {
        let mut numbered = Vec::from(name);
        numbered.push(b'/');
        push_decimal(u64::from(domid.0), &mut numbered);
        let told: (Rc<[u8]>, Rc<[u8]>) = (Rc::from(name), Rc::from(numbered));
        let numbered = Path::checked(&told.1);
        let (mut matching, mut audience) = (Vec::new(), Vec::new());
        let sight = Sight { node: self.content.tree.special(name), parent: None, before: None };
        let may_see = sight.audience(&self.content.domains, &mut audience);
        self.watches.matching(numbered, may_see, &mut matching);
        let firing = matching.iter().filter_map(|id| {
            let watch = self.watches.get(*id)?;
            let wants_number = watch.path() == numbered.as_bytes() || watch.depth.is_some();
            let told = if wants_number { &told.1 } else { &told.0 };
            self.may_see(*id, &sight).then(|| (*id, told.clone()))
        });
        // A watch without depth is on the plain name: `matching` has it, whatever depth means there.
        let firing: Vec<Firing> = firing.collect();
        self.push_events(&firing);
    }

    fn may_see(&self, id: WatchId, sight: &Sight<'_>) -> bool {
        let domid = self
            .watches
            .get(id)
            .and_then(|watch| self.conns.get(watch.conn))
            .map(|conn| conn.domid);
        domid.is_some_and(|domid| {
            self.content.domains.is_privileged(domid)
                || sight.allows(&self.content.domains.caller(domid))
        })
    }

    pub(super) fn push_events(&mut self, firing: &[Firing]) {
        for (id, path) in firing {
            self.push_event(*id, path);
        }
    }

    /// Queues one event. A connection that leaves too much unread is ended.
    pub(super) fn push_event(&mut self, id: WatchId, path: &Rc<[u8]>) {
        let Self { watches, conns, content, counters, .. } = self;
        let Some(watch) = watches.get(id) else { return };
        let conn = watch.conn;
        let len = told_len(watch, path);
        // An event that is too long for a message cannot be told (XSA-324).
        if len > crate::limits::PAYLOAD_MAX {
            return;
        }
        let Some(connection) = conns.get_mut(conn) else { return };
        content.add_cost(1);
        if !connection.push_event(id, path, len) {
            counters.events_merged = counters.events_merged.wrapping_add(1);
            return;
        }
        counters.events = counters.events.wrapping_add(1);
        let (unread, domid) = (connection.unread(), connection.domid);
        if unread > self.unread_max(domid) {
            self.end_unread(conn);
        } else {
            self.conns.mark_ready(conn);
        }
    }

    /// Most bytes that a connection may leave unread: a guest no more than its quota of memory.
    fn unread_max(&self, domid: DomId) -> usize {
        let quota = match self.content.domains.is_privileged(domid) {
            true => 0,
            false => self.content.domains.limit(domid, Quota::Memory, Kind::Hard) as usize,
        };
        if quota == 0 { UNREAD_MAX_BYTES } else { quota.min(UNREAD_MAX_BYTES) }
    }

    fn end_unread(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get(conn) else { return };
        let (domid, unread) = (connection.domid, connection.unread());
        let text = format!(
            "connection {} of domain {} is no longer served: it left {unread} bytes of replies and events unread",
            conn.0, domid.0
        );
        self.content.domains.notice(Notice::Warn { domid: Some(domid), text });
        self.end_connection(conn, Ended::Unread);
    }

    /// When the first guest will have left something unread for too long.
    pub(super) fn unread_deadline(&self) -> Option<u64> {
        let timeout = self.config.watch_event_timeout_us;
        let (since, _) = self.conns.longest_unread().filter(|_| timeout != 0)?;
        Some(since.saturating_add(timeout))
    }

    pub(super) fn expire_unread(&mut self) {
        let (timeout, now) = (self.config.watch_event_timeout_us, self.content.domains.now);
        while timeout != 0
            && let Some((since, conn)) = self.conns.longest_unread()
            && now >= since.saturating_add(timeout)
        {
            self.end_unread(conn);
        }
    }
}

fn sight<'a>(tree: &'a Tree, path: Path<'_>, done: &'a Done) -> Sight<'a> {
    let walk = tree.walk(path);
    match done {
        Done::Removed(gone) => Sight { node: Some(gone), parent: Some(walk.node), before: None },
        Done::Permitted(old) => {
            Sight { node: Some(walk.node), parent: walk.parent, before: Some(old) }
        }
        _ if walk.missing > 0 => Sight { node: None, parent: None, before: None },
        _ => Sight { node: Some(walk.node), parent: walk.parent, before: None },
    }
}

/// Length of the event's payload.
fn told_len(watch: &Watch, path: &[u8]) -> usize {
    path.len().saturating_sub(watch.hidden).saturating_add(watch.token().len()).saturating_add(2)
}
