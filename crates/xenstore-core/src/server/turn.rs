//! Turns: how a transaction that was refused is sure to commit.
//!
//! Where a transaction is refused, the path on which it was and the path that it read first are *contested*
//! for a while. A transaction that reads a contested path takes the *turn*: it is brought up to date, and
//! while it has the turn, whatever would change what it has seen waits. So it commits if it ends within
//! [`HOLD_MAX_US`] of getting the turn; and who tries again, with the same first read, has the turn from
//! the start. One transaction of domain 0 and one of the guests have a turn at a time; a guest's never
//! delays domain 0. Guests take turns in the order in which their last ones ended, and one that lets
//! a turn last its full time pauses.

use super::{ConnId, DomId, Server};
use crate::limits::{
    CONTESTED_MAX, CONTESTED_US, DELAYED_MAX, HOLD_COST_US, HOLD_MAX_US, TURN_LOG_MAX,
    TURN_PAUSE_US,
};
use crate::path::{Path, Special, resolve};
use crate::perms::Caller;
use crate::server::Host;
use crate::transaction::{Conflict, Rerun, Touch, Transaction, What};
use crate::tree::Tree;
use crate::wire::{Header, MsgType, Strings};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;

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

/// A request that waits.
struct Waiting {
    conn: ConnId,
    header: Header,
    payload: Box<[u8]>,
    /// The path that it names, absolute.
    path: Option<Box<[u8]>>,
    since: u64,
    /// It waits for a turn of its own; else for the end of somebody's turn.
    wants_turn: bool,
}

/// Whose transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Privileged,
    Guest,
}

impl Class {
    fn of(caller: &Caller) -> Self {
        if caller.privileged { Self::Privileged } else { Self::Guest }
    }
}

/// What one class of transactions has: its turn and its contested paths. A guest's refusals are no matter
/// of domain 0's.
#[derive(Default)]
struct Lane {
    turn: Option<Turn>,
    contested: BTreeMap<Rc<[u8]>, u64>,
}

impl Lane {
    fn contest(&mut self, path: Rc<[u8]>, now: u64) {
        if self.contested.len() >= CONTESTED_MAX {
            self.contested.retain(|_, until| *until > now);
        }
        if self.contested.len() >= CONTESTED_MAX {
            let oldest = self.contested.iter().min_by_key(|(_, until)| **until);
            if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                self.contested.remove(&oldest);
            }
        }
        self.contested.insert(path, now.saturating_add(CONTESTED_US));
    }

    fn is_contested(&self, path: Path<'_>, now: u64) -> bool {
        !self.contested.is_empty()
            && self.contested.get(path.as_bytes()).is_some_and(|until| *until > now)
    }
}

#[derive(Default)]
pub(crate) struct Turns {
    privileged: Lane,
    guest: Lane,
    queue: VecDeque<Waiting>,
    /// A turn has ended, and the queue has not been run since.
    ended: bool,
    /// Requests that have waited, for the counters.
    pub(crate) delayed_total: u64,
}

impl Turns {
    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Privileged => &mut self.privileged,
            Class::Guest => &mut self.guest,
        }
    }

    /// All turns, or those that a change by such a caller must respect: a guest's binds guests only.
    fn all(&self) -> impl Iterator<Item = Turn> {
        self.respected(false)
    }

    fn respected(&self, privileged: bool) -> impl Iterator<Item = Turn> {
        self.privileged.turn.into_iter().chain(self.guest.turn.filter(|_| !privileged))
    }

    pub(crate) fn holds(&self, conn: ConnId, transaction: u32) -> bool {
        self.all().any(|turn| turn.conn == conn && turn.transaction == transaction)
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.all().map(|turn| turn.since.saturating_add(HOLD_MAX_US)).min()
    }
}

/// The path that a request of this domain names first, made absolute, if its kind names one.
fn first_path<'a>(
    home: DomId,
    header: &Header,
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Option<Path<'a>> {
    let given = match MsgType::from_code(header.kind)? {
        MsgType::Read
        | MsgType::Write
        | MsgType::Mkdir
        | MsgType::Rm
        | MsgType::Directory
        | MsgType::DirectoryPart
        | MsgType::GetPerms
        | MsgType::SetPerms => Strings::new(payload).next()?,
        _ => return None,
    };
    resolve(given, home.0, Special::Allowed, scratch).ok()
}

/// Whether the second of two requests of one connection must stay behind the first.
fn depends(first: &Waiting, header: &Header, path: Option<Path<'_>>) -> bool {
    if first.header.tx_id != header.tx_id {
        return false;
    }
    let related = |(one, two): (&[u8], Path<'_>)| Path::checked(one).related(two);
    header.tx_id != 0 || first.path.as_deref().zip(path).is_some_and(related)
}

/// Whether a request could be run, or must wait.
pub(crate) enum Attempt {
    Done,
    Wait { wants_turn: bool },
}

impl Server {
    /// Puts a request in the queue.
    pub(super) fn delay(
        &mut self,
        conn: ConnId,
        header: &Header,
        payload: &[u8],
        wants_turn: bool,
    ) {
        let since = self.domains.now;
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        let path = path.map(|path| Box::from(path.as_bytes()));
        self.turns.delayed_total = self.turns.delayed_total.saturating_add(1);
        self.turns.queue.push_back(Waiting {
            conn,
            header: *header,
            payload: Box::from(payload),
            path,
            since,
            wants_turn,
        });
        if let Some(conn) = self.conn_mut(conn) {
            conn.delayed = conn.delayed.saturating_add(1);
        }
    }

    /// Whether a new request must stay behind one of its connection that waits. The holder of a turn
    /// never waits: it is what the others wait for.
    pub(super) fn must_follow(&self, conn: ConnId, header: &Header, payload: &[u8]) -> bool {
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        let behind = |waiting: &Waiting| waiting.conn == conn && depends(waiting, header, path);
        !self.turns.holds(conn, header.tx_id) && self.turns.queue.iter().any(behind)
    }

    fn first_path<'a>(
        &self,
        conn: ConnId,
        header: &Header,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Option<Path<'a>> {
        first_path(self.conn(conn)?.domid, header, payload, scratch)
    }

    /// Whether more requests of the connection may come, as far as those that wait are concerned. What
    /// has the turn must be able to end it.
    pub(super) fn may_delay_more(&self, conn: ConnId, delayed: usize) -> bool {
        delayed < DELAYED_MAX || (delayed < 2 * DELAYED_MAX && self.has_turn(conn))
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
        let now = self.domains.now;
        let holds = self.turns.holds(conn, id);
        if transaction.doomed || !(holds || self.may_take_turn(transaction, caller, path)) {
            return Attempt::Done;
        }
        let class = Class::of(caller);
        if !holds && self.turns.lane(class).turn.is_some() {
            return Attempt::Wait { wants_turn: true };
        }
        let stale = !transaction.is_current(&self.tree, self.domains.deaths)
            && (!holds || transaction.is_stale_at(&self.tree, caller, path, what));
        if stale {
            match self.rerun(transaction, self.tree.clone(), caller) {
                Ok(rerun) => transaction.rebase(self.tree.clone(), self.domains.deaths, rerun),
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
            self.turns.lane(class).turn = Some(Turn { conn, transaction: id, since: now });
        }
        Attempt::Done
    }

    fn may_take_turn(
        &mut self,
        transaction: &Transaction,
        caller: &Caller,
        path: Path<'_>,
    ) -> bool {
        let now = self.domains.now;
        if !self.turns.lane(Class::of(caller)).is_contested(path, now) {
            return false;
        }
        let domain = self.domains.get(caller.domid);
        caller.privileged
            || (transaction.log_len() <= TURN_LOG_MAX
                && domain.is_none_or(|domain| domain.no_turn_until <= now))
    }

    /// Runs the log of a transaction on a tree.
    pub(super) fn rerun(
        &mut self,
        transaction: &Transaction,
        tree: Tree,
        caller: &Caller,
    ) -> Result<Rerun, Conflict> {
        self.with_ledger(|_, ledger| transaction.rerun(tree, caller, ledger))
    }

    /// Remembers a refusal: who reads these paths takes the turn.
    pub(super) fn refused(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        conflict: &Conflict,
    ) {
        let now = self.domains.now;
        let lane = self.turns.lane(Class::of(caller));
        lane.contest(conflict.path.clone(), now);
        if let Some(first) = transaction.first_read() {
            lane.contest(first.clone(), now);
        }
    }

    /// Whether what is to be done to `path` must wait for the end of a turn that is not `own`.
    pub(super) fn must_wait(
        &self,
        privileged: bool,
        own: (ConnId, u32),
        path: Path<'_>,
        touch: Touch,
    ) -> bool {
        let mut others =
            self.turns.respected(privileged).filter(|turn| (turn.conn, turn.transaction) != own);
        others.any(|turn| {
            let holder =
                self.conn(turn.conn).and_then(|conn| conn.transactions.get(&turn.transaction));
            holder.is_some_and(|holder| holder.would_notice(path, touch))
        })
    }

    /// Whether anybody has a turn that a caller must respect.
    pub(super) fn has_turns(&self, privileged: bool) -> bool {
        self.turns.respected(privileged).next().is_some()
    }

    /// What making or removing `path` does to it.
    pub(super) fn existence(&self, path: Path<'_>) -> Touch {
        let walk = self.tree.walk(path);
        // One level up at least: that one's list of children changes.
        let nearest = path.above().nth(walk.missing.saturating_sub(1));
        Touch::Existence { nearest: nearest.map_or(1, |path| path.as_bytes().len()) }
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
        let now = self.domains.now;
        for class in [Class::Privileged, Class::Guest] {
            let Some(turn) = self.turns.lane(class).turn.take_if(|turn| over(turn, now)) else {
                continue;
            };
            self.turns.ended = true;
            let cost = now.saturating_sub(turn.since) / HOLD_COST_US;
            let Some(holder) = self.conn_mut(turn.conn) else { continue };
            holder.owed = holder.owed.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
            let domid = holder.domid;
            if let Some(domain) = self.domains.get_mut(domid) {
                domain.last_turn = now;
                if turn.is_over(now) {
                    domain.no_turn_until = now.saturating_add(TURN_PAUSE_US);
                }
            }
        }
    }

    /// Appends the requests of a connection that wait, in the order in which they came.
    pub(super) fn delayed_input(&self, conn: ConnId, to: &mut Vec<u8>) {
        for waiting in self.turns.queue.iter().filter(|waiting| waiting.conn == conn) {
            to.extend_from_slice(&waiting.header.to_bytes());
            to.extend_from_slice(&waiting.payload);
        }
    }

    /// Forgets what a connection that is gone was waiting for.
    pub(super) fn forget_waiting(&mut self, conn: ConnId) {
        self.turns.queue.retain(|waiting| waiting.conn != conn);
        if let Some(conn) = self.conn_mut(conn) {
            conn.delayed = 0;
        }
    }

    /// Where a turn is over, runs what waits. First what waited for its end, then what wants a turn
    /// itself, both in the order in which they came, and never one before another that it depends on.
    pub(super) fn run_waiting(&mut self, host: &mut dyn Host) {
        while core::mem::take(&mut self.turns.ended) {
            self.run_queue(host);
        }
    }

    fn run_queue(&mut self, host: &mut dyn Host) {
        for turns_too in [false, true] {
            let mut queue = core::mem::take(&mut self.turns.queue);
            if turns_too {
                // A guest whose last turn ended long ago comes before one that has just had one.
                queue.make_contiguous().sort_by_key(|waiting| self.last_turn(waiting.conn));
            }
            let mut kept: VecDeque<Waiting> = VecDeque::new();
            while let Some(waiting) = queue.pop_front() {
                // Its connection may have ended while others were tried, and forgotten all it asked.
                if self.conn(waiting.conn).is_none_or(|conn| conn.delayed == 0) {
                    continue;
                }
                let path = waiting.path.as_deref().map(Path::checked);
                let follows = |first: &Waiting| {
                    first.conn == waiting.conn && depends(first, &waiting.header, path)
                };
                if (waiting.wants_turn && !turns_too) || kept.iter().any(follows) {
                    kept.push_back(waiting);
                } else {
                    self.retry(waiting, &mut kept, host);
                }
            }
            kept.retain(|waiting| self.conn(waiting.conn).is_some_and(|conn| conn.delayed > 0));
            // What was delayed meanwhile came later than all that is kept.
            kept.append(&mut self.turns.queue);
            self.turns.queue = kept;
        }
    }

    /// When the guest behind a connection had its last turn; domain 0's requests are all alike.
    fn last_turn(&self, conn: ConnId) -> u64 {
        let domid = self.conn(conn).map(|conn| conn.domid);
        let guest = domid.filter(|domid| !self.domains.is_privileged(*domid));
        guest.and_then(|domid| self.domains.get(domid)).map_or(0, |domain| domain.last_turn)
    }

    fn retry(&mut self, mut waiting: Waiting, kept: &mut VecDeque<Waiting>, host: &mut dyn Host) {
        match self.attempt(waiting.conn, &waiting.header, &waiting.payload, host) {
            Attempt::Wait { wants_turn } => {
                waiting.wants_turn = wants_turn;
                kept.push_back(waiting);
            }
            Attempt::Done => {
                let waited = self.domains.now.saturating_sub(waiting.since);
                self.counters.waited_us = self.counters.waited_us.saturating_add(waited);
                if let Some(conn) = self.conn_mut(waiting.conn) {
                    conn.delayed = conn.delayed.saturating_sub(1);
                }
                self.mark_ready(waiting.conn);
            }
        }
    }
}
