//! Turns: they ensure that a transaction that was refused can commit.
//!
//! If a transaction is refused, the path that caused it and the path that it read first are
//! *contested* for a while. A transaction that reads a contested path takes the *turn*: it is
//! brought up to date, and while it has the turn, changes of the nodes that it has read wait.
//! Therefore it commits if it ends within [`HOLD_MAX_US`] of getting the turn, and a new attempt
//! with the same first read has the turn from the start. One transaction of domain 0 and one of the
//! guests have a turn at a time. A guest's turn never delays domain 0, and guests' waiting requests
//! are searched in the guests' time, at most once a round. Guests take turns in the order in which
//! their last ones ended, and a guest that lets a turn last its full time pauses.

use super::class::CallerClass;
use super::connections::Connections;
use super::waiting::ClassQueue;
use crate::digest::Secret;
use crate::domain::Domains;
use crate::id::{ConnId, DomId};
use crate::limits::{
    CONTESTED_MAX, CONTESTED_US, DELAYED_MAX, HOLD_COST_US, HOLD_MAX_US, TURN_LOG_MAX,
    TURN_PAUSE_US,
};
use crate::path::Path;
use crate::perms::Caller;
use crate::transaction::{Conflict, Touch, Transaction};
use alloc::collections::BTreeMap;

/// A transaction that has the turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct HeldTurn {
    conn: ConnId,
    transaction: u32,
    since: u64,
}

impl HeldTurn {
    /// True if the turn has lasted its full time.
    fn is_over(&self, now: u64) -> bool {
        now >= self.since.saturating_add(HOLD_MAX_US)
    }
}

/// A path on which a transaction was refused.
#[derive(Clone, Copy)]
struct Contested {
    until: u64,
    /// The domain of that transaction.
    domid: DomId,
}

/// The turn of one class of callers, its contested paths, and its waiting requests. A guest's
/// refusals do not concern domain 0.
#[derive(Default)]
pub(super) struct Lane {
    turn: Option<HeldTurn>,
    /// The contested paths by their digests, as a guest may make paths long.
    contested: BTreeMap<u64, Contested>,
    pub(super) queue: ClassQueue,
}

impl Lane {
    /// True if a transaction has the turn.
    pub(super) fn is_taken(&self) -> bool {
        self.turn.is_some()
    }

    /// True if a transaction must wait for its turn.
    pub(super) fn is_busy(&self) -> bool {
        self.is_taken() || self.queue.comes_first()
    }

    fn contest(&mut self, path: u64, domid: DomId, now: u64) {
        if self.contested.len() >= CONTESTED_MAX {
            self.contested.retain(|_, contested| contested.until > now);
        }
        if self.contested.len() >= CONTESTED_MAX {
            self.drop_one_path();
        }
        let until = now.saturating_add(CONTESTED_US);
        self.contested.insert(path, Contested { until, domid });
    }

    /// Drops the oldest path of the domain with the most of them: no domain loses a path by
    /// another's actions.
    fn drop_one_path(&mut self) {
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

/// The lane of domain 0 and that of the guests.
#[derive(Default)]
pub(super) struct Turns {
    privileged: Lane,
    guest: Lane,
}

impl Turns {
    pub(super) fn lane(&self, class: CallerClass) -> &Lane {
        match class {
            CallerClass::Privileged => &self.privileged,
            CallerClass::Guest => &self.guest,
        }
    }

    pub(super) fn lane_mut(&mut self, class: CallerClass) -> &mut Lane {
        match class {
            CallerClass::Privileged => &mut self.privileged,
            CallerClass::Guest => &mut self.guest,
        }
    }

    /// Returns all turns.
    fn all(&self) -> impl Iterator<Item = HeldTurn> {
        self.respected_turns(CallerClass::Guest)
    }

    /// Returns the turns that a change by such a caller must respect: a guest's turn binds guests
    /// only.
    fn respected_turns(&self, class: CallerClass) -> impl Iterator<Item = HeldTurn> {
        let guests = self.guest.turn.filter(|_| class == CallerClass::Guest);
        self.privileged.turn.into_iter().chain(guests)
    }

    /// True if this transaction has the turn.
    pub(super) fn holds(&self, conn: ConnId, transaction: u32) -> bool {
        self.all().any(|turn| turn.conn == conn && turn.transaction == transaction)
    }

    /// True if a transaction of this connection has the turn.
    pub(super) fn has_turn(&self, conn: ConnId) -> bool {
        self.all().any(|turn| turn.conn == conn)
    }

    /// True if there is a turn that a caller must respect.
    pub(super) fn has_any(&self, class: CallerClass) -> bool {
        self.respected_turns(class).next().is_some()
    }

    /// True if the operation on `path` must wait for the end of a turn that is not `own`.
    pub(super) fn must_wait(
        &self,
        class: CallerClass,
        own: (ConnId, u32),
        path: Path<'_>,
        touch: Touch,
        conns: &Connections,
    ) -> bool {
        let mut others =
            self.respected_turns(class).filter(|turn| (turn.conn, turn.transaction) != own);
        others.any(|turn| {
            let holder =
                conns.get(turn.conn).and_then(|conn| conn.transactions.get(turn.transaction));
            holder.is_some_and(|holder| holder.may_be_affected(path, touch))
        })
    }

    /// True if the connection, of which so many requests wait, may send more. The holder of a turn
    /// must be able to end it.
    pub(super) fn may_delay_more(&self, conn: ConnId, delayed: usize) -> bool {
        delayed < DELAYED_MAX || (delayed < 2 * DELAYED_MAX && self.has_turn(conn))
    }

    /// Returns the time of the next work: at once (0), or the time at which a turn will have lasted
    /// its full time.
    pub(super) fn deadline(&self) -> Option<u64> {
        if [&self.privileged, &self.guest].iter().any(|lane| lane.queue.is_due()) {
            return Some(0);
        }
        self.all().map(|turn| turn.since.saturating_add(HOLD_MAX_US)).min()
    }

    /// Records a refusal: a transaction that reads these paths takes the turn.
    pub(super) fn record_refusal(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        conflict: &Conflict,
        domains: &Domains,
    ) {
        let (now, secret) = (domains.now, domains.secret);
        let lane = self.lane_mut(CallerClass::of(caller));
        for path in [Some(&conflict.path), transaction.first_read()].into_iter().flatten() {
            lane.contest(secret.bytes(path), caller.domid, now);
        }
    }

    /// True if a transaction that reads `path` has to take the turn.
    pub(super) fn may_take(
        &self,
        transaction: &Transaction,
        caller: &Caller,
        path: Path<'_>,
        domains: &Domains,
    ) -> bool {
        let (now, secret) = (domains.now, domains.secret);
        if !self.lane(CallerClass::of(caller)).is_contested(path, secret, now) {
            return false;
        }
        let domain = domains.get(caller.domid);
        caller.privileged
            || (transaction.log_len() <= TURN_LOG_MAX
                && domain.is_none_or(|domain| domain.no_turn_until <= now))
    }

    /// Gives a transaction the turn.
    pub(super) fn begin(&mut self, class: CallerClass, conn: ConnId, transaction: u32, now: u64) {
        self.lane_mut(class).turn = Some(HeldTurn { conn, transaction, since: now });
    }

    /// Ends the turn of this transaction, if it has one.
    pub(super) fn end(
        &mut self,
        conn: ConnId,
        transaction: u32,
        conns: &mut Connections,
        domains: &mut Domains,
    ) {
        let is_it = |turn: &HeldTurn, _| (turn.conn, turn.transaction) == (conn, transaction);
        self.end_where(is_it, conns, domains);
    }

    /// Ends the turns that have lasted too long.
    pub(super) fn expire(&mut self, conns: &mut Connections, domains: &mut Domains) {
        self.end_where(HeldTurn::is_over, conns, domains);
    }

    /// Ends the turns for which `over` returns true, and charges them to their holders.
    fn end_where(
        &mut self,
        over: impl Fn(&HeldTurn, u64) -> bool,
        conns: &mut Connections,
        domains: &mut Domains,
    ) {
        let now = domains.now;
        for class in [CallerClass::Privileged, CallerClass::Guest] {
            let lane = self.lane_mut(class);
            let Some(turn) = lane.turn.take_if(|turn| over(turn, now)) else { continue };
            self.guest.queue.record_turn_end();
            if class == CallerClass::Privileged {
                self.privileged.queue.record_turn_end();
            }
            let cost = now.saturating_sub(turn.since) / HOLD_COST_US;
            let Some(holder) = conns.get_mut(turn.conn) else { continue };
            holder.owed = holder.owed.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
            if let Some(domain) = domains.get_mut(holder.domid) {
                domain.last_turn = now;
                if turn.is_over(now) {
                    domain.no_turn_until = now.saturating_add(TURN_PAUSE_US);
                }
            }
        }
    }
}
