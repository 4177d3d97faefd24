//! Requests that wait: for the end of somebody's turn, or for one of their own ([`super::turn`]).
//!
//! Domain 0's and the guests' are in queues of their own. A queue is looked through only where a turn has
//! ended, and the guests' only in the guests' time, some of them in each round. A request that waits holds up no other
//! of its connection but those that could tell the difference.

use super::Server;
use super::turn::Class;
use crate::host::Host;
use crate::id::ConnId;
use crate::limits::{DELAYED_MAX, DELAYED_WEIGHT};
use crate::path::{Path, Special, resolve};
use crate::quota::Quota;
use crate::transaction::Touch;
use crate::wire::{Header, MsgType, Strings};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// A request that waits.
pub(super) struct Waiting {
    conn: ConnId,
    header: Header,
    payload: Box<[u8]>,
    /// The path that it names, absolute.
    path: Option<Box<[u8]>>,
    since: u64,
    why: WaitsFor,
}

impl Waiting {
    /// Bytes that it counts for the quota `memory`.
    fn weight(&self) -> i64 {
        let path = self.path.as_deref().map_or(0, <[u8]>::len);
        (self.payload.len().saturating_add(path) as i64).saturating_add(DELAYED_WEIGHT)
    }
}

/// What a request waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitsFor {
    /// The end of somebody's turn, or a request before it that does.
    AnEnd,
    /// A turn of its own.
    ATurn,
}

/// Whether a request could be run, or must wait.
pub(crate) enum Attempt {
    Done,
    Wait(WaitsFor),
}

/// The requests of one class of callers that wait.
#[derive(Default)]
pub(super) struct Queue {
    /// By their number, which is the order of their coming.
    waiting: BTreeMap<u64, Waiting>,
    /// The number of the next.
    next: u64,
    /// A turn has ended that some of them may have waited for, and it is not planned yet which are tried.
    turn_ended: bool,
    /// Those that are still to be tried since then, in their order.
    to_try: VecDeque<u64>,
    /// One of them is being tried.
    trying: bool,
}

impl Queue {
    /// A turn has ended.
    pub(super) fn note_end(&mut self) {
        self.turn_ended = true;
    }

    /// True where some are to be tried.
    pub(super) fn is_due(&self) -> bool {
        !self.waiting.is_empty() && (self.turn_ended || !self.to_try.is_empty())
    }

    /// True where those who have waited for a turn come before the request at hand, which wants one.
    pub(super) fn comes_first(&self) -> bool {
        !self.trying && !self.to_try.is_empty()
    }

    fn get(&self, number: u64) -> Option<&Waiting> {
        self.waiting.get(&number)
    }

    /// Takes a request in; its number.
    fn push(&mut self, waiting: Waiting) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.waiting.insert(number, waiting);
        if !self.to_try.is_empty() {
            // It has waited for the same, only not as long.
            self.to_try.push_back(number);
        }
        number
    }
}

impl Server {
    /// Puts a request in the queue.
    pub(super) fn delay(&mut self, conn: ConnId, header: &Header, payload: &[u8], why: WaitsFor) {
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        let path = path.map(|path| Box::from(path.as_bytes()));
        let (class, since) = (self.class(conn), self.content.domains.now);
        let (header, payload) = (*header, Box::from(payload));
        self.turns.delayed_total = self.turns.delayed_total.saturating_add(1);
        let waiting = Waiting { conn, header, payload, path, since, why };
        let weight = waiting.weight();
        let number = self.turns.lane_mut(class).queue.push(waiting);
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.delayed.push_back(number);
        }
        self.charge_delayed(conn, weight);
    }

    /// Charges a connection for requests that wait. They are never refused: the quota `outstanding` bounds them.
    fn charge_delayed(&mut self, conn: ConnId, weight: i64) {
        let Some(conn) = self.conns.get_mut(conn) else { return };
        conn.delayed_weight = conn.delayed_weight.saturating_add(weight);
        let domid = conn.domid;
        self.content.domains.charge(domid, Quota::Memory, weight);
    }

    /// The requests of a connection that wait, in the order in which they came.
    fn waiting_of(&self, conn: ConnId) -> impl Iterator<Item = (u64, &Waiting)> {
        let queue = &self.turns.lane(self.class(conn)).queue;
        let numbers =
            self.conns.get(conn).into_iter().flat_map(|conn| conn.delayed.iter().copied());
        numbers.filter_map(|number| Some((number, queue.get(number)?)))
    }

    /// Whether a new request must stay behind one of its connection that waits. The holder of a turn
    /// never waits: it is what the others wait for.
    pub(super) fn must_follow(&self, conn: ConnId, header: &Header, payload: &[u8]) -> bool {
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        !self.turns.holds(conn, header.tx_id)
            && self.waiting_of(conn).any(|(_, waiting)| self.depends(waiting, header, path))
    }

    /// Whether the second of two requests of one connection must stay behind the first, as one of them
    /// could tell the difference.
    fn depends(&self, first: &Waiting, header: &Header, path: Option<Path<'_>>) -> bool {
        if first.header.tx_id != header.tx_id {
            return false;
        }
        let Some((one, two)) = first.path.as_deref().map(Path::checked).zip(path) else {
            return header.tx_id != 0;
        };
        let second = MsgType::from_code(header.kind);
        if header.tx_id != 0 || one == two {
            return true;
        }
        if !one.related(two) {
            return false;
        }
        let removes_or_permits = matches!(second, Some(MsgType::Rm | MsgType::SetPerms));
        let is_below = two.as_bytes().len() > one.as_bytes().len();
        removes_or_permits
            || match self.touch_of(first, one) {
                Touch::Value => false,
                // What is made below inherits; what is there has its own.
                Touch::Perms => is_below && self.content.tree.get(two).is_none(),
                Touch::Existence { nearest } => {
                    let lists = matches!(second, Some(MsgType::Directory | MsgType::DirectoryPart));
                    is_below
                        || two.as_bytes().len() > nearest
                        || (two.as_bytes().len() == nearest && lists)
                }
            }
    }

    /// What a change that waits will do to its path.
    fn touch_of(&self, waiting: &Waiting, path: Path<'_>) -> Touch {
        match MsgType::from_code(waiting.header.kind) {
            Some(MsgType::SetPerms) => Touch::Perms,
            Some(MsgType::Write | MsgType::Mkdir) if self.content.tree.get(path).is_some() => {
                Touch::Value
            }
            _ => Touch::existence(&self.content.tree, path),
        }
    }

    /// The path that a request names first, made absolute, if its kind names one.
    fn first_path<'a>(
        &self,
        conn: ConnId,
        header: &Header,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Option<Path<'a>> {
        let home = self.conns.get(conn)?.domid;
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

    /// Whether more requests of the connection may come, as far as those that wait are concerned. What
    /// has the turn must be able to end it.
    pub(super) fn may_delay_more(&self, conn: ConnId, delayed: usize) -> bool {
        delayed < DELAYED_MAX || (delayed < 2 * DELAYED_MAX && self.has_turn(conn))
    }

    /// Appends the requests of a connection that wait, in the order in which they came.
    pub(super) fn delayed_input(&self, conn: ConnId, to: &mut Vec<u8>) {
        for (_, waiting) in self.waiting_of(conn) {
            to.extend_from_slice(&waiting.header.to_bytes());
            to.extend_from_slice(&waiting.payload);
        }
    }

    /// Forgets what a connection that is gone was waiting for.
    pub(super) fn forget_waiting(&mut self, conn: ConnId) {
        let class = self.class(conn);
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let (numbers, weight) =
            (core::mem::take(&mut connection.delayed), connection.delayed_weight);
        let queue = &mut self.turns.lane_mut(class).queue;
        for number in numbers {
            queue.waiting.remove(&number);
        }
        self.charge_delayed(conn, weight.saturating_neg());
    }

    /// Runs what domain 0 waits for, where a turn is over; in a guest's time also what guests wait for, as much as
    /// a slice may cost, and the rest in the next round. First what waited for its end, then what wants a turn
    /// itself, and never one before another that it depends on.
    pub(super) fn run_waiting(&mut self, time_of: Class, host: &mut dyn Host) {
        let mut left = self.config.slice_cost;
        loop {
            if self.turns.privileged.queue.is_due() {
                self.try_next(Class::Privileged, host);
            } else if time_of == Class::Guest && left > 0 && self.turns.guest.queue.is_due() {
                let cost = self.try_next(Class::Guest, host);
                left = left.saturating_sub(cost);
            } else {
                return;
            }
        }
    }

    /// Plans which requests are tried, after the end of a turn: all that wait for one, and then those who want one. Of
    /// the guests, one whose last turn ended long ago comes before one that has just had one.
    fn plan_tries(&mut self, class: Class) -> u32 {
        let queue = &self.turns.lane(class).queue;
        let of_kind = |why: WaitsFor| {
            queue
                .waiting
                .iter()
                .filter(move |(_, waiting)| waiting.why == why)
                .map(|(number, _)| *number)
        };
        let mut seekers: Vec<u64> = of_kind(WaitsFor::ATurn).collect();
        if class == Class::Guest {
            let last_turn = |number: &u64| {
                let waiting = queue.get(*number);
                (waiting.map_or(0, |waiting| self.last_turn(waiting.conn)), *number)
            };
            seekers.sort_by_cached_key(last_turn);
        }
        let to_try: VecDeque<u64> = of_kind(WaitsFor::AnEnd).chain(seekers).collect();
        let cost = self.content.charge_work(to_try.len());
        self.turns.lane_mut(class).queue.to_try = to_try;
        cost
    }

    /// Tries the next request that is to be tried; what it cost.
    fn try_next(&mut self, class: Class, host: &mut dyn Host) -> u32 {
        if core::mem::take(&mut self.turns.lane_mut(class).queue.turn_ended) {
            return self.plan_tries(class);
        }
        let Some(number) = self.turns.lane_mut(class).queue.to_try.pop_front() else { return 0 };
        if !self.may_try(class, number) {
            return 0;
        }
        let queue = &mut self.turns.lane_mut(class).queue;
        let Some(waiting) = queue.waiting.remove(&number) else { return 0 };
        self.turns.lane_mut(class).queue.trying = true;
        let cost = self.retry(number, waiting, class, host);
        self.turns.lane_mut(class).queue.trying = false;
        cost
    }

    /// True where there is use in trying a request: not where a turn that it wants is taken, nor while one before it waits
    /// that it depends on.
    fn may_try(&self, class: Class, number: u64) -> bool {
        let lane = self.turns.lane(class);
        let Some(waiting) = lane.queue.get(number) else { return false };
        let path = waiting.path.as_deref().map(Path::checked);
        let mut before = self.waiting_of(waiting.conn).take_while(|(other, _)| *other < number);
        (waiting.why == WaitsFor::AnEnd || lane.turn.is_none())
            && !before.any(|(_, first)| self.depends(first, &waiting.header, path))
    }

    /// When the guest behind a connection had its last turn.
    fn last_turn(&self, conn: ConnId) -> u64 {
        let domain = self.conns.get(conn).and_then(|conn| self.content.domains.get(conn.domid));
        domain.map_or(0, |domain| domain.last_turn)
    }

    /// Tries a request again. What it costs is its connection's, not whose turn has ended.
    fn retry(
        &mut self,
        number: u64,
        mut waiting: Waiting,
        class: Class,
        host: &mut dyn Host,
    ) -> u32 {
        let spent = core::mem::take(&mut self.content.cost);
        let conn = waiting.conn;
        let attempt = self.attempt(conn, &waiting.header, &waiting.payload, host);
        let cost = core::mem::replace(&mut self.content.cost, spent).saturating_add(1);
        let Some(connection) = self.conns.get_mut(conn) else { return cost };
        connection.owed = connection.owed.saturating_add(cost);
        // Where its connection has ended meanwhile, all that waited is forgotten already.
        let Ok(at) = connection.delayed.binary_search(&number) else { return cost };
        match attempt {
            Attempt::Wait(why) => {
                waiting.why = why;
                self.turns.lane_mut(class).queue.waiting.insert(number, waiting);
            }
            Attempt::Done => {
                connection.delayed.remove(at);
                let waited = self.content.domains.now.saturating_sub(waiting.since);
                self.counters.waited_us = self.counters.waited_us.saturating_add(waited);
                self.charge_delayed(conn, waiting.weight().saturating_neg());
                if waiting.why == WaitsFor::ATurn {
                    self.try_followers(conn, number, class);
                }
                self.conns.mark_ready(conn);
            }
        }
        cost
    }

    /// Has those requests of a connection tried that came behind one that is done now: they may have waited for it.
    fn try_followers(&mut self, conn: ConnId, number: u64, class: Class) {
        let behind = self
            .waiting_of(conn)
            .filter(|(other, waiting)| *other > number && waiting.why == WaitsFor::AnEnd);
        let behind: Vec<u64> = behind.map(|(number, _)| number).collect();
        self.turns.lane_mut(class).queue.to_try.extend(behind);
    }
}
