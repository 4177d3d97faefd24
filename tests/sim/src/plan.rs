//! The plan of a run, its counts, and its last steps.

use crate::caller::ReplyOrder;
use crate::faults::Rates;
use crate::hostile::TransactionUse;
use crate::hypervisor::Reuse;
use crate::rng::Rng;
use crate::slot::SlotActor;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use xenstore_core::limits::SLICE_COST;

/// The number of last steps that are kept to be shown.
const TRACE: usize = 60;

/// The plan of a run, which its seed determines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorePlan {
    pub(crate) rates: Rates,
    pub(crate) reuse: Reuse,
    pub(crate) transactions: TransactionUse,
    /// The share of hostile guests, in thousandths.
    pub(crate) hostile: u32,
    pub(crate) own_ring: bool,
    /// True if guests count in transactions.
    pub(crate) counting: bool,
    pub(crate) steps: u64,
    /// The cost of a slice; see [`xenstore_core::server::Config::slice_cost`].
    pub(crate) slice_cost: u32,
}

impl StorePlan {
    /// Draws the plan of a seed: some runs have one kind of fault, some all, some none.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut rate = |most: u64| if rng.chance(500) { rng.below(most) as u32 } else { 0 };
        let rates = Rates {
            lost: rate(150),
            late: rate(300),
            spurious: rate(80),
            refused: rate(250),
            deaths: rate(12),
            pauses: rate(20),
        };
        Self {
            rates,
            hostile: rate(700),
            reuse: if rng.chance(400) { Reuse::AtOnce } else { Reuse::WhenUnmapped },
            transactions: if rng.chance(500) { TransactionUse::Used } else { TransactionUse::Left },
            own_ring: rng.chance(400),
            counting: rng.chance(500),
            steps: 1000 + rng.below(6000),
            slice_cost: *rng.pick(&[1, 2, 7, 40, SLICE_COST]),
        }
    }

    /// Returns the order of replies. Transactions that conflict may delay others' requests, so that
    /// replies overtake each other.
    pub(crate) fn order(&self) -> ReplyOrder {
        let used = self.transactions == TransactionUse::Used && self.hostile > 0;
        if used || self.counting { ReplyOrder::Any } else { ReplyOrder::Sent }
    }
}

/// The counts of the events of a run, by which a test can check that they occur.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EventTally {
    pub(crate) answered: u64,
    pub(crate) events: u64,
    pub(crate) resets: u64,
    pub(crate) commits: u64,
    pub(crate) conflicts: u64,
    pub(crate) returns: u64,
    pub(crate) hostile: u64,
    pub(crate) torn: u64,
    pub(crate) introduced: u64,
    pub(crate) released: u64,
    pub(crate) resumed: u64,
    pub(crate) deaths: u64,
    pub(crate) amid_request: u64,
    pub(crate) amid_reply: u64,
    pub(crate) amid_transaction: u64,
    pub(crate) reused: u64,
    pub(crate) spurious: u64,
    pub(crate) pauses: u64,
    pub(crate) unread: u64,
}

impl EventTally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.events += other.events;
        self.resets += other.resets;
        self.commits += other.commits;
        self.conflicts += other.conflicts;
        self.returns += other.returns;
        self.hostile += other.hostile;
        self.torn += other.torn;
        self.introduced += other.introduced;
        self.released += other.released;
        self.resumed += other.resumed;
        self.deaths += other.deaths;
        self.amid_request += other.amid_request;
        self.amid_reply += other.amid_reply;
        self.amid_transaction += other.amid_transaction;
        self.reused += other.reused;
        self.spurious += other.spurious;
        self.pauses += other.pauses;
        self.unread += other.unread;
    }
}

/// The last steps of a run; survives a panic.
#[derive(Clone, Default)]
pub(crate) struct RunTrace(Rc<RefCell<VecDeque<String>>>);

impl RunTrace {
    pub(crate) fn push(&self, line: String) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == TRACE {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take().into()
    }
}

/// Adds the counts of an actor that leaves.
pub(crate) fn collect(tally: &mut EventTally, actor: &SlotActor) {
    match actor {
        SlotActor::Healthy(guest) => {
            tally.answered += guest.answered;
            tally.events += guest.events;
            tally.resets += guest.resets;
            tally.commits += guest.commits;
            tally.conflicts += guest.refused;
            tally.returns += guest.returns;
        }
        SlotActor::Hostile(hostile) => {
            tally.hostile += hostile.pieces;
            tally.torn += hostile.torn_seen;
        }
    }
}
