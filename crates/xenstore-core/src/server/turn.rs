//! Turns: how a transaction that was refused is sure to commit.
//!
//! Where a transaction is refused, the path on which it was and the path that it read first are *contested*
//! for a while. A transaction that reads a contested path takes the *turn*: it is brought up to date, and
//! while it has the turn, whatever would change what it has seen waits. So it commits if it ends within
//! [`HOLD_MAX_US`] of getting the turn; and who tries again, with the same first read, has the turn from
//! the start. One transaction of domain 0 and one of the guests have a turn at a time; a guest's never
//! delays domain 0, and what guests wait for is looked at in the guests' time, once a round at most. Guests
//! take turns in the order in which their last ones ended, and one that lets a turn last its full time
//! pauses.

use super::Server;
use super::waiting::{Attempt, Queue, WaitsFor};
use crate::digest::Secret;
use crate::id::{ConnId, DomId};
use crate::limits::{
    CONTESTED_MAX, CONTESTED_US, HOLD_COST_US, HOLD_MAX_US, TURN_LOG_MAX, TURN_PAUSE_US,
};
use crate::path::Path;
use crate::perms::Caller;
use crate::transaction::{Conflict, Touch, Transaction, What};
use alloc::collections::BTreeMap;

/// A transaction that has the turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turn {
    pub(crate) conn: ConnId,
    pub(crate) transaction: u32,
    since: u64,
}

impl Turn {
    /// Whether it has lasted as long as it may.
    fn is_over(&self, now: u64) -> bool {
        now >= self.since.saturating_add(HOLD_MAX_US)
    }
}

/// Whose transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Privileged,
    Guest,
}

impl Class {
    pub(crate) fn of(caller: &Caller) -> Self {
        if caller.privileged { Self::Privileged } else { Self::Guest }
    }
}

/// A path on which somebody was refused.
#[derive(Clone, Copy)]
struct Contested {
    until: u64,
    /// Whose transaction it was.
    domid: DomId,
}

/// What one class of callers has: its turn, its contested paths, its requests that wait. A guest's
/// refusals are no matter of domain 0's.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) turn: Option<Turn>,
    /// By the digests of the paths, which a guest may make long.
    contested: BTreeMap<u64, Contested>,
    pub(super) queue: Queue,
}

impl Lane {
    fn contest(&mut self, path: u64, domid: DomId, now: u64) {
        if self.contested.len() >= CONTESTED_MAX {
            self.contested.retain(|_, contested| contested.until > now);
        }
        if self.contested.len() >= CONTESTED_MAX {
            self.forget_one();
        }
        let until = now.saturating_add(CONTESTED_US);
        self.contested.insert(path, Contested { until, domid });
    }

    /// Forgets the oldest path of the domain that has most of them: nobody loses his by another's doing.
    fn forget_one(&mut self) {
        let mut counts: BTreeMap<DomId, u32> = BTreeMap::new();
        for contested in self.contested.values() {
            let count = counts.entry(contested.domid).or_default();
            *count = count.saturating_add(1);
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(domid, _)| domid);
        let of_it = self.contested.iter().filter(|(_, contested)| Some(contested.domid) == most);
        let oldest = of_it.min_by_key(|(_, contested)| contested.until);
        if let Some(path) = oldest.map(|(path, _)| *path) {
            self.contested.remove(&path);
        }
    }

    fn is_contested(&self, path: Path<'_>, secret: Secret, now: u64) -> bool {
        !self.contested.is_empty()
            && self
                .contested
                .get(&secret.bytes(path.as_bytes()))
                .is_some_and(|contested| contested.until > now)
    }
}

#[derive(Default)]
pub(crate) struct Turns {
    pub(super) privileged: Lane,
    pub(super) guest: Lane,
    /// Requests that have waited, for the counters.
    pub(crate) delayed_total: u64,
}

impl Turns {
    pub(super) fn lane(&self, class: Class) -> &Lane {
        match class {
            Class::Privileged => &self.privileged,
            Class::Guest => &self.guest,
        }
    }

    pub(super) fn lane_mut(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Privileged => &mut self.privileged,
            Class::Guest => &mut self.guest,
        }
    }

    /// All turns.
    fn all(&self) -> impl Iterator<Item = Turn> {
        self.respected(Class::Guest)
    }

    /// The turns that a change by such a caller must respect: a guest's binds guests only.
    fn respected(&self, class: Class) -> impl Iterator<Item = Turn> {
        let guests = self.guest.turn.filter(|_| class == Class::Guest);
        self.privileged.turn.into_iter().chain(guests)
    }

    pub(crate) fn holds(&self, conn: ConnId, transaction: u32) -> bool {
        self.all().any(|turn| turn.conn == conn && turn.transaction == transaction)
    }

    /// When there is something to do: at once (0), or when a turn will have lasted its full time.
    pub(crate) fn deadline(&self) -> Option<u64> {
        if [&self.privileged, &self.guest].iter().any(|lane| lane.queue.is_due()) {
            return Some(0);
        }
        self.all().map(|turn| turn.since.saturating_add(HOLD_MAX_US)).min()
    }
}

impl Server {
    /// Whose turn binds the requests of a connection.
    pub(super) fn class(&self, conn: ConnId) -> Class {
        match self.conns.get(conn).is_none_or(|conn| self.content.domains.is_privileged(conn.domid))
        {
            true => Class::Privileged,
            false => Class::Guest,
        }
    }

    /// Whether a transaction of this connection has the turn.
    pub(super) fn has_turn(&self, conn: ConnId) -> bool {
        self.turns.all().any(|turn| turn.conn == conn)
    }

    /// A transaction is about to look at `path`: gives it the turn where it should have it.
    pub(super) fn want_turn(
        &mut self,
        (conn, id): (ConnId, u32),
        transaction: &mut Transaction,
        caller: &Caller,
        path: Path<'_>,
        what: What,
    ) -> Attempt {
        let now = self.content.domains.now;
        let holds = self.turns.holds(conn, id);
        if transaction.doomed || !(holds || self.may_take_turn(transaction, caller, path)) {
            return Attempt::Done;
        }
        let class = Class::of(caller);
        let lane = self.turns.lane(class);
        if !holds && (lane.turn.is_some() || lane.queue.comes_first()) {
            return Attempt::Wait(WaitsFor::ATurn);
        }
        let stale = !transaction.is_current(&self.content.tree, self.content.domains.deaths)
            && (!holds || transaction.is_stale_at(&self.content.tree, caller, path, what));
        if stale {
            match self.content.rerun(transaction, caller) {
                Ok(rerun) => self.go_on(transaction, rerun),
                Err(conflict) => {
                    // Too late for this one; who tries again takes the turn from the start.
                    transaction.doomed = true;
                    self.refused(caller, transaction, &conflict);
                    self.end_turn(conn, id);
                    return Attempt::Done;
                }
            }
        }
        if !holds {
            self.turns.lane_mut(class).turn = Some(Turn { conn, transaction: id, since: now });
        }
        Attempt::Done
    }

    fn may_take_turn(
        &mut self,
        transaction: &Transaction,
        caller: &Caller,
        path: Path<'_>,
    ) -> bool {
        let (now, secret) = (self.content.domains.now, self.content.domains.secret);
        if !self.turns.lane(Class::of(caller)).is_contested(path, secret, now) {
            return false;
        }
        let domain = self.content.domains.get(caller.domid);
        caller.privileged
            || (transaction.log_len() <= TURN_LOG_MAX
                && domain.is_none_or(|domain| domain.no_turn_until <= now))
    }

    /// Remembers a refusal: who reads these paths takes the turn.
    pub(super) fn refused(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        conflict: &Conflict,
    ) {
        let (now, secret) = (self.content.domains.now, self.content.domains.secret);
        let lane = self.turns.lane_mut(Class::of(caller));
        for path in [Some(&conflict.path), transaction.first_read()].into_iter().flatten() {
            lane.contest(secret.bytes(path), caller.domid, now);
        }
    }

    /// Whether what is to be done to `path` must wait for the end of a turn that is not `own`.
    pub(super) fn must_wait(
        &self,
        class: Class,
        own: (ConnId, u32),
        path: Path<'_>,
        touch: Touch,
    ) -> bool {
        let mut others =
            self.turns.respected(class).filter(|turn| (turn.conn, turn.transaction) != own);
        others.any(|turn| {
            let holder =
                self.conns.get(turn.conn).and_then(|conn| conn.transactions.get(turn.transaction));
            holder.is_some_and(|holder| holder.would_notice(path, touch))
        })
    }

    /// Whether anybody has a turn that a caller must respect.
    pub(super) fn has_turns(&self, class: Class) -> bool {
        self.turns.respected(class).next().is_some()
    }

    /// The turn of this transaction, if it has one, is over.
    pub(super) fn end_turn(&mut self, conn: ConnId, transaction: u32) {
        self.end_turns(|turn, _| (turn.conn, turn.transaction) == (conn, transaction));
    }

    /// Ends the turns that have lasted too long.
    pub(super) fn expire_turns(&mut self) {
        self.end_turns(Turn::is_over);
    }

    /// Ends the turns for which `over` says so, and charges them to their holders.
    fn end_turns(&mut self, over: impl Fn(&Turn, u64) -> bool) {
        let now = self.content.domains.now;
        for class in [Class::Privileged, Class::Guest] {
            let lane = self.turns.lane_mut(class);
            let Some(turn) = lane.turn.take_if(|turn| over(turn, now)) else { continue };
            self.turns.guest.queue.note_end();
            if class == Class::Privileged {
                self.turns.privileged.queue.note_end();
            }
            let cost = now.saturating_sub(turn.since) / HOLD_COST_US;
            let Some(holder) = self.conns.get_mut(turn.conn) else { continue };
            holder.owed = holder.owed.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
            let domid = holder.domid;
            if let Some(domain) = self.content.domains.get_mut(domid) {
                domain.last_turn = now;
                if turn.is_over(now) {
                    domain.no_turn_until = now.saturating_add(TURN_PAUSE_US);
                }
            }
        }
    }
}
