//! What a connection has of its own: watches and transactions.

use super::request::{Outcome, Request, Stop, parse};
use super::{ConnId, DomId, Notice, Server};
use crate::limits::{HOLD_MAX_US, SNAPSHOT_CHANGES_MAX};
use crate::path::{Path, Special, is_relative, push_decimal};
use crate::quota::Quota;
use crate::transaction::{Touch, Transaction};
use crate::tree::Done;
use crate::watch::{self, WatchId};
use crate::wire::{Error, Strings, feature};
use alloc::boxed::Box;
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
        let weight = (key.len() as i64).saturating_sub(1);
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
        let weight = (key.len() as i64).saturating_sub(1);
        let id = self.watches.add(conn, path, key.clone(), hidden, depth);
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
        let began = (self.domains.now, self.changes);
        let Some(connection) = self.conn_mut(request.conn) else { return Ok(()) };
        let transaction = Transaction::new(&tree, deaths, began);
        let mut id = connection.next_transaction;
        while id == 0 || connection.transactions.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        connection.next_transaction = id.wrapping_add(1);
        connection.transactions.insert(id, Box::new(transaction));
        if !caller.privileged {
            self.snapshots.insert((began.0, request.conn, id));
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
        let taken = self.conn_mut(request.conn).and_then(|conn| conn.transactions.remove(&id));
        let mut transaction = taken.ok_or(Error::NoEnt)?;
        let outcome = if commit { self.commit(request, &mut transaction) } else { Ok(()) };
        if matches!(outcome, Err(Stop::Wait { .. })) {
            if let Some(connection) = self.conn_mut(request.conn) {
                connection.transactions.insert(id, transaction);
            }
            return outcome;
        }
        self.domains.charge(request.caller.domid, Quota::Transactions, -1);
        self.domains.charge(
            request.caller.domid,
            Quota::Memory,
            transaction.weight.saturating_neg(),
        );
        self.end_turn(request.conn, id);
        self.snapshots.remove(&(transaction.began.0, request.conn, id));
        outcome?;
        self.ok(request)
    }

    /// Gives up guests' transactions that have kept the past of the store alive for too long.
    pub(super) fn give_up_old_snapshots(&mut self) {
        while let Some((began, conn, id)) = self.snapshots.first().copied()
            && self.domains.now > began.saturating_add(HOLD_MAX_US)
        {
            let changes = self.changes;
            let Some(connection) = self.conn_mut(conn) else { return };
            let domid = connection.domid;
            let Some(transaction) = connection.transactions.get_mut(&id) else { return };
            if changes.saturating_sub(transaction.began.1) < SNAPSHOT_CHANGES_MAX {
                return;
            }
            transaction.give_up();
            self.snapshots.remove(&(began, conn, id));
            self.end_turn(conn, id);
            self.domains.notice(Notice::Info(format!(
                "a transaction of domain {} will get EAGAIN: it was left open for more than {} ms and {} \
                 changes of the store",
                domid.0,
                HOLD_MAX_US / 1000,
                SNAPSHOT_CHANGES_MAX
            )));
        }
    }

    /// Makes what a transaction did the store's state, if it stands.
    pub(super) fn commit(
        &mut self,
        request: Request<'_>,
        transaction: &mut Transaction,
    ) -> Outcome {
        // Before anything else: what one that was given up asked for has not been done.
        if transaction.lost {
            self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
            return Err(Error::Again.into());
        }
        if !transaction.changes {
            return Ok(());
        }
        let (caller, own) = (request.caller, (request.conn, request.header.tx_id));
        if self.has_turns(caller.privileged) {
            let waits = |(path, done): &(Rc<[u8]>, Done)| {
                let path = Path::checked(path);
                let touch = match done {
                    Done::Permitted(_) => Touch::Perms,
                    Done::Changed if self.tree.get(path).is_some() => Touch::Value,
                    _ => self.existence(path),
                };
                self.must_wait(caller.privileged, own, path, touch)
            };
            if transaction.work.changed.iter().any(waits) {
                return Err(Stop::Wait { wants_turn: false });
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
