//! What a connection has of its own: watches and transactions.

use super::request::{Outcome, Request, Stop, parse};
use super::turn::Class;
use super::waiting::WaitsFor;
use super::{ConnId, DomId, Notice, Server};
use crate::limits::{HOLD_MAX_US, SNAPSHOT_CHANGES, SNAPSHOT_CHANGES_MAX, SNAPSHOT_WORK_MAX};
use crate::path::{Path, Special, is_relative, push_decimal};
use crate::quota::Quota;
use crate::transaction::{Snapshot, Touch, Transaction};
use crate::tree::Done;
use crate::watch::{self, WatchId};
use crate::wire::{Error, Strings, feature};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

impl Server {
    pub(super) fn watch(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let caller = request.caller;
        let mut strings = Strings::new(request.payload);
        let (given, token) = strings.next().zip(strings.next()).ok_or(Error::Inval)?;
        let may_depth = self
            .domains
            .get(caller.domid)
            .is_none_or(|domain| domain.features & feature::WATCH_DEPTH != 0);
        let depth = match (strings.next(), strings.next()) {
            (None, _) => None,
            (Some(depth), None) if may_depth => Some(parse(depth)?),
            _ => return Err(Error::Inval.into()),
        };
        let path = self.path(&caller, given, Special::Allowed, scratch)?;
        let hidden =
            if is_relative(given) { path.as_bytes().len().saturating_sub(given.len()) } else { 0 };
        let mut key = Vec::new();
        watch::key(path, token, &mut key);
        let Some(connection) = self.conn(request.conn) else { return Ok(()) };
        if connection.watches.contains_key(key.as_slice()) {
            return Err(Error::Exist.into());
        }
        let weight = watch::weight(&key);
        if !caller.privileged {
            self.domains.check_more(caller.domid, Quota::Watches, 1)?;
            self.domains.check_more(caller.domid, Quota::Memory, weight)?;
        }
        let id = self.add_watch(request.conn, caller.domid, path, Rc::from(key), hidden, depth);
        self.ok(request)?;
        self.push_event(id, &Rc::from(path.as_bytes()));
        Ok(())
    }

    /// Sets a watch, and charges it to `domid`; `key` is [`watch::key`] of its path and token.
    pub(super) fn add_watch(
        &mut self,
        conn: ConnId,
        domid: DomId,
        path: Path<'_>,
        key: Rc<[u8]>,
        hidden: usize,
        depth: Option<u32>,
    ) -> WatchId {
        let weight = watch::weight(&key);
        let id = self.watches.add((conn, domid), path, key.clone(), hidden, depth);
        if let Some(connection) = self.conn_mut(conn) {
            connection.watches.insert(key, id);
        }
        self.domains.charge(domid, Quota::Watches, 1);
        self.domains.charge(domid, Quota::Memory, weight);
        id
    }

    pub(super) fn unwatch(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let [given, token] = request.strings()?;
        let path = self.path(&request.caller, given, Special::Allowed, scratch)?;
        let mut key = Vec::new();
        watch::key(path, token, &mut key);
        let removed =
            self.conn_mut(request.conn).and_then(|conn| conn.watches.remove(key.as_slice()));
        self.forget_watch(request.conn, removed.ok_or(Error::NoEnt)?, request.caller.domid);
        self.ok(request)
    }

    pub(super) fn reset_watches(&mut self, request: Request<'_>) -> Outcome {
        self.drop_watches(request.conn);
        self.drop_transactions(request.conn);
        self.ok(request)
    }

    pub(super) fn transaction_start(&mut self, request: Request<'_>) -> Outcome {
        let caller = request.caller;
        if request.header.tx_id != 0 {
            return Err(Error::Busy.into());
        }
        if !caller.privileged {
            self.domains.check_more(caller.domid, Quota::Transactions, 1)?;
        }
        let (tree, deaths) = (self.tree.clone(), self.domains.deaths);
        let (since, changes) = (self.domains.now, self.changes);
        let Some(connection) = self.conn_mut(request.conn) else { return Ok(()) };
        let mut id = connection.next_transaction;
        while id == 0 || connection.transactions.contains(id) {
            id = id.wrapping_add(1);
        }
        connection.next_transaction = id.wrapping_add(1);
        let snapshot = Snapshot { since, changes, conn: request.conn, id };
        let transaction = Transaction::new(&tree, deaths, snapshot);
        connection.transactions.open(id, transaction);
        if !caller.privileged {
            self.snapshots.insert(snapshot);
        }
        self.domains.charge(caller.domid, Quota::Transactions, 1);
        let mut body = Vec::new();
        push_decimal(u64::from(id), &mut body);
        self.answer(request, &[&body, b"\0"])
    }

    pub(super) fn transaction_end(&mut self, request: Request<'_>) -> Outcome {
        let commit = match request.only_string()? {
            b"T" => true,
            b"F" => false,
            _ => return Err(Error::Inval.into()),
        };
        let id = request.header.tx_id;
        let taken = self.conn_mut(request.conn).and_then(|conn| conn.transactions.lend(id));
        let mut transaction = taken.ok_or(Error::NoEnt)?;
        let outcome = if commit { self.commit(request, &mut transaction) } else { Ok(()) };
        if matches!(outcome, Err(Stop::Wait(_))) {
            if let Some(connection) = self.conn_mut(request.conn) {
                connection.transactions.give_back(id, transaction);
            }
            return outcome;
        }
        if let Some(connection) = self.conn_mut(request.conn) {
            connection.transactions.close(id);
        }
        self.domains.charge(request.caller.domid, Quota::Transactions, -1);
        self.domains.charge(
            request.caller.domid,
            Quota::Memory,
            transaction.weight.saturating_neg(),
        );
        self.end_turn(request.conn, id);
        self.snapshots.remove(&transaction.snapshot);
        outcome?;
        self.ok(request)
    }

    /// The oldest snapshot of a guest's transaction, if it has kept the past of the store alive for too long.
    pub(super) fn stale_snapshot(&self) -> Option<Snapshot> {
        self.snapshots.first().copied().filter(|oldest| {
            self.domains.now > oldest.since.saturating_add(HOLD_MAX_US)
                && self.changes.saturating_sub(oldest.changes) >= SNAPSHOT_CHANGES
        })
    }

    /// Brings guests' transactions up to date that keep the past of the store alive, at their cost, some in
    /// each round.
    pub(super) fn refresh_old_snapshots(&mut self) {
        let mut left = SNAPSHOT_WORK_MAX;
        while left > 0
            && let Some(old) = self.stale_snapshot()
        {
            self.snapshots.remove(&old);
            let Some(connection) = self.conn_mut(old.conn) else { continue };
            let domid = connection.domid;
            let Some(mut transaction) = connection.transactions.lend(old.id) else { continue };
            left = left.saturating_sub(transaction.log_len().saturating_add(1));
            let spent = core::mem::take(&mut self.cost);
            if self.changes.saturating_sub(old.changes) < SNAPSHOT_CHANGES_MAX {
                self.refresh(&mut transaction, domid);
            } else {
                self.give_up(&mut transaction, domid);
            }
            let cost = core::mem::replace(&mut self.cost, spent);
            if let Some(connection) = self.conn_mut(old.conn) {
                connection.owed = connection.owed.saturating_add(cost).saturating_add(1);
                connection.transactions.give_back(old.id, transaction);
            }
        }
    }

    /// Has a transaction go on from the store as it is; where it has seen something that is different now, it
    /// will be refused, and need keep nothing.
    fn refresh(&mut self, transaction: &mut Transaction, domid: DomId) {
        let caller = self.domains.caller(domid);
        match self.rerun(transaction, self.tree.clone(), &caller) {
            Ok(rerun) => {
                transaction.rebase(self.tree.clone(), self.domains.deaths, rerun);
                transaction.snapshot.since = self.domains.now;
                transaction.snapshot.changes = self.changes;
                self.snapshots.insert(transaction.snapshot);
            }
            Err(conflict) => {
                self.refused(&caller, transaction, &conflict);
                self.end_turn(transaction.snapshot.conn, transaction.snapshot.id);
                transaction.give_up();
            }
        }
    }

    /// There were more changes than it could be brought up to date for.
    fn give_up(&mut self, transaction: &mut Transaction, domid: DomId) {
        self.end_turn(transaction.snapshot.conn, transaction.snapshot.id);
        transaction.give_up();
        self.domains.notice(Notice::Info(format!(
            "a transaction of domain {} will get EAGAIN: it was left open for more than {} ms and {} \
             changes of the store",
            domid.0,
            HOLD_MAX_US / 1000,
            SNAPSHOT_CHANGES_MAX
        )));
    }

    /// Makes what a transaction did the store's state, if it stands.
    pub(super) fn commit(
        &mut self,
        request: Request<'_>,
        transaction: &mut Transaction,
    ) -> Outcome {
        // Before anything else: what one that was given up asked for has not been done.
        if transaction.torn || (transaction.lost && transaction.changes) {
            self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
            return Err(Error::Again.into());
        }
        if !transaction.changes {
            return Ok(());
        }
        let (caller, own) = (request.caller, (request.conn, request.header.tx_id));
        let class = Class::of(&caller);
        if self.has_turns(class) {
            let waits = |(path, done): &(Rc<[u8]>, Done)| {
                let path = Path::checked(path);
                let touch = match done {
                    Done::Permitted(_) => Touch::Perms,
                    Done::Changed if self.tree.get(path).is_some() => Touch::Value,
                    _ => self.existence(path),
                };
                self.must_wait(class, own, path, touch)
            };
            if transaction.work.changed.iter().any(waits) {
                return Err(Stop::Wait(WaitsFor::AnEnd));
            }
        }
        let rerun;
        let work = if transaction.is_current(&self.tree, self.domains.deaths) && !transaction.doomed
        {
            &transaction.work
        } else {
            match self.rerun(transaction, self.tree.clone(), &caller) {
                Ok(work) => rerun = work,
                Err(conflict) => {
                    self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
                    self.refused(&caller, transaction, &conflict);
                    return Err(conflict.error.into());
                }
            }
            &rerun
        };
        self.tree = work.tree.clone();
        self.domains.book(&work.deltas);
        self.changes = self.changes.wrapping_add(work.changed.len() as u64);
        self.counters.commits = self.counters.commits.wrapping_add(1);
        for (path, done) in &work.changed {
            self.fire(Path::checked(path), done);
        }
        Ok(())
    }
}
