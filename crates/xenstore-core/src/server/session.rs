//! What a connection has of its own: watches and transactions.

use super::Server;
use super::request::{Outcome, Request, Stop, parse};
use super::rubbish::Thing;
use super::turn::Class;
use super::waiting::WaitsFor;
use crate::churn::Churn;
use crate::id::{ConnId, DomId};
use crate::limits::TRANSACTION_WEIGHT;
use crate::path::{Path, Special, is_relative, push_decimal};
use crate::quota::Quota;
use crate::transaction::{Touch, Transaction};
use crate::tree::Done;
use crate::watch::{self, WatchId};
use crate::wire::{Error, Strings, feature};
use alloc::rc::Rc;
use alloc::vec::Vec;

impl Server {
    pub(super) fn watch(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let caller = request.caller;
        let mut strings = Strings::new(request.payload);
        let (given, token) = strings.next().zip(strings.next()).ok_or(Error::Inval)?;
        let may_depth = self
            .content
            .domains
            .get(caller.domid)
            .is_none_or(|domain| domain.features & feature::WATCH_DEPTH != 0);
        let depth = match (strings.next(), strings.next()) {
            (None, _) => None,
            (Some(depth), None) if may_depth => Some(parse(depth)?),
            _ => return Err(Error::Inval.into()),
        };
        let path = self.content.path(&caller, given, Special::Allowed, scratch)?;
        let hidden =
            if is_relative(given) { path.as_bytes().len().saturating_sub(given.len()) } else { 0 };
        let mut key = Vec::new();
        watch::key(path, token, &mut key);
        let Some(connection) = self.conns.get(request.conn) else { return Ok(()) };
        if connection.watches.contains_key(key.as_slice()) {
            return Err(Error::Exist.into());
        }
        let weight = watch::weight(&key);
        if !caller.privileged {
            self.content.domains.check_more(caller.domid, Quota::Watches, 1)?;
            self.content.domains.check_more(caller.domid, Quota::Memory, weight)?;
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
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.watches.insert(key, id);
        }
        self.content.domains.charge(domid, Quota::Watches, 1);
        self.content.domains.charge(domid, Quota::Memory, weight);
        id
    }

    pub(super) fn unwatch(&mut self, request: Request<'_>, scratch: &mut Vec<u8>) -> Outcome {
        let [given, token] = request.strings()?;
        let path = self.content.path(&request.caller, given, Special::Allowed, scratch)?;
        let mut key = Vec::new();
        watch::key(path, token, &mut key);
        let removed =
            self.conns.get_mut(request.conn).and_then(|conn| conn.watches.remove(key.as_slice()));
        let id = removed.ok_or(Error::NoEnt)?;
        if let Some(connection) = self.conns.get_mut(request.conn) {
            let looked_through = connection.drop_events(id);
            self.content.charge_work(looked_through);
        }
        self.forget_watch(id, request.caller.domid);
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
            self.content.domains.check_more(caller.domid, Quota::Transactions, 1)?;
            self.content.domains.check_more(caller.domid, Quota::Memory, TRANSACTION_WEIGHT)?;
        }
        let (tree, deaths) = (self.content.tree.clone(), self.content.domains.deaths);
        let Some(connection) = self.conns.get_mut(request.conn) else { return Ok(()) };
        let mut id = connection.next_transaction;
        while id == 0 || connection.transactions.contains(id) {
            id = id.wrapping_add(1);
        }
        connection.next_transaction = id.wrapping_add(1);
        let snapshot = self.snapshot(request.conn, id);
        if !caller.privileged {
            self.open_snapshot(snapshot);
        }
        let transaction = Transaction::new(&tree, deaths, snapshot);
        self.content.domains.charge(caller.domid, Quota::Transactions, 1);
        self.content.domains.charge(caller.domid, Quota::Memory, transaction.weight());
        if let Some(connection) = self.conns.get_mut(request.conn) {
            connection.transactions.open(id, transaction);
        }
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
        let taken = self.conns.get_mut(request.conn).and_then(|conn| conn.transactions.lend(id));
        let mut transaction = taken.ok_or(Error::NoEnt)?;
        let outcome = match commit {
            true => self.commit(request, &mut transaction),
            false => Ok(Churn::default()),
        };
        if matches!(outcome, Err(Stop::Wait(_))) {
            if let Some(connection) = self.conns.get_mut(request.conn) {
                connection.transactions.give_back(id, transaction);
            }
            return outcome.map(drop);
        }
        if let Some(connection) = self.conns.get_mut(request.conn) {
            connection.transactions.close(id);
        }
        self.content.domains.charge(request.caller.domid, Quota::Transactions, -1);
        self.end_turn(request.conn, id);
        self.close_snapshot(&transaction.snapshot);
        let weight = transaction.weight();
        let leftovers = transaction.into_leftovers();
        self.rubbish.discard(
            Thing::Leftovers(leftovers),
            request.caller.domid,
            weight,
            &mut self.content.domains,
        );
        self.note_replaced(Some(request.conn), outcome?);
        self.ok(request)
    }

    /// Makes what a transaction did the store's state, if it stands; what has been replaced then.
    pub(super) fn commit(
        &mut self,
        request: Request<'_>,
        transaction: &mut Transaction,
    ) -> Result<Churn, Stop> {
        // Before anything else: what one that was given up asked for has not been done.
        if transaction.torn || (transaction.lost && transaction.changes) {
            self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
            return Err(Error::Again.into());
        }
        if !transaction.changes {
            return Ok(Churn::default());
        }
        let (caller, own) = (request.caller, (request.conn, request.header.tx_id));
        let class = Class::of(&caller);
        if self.has_turns(class) {
            let waits = |(path, done): &(Rc<[u8]>, Done)| {
                let path = Path::checked(path);
                let touch = match done {
                    Done::Permitted(_) => Touch::Perms,
                    Done::Changed if self.content.tree.get(path).is_some() => Touch::Value,
                    _ => Touch::existence(&self.content.tree, path),
                };
                self.must_wait(class, own, path, touch)
            };
            if transaction.work.changed.iter().any(waits) {
                return Err(Stop::Wait(WaitsFor::AnEnd));
            }
        }
        let mut rerun = None;
        if !transaction.is_current(&self.content.tree, self.content.domains.deaths)
            || transaction.doomed
        {
            match self.content.rerun(transaction, &caller) {
                Ok(work) => rerun = Some(work),
                Err(conflict) => {
                    self.counters.conflicts = self.counters.conflicts.wrapping_add(1);
                    self.refused(&caller, transaction, &conflict);
                    return Err(conflict.error.into());
                }
            }
        }
        let work = rerun.as_ref().unwrap_or(&transaction.work);
        let old = self.content.replace(work);
        self.rubbish.discard_node(old);
        self.counters.commits = self.counters.commits.wrapping_add(1);
        for (path, done) in &work.changed {
            self.fire(Path::checked(path), done);
            self.note_removed(Path::checked(path), done, Some(request.conn));
        }
        let churn = work.churn;
        if let Some(rerun) = rerun {
            self.rubbish.discard(
                Thing::Leftovers(rerun.into_leftovers()),
                caller.domid,
                0,
                &mut self.content.domains,
            );
        }
        Ok(churn)
    }
}
