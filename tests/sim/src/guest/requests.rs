//! Draws the next request of a guest.

use super::{COUNTERS, Common, CounterIncrement, GuestPhase, ModelGuest, SHARED, TransactionStage};
use crate::model::{Op, TransactionOutcome};
use crate::watch_checker::WatchedPlace;
use xen::DomId;

/// Paths below the guest's home.
const PATHS: [&str; 7] = ["data", "data/a", "data/a/b", "data/c", "data/c/d/e", "x", "x/y"];
/// The largest number of watches of a guest.
const WATCHES_MAX: usize = 6;
impl ModelGuest {
    /// Makes a request, unless enough are in flight.
    pub(super) fn ask(&mut self, common: &mut Common) {
        let waiting = self.caller.in_flight_count() as u64;
        if self.phase != GuestPhase::Serving || waiting >= self.depth {
            return;
        }
        if let Some(op) = self.sweep.pop_front() {
            self.request(op, common);
            return;
        }
        let begins = if common.counting { 500 } else { 120 };
        match self.transaction {
            // A transaction has sharp limits: nothing is in flight at its start and at its end.
            TransactionStage::Starting | TransactionStage::Ending => {}
            TransactionStage::Open { id, .. } if self.counting.is_some() => {
                if waiting == 0 {
                    self.ask_counter(id, common);
                }
            }
            TransactionStage::Open { id, left: 0 } => {
                if waiting == 0 {
                    self.transaction = TransactionStage::Ending;
                    let committed = self.rng.chance(750);
                    let outcome = if committed {
                        TransactionOutcome::Commit
                    } else {
                        TransactionOutcome::Abort
                    };
                    self.request_in(id, Op::End(outcome), common);
                }
            }
            TransactionStage::Open { id, left } => {
                self.transaction = TransactionStage::Open { id, left: left - 1 };
                let op = self.node_op();
                self.request_in(id, op, common);
            }
            TransactionStage::None if waiting == 0 && self.rng.chance(begins) => {
                self.transaction = TransactionStage::Starting;
                self.began = (common.deaths, common.requests);
                self.counting = (common.counting && self.rng.chance(500)).then(|| {
                    CounterIncrement { which: self.rng.index(COUNTERS), value: None, sent: 0 }
                });
                self.request(Op::Start, common);
            }
            TransactionStage::None => {
                let op = self.any_op(common);
                self.request(op, common);
            }
        }
    }

    /// Makes the next request of a transaction that counts.
    fn ask_counter(&mut self, id: u32, common: &mut Common) {
        let Some(counting) = &mut self.counting else { return };
        let CounterIncrement { which, value, .. } = *counting;
        counting.sent += 1;
        let op = match (counting.sent, value) {
            (1, _) => Op::ReadCounter(which),
            (2, Some(value)) => Op::WriteCounter(which, value + 1),
            _ => {
                self.transaction = TransactionStage::Ending;
                Op::End(TransactionOutcome::Commit)
            }
        };
        self.request_in(id, op, common);
    }

    fn node_op(&mut self) -> Op {
        let path = (*self.rng.pick(&PATHS)).to_owned();
        match self.rng.below(12) {
            0..=2 => Op::Read(path),
            3 => Op::List(path),
            4 => Op::Perms(path),
            5..=8 => {
                self.writes += 1;
                let long = if self.rng.chance(150) { self.rng.below(1800) } else { 0 };
                let pad = "v".repeat(usize::try_from(long).unwrap_or(0));
                Op::Write(path, format!("{}{pad}", self.writes))
            }
            9 => Op::Mkdir(path),
            10 => Op::Remove(path),
            _ => {
                let own = self.domid;
                let perms = [format!("n{own}\0"), format!("r{own}\0"), format!("n{own}\0r0\0")];
                Op::SetPerms(path, self.rng.pick(&perms).clone())
            }
        }
    }

    fn any_op(&mut self, common: &Common) -> Op {
        match self.rng.below(20) {
            0 => {
                let other = self.rng.below(6) as u16;
                let other = if other == self.domid.0 { 0 } else { other };
                Op::ReadOther(DomId(other))
            }
            1..=3 => Op::ReadShared(self.rng.index(SHARED)),
            4 => Op::WriteShared(self.rng.index(SHARED)),
            5 | 6 if self.watches.len() < WATCHES_MAX => {
                let relative = self.rng.chance(500);
                let place = match self.rng.below(5) {
                    0 => WatchedPlace::Own(String::new()),
                    1 | 2 => WatchedPlace::Shared(self.rng.index(SHARED)),
                    _ => WatchedPlace::Own((*self.rng.pick(&PATHS)).to_owned()),
                };
                Op::Watch(self.watches.set(place, relative, common.tick))
            }
            7 => {
                let choice = self.rng.index(WATCHES_MAX);
                self.watches.unset(choice).map_or_else(|| self.node_op(), Op::Unwatch)
            }
            _ => self.node_op(),
        }
    }
}
