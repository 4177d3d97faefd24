//! What goes wrong, and when: drawn from the seed, counted, and off until it is armed.

use crate::rng::Rng;
use xen::Error;
use xen::gnttab::Status;

/// What becomes of an event that was raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It arrives.
    Arrives,
    /// It never does.
    Lost,
    /// It arrives after so many further steps of the run.
    Late(u64),
}

/// A call of the platform that may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// A port is to be bound.
    Bind,
    /// A grant is to be mapped.
    Map,
    /// The changes of domains are to be told.
    Changes,
}

/// How often what goes wrong, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Events that are lost.
    pub lost: u32,
    /// Events that come late.
    pub late: u32,
    /// Events that nobody raised, for each step of the run.
    pub spurious: u32,
    /// Calls of the daemon that are refused for want of memory, ports or grants.
    pub refused: u32,
    /// Domains that die, for each step of the run.
    pub deaths: u32,
    /// Domains that are not run for a while, for each step of the run.
    pub pauses: u32,
}

/// How often what went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events lost.
    pub lost: u64,
    /// Events that came late.
    pub late: u64,
    /// Calls refused.
    pub refused: u64,
}

/// The source of faults of a run.
#[derive(Debug)]
pub(crate) struct Faults {
    rng: Rng,
    pub(crate) rates: Rates,
    pub(crate) counts: Counts,
    /// Nothing goes wrong while this is false.
    pub(crate) armed: bool,
}

impl Faults {
    pub(crate) fn new(rng: Rng, rates: Rates) -> Self {
        Self { rng, rates, counts: Counts::default(), armed: false }
    }

    pub(crate) fn fate(&mut self) -> Fate {
        if !self.armed {
            return Fate::Arrives;
        }
        if self.rng.chance(self.rates.lost) {
            self.counts.lost += 1;
            Fate::Lost
        } else if self.rng.chance(self.rates.late) {
            self.counts.late += 1;
            Fate::Late(1 + self.rng.below(30))
        } else {
            Fate::Arrives
        }
    }

    /// The refusal of a call, where it is to be refused.
    pub(crate) fn refusal(&mut self, call: Call) -> Option<Error> {
        if !self.armed || !self.rng.chance(self.rates.refused) {
            return None;
        }
        self.counts.refused += 1;
        let refusals: &[Error] = match call {
            Call::Bind => &[Error::NoMem, Error::NoSpc],
            Call::Map => &[Error::NoMem, Error::NoSpc, Error::Grant(Status::NoSpace)],
            Call::Changes => &[Error::NoMem],
        };
        Some(*self.rng.pick(refusals))
    }
}
