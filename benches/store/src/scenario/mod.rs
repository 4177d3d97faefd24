//! The scenarios: each starts a fresh daemon, drives it, and returns named numbers.

mod axes;
mod context;
mod domains;
mod fanout;
mod guest;
mod guests;
mod hostile;
mod rates;
mod store;
mod transactions;

use crate::Result;
use crate::daemon::MeasuredDaemon;

pub(crate) use context::Context;

/// A scenario as data.
pub(crate) struct Scenario {
    /// The name for `--only`; the first part of the metric names.
    pub(crate) name: &'static str,
    /// The daemons that run it.
    pub(crate) kinds: &'static [MeasuredDaemon],
    /// True if the daemon must know guests.
    pub(crate) guests: bool,
    /// A guess of its duration, in seconds, until it has been measured.
    pub(crate) seconds: f64,
    /// Runs it.
    pub(crate) run: fn(&mut Context<'_>, MeasuredDaemon) -> Result<()>,
}

const DAEMONS: &[MeasuredDaemon] =
    &[MeasuredDaemon::Ours, MeasuredDaemon::C, MeasuredDaemon::O, MeasuredDaemon::On];

/// All scenarios, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "rates",
        kinds: &MeasuredDaemon::ALL,
        guests: false,
        seconds: 3.5,
        run: rates::run,
    },
    Scenario {
        name: "idle",
        kinds: &MeasuredDaemon::ALL,
        guests: false,
        seconds: 3.0,
        run: axes::idle,
    },
    Scenario {
        name: "active",
        kinds: &MeasuredDaemon::ALL,
        guests: false,
        seconds: 2.0,
        run: axes::active,
    },
    Scenario { name: "watches", kinds: DAEMONS, guests: false, seconds: 2.0, run: axes::watches },
    Scenario {
        name: "transactions",
        kinds: DAEMONS,
        guests: false,
        seconds: 2.0,
        run: transactions::disjoint,
    },
    Scenario {
        name: "devices",
        kinds: DAEMONS,
        guests: false,
        seconds: 2.0,
        run: transactions::devices,
    },
    Scenario {
        name: "contended",
        kinds: DAEMONS,
        guests: false,
        seconds: 1.5,
        run: transactions::contended,
    },
    Scenario { name: "fanout", kinds: DAEMONS, guests: false, seconds: 2.0, run: fanout::run },
    Scenario { name: "store", kinds: DAEMONS, guests: false, seconds: 20.0, run: store::hundred },
    Scenario {
        name: "million",
        kinds: &[MeasuredDaemon::Ours],
        guests: false,
        seconds: 10.0,
        run: store::million,
    },
    Scenario { name: "rm", kinds: DAEMONS, guests: false, seconds: 3.0, run: store::rm },
    Scenario { name: "domains", kinds: DAEMONS, guests: true, seconds: 6.0, run: domains::run },
    Scenario {
        name: "guests",
        kinds: &[MeasuredDaemon::Ours, MeasuredDaemon::C, MeasuredDaemon::On],
        guests: true,
        seconds: 3.0,
        run: guests::run,
    },
    Scenario {
        name: "hostile",
        kinds: &[MeasuredDaemon::Ours, MeasuredDaemon::C],
        guests: true,
        seconds: 15.0,
        run: hostile::run,
    },
];
