//! The scenarios: each starts from a fresh daemon, drives it, and gives back named numbers.

mod axes;
mod domains;
mod fanout;
mod guest;
mod guests;
mod hostile;
mod rates;
mod store;
mod transactions;

use crate::Result;
use crate::client::{self, Conn, Pair};
use crate::daemon::{Daemon, Guests, Kind, Places};
use rustix::thread::CpuSet;
use std::time::{Duration, Instant};

/// What every scenario is given.
pub(crate) struct Context<'a> {
    /// Where the programs are.
    pub(crate) places: &'a Places,
    /// The CPU of the daemon and of this process.
    pub(crate) cpu: usize,
    /// The processors that the benchmark may use; the daemons have one of them.
    pub(crate) allowed: CpuSet,
    /// Small sizes and short times, to see that everything runs.
    pub(crate) quick: bool,
    /// Most descriptors that a process may have here.
    pub(crate) descriptors: u64,
    /// Where numbers go.
    pub(crate) record: &'a mut dyn FnMut(&str, f64),
}

/// A scenario as data.
pub(crate) struct Scenario {
    /// What `--only` can name; the first part of the metric names.
    pub(crate) name: &'static str,
    /// Who runs it.
    pub(crate) kinds: &'static [Kind],
    /// Whether the daemon must know guests.
    pub(crate) guests: bool,
    /// A guess of how long one run takes, in seconds, until it has been measured.
    pub(crate) seconds: f64,
    /// Does it.
    pub(crate) run: fn(&mut Context<'_>, Kind) -> Result<()>,
}

const DAEMONS: &[Kind] = &[Kind::Ours, Kind::C, Kind::O, Kind::On];

/// All scenarios, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "rates", kinds: &Kind::ALL, guests: false, seconds: 3.5, run: rates::run },
    Scenario { name: "idle", kinds: &Kind::ALL, guests: false, seconds: 3.0, run: axes::idle },
    Scenario { name: "active", kinds: &Kind::ALL, guests: false, seconds: 2.0, run: axes::active },
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
        kinds: &[Kind::Ours],
        guests: false,
        seconds: 10.0,
        run: store::million,
    },
    Scenario { name: "rm", kinds: DAEMONS, guests: false, seconds: 3.0, run: store::rm },
    Scenario { name: "domains", kinds: DAEMONS, guests: true, seconds: 6.0, run: domains::run },
    Scenario {
        name: "guests",
        kinds: &[Kind::Ours, Kind::C, Kind::On],
        guests: true,
        seconds: 3.0,
        run: guests::run,
    },
    Scenario {
        name: "hostile",
        kinds: &[Kind::Ours, Kind::C],
        guests: true,
        seconds: 15.0,
        run: hostile::run,
    },
];

impl Context<'_> {
    /// A fresh daemon without guests.
    fn start(&self, kind: Kind) -> Result<Daemon> {
        Daemon::start(self.places, kind, self.cpu, Guests::None)
    }

    /// How long one measurement lasts.
    fn span(&self) -> Duration {
        Duration::from_millis(if self.quick { 30 } else { 400 })
    }

    /// `full`, or `small` in a quick run.
    fn size(&self, full: usize, small: usize) -> usize {
        if self.quick { small } else { full }
    }

    /// Records a number.
    fn record(&mut self, metric: &str, value: f64) {
        (self.record)(metric, value);
    }

    /// Keeps `depth` requests in flight; records `NAME.rate` (op/s) and `NAME.cpu` (s/op).
    fn pipelined(
        &mut self,
        daemon: &Daemon,
        conn: &mut Conn,
        name: &str,
        pair: &Pair,
    ) -> Result<()> {
        let span = self.span();
        conn.pipeline(pair, DEPTH, span / 8)?;
        let (cpu, start) = (daemon.cpu_time()?, Instant::now());
        let done = conn.pipeline(pair, DEPTH, span)? as f64;
        let time = start.elapsed().as_secs_f64();
        let cpu = (daemon.cpu_time()? - cpu).as_secs_f64();
        self.record(&format!("{name}.rate"), done / time);
        self.record(&format!("{name}.cpu"), cpu / done);
        Ok(())
    }

    /// One request at a time; records `NAME.p99` (s), and gives it back.
    fn p99(&mut self, conn: &mut Conn, name: &str, pair: &Pair) -> Result<f64> {
        let span = self.span();
        conn.one_at_a_time(pair, span / 8)?;
        let mut waits = conn.one_at_a_time(pair, span)?;
        waits.sort_unstable();
        let p99 = waits[(waits.len() - 1) * 99 / 100].as_secs_f64();
        self.record(&format!("{name}.p99"), p99);
        Ok(p99)
    }

    /// One request at a time; records `NAME.rate`, `NAME.cpu`, `NAME.p50` and `NAME.p99` (s).
    fn one_at_a_time(
        &mut self,
        daemon: &Daemon,
        conn: &mut Conn,
        name: &str,
        pair: &Pair,
    ) -> Result<()> {
        let span = self.span();
        conn.one_at_a_time(pair, span / 8)?;
        let (cpu, start) = (daemon.cpu_time()?, Instant::now());
        let mut waits = conn.one_at_a_time(pair, span)?;
        let time = start.elapsed().as_secs_f64();
        let cpu = (daemon.cpu_time()? - cpu).as_secs_f64();
        let done = waits.len() as f64;
        waits.sort_unstable();
        let at = |share: f64| waits[((done - 1.0) * share) as usize].as_secs_f64();
        self.record(&format!("{name}.rate"), done / time);
        self.record(&format!("{name}.cpu"), cpu / done);
        self.record(&format!("{name}.p50"), at(0.5));
        self.record(&format!("{name}.p99"), at(0.99));
        Ok(())
    }
}

/// Requests in flight where a scenario pipelines.
const DEPTH: usize = 32;
/// The node that most scenarios read and write.
const NODE: &str = "/bench/state";

/// A connection, and [`NODE`] with its value.
fn prepare(daemon: &Daemon) -> Result<Conn> {
    let mut conn = Conn::open(&daemon.socket)?;
    conn.call(&client::write(NODE, crate::VALUE))?;
    Ok(conn)
}
