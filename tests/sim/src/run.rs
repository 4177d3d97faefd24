//! One run, from its seed to its verdict.

use crate::faults::FaultCounts;
use crate::host::StoreRun;
use crate::plan::{EventTally, RunTrace};
use crate::subject::Subject;
pub use crate::verdict::FailedRun;
use crate::verdict::verdict;

/// The largest number of steps between two checks.
const UNCHECKED_MAX: u64 = 400;

/// The counts of runs that held.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunSummary {
    runs: u64,
    tally: EventTally,
    counts: FaultCounts,
}

/// Runs one seed.
///
/// # Errors
/// The check that did not hold, with the last steps.
pub fn run(seed: u64) -> Result<RunSummary, FailedRun> {
    let trace = RunTrace::default();
    verdict(Subject::Store, seed, &trace, || play(seed, &trace))
}

fn play(seed: u64, trace: &RunTrace) -> Result<RunSummary, String> {
    let mut host = StoreRun::new(seed, trace.clone())?;
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
    Ok(RunSummary { runs: 1, tally: host.tally, counts: host.hypervisor.fault_counts() })
}

impl RunSummary {
    /// Returns the counts with their names.
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

    /// Adds the counts of another summary.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.tally.add(&other.tally);
        self.counts.lost += other.counts.lost;
        self.counts.late += other.counts.late;
        self.counts.refused += other.counts.refused;
    }
}
