//! Snapshots of open transactions, and the old states of the store that they keep alive.
//!
//! A snapshot shares its parts with the store, so it keeps whatever is replaced there as long as it is open. What its own
//! domain has replaced is charged to that domain; what others have is bounded for all snapshots together.

use super::Server;
use super::rubbish::Thing;
use crate::churn::Churn;
use crate::id::{ConnId, DomId};
use crate::limits::{HOLD_MAX_US, SNAPSHOT_BYTES, SNAPSHOT_BYTES_MAX, SNAPSHOT_WORK_MAX};
use crate::notice::Notice;
use crate::quota::{Kind, Quota};
use crate::transaction::{Leftovers, Rerun, Snapshot, Transaction};
use alloc::collections::BTreeSet;
use alloc::format;

/// The snapshots of the guests' open transactions.
#[derive(Default)]
pub(super) struct Snapshots {
    /// The oldest first.
    open: BTreeSet<Snapshot>,
    /// Bytes that have been replaced in the store while there were any.
    replaced: u64,
}

impl Snapshots {
    /// Bytes that may be kept alive by this one, and by all that are younger.
    fn kept_by(&self, snapshot: &Snapshot) -> u64 {
        self.replaced.saturating_sub(snapshot.replaced)
    }
}

/// The snapshots of one guest, and what it has itself replaced since.
#[derive(Default)]
pub(super) struct OwnPast {
    /// `replaced` when each was taken, and the transaction's number.
    open: BTreeSet<(u64, u32)>,
    /// Bytes that its requests have replaced while there were any.
    replaced: u64,
    /// Bytes that it is charged for.
    pub(super) charged: i64,
}

impl OwnPast {
    /// Bytes that the oldest of its snapshots keeps alive of what it has replaced.
    fn kept(&self) -> i64 {
        let oldest = self.open.first().map(|(replaced, _)| self.replaced.saturating_sub(*replaced));
        i64::try_from(oldest.unwrap_or(0)).unwrap_or(i64::MAX)
    }
}

impl Server {
    /// The snapshot that a transaction which starts now works on.
    pub(super) fn snapshot(&self, conn: ConnId, id: u32) -> Snapshot {
        let replaced_by_owner = self.conns.get(conn).map_or(0, |conn| conn.past.replaced);
        let (since, replaced) = (self.content.domains.now, self.snapshots.replaced);
        Snapshot { since, replaced, conn, replaced_by_owner, id }
    }

    /// From now on a guest's snapshot is kept.
    pub(super) fn open_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshots.open.insert(snapshot);
        if let Some(connection) = self.conns.get_mut(snapshot.conn) {
            connection.past.open.insert((snapshot.replaced_by_owner, snapshot.id));
        }
    }

    /// A snapshot is not kept any more, if it was.
    pub(super) fn close_snapshot(&mut self, snapshot: &Snapshot) {
        if !self.snapshots.open.remove(snapshot) {
            return;
        }
        if let Some(connection) = self.conns.get_mut(snapshot.conn) {
            connection.past.open.remove(&(snapshot.replaced_by_owner, snapshot.id));
            self.charge_past(snapshot.conn);
        }
    }

    /// Charges a guest for what its snapshots keep of what it has replaced.
    fn charge_past(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let kept = connection.past.kept();
        let more = kept.saturating_sub(core::mem::replace(&mut connection.past.charged, kept));
        let domid = connection.domid;
        if more != 0 {
            self.content.domains.charge(domid, Quota::Memory, more);
        }
    }

    /// Notes what a change of the store has replaced; `author` asked for it.
    pub(super) fn note_replaced(&mut self, author: Option<ConnId>, churn: Churn) {
        let bytes = u64::try_from(churn.replaced()).unwrap_or(0);
        if bytes == 0 || self.snapshots.open.is_empty() {
            return;
        }
        self.snapshots.replaced = self.snapshots.replaced.saturating_add(bytes);
        let Some(conn) = author else { return };
        let Some(connection) = self.conns.get_mut(conn) else { return };
        if connection.past.open.is_empty() {
            return;
        }
        connection.past.replaced = connection.past.replaced.saturating_add(bytes);
        let domid = connection.domid;
        self.charge_past(conn);
        self.give_up_for_room(conn, domid);
    }

    /// Gives up the oldest transactions of a guest that uses more memory than it may, as long as they keep what it has
    /// replaced: nothing was asked for that could be refused instead.
    fn give_up_for_room(&mut self, conn: ConnId, domid: DomId) {
        let limit = i64::from(self.content.domains.limit(domid, Quota::Memory, Kind::Hard));
        let used =
            self.content.domains.get(domid).map_or(0, |domain| domain.usage.now(Quota::Memory));
        let mut over = if limit == 0 { 0 } else { used.saturating_sub(limit) };
        while over > 0
            && let Some(connection) = self.conns.get_mut(conn)
            && let kept = connection.past.kept()
            && kept > 0
            && let Some((_, id)) = connection.past.open.first().copied()
            && let Some(mut transaction) = connection.transactions.lend(id)
        {
            // It is charged until it is freed, in the next rounds.
            over = over.saturating_sub(transaction.weight());
            self.give_up(&mut transaction, domid, "the domain has used up its quota of memory");
            if let Some(connection) = self.conns.get_mut(conn) {
                over = over.saturating_sub(kept.saturating_sub(connection.past.kept()));
                connection.transactions.give_back(id, transaction);
            }
        }
    }

    /// The oldest snapshot of a guest's transaction, if it has kept the past of the store alive for too long.
    pub(super) fn stale_snapshot(&self) -> Option<Snapshot> {
        self.snapshots.open.first().copied().filter(|oldest| {
            let old = self.content.domains.now > oldest.since.saturating_add(HOLD_MAX_US);
            let most = if old { SNAPSHOT_BYTES } else { SNAPSHOT_BYTES_MAX };
            self.snapshots.kept_by(oldest) >= most
        })
    }

    /// Brings guests' transactions up to date that keep the past of the store alive, at their cost, some in
    /// each round.
    pub(super) fn refresh_old_snapshots(&mut self) {
        let mut left = SNAPSHOT_WORK_MAX;
        while let Some(old) = self.stale_snapshot()
            && (left > 0 || self.snapshots.kept_by(&old) >= SNAPSHOT_BYTES_MAX)
        {
            let lent = self.conns.get_mut(old.conn).and_then(|connection| {
                Some((connection.domid, connection.transactions.lend(old.id)?))
            });
            let Some((domid, mut transaction)) = lent else {
                self.close_snapshot(&old);
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

    /// Has a transaction go on from the store as it is; where it has seen something that is different now, it
    /// will be refused, and need keep nothing.
    fn refresh(&mut self, transaction: &mut Transaction, domid: DomId) {
        let caller = self.content.domains.caller(domid);
        match self.content.rerun(transaction, &caller) {
            Ok(rerun) => {
                let before = transaction.weight();
                self.go_on(transaction, rerun);
                let more = transaction.weight().saturating_sub(before);
                self.content.domains.charge(domid, Quota::Memory, more);
            }
            Err(conflict) => {
                self.refused(&caller, transaction, &conflict);
                self.let_go(transaction, domid);
            }
        }
    }

    /// Has a transaction go on from the store as it is, on which its log has run.
    pub(super) fn go_on(&mut self, transaction: &mut Transaction, rerun: Rerun) {
        let old = transaction.snapshot;
        transaction.snapshot = self.snapshot(old.conn, old.id);
        if self.snapshots.open.contains(&old) {
            // First: both may be the same.
            self.close_snapshot(&old);
            self.open_snapshot(transaction.snapshot);
        }
        let before = transaction.weight();
        let leftovers =
            transaction.rebase(self.content.tree.clone(), self.content.domains.deaths, rerun);
        self.discard_leftovers(transaction, leftovers, before);
    }

    /// Lets go of what a transaction does not keep any more, whose owner is charged for it until it is freed.
    fn discard_leftovers(&mut self, transaction: &Transaction, leftovers: Leftovers, weight: i64) {
        let domid = self.conns.get(transaction.snapshot.conn).map(|conn| conn.domid);
        if let Some(domid) = domid {
            self.content.domains.charge(domid, Quota::Memory, weight);
            self.rubbish.discard(
                Thing::Leftovers(leftovers),
                domid,
                weight,
                &mut self.content.domains,
            );
        }
    }

    /// Gives a transaction up that could not be kept.
    fn give_up(&mut self, transaction: &mut Transaction, domid: DomId, why: &str) {
        self.let_go(transaction, domid);
        self.content.domains.notice(Notice::Info(format!(
            "a transaction of domain {} will get EAGAIN: it was left open, and {why}",
            domid.0,
        )));
    }

    /// Has a transaction keep nothing alive any more: it can only be refused.
    fn let_go(&mut self, transaction: &mut Transaction, domid: DomId) {
        self.end_turn(transaction.snapshot.conn, transaction.snapshot.id);
        self.close_snapshot(&transaction.snapshot);
        let before = transaction.weight();
        let leftovers = transaction.give_up();
        let more = transaction.weight().saturating_sub(before);
        self.content.domains.charge(domid, Quota::Memory, more);
        self.discard_leftovers(transaction, leftovers, before);
    }
}
