//! The store: the operations that change it, and their effects.

use super::announcer::{Announcer, Firing, INTRODUCE, RELEASE};
use super::check::Check;
use super::config::{Config, Orphans};
use super::connection::Transport;
use super::counters::Counters;
use super::free_queue::Garbage;
use super::orphan_search::{OrphanSearch, SearchOutcome};
use super::removal::Removal;
use super::request::{Request, RequestError, RequestResult};
use super::sessions::Sessions;
use crate::churn::Churn;
use crate::host::{AttachRequest, StoreHost};
use crate::id::{ConnId, DomId};
use crate::limits::{DISOWN_MAX, DOMID_ANY, PAYLOAD_MAX, UNREAD_MAX_BYTES};
use crate::notice::{EndReason, Notice};
use crate::path::{Path, home_of};
use crate::perms::Incarnation;
use crate::quota::{LimitKind, Quota};
use crate::transaction::{Change, Transaction};
use crate::tree::{Effect, Node};
use crate::watch::{Watch, WatchId};
use crate::wire::Error;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

/// The state that requests, time and the hypervisor's reports can change.
pub(super) struct StoreState {
    pub(super) config: Config,
    pub(super) sessions: Sessions,
    pub(super) announcer: Announcer,
    pub(super) counters: Counters,
    /// The large subtrees that were removed, the oldest first.
    removals: VecDeque<Removal>,
    /// The searches for dead domains' nodes, the oldest first.
    orphan_searches: VecDeque<OrphanSearch>,
    /// A CONTROL `check` in progress.
    check: Option<Box<Check>>,
}

impl StoreState {
    pub(super) fn new(config: Config) -> Self {
        Self {
            sessions: Sessions::new(&config),
            config,
            announcer: Announcer::default(),
            counters: Counters::default(),
            removals: VecDeque::new(),
            orphan_searches: VecDeque::new(),
            check: None,
        }
    }

    /// Changes the node at `path`, in or outside a transaction.
    pub(super) fn change(
        &mut self,
        request: Request<'_>,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> RequestResult {
        if request.header.tx_id != 0 {
            return self.sessions.change(request, path, change);
        }
        self.sessions.check_turns(request, path, change)?;
        let done = self.sessions.content.change(&request.caller, path, change)?;
        self.sessions.book(Some(request.conn));
        self.fire(path, &done);
        self.discard_done(path, done, Some(request.conn));
        Ok(())
    }

    /// Ends the request's transaction, with a commit or without.
    pub(super) fn end_transaction(&mut self, request: Request<'_>, commit: bool) -> RequestResult {
        let (conn, id) = (request.conn, request.header.tx_id);
        let mut transaction = self.sessions.take_out(conn, id)?;
        let outcome = match commit {
            true => self.commit(request, &mut transaction),
            false => Ok(Churn::default()),
        };
        if matches!(outcome, Err(RequestError::Wait(_))) {
            self.sessions.give_back(conn, id, transaction);
            return outcome.map(drop);
        }
        self.sessions.close(conn, id, request.caller.domid, transaction);
        self.sessions.record_replaced(Some(conn), outcome?);
        Ok(())
    }

    /// Makes the result of a transaction the store's state, if it may commit. Returns the replaced
    /// state.
    fn commit(
        &mut self,
        request: Request<'_>,
        transaction: &mut Transaction,
    ) -> Result<Churn, RequestError> {
        let judged = self.sessions.judge(request, transaction);
        if matches!(judged, Err(RequestError::Error(_))) {
            self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
        }
        let rerun = judged?;
        if !transaction.changes {
            return Ok(Churn::default());
        }
        let work = rerun.as_ref().unwrap_or(&transaction.work);
        let old = self.sessions.content.replace(work);
        self.sessions.free_queue.discard_node(old);
        self.counters.commits = self.counters.commits.wrapping_add(1);
        for (path, done) in &work.changed {
            self.fire(Path::checked(path), done);
            self.record_removed(Path::checked(path), done, Some(request.conn));
        }
        let churn = work.churn;
        if let Some(rerun) = rerun {
            let Sessions { free_queue, content, .. } = &mut self.sessions;
            let leftovers = Garbage::Leftovers(rerun.into_leftovers());
            free_queue.discard(leftovers, request.caller.domid, 0, &mut content.domains);
        }
        Ok(churn)
    }

    /// Fires the watches for the change of `path`.
    fn fire(&mut self, path: Path<'_>, done: &Effect) {
        let watches = &self.announcer.watches;
        if matches!(done, Effect::Unchanged) || watches.len() == 0 {
            return;
        }
        if watches.may_match(path) {
            let firing = self.announcer.find_at(path, done, &self.sessions);
            self.push_events(&firing);
        }
        // The watches in a large subtree fire in slices.
        if let Effect::Removed(gone) = done
            && !gone.is_large()
        {
            let (firing, visited) = self.announcer.find_below(path, gone, &self.sessions);
            self.sessions.content.charge_work(visited);
            self.push_events(&firing);
        }
    }

    /// Fires the watches of a special path.
    pub(super) fn fire_special(&mut self, name: &'static [u8], domid: DomId) {
        let firing = self.announcer.find_special(name, domid, &self.sessions);
        self.push_events(&firing);
    }

    fn push_events(&mut self, firing: &[Firing]) {
        for (id, path) in firing {
            self.push_event(*id, path);
        }
    }

    /// Queues one event. A connection that leaves too much unread is ended.
    pub(super) fn push_event(&mut self, id: WatchId, path: &Rc<[u8]>) {
        let Self { announcer, sessions, counters, .. } = self;
        let Some(watch) = announcer.watches.get(id) else { return };
        let conn = watch.conn;
        let len = payload_len(watch, path);
        // An event that is too long for a message is not sent (XSA-324).
        if len > PAYLOAD_MAX {
            return;
        }
        let Some(connection) = sessions.conns.get_mut(conn) else { return };
        sessions.content.add_cost(1);
        if !connection.push_event(id, path, len) {
            counters.events_merged = counters.events_merged.wrapping_add(1);
            return;
        }
        counters.events = counters.events.wrapping_add(1);
        let (unread, domid) = (connection.unread(), connection.domid);
        if unread > self.unread_max(domid) {
            self.end_unread(conn);
        } else {
            self.sessions.conns.mark_ready(conn);
        }
    }

    /// Returns the most bytes that a connection may leave unread: for a guest its quota of memory.
    fn unread_max(&self, domid: DomId) -> usize {
        let domains = &self.sessions.content.domains;
        let quota = match domains.is_privileged(domid) {
            true => 0,
            false => domains.limit(domid, Quota::Memory, LimitKind::Hard) as usize,
        };
        if quota == 0 { UNREAD_MAX_BYTES } else { quota.min(UNREAD_MAX_BYTES) }
    }

    fn end_unread(&mut self, conn: ConnId) {
        let Some(connection) = self.sessions.conns.get(conn) else { return };
        let (domid, unread) = (connection.domid, connection.unread());
        let text = format!(
            "connection {} of domain {} is no longer served: it left {unread} bytes of replies and events unread",
            conn.0, domid.0
        );
        self.sessions.content.domains.notice(Notice::Warn { domid: Some(domid), text });
        self.end_connection(conn, EndReason::Unread);
    }

    /// Returns the time at which the first guest will have left output unread for too long.
    fn unread_deadline(&self) -> Option<u64> {
        let timeout = self.config.watch_event_timeout_us;
        let (since, _) = self.sessions.conns.longest_unread().filter(|_| timeout != 0)?;
        Some(since.saturating_add(timeout))
    }

    fn expire_unread(&mut self) {
        let timeout = self.config.watch_event_timeout_us;
        let now = self.sessions.content.domains.now;
        while timeout != 0
            && let Some((since, conn)) = self.sessions.conns.longest_unread()
            && now >= since.saturating_add(timeout)
        {
            self.end_unread(conn);
        }
    }

    /// Returns the latest time at which the time-dependent work must be run.
    pub(super) fn deadline(&self) -> Option<u64> {
        let Sessions { content, free_queue, turns, .. } = &self.sessions;
        let busy = content.domains.has_orphans || !free_queue.is_empty() || self.check.is_some();
        if busy || self.sessions.has_stale_snapshot() {
            return Some(0);
        }
        turns.deadline().into_iter().chain(self.unread_deadline()).min()
    }

    /// Does the work that is due at this time, and some of the background work.
    pub(super) fn work(&mut self) {
        let Sessions { content, conns, turns, .. } = &mut self.sessions;
        turns.expire(conns, &mut content.domains);
        self.expire_unread();
        self.sessions.refresh_old_snapshots();
        self.search_orphans();
        self.disown_some();
        let Sessions { content, free_queue, .. } = &mut self.sessions;
        free_queue.free_some(&mut content.domains);
        self.check_some();
    }

    /// Drops the watches, transactions, waiting requests and output of a connection, which may
    /// continue.
    pub(super) fn clear_connection(&mut self, conn: ConnId) {
        self.sessions.forget_waiting(conn);
        if let Some(connection) = self.sessions.conns.get_mut(conn) {
            connection.clear_output();
        }
        self.drop_watches(conn);
        self.sessions.close_all(conn);
        let Sessions { content, conns, .. } = &mut self.sessions;
        conns.record_unread(conn, None, &content.domains);
        if conns.get_mut(conn).and_then(|connection| connection.ended.take()).is_some() {
            // The connection starts anew, or its id will be another's: the daemon must not end that
            // one.
            content.domains.notices.withdraw_end(conn);
        }
        conns.mark_ready(conn);
    }

    /// Removes all watches of a connection, and all events that wait there.
    pub(super) fn drop_watches(&mut self, conn: ConnId) {
        let Sessions { content, conns, free_queue, .. } = &mut self.sessions;
        let Some(connection) = conns.get_mut(conn) else { return };
        let domid = connection.domid;
        let events = connection.take_events();
        let watches = core::mem::take(&mut connection.watches);
        content.charge_work(events.len().saturating_add(watches.len()));
        let domains = &mut content.domains;
        for id in watches.into_values() {
            self.announcer.forget(id, domid, domains);
        }
        // These events counted as unread until now.
        let weight = events.size() as i64;
        domains.charge(domid, Quota::Memory, weight);
        free_queue.discard(Garbage::Events(events), domid, weight, domains);
    }

    /// Stops serving a connection, although its domain, if any, still lives (XSA-325).
    pub(super) fn end_connection(&mut self, conn: ConnId, why: EndReason) {
        self.clear_connection(conn);
        let Some(connection) = self.sessions.conns.get_mut(conn) else { return };
        connection.ended = Some(why);
        self.sessions.content.domains.notice(Notice::Ended { conn, why });
    }

    /// Introduces a domain (INTRODUCE): it gets a connection, or a new event channel for the one
    /// that it has.
    pub(super) fn introduce(
        &mut self,
        domid: DomId,
        gfn: u64,
        port: u32,
        host: &mut dyn StoreHost,
    ) -> Result<ConnId, Error> {
        // The report of a domain's death may come after its number is reused.
        let identity = host.domain_identity(domid).ok_or(Error::NoEnt)?;
        let known = self.sessions.content.domains.get(domid).and_then(|domain| domain.identity);
        if known.is_some_and(|known| known != identity) {
            self.release(domid, host);
        }
        let Sessions { content, conns, .. } = &mut self.sessions;
        let domain = content.domains.get_or_insert(domid);
        domain.identity = Some(identity);
        let features = domain.features;
        if let Some(conn) = domain.conn {
            host.reattach(AttachRequest { domid, gfn, port, features, conn })?;
            self.clear_connection(conn);
            return Ok(conn);
        }
        let conn = conns.add(domid, Transport::Ring);
        if let Err(error) = host.attach(AttachRequest { domid, gfn, port, features, conn }) {
            conns.remove(conn);
            return Err(error);
        }
        domain.conn = Some(conn);
        domain.shutdown = false;
        self.fire_special(INTRODUCE, domid);
        Ok(conn)
    }

    /// Releases a domain, at RELEASE or its death. Its nodes are removed. Permission entries for it
    /// become void with its incarnation. Domains that had it as a target have none any more.
    pub(super) fn release(&mut self, domid: DomId, host: &mut dyn StoreHost) {
        let Some(domain) = self.sessions.content.domains.get_mut(domid) else { return };
        let conn = domain.conn.take();
        if let Some(conn) = conn {
            // This comes first, so that the domain gets no events about its own nodes.
            self.clear_connection(conn);
            self.sessions.conns.remove(conn);
            host.detach(domid, conn);
        }
        self.remove_nodes_of(domid);
        self.sessions.content.domains.forget(domid);
        self.search_orphans();
        if conn.is_some() {
            self.fire_special(RELEASE, domid);
        }
    }

    /// Removes a dead domain's nodes, or gives them away. A domain that owns nothing costs nothing.
    /// Otherwise its home is searched at once, as far as a slice goes, and the whole tree in the
    /// next rounds if it owns more nodes than were found there.
    fn remove_nodes_of(&mut self, domid: DomId) {
        let owned = |store: &Self| {
            let domain = store.sessions.content.domains.get(domid);
            domain.map_or(0, |domain| domain.usage.now(Quota::Nodes))
        };
        if owned(self) <= 0 {
            return;
        }
        let incarnation = self.sessions.content.domains.incarnation(domid);
        if domid.0 == DOMID_ANY {
            // This is no domain: only the privileged domain can have given it nodes. They have no
            // incarnation by which they could be found later.
            let mut orphan_search = OrphanSearch::new(domid, Incarnation::NEVER, b"/");
            while !self.search_slice(&mut orphan_search) {}
        } else {
            let mut home = Vec::new();
            home_of(domid.0, &mut home);
            let spent = core::mem::take(&mut self.sessions.content.cost);
            self.search_slice(&mut OrphanSearch::new(domid, incarnation, &home));
            self.sessions.content.add_cost(spent);
        }
        for special in [INTRODUCE, RELEASE] {
            let node = self.sessions.content.tree.special(special);
            if node.map(|node| node.perms().owner().domid) == Some(domid) {
                self.inherit(Path::checked(special));
            }
        }
        if owned(self) > 0 && domid.0 != DOMID_ANY {
            self.orphan_searches.push_back(OrphanSearch::new(domid, incarnation, b"/"));
            self.update_has_orphans();
        }
    }

    /// Gives a node to the privileged domain.
    fn inherit(&mut self, path: Path<'_>) {
        let churn = self.sessions.content.inherit(path);
        self.sessions.record_replaced(None, churn);
    }

    /// Removes a dead domain's node, or gives it away.
    fn remove_orphan(&mut self, path: Path<'_>) {
        // The root cannot be removed.
        if self.config.orphans == Orphans::Keep || path.is_root() {
            self.inherit(path);
            return;
        }
        let own = self.sessions.content.own_caller();
        let done = self.sessions.content.change(&own, path, &Change::Remove);
        self.sessions.book(None);
        if let Ok(done) = done {
            self.fire(path, &done);
            self.discard_done(path, done, None);
        }
    }

    /// Continues a search, and removes the nodes that it finds, until the cost of the request at
    /// hand is that of a slice. Returns true if the search is complete.
    fn search_slice(&mut self, orphan_search: &mut OrphanSearch) -> bool {
        let slice = self.config.slice_cost;
        let mut looks = 0;
        loop {
            match orphan_search.search(&mut looks, slice, &mut self.sessions.content) {
                SearchOutcome::Found(path) => self.remove_orphan(Path::checked(&path)),
                SearchOutcome::Paused => return false,
                SearchOutcome::Ended => return true,
            }
            if self.sessions.content.cost >= slice {
                return false;
            }
        }
    }

    /// Continues the oldest searches, as much as a slice may cost.
    fn search_orphans(&mut self) {
        let spent = core::mem::take(&mut self.sessions.content.cost);
        while self.sessions.content.cost < self.config.slice_cost
            && let Some(mut orphan_search) = self.orphan_searches.pop_front()
        {
            if !self.search_slice(&mut orphan_search) {
                self.orphan_searches.push_front(orphan_search);
                break;
            }
        }
        self.update_has_orphans();
        self.sessions.content.cost = spent;
    }

    /// Discards the nodes that an operation at `path` has removed.
    fn discard_done(&mut self, path: Path<'_>, done: Effect, author: Option<ConnId>) {
        self.record_removed(path, &done, author);
        if let Effect::Removed(gone) = done {
            self.sessions.free_queue.discard_node(gone);
        }
    }

    /// Records a removed subtree whose nodes are still on their owners' accounts.
    fn record_removed(&mut self, path: Path<'_>, done: &Effect, author: Option<ConnId>) {
        if let Effect::Removed(gone) = done
            && gone.is_large()
        {
            self.record_large_removal(path, gone.clone(), author);
        }
    }

    /// Records a large subtree that was removed.
    fn record_large_removal(&mut self, path: Path<'_>, top: Node, author: Option<ConnId>) {
        let Sessions { content, conns, .. } = &mut self.sessions;
        // These nodes were visited three times.
        content.charge_work(3 * DISOWN_MAX);
        let author = author.and_then(|conn| Some((conn, conns.get(conn)?.domid)));
        self.removals.push_back(Removal::new(path, top, author));
        self.update_has_orphans();
    }

    /// Takes nodes of the oldest removed subtree off their owners' accounts and fires their
    /// watches, as much as a slice may cost.
    fn disown_some(&mut self) {
        let Some(mut removal) = self.removals.pop_front() else { return };
        let slice = self.config.slice_cost;
        let done = removal.disown(slice, &mut self.sessions, &self.announcer);
        if let Some((conn, domid)) = removal.author()
            && let Some(connection) = self.sessions.conns.get_mut(conn)
            && connection.domid == domid
        {
            connection.owed = connection.owed.saturating_add(done.cost);
        }
        // The connection that removed them may be gone.
        self.sessions.record_replaced(None, done.churn);
        self.push_events(&done.firing);
        if done.is_done {
            self.sessions.free_queue.discard_node(removal.into_top());
        } else {
            self.removals.push_front(removal);
        }
        self.update_has_orphans();
    }

    /// Records that nodes may belong to dead domains as long as a search or a removal is in
    /// progress.
    fn update_has_orphans(&mut self) {
        self.sessions.content.domains.has_orphans =
            !self.orphan_searches.is_empty() || !self.removals.is_empty();
    }

    /// Starts to compare the accounts with the contents of the store. Differences are logged.
    pub(super) fn check(&mut self) {
        // Nodes of a dead domain would count for no domain, and removed nodes would be missing.
        while !self.orphan_searches.is_empty() {
            self.search_orphans();
        }
        while !self.removals.is_empty() {
            self.disown_some();
        }
        self.check = Some(Box::new(Check::new(&self.sessions, &self.announcer)));
        self.check_some();
    }

    /// Continues a check.
    fn check_some(&mut self) {
        let Some(mut check) = self.check.take() else { return };
        if !check.look(self.config.slice_cost) {
            self.check = Some(check);
            return;
        }
        let wrong = check.into_faults();
        let domains = &mut self.sessions.content.domains;
        if wrong.is_empty() {
            domains.notice(Notice::Info(String::from("check: the store is in order")));
        }
        for what in wrong {
            let text = format!("check: {what}; please report this");
            domains.notice(Notice::Warn { domid: None, text });
        }
    }
}

/// Returns the length of the event's payload.
fn payload_len(watch: &Watch, path: &[u8]) -> usize {
    path.len().saturating_sub(watch.hidden).saturating_add(watch.token().len()).saturating_add(2)
}
