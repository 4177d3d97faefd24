//! One run, from its seed to its verdict.

use crate::devices::DeviceType;
use crate::faults::Counts;
use crate::host::Host;
use crate::plan::{Tally, Trace};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Most steps between two checks.
const UNCHECKED_MAX: u64 = 400;

/// A run takes a hundredth of a second; who takes so long never ends.
const HANGS: Duration = Duration::from_secs(60);

/// What happened in runs that held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    runs: u64,
    tally: Tally,
    counts: Counts,
}

/// A kind of run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The store with guests of all sorts.
    Store,
    /// Devices of a type.
    Devices(DeviceType),
}

impl Subject {
    /// The command that repeats the run of a seed.
    fn command(self, seed: u64) -> String {
        let devices = match self {
            Self::Store => String::new(),
            Self::Devices(device_type) => format!(" --devices {}", device_type.name()),
        };
        format!("cargo xtask sim{devices} --seeds 1 --from {seed}")
    }
}

/// A run that did not hold.
#[derive(Debug)]
pub struct Failure {
    /// The kind of run.
    pub subject: Subject,
    /// Its seed.
    pub seed: u64,
    /// What did not hold.
    pub why: String,
    /// What was done last.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Self { subject, seed, why, .. } = self;
        writeln!(f, "seed {seed} fails: {why}")?;
        write!(f, "to repeat it: {}", subject.command(*seed))
    }
}

impl std::error::Error for Failure {}

/// Runs one seed.
///
/// # Errors
/// What did not hold, with what was done last.
pub fn run(seed: u64) -> Result<Summary, Failure> {
    let trace = Trace::default();
    verdict(Subject::Store, seed, &trace, || play(seed, &trace))
}

/// What came of a run, which may panic.
pub(crate) fn verdict<R>(
    subject: Subject,
    seed: u64,
    trace: &Trace,
    body: impl FnOnce() -> Result<R, String>,
) -> Result<R, Failure> {
    let ran = watched(subject, seed, || catch_unwind(AssertUnwindSafe(body)));
    let why = match ran {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("a panic: {}", text.unwrap_or_default())
        }
    };
    Err(Failure { subject, seed, why, trace: trace.take() })
}

/// Ends the process where a run does not end: a round of the daemon's that never returns cannot be left
/// otherwise. The run itself has one thread; this one only waits for it.
fn watched<R>(subject: Subject, seed: u64, body: impl FnOnce() -> R) -> R {
    let (ended, ends) = channel::<()>();
    let dog = std::thread::spawn(move || {
        if ends.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            let seconds = HANGS.as_secs();
            eprintln!("seed {seed} fails: the host is still amid one step after {seconds} s");
            eprintln!("to repeat it: {}", subject.command(seed));
            std::process::exit(1);
        }
    });
    let result = body();
    drop(ended);
    // It has nothing to say that could fail.
    let _ = dog.join();
    result
}

fn play(seed: u64, trace: &Trace) -> Result<Summary, String> {
    let mut host = Host::new(seed, trace.clone())?;
    let mut left = host.plan.steps;
    while left > 0 {
        let steps = left.min(1 + host.rng.below(UNCHECKED_MAX));
        for _ in 0..steps {
            host.step()?;
        }
        left -= steps;
        host.check()?;
    }
    host.end()?;
    Ok(Summary { runs: 1, tally: host.tally, counts: host.hypervisor.fault_counts() })
}

impl Summary {
    /// What was counted, by name.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, u64)> {
        let Self { runs, tally, counts } = self;
        vec![
            ("runs", *runs),
            ("requests answered", tally.answered),
            ("watch events", tally.events),
            ("transactions ended", tally.commits),
            ("transactions refused for a conflict", tally.conflicts),
            ("rings reset", tally.resets),
            ("domains introduced", tally.introduced),
            ("domains released", tally.released),
            ("domains resumed", tally.resumed),
            ("deaths", tally.deaths),
            ("deaths in a request", tally.amid_request),
            ("deaths in a reply", tally.amid_reply),
            ("deaths in a transaction", tally.amid_transaction),
            ("numbers used again", tally.reused),
            ("hostile acts", tally.hostile),
            ("indices shown half written", tally.torn),
            ("guests ended for what they left unread", tally.unread),
            ("guests that came back after that", tally.returns),
            ("events lost", counts.lost),
            ("events late", counts.late),
            ("events that nobody raised", tally.spurious),
            ("calls refused", counts.refused),
            ("pauses", tally.pauses),
        ]
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.tally.add(&other.tally);
        self.counts.lost += other.counts.lost;
        self.counts.late += other.counts.late;
        self.counts.refused += other.counts.refused;
    }
}
