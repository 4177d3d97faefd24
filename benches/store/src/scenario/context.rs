//! The means of every scenario, and the measurement that most of them make.

use crate::Result;
use crate::client::{self, Conn, Pair};
use crate::daemon::{Daemon, Guests, MeasuredDaemon, Places};
use rustix::thread::CpuSet;
use std::time::{Duration, Instant};

/// The means of every scenario.
pub(crate) struct Context<'a> {
    /// The folder of the programs.
    pub(crate) places: &'a Places,
    /// The CPU of the daemon and of this process.
    pub(crate) cpu: usize,
    /// The processors that the benchmark may use; the daemons have one of them.
    pub(crate) allowed: CpuSet,
    /// True for small sizes and short times, which only show that everything runs.
    pub(crate) quick: bool,
    /// Most descriptors that a process may have here.
    pub(crate) descriptors: u64,
    /// The function that records numbers.
    pub(crate) record: &'a mut dyn FnMut(&str, f64),
}

impl Context<'_> {
    /// Starts a fresh daemon without guests.
    pub(super) fn start(&self, kind: MeasuredDaemon) -> Result<Daemon> {
        Daemon::start(self.places, kind, self.cpu, Guests::None)
    }

    /// Returns the length of one measurement.
    pub(super) fn span(&self) -> Duration {
        Duration::from_millis(if self.quick { 30 } else { 400 })
    }

    /// Returns `full`, or `small` in a quick run.
    pub(super) fn size(&self, full: usize, small: usize) -> usize {
        if self.quick { small } else { full }
    }

    /// Records a number.
    pub(super) fn record(&mut self, metric: &str, value: f64) {
        (self.record)(metric, value);
    }

    /// Keeps `depth` requests in flight; records `NAME.rate` (op/s) and `NAME.cpu` (s/op).
    pub(super) fn pipelined(
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

    /// Sends one request at a time; records `NAME.p99` (s) and returns it.
    pub(super) fn p99(&mut self, conn: &mut Conn, name: &str, pair: &Pair) -> Result<f64> {
        let span = self.span();
        conn.one_at_a_time(pair, span / 8)?;
        let mut waits = conn.one_at_a_time(pair, span)?;
        waits.sort_unstable();
        let p99 = waits[(waits.len() - 1) * 99 / 100].as_secs_f64();
        self.record(&format!("{name}.p99"), p99);
        Ok(p99)
    }

    /// Sends one request at a time; records `NAME.rate`, `NAME.cpu`, `NAME.p50` and `NAME.p99` (s).
    pub(super) fn one_at_a_time(
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
pub(super) const NODE: &str = "/bench/state";

/// Connects, and writes [`NODE`] with its value.
pub(super) fn prepare(daemon: &Daemon) -> Result<Conn> {
    let mut conn = Conn::open(&daemon.socket)?;
    conn.call(&client::write(NODE, client::VALUE))?;
    Ok(conn)
}
