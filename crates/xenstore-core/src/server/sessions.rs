//! The connections with their transactions: the turns of these, the snapshots that they keep alive,
//! and the parts that they leave behind.

use super::class::CallerClass;
use super::config::Config;
use super::connections::Connections;
use super::content::Content;
use super::free_queue::{FreeQueue, Garbage};
use super::request::{Request, RequestError, RequestResult};
use super::snapshots::Snapshots;
use super::turn::Turns;
use super::waiting::{Attempt, WaitCause, WaitingRequest};
use crate::churn::Churn;
use crate::id::{ConnId, DomId};
use crate::limits::{LOGGED_WEIGHT, SNAPSHOT_BYTES_MAX, SNAPSHOT_WORK_MAX};
use crate::notice::Notice;
use crate::path::Path;
use crate::perms::{AccessRights, Caller};
use crate::quota::{LimitKind, Quota};
use crate::transaction::{Change, Leftovers, Look, Rerun, Touch, Transaction};
use crate::tree::{Effect, Node};
use crate::wire::{Error, Header};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The store's content, and the connections that use it.
pub(super) struct Sessions {
    pub(super) content: Content,
    pub(super) conns: Connections,
    pub(super) turns: Turns,
    pub(super) free_queue: FreeQueue,
    snapshots: Snapshots,
}

impl Sessions {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            content: Content::new(config),
            conns: Connections::default(),
            turns: Turns::default(),
            free_queue: FreeQueue::new(config.slice_cost),
            snapshots: Snapshots::default(),
        }
    }

    /// Returns the class of a connection, whose turns its requests must respect.
    pub(super) fn class(&self, conn: ConnId) -> CallerClass {
        let domains = &self.content.domains;
        match self.conns.get(conn).is_none_or(|conn| domains.is_privileged(conn.domid)) {
            true => CallerClass::Privileged,
            false => CallerClass::Guest,
        }
    }

    /// Queues a request to wait.
    pub(super) fn delay(&mut self, conn: ConnId, header: &Header, payload: &[u8], why: WaitCause) {
        let class = self.class(conn);
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let domains = &mut self.content.domains;
        let whose = (conn, connection.domid);
        let waiting = WaitingRequest::new(whose, header, payload, why, domains.now);
        let weight = waiting.weight();
        let number = self.turns.lane_mut(class).queue.push(waiting);
        connection.delayed.push_back(number);
        connection.charge_delayed(weight, domains);
    }

    /// True if a new request must wait behind one of its connection. The holder of a turn never
    /// waits: the others wait for it.
    pub(super) fn must_follow(&self, conn: ConnId, header: &Header, payload: &[u8]) -> bool {
        let queue = &self.turns.lane(self.class(conn)).queue;
        !self.turns.holds(conn, header.tx_id)
            && self.conns.get(conn).is_some_and(|connection| {
                queue.holds_up(connection, header, payload, &self.content.tree)
            })
    }

    /// Drops the waiting requests of a connection that is gone.
    pub(super) fn forget_waiting(&mut self, conn: ConnId) {
        let class = self.class(conn);
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let numbers = connection.take_delayed(&mut self.content.domains);
        self.turns.lane_mut(class).queue.forget(numbers);
    }

    /// Appends the waiting requests of a connection, in the order of arrival.
    pub(super) fn write_waiting(&self, conn: ConnId, to: &mut Vec<u8>) {
        if let Some(connection) = self.conns.get(conn) {
            self.turns.lane(self.class(conn)).queue.write_input(connection, to);
        }
    }

    /// Plans which requests of a class are tried after the end of a turn. Returns the cost.
    pub(super) fn plan_tries(&mut self, class: CallerClass) -> u32 {
        let Self { turns, conns, content, .. } = self;
        let last_turn = |conn| {
            let domain = conns.get(conn).and_then(|conn| content.domains.get(conn.domid));
            domain.map_or(0, |domain| domain.last_turn)
        };
        let planned = turns.lane_mut(class).queue.plan(class, last_turn);
        content.charge_work(planned)
    }

    /// True if a request can be tried. False if it wants a turn that is taken, or depends on an
    /// earlier request that waits.
    pub(super) fn may_try(&self, class: CallerClass, number: u64) -> bool {
        let lane = self.turns.lane(class);
        let Some(waiting) = lane.queue.get(number) else { return false };
        (waiting.why == WaitCause::AnEnd || !lane.is_taken())
            && self.conns.get(waiting.conn).is_none_or(|connection| {
                !lane.queue.is_held_up(number, waiting, connection, &self.content.tree)
            })
    }

    /// Makes a change of the store itself wait for the end of a turn that it would affect.
    pub(super) fn check_turns(
        &self,
        request: Request<'_>,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> RequestResult {
        let class = CallerClass::of(&request.caller);
        if !self.turns.has_any(class) {
            return Ok(());
        }
        let tree = &self.content.tree;
        let touch = match change {
            Change::SetPerms(_) => Touch::Perms,
            Change::Put(_) if tree.get(path).is_some() => Touch::Value,
            Change::Put(_) | Change::Remove => Touch::existence(tree, path),
        };
        match self.turns.must_wait(class, (request.conn, 0), path, touch, &self.conns) {
            true => Err(RequestError::Wait(WaitCause::AnEnd)),
            false => Ok(()),
        }
    }

    /// Opens a transaction and returns its number.
    pub(super) fn open(&mut self, conn: ConnId, caller: &Caller) -> Option<u32> {
        let Self { content, conns, snapshots, .. } = self;
        let connection = conns.get_mut(conn)?;
        let mut id = connection.next_transaction;
        while id == 0 || connection.transactions.contains(id) {
            id = id.wrapping_add(1);
        }
        connection.next_transaction = id.wrapping_add(1);
        let snapshot = snapshots.take(conn, id, conns, &content.domains);
        if !caller.privileged {
            snapshots.open(snapshot, conns);
        }
        let transaction = Transaction::new(&content.tree, content.domains.deaths, snapshot);
        content.domains.charge(caller.domid, Quota::Transactions, 1);
        content.domains.charge(caller.domid, Quota::Memory, transaction.weight());
        if let Some(connection) = conns.get_mut(conn) {
            connection.transactions.open(id, transaction);
        }
        Some(id)
    }

    /// Opens a transaction of another store, with which it ended: it can only be refused. Returns
    /// true if its number was free.
    pub(super) fn open_torn(&mut self, conn: ConnId, id: u32) -> bool {
        let Self { content, conns, snapshots, .. } = self;
        let snapshot = snapshots.take(conn, id, conns, &content.domains);
        let mut transaction = Transaction::new(&content.tree, content.domains.deaths, snapshot);
        drop(transaction.give_up());
        transaction.torn = true;
        let weight = transaction.weight();
        let Some(connection) = conns.get_mut(conn) else { return true };
        if id == 0 || !connection.transactions.open(id, transaction) {
            return false;
        }
        content.domains.charge(connection.domid, Quota::Transactions, 1);
        content.domains.charge(connection.domid, Quota::Memory, weight);
        true
    }

    /// True if this transaction is open.
    pub(super) fn has_transaction(&self, conn: ConnId, id: u32) -> bool {
        self.conns.get(conn).is_some_and(|conn| conn.transactions.contains(id))
    }

    /// Takes a transaction out for a request, so that it can work on the rest of the store.
    pub(super) fn take_out(&mut self, conn: ConnId, id: u32) -> Result<Box<Transaction>, Error> {
        let taken = self.conns.get_mut(conn).and_then(|conn| conn.transactions.take_out(id));
        taken.ok_or(Error::NoEnt)
    }

    /// Puts back a transaction that was taken out.
    pub(super) fn give_back(&mut self, conn: ConnId, id: u32, transaction: Box<Transaction>) {
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.transactions.give_back(id, transaction);
        }
    }

    /// Closes a transaction that was taken out or removed.
    pub(super) fn close(
        &mut self,
        conn: ConnId,
        id: u32,
        domid: DomId,
        transaction: Box<Transaction>,
    ) {
        let Self { content, conns, turns, snapshots, free_queue } = self;
        let domains = &mut content.domains;
        if let Some(connection) = conns.get_mut(conn) {
            connection.transactions.close(id);
        }
        domains.charge(domid, Quota::Transactions, -1);
        turns.end(conn, id, conns, domains);
        snapshots.close(&transaction.snapshot, conns, domains);
        let weight = transaction.weight();
        free_queue.discard(
            Garbage::Leftovers(transaction.into_leftovers()),
            domid,
            weight,
            domains,
        );
    }

    /// Closes all transactions of a connection.
    pub(super) fn close_all(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let domid = connection.domid;
        let transactions = core::mem::take(&mut connection.transactions);
        for (id, transaction) in transactions.into_all() {
            self.close(conn, id, domid, transaction);
        }
    }

    /// Passes the request's transaction to `body`. It is put back in any case.
    fn in_transaction<R>(
        &mut self,
        request: Request<'_>,
        body: impl FnOnce(&mut Self, &mut Transaction) -> R,
    ) -> Result<R, Error> {
        let id = request.header.tx_id;
        let mut transaction = self.take_out(request.conn, id)?;
        let before = transaction.weight();
        let result = body(self, &mut transaction);
        let more = transaction.weight().saturating_sub(before);
        if more != 0 {
            self.content.domains.charge(request.caller.domid, Quota::Memory, more);
        }
        self.give_back(request.conn, id, transaction);
        Ok(result)
    }

    /// Returns the node at `path` if the caller may read it, in or outside a transaction.
    pub(super) fn see(
        &mut self,
        request: Request<'_>,
        path: Path<'_>,
        what: Look,
    ) -> Result<Node, RequestError> {
        let caller = request.caller;
        if request.header.tx_id == 0 {
            return Ok(self.content.tree.find(&caller, path, AccessRights::READ)?.clone());
        }
        self.in_transaction(request, |sessions, transaction| {
            if transaction.lost {
                // The transaction will be refused. Until then it is shown the present state of the
                // store.
                transaction.torn = true;
                return Ok(sessions.content.tree.find(&caller, path, AccessRights::READ)?.clone());
            }
            if !caller.privileged && !transaction.has_seen(path, what) {
                sessions.content.check_access(&caller, transaction, path, LOGGED_WEIGHT)?;
            }
            let (conn, id) = (request.conn, request.header.tx_id);
            match sessions.request_turn((conn, id), transaction, &caller, path, what) {
                Attempt::Wait(why) => Err(RequestError::Wait(why)),
                Attempt::Done => {
                    Ok(transaction.see(&caller, path, what, &sessions.content.domains)?)
                }
            }
        })?
    }

    /// Changes the node at `path` in the request's transaction.
    pub(super) fn change(
        &mut self,
        request: Request<'_>,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> RequestResult {
        let caller = request.caller;
        self.in_transaction(request, |sessions, transaction| {
            if transaction.lost {
                // The transaction will be refused: the request is checked, and not executed.
                transaction.torn = true;
                return Ok(sessions.content.dry_run(&caller, path, change)?);
            }
            // Every change is logged, whatever its outcome, so each counts.
            sessions.content.check_access(&caller, transaction, path, change.weight())?;
            Ok(sessions.content.change_in(transaction, &caller, path, change)?)
        })?
    }

    /// Gives the turn to a transaction that is about to read `path`, if it should have it.
    fn request_turn(
        &mut self,
        (conn, id): (ConnId, u32),
        transaction: &mut Transaction,
        caller: &Caller,
        path: Path<'_>,
        what: Look,
    ) -> Attempt {
        let (tree, domains) = (&self.content.tree, &self.content.domains);
        let now = domains.now;
        let holds = self.turns.holds(conn, id);
        if transaction.doomed || !(holds || self.turns.may_take(transaction, caller, path, domains))
        {
            return Attempt::Done;
        }
        let class = CallerClass::of(caller);
        if !holds && self.turns.lane(class).is_busy() {
            return Attempt::Wait(WaitCause::ATurn);
        }
        let stale = !transaction.is_current(tree, domains.deaths)
            && (!holds || transaction.is_stale_at(tree, caller, path, what));
        if stale {
            match self.content.rerun(transaction, caller) {
                Ok(rerun) => self.move_to_present(transaction, rerun),
                Err(conflict) => {
                    // It is too late for this transaction. The next attempt takes the turn from the
                    // start.
                    transaction.doomed = true;
                    let Self { content, conns, turns, .. } = self;
                    turns.record_refusal(caller, transaction, &conflict, &content.domains);
                    turns.end(conn, id, conns, &mut content.domains);
                    return Attempt::Done;
                }
            }
        }
        if !holds {
            self.turns.begin(class, conn, id, now);
        }
        Attempt::Done
    }

    /// Checks if a transaction may commit now. Returns the outcome on the present store if it
    /// differs from the transaction's own.
    pub(super) fn judge(
        &mut self,
        request: Request<'_>,
        transaction: &Transaction,
    ) -> Result<Option<Rerun>, RequestError> {
        // This check comes first: the requests of a transaction that was given up have not been
        // executed.
        if transaction.torn || (transaction.lost && transaction.changes) {
            return Err(Error::Again.into());
        }
        if !transaction.changes {
            return Ok(None);
        }
        let Self { content, conns, turns, .. } = self;
        let (caller, own) = (request.caller, (request.conn, request.header.tx_id));
        let class = CallerClass::of(&caller);
        if turns.has_any(class) {
            let waits = |(path, done): &(Rc<[u8]>, Effect)| {
                let path = Path::checked(path);
                let touch = match done {
                    Effect::Permitted(_) => Touch::Perms,
                    Effect::Changed if content.tree.get(path).is_some() => Touch::Value,
                    _ => Touch::existence(&content.tree, path),
                };
                turns.must_wait(class, own, path, touch, conns)
            };
            if transaction.work.changed.iter().any(waits) {
                return Err(RequestError::Wait(WaitCause::AnEnd));
            }
        }
        let (tree, domains) = (&content.tree, &content.domains);
        if transaction.is_current(tree, domains.deaths) && !transaction.doomed {
            return Ok(None);
        }
        content.rerun(transaction, &caller).map(Some).map_err(|conflict| {
            turns.record_refusal(&caller, transaction, &conflict, &content.domains);
            conflict.error.into()
        })
    }

    /// Books the changes of the last operation, which `author` requested.
    pub(super) fn book(&mut self, author: Option<ConnId>) {
        let churn = self.content.book();
        self.record_replaced(author, churn);
    }

    /// Counts the state that a change of the store has replaced; `author` requested the change.
    pub(super) fn record_replaced(&mut self, author: Option<ConnId>, churn: Churn) {
        let bytes = u64::try_from(churn.replaced()).unwrap_or(0);
        if bytes == 0 || !self.snapshots.note(bytes) {
            return;
        }
        let Some(conn) = author else { return };
        let Some(connection) = self.conns.get_mut(conn) else { return };
        if connection.retained.note(bytes) {
            connection.charge_retained(&mut self.content.domains);
            let domid = connection.domid;
            self.give_up_for_room(conn, domid);
        }
    }

    /// Gives up the oldest transactions of a guest over its memory quota, as long as they keep
    /// state that it has replaced. There is no request that could be refused instead.
    fn give_up_for_room(&mut self, conn: ConnId, domid: DomId) {
        let domains = &self.content.domains;
        let limit = i64::from(domains.limit(domid, Quota::Memory, LimitKind::Hard));
        let used = domains.get(domid).map_or(0, |domain| domain.usage.now(Quota::Memory));
        let mut over = if limit == 0 { 0 } else { used.saturating_sub(limit) };
        while over > 0
            && let Some(connection) = self.conns.get_mut(conn)
            && let kept = connection.retained.kept()
            && kept > 0
            && let Some(id) = connection.retained.oldest()
            && let Some(mut transaction) = connection.transactions.take_out(id)
        {
            // The transaction is charged until it is freed, in the next rounds.
            over = over.saturating_sub(transaction.weight());
            self.give_up(&mut transaction, domid, "the domain has used up its quota of memory");
            if let Some(connection) = self.conns.get_mut(conn) {
                over = over.saturating_sub(kept.saturating_sub(connection.retained.kept()));
                connection.transactions.give_back(id, transaction);
            }
        }
    }

    /// True if a guest's transaction has to be brought up to date.
    pub(super) fn has_stale_snapshot(&self) -> bool {
        self.snapshots.stale(self.content.domains.now).is_some()
    }

    /// Brings guests' transactions up to date that keep old state of the store alive, at their
    /// cost, some in each round.
    pub(super) fn refresh_old_snapshots(&mut self) {
        let mut left = SNAPSHOT_WORK_MAX;
        while let Some(old) = self.snapshots.stale(self.content.domains.now)
            && (left > 0 || self.snapshots.kept_by(&old) >= SNAPSHOT_BYTES_MAX)
        {
            let lent = self.conns.get_mut(old.conn).and_then(|connection| {
                Some((connection.domid, connection.transactions.take_out(old.id)?))
            });
            let Some((domid, mut transaction)) = lent else {
                self.snapshots.close(&old, &mut self.conns, &mut self.content.domains);
                continue;
            };
            let spent = core::mem::take(&mut self.content.cost);
            if left > 0 {
                left = left.saturating_sub(transaction.log_len().saturating_add(1));
                self.refresh(&mut transaction, domid);
            } else {
                self.give_up(&mut transaction, domid, "the store has changed too much meanwhile");
            }
            let cost = core::mem::replace(&mut self.content.cost, spent);
            if let Some(connection) = self.conns.get_mut(old.conn) {
                connection.owed = connection.owed.saturating_add(cost).saturating_add(1);
                connection.transactions.give_back(old.id, transaction);
            }
        }
    }

    /// Moves a transaction to the present state of the store. If a part of the state that it saw
    /// has changed, it will be refused, and its snapshot is dropped.
    fn refresh(&mut self, transaction: &mut Transaction, domid: DomId) {
        let caller = self.content.domains.caller(domid);
        match self.content.rerun(transaction, &caller) {
            Ok(rerun) => {
                let before = transaction.weight();
                self.move_to_present(transaction, rerun);
                let more = transaction.weight().saturating_sub(before);
                self.content.domains.charge(domid, Quota::Memory, more);
            }
            Err(conflict) => {
                let domains = &self.content.domains;
                self.turns.record_refusal(&caller, transaction, &conflict, domains);
                self.drop_kept_state(transaction, domid);
            }
        }
    }

    /// Moves a transaction to the present state of the store, on which its log has run.
    fn move_to_present(&mut self, transaction: &mut Transaction, rerun: Rerun) {
        let Self { content, conns, snapshots, .. } = self;
        let old = transaction.snapshot;
        transaction.snapshot = snapshots.take(old.conn, old.id, conns, &content.domains);
        if snapshots.is_open(&old) {
            // The old snapshot is closed first: both may be the same.
            snapshots.close(&old, conns, &mut content.domains);
            snapshots.open(transaction.snapshot, conns);
        }
        let before = transaction.weight();
        let leftovers = transaction.rebase(content.tree.clone(), content.domains.deaths, rerun);
        self.discard(transaction, leftovers, before);
    }

    /// Discards parts that a transaction does not keep any more. Its owner is charged for them
    /// until they are freed.
    fn discard(&mut self, transaction: &Transaction, leftovers: Leftovers, weight: i64) {
        let domains = &mut self.content.domains;
        if let Some(connection) = self.conns.get(transaction.snapshot.conn) {
            let domid = connection.domid;
            domains.charge(domid, Quota::Memory, weight);
            self.free_queue.discard(Garbage::Leftovers(leftovers), domid, weight, domains);
        }
    }

    /// Gives up a transaction that could not be kept.
    fn give_up(&mut self, transaction: &mut Transaction, domid: DomId, why: &str) {
        self.drop_kept_state(transaction, domid);
        self.content.domains.notice(Notice::Info(format!(
            "a transaction of domain {} will get EAGAIN: it was left open, and {why}",
            domid.0,
        )));
    }

    /// Drops everything that a transaction keeps alive: it can only be refused.
    fn drop_kept_state(&mut self, transaction: &mut Transaction, domid: DomId) {
        let Self { content, conns, turns, snapshots, .. } = self;
        let snapshot = transaction.snapshot;
        turns.end(snapshot.conn, snapshot.id, conns, &mut content.domains);
        snapshots.close(&snapshot, conns, &mut content.domains);
        let before = transaction.weight();
        let leftovers = transaction.give_up();
        let more = transaction.weight().saturating_sub(before);
        content.domains.charge(domid, Quota::Memory, more);
        self.discard(transaction, leftovers, before);
    }
}
