//! Requests that wait: for the end of somebody's turn, or for one of their own ([`super::turn`]).
//!
//! Domain 0's and the guests' are in queues of their own. A queue is looked through only where a turn has
//! ended, and the guests' only in the guests' time. A request that waits holds up no other of its connection but
//! those that could tell the difference.

use super::turn::Class;
use super::{ConnId, Host, Server};
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
    /// What it counts for the quota `memory`.
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

/// Requests that go on waiting, while a queue is looked through.
#[derive(Default)]
struct Kept {
    queue: VecDeque<Waiting>,
    /// Where those of one connection are in it.
    of: BTreeMap<ConnId, Vec<usize>>,
}

impl Kept {
    fn push(&mut self, waiting: Waiting) {
        self.of.entry(waiting.conn).or_default().push(self.queue.len());
        self.queue.push_back(waiting);
    }

    /// Those of a connection, in their order.
    fn of(&self, conn: ConnId) -> impl Iterator<Item = &Waiting> {
        let places = self.of.get(&conn).into_iter().flatten();
        places.filter_map(|at| self.queue.get(*at))
    }
}

impl Server {
    /// Puts a request in the queue.
    pub(super) fn delay(&mut self, conn: ConnId, header: &Header, payload: &[u8], why: WaitsFor) {
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        let path = path.map(|path| Box::from(path.as_bytes()));
        let (class, since) = (self.class(conn), self.domains.now);
        let (header, payload) = (*header, Box::from(payload));
        self.turns.delayed_total = self.turns.delayed_total.saturating_add(1);
        let waiting = Waiting { conn, header, payload, path, since, why };
        let weight = waiting.weight();
        self.turns.lane_mut(class).queue.push_back(waiting);
        self.count_delayed(conn, 1, weight);
    }

    /// Counts so many more requests of the connection that wait, which are charged, but never refused: the quota
    /// `outstanding` bounds them.
    fn count_delayed(&mut self, conn: ConnId, more: isize, weight: i64) {
        let Some(conn) = self.conn_mut(conn) else { return };
        conn.delayed = conn.delayed.saturating_add_signed(more);
        conn.delayed_weight = conn.delayed_weight.saturating_add(weight);
        let domid = conn.domid;
        self.domains.charge(domid, Quota::Memory, weight);
    }

    /// Whether a new request must stay behind one of its connection that waits. The holder of a turn
    /// never waits: it is what the others wait for.
    pub(super) fn must_follow(&self, conn: ConnId, header: &Header, payload: &[u8]) -> bool {
        let mut scratch = Vec::new();
        let path = self.first_path(conn, header, payload, &mut scratch);
        let queue = &self.turns.lane(self.class(conn)).queue;
        let behind =
            |waiting: &Waiting| waiting.conn == conn && self.depends(waiting, header, path);
        !self.turns.holds(conn, header.tx_id) && queue.iter().any(behind)
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
                Touch::Perms => is_below && self.tree.get(two).is_none(),
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
            Some(MsgType::Write | MsgType::Mkdir) if self.tree.get(path).is_some() => Touch::Value,
            _ => self.existence(path),
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
        let home = self.conn(conn)?.domid;
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
        let queue = &self.turns.lane(self.class(conn)).queue;
        for waiting in queue.iter().filter(|waiting| waiting.conn == conn) {
            to.extend_from_slice(&waiting.header.to_bytes());
            to.extend_from_slice(&waiting.payload);
        }
    }

    /// Forgets what a connection that is gone was waiting for.
    pub(super) fn forget_waiting(&mut self, conn: ConnId) {
        let class = self.class(conn);
        self.turns.lane_mut(class).queue.retain(|waiting| waiting.conn != conn);
        if let Some(known) = self.conn(conn) {
            let (delayed, weight) = (known.delayed.cast_signed(), known.delayed_weight);
            self.count_delayed(conn, delayed.saturating_neg(), weight.saturating_neg());
        }
    }

    /// Where a turn is over, runs what domain 0 waits for; in a guest's time also what guests wait for. First
    /// what waited for its end, then what wants a turn itself, and never one before another that it
    /// depends on.
    pub(super) fn run_waiting(&mut self, time_of: Class, host: &mut dyn Host) {
        loop {
            let class = if core::mem::take(&mut self.turns.privileged.due) {
                Class::Privileged
            } else if time_of == Class::Guest && core::mem::take(&mut self.turns.guest.due) {
                Class::Guest
            } else {
                return;
            };
            self.run_queue(class, WaitsFor::AnEnd, host);
            self.run_queue(class, WaitsFor::ATurn, host);
        }
    }

    fn run_queue(&mut self, class: Class, phase: WaitsFor, host: &mut dyn Host) {
        let mut queue = core::mem::take(&mut self.turns.lane_mut(class).queue);
        self.charge_work(queue.len());
        if phase == WaitsFor::ATurn && class == Class::Guest {
            // A guest whose last turn ended long ago comes before one that has just had one.
            queue.make_contiguous().sort_by_cached_key(|waiting| self.last_turn(waiting.conn));
        }
        let mut kept = Kept::default();
        while let Some(waiting) = queue.pop_front() {
            // Its connection may have ended while others were tried, and forgotten all it asked.
            if self.conn(waiting.conn).is_none_or(|conn| conn.delayed == 0) {
                continue;
            }
            let path = waiting.path.as_deref().map(Path::checked);
            // One that takes the turn leaves none for those behind it.
            let in_vain = waiting.why == WaitsFor::ATurn
                && (phase == WaitsFor::AnEnd || self.turns.lane(class).turn.is_some());
            let follows = |first: &Waiting| self.depends(first, &waiting.header, path);
            if in_vain || kept.of(waiting.conn).any(follows) {
                kept.push(waiting);
            } else {
                self.retry(waiting, &mut kept, host);
            }
        }
        let mut kept = kept.queue;
        kept.retain(|waiting| self.conn(waiting.conn).is_some_and(|conn| conn.delayed > 0));
        // What was delayed meanwhile came later than all that is kept.
        let lane = self.turns.lane_mut(class);
        kept.append(&mut lane.queue);
        lane.queue = kept;
    }

    /// When the guest behind a connection had its last turn.
    fn last_turn(&self, conn: ConnId) -> u64 {
        let domain = self.conn(conn).and_then(|conn| self.domains.get(conn.domid));
        domain.map_or(0, |domain| domain.last_turn)
    }

    /// Tries a request again. What it costs is its connection's, not whose turn has ended.
    fn retry(&mut self, mut waiting: Waiting, kept: &mut Kept, host: &mut dyn Host) {
        let spent = core::mem::take(&mut self.cost);
        let attempt = self.attempt(waiting.conn, &waiting.header, &waiting.payload, host);
        let cost = core::mem::replace(&mut self.cost, spent);
        if let Some(conn) = self.conn_mut(waiting.conn) {
            conn.owed = conn.owed.saturating_add(cost);
        }
        match attempt {
            Attempt::Wait(why) => {
                waiting.why = why;
                kept.push(waiting);
            }
            Attempt::Done => {
                let waited = self.domains.now.saturating_sub(waiting.since);
                self.counters.waited_us = self.counters.waited_us.saturating_add(waited);
                // Where its connection has ended meanwhile, all that waited is forgotten already.
                if self.conn(waiting.conn).is_some_and(|conn| conn.delayed > 0) {
                    self.count_delayed(waiting.conn, -1, waiting.weight().saturating_neg());
                }
                self.mark_ready(waiting.conn);
            }
        }
    }
}
