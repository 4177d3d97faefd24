//! The faults of a run: drawn from the seed, counted, and off until they are armed.

use crate::rng::Rng;
use xen::Error;
use xen::gnttab::GrantStatus;

/// The delivery of a raised event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventDelivery {
    /// It arrives.
    Arrives,
    /// It never arrives.
    Lost,
    /// It arrives after this many further steps of the run.
    Late(u64),
}

/// A call of the platform that may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RefusableCall {
    /// The binding of a port.
    Bind,
    /// The mapping of a grant.
    Map,
    /// The report of the changes of domains.
    Changes,
}

/// The rates of the kinds of faults, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Events that are lost.
    pub lost: u32,
    /// Events that arrive late.
    pub late: u32,
    /// Events that nobody raised, for each step of the run.
    pub spurious: u32,
    /// Calls of the daemon that are refused for lack of memory, ports or grants.
    pub refused: u32,
    /// Domains that die, for each step of the run.
    pub deaths: u32,
    /// Domains that are stopped for a while, for each step of the run.
    pub pauses: u32,
}

/// The number of faults of each kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Events lost.
    pub lost: u64,
    /// Events that arrived late.
    pub late: u64,
    /// Calls refused.
    pub refused: u64,
}

/// The source of faults of a run.
#[derive(Debug)]
pub(crate) struct Faults {
    rng: Rng,
    pub(crate) rates: Rates,
    pub(crate) counts: FaultCounts,
    /// True while faults occur.
    pub(crate) armed: bool,
}

impl Faults {
    pub(crate) fn new(rng: Rng, rates: Rates) -> Self {
        Self { rng, rates, counts: FaultCounts::default(), armed: false }
    }

    pub(crate) fn draw_delivery(&mut self) -> EventDelivery {
        if !self.armed {
            return EventDelivery::Arrives;
        }
        if self.rng.chance(self.rates.lost) {
            self.counts.lost += 1;
            EventDelivery::Lost
        } else if self.rng.chance(self.rates.late) {
            self.counts.late += 1;
            EventDelivery::Late(1 + self.rng.below(30))
        } else {
            EventDelivery::Arrives
        }
    }

    /// Returns the error of a call that is to be refused; `None` if it may proceed.
    pub(crate) fn refusal(&mut self, call: RefusableCall) -> Option<Error> {
        if !self.armed || !self.rng.chance(self.rates.refused) {
            return None;
        }
        self.counts.refused += 1;
        let refusals: &[Error] = match call {
            RefusableCall::Bind => &[Error::NoMem, Error::NoSpc],
            RefusableCall::Map => &[Error::NoMem, Error::NoSpc, Error::Grant(GrantStatus::NoSpace)],
            RefusableCall::Changes => &[Error::NoMem],
        };
        Some(*self.rng.pick(refusals))
    }
}
