//! Boots, two at a time, each with a second try where it has lost a guest.

use super::boot::{Boot, Selection};
use super::lab::{Lab, StoreDaemon, say};
use super::outcome::{FirstTry, Outcome};
use super::verdict::{self, TryVerdict};
use crate::Result;
use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, PoisonError};

/// A boot that is to run.
pub(super) struct BootJob<'a> {
    /// The boot.
    pub(super) boot: &'static Boot,
    /// The daemon under test.
    pub(super) store: StoreDaemon,
    /// The selection of its steps.
    pub(super) selection: Selection<'a>,
}

impl BootJob<'_> {
    /// Boots; boots once more if the first try has lost a guest and has no other fault.
    fn run(&self, lab: &Lab) -> Result<Outcome> {
        let outcome = self.boot.run(lab, self.store, self.selection)?;
        let TryVerdict::LostGuest(lost) = verdict::judge_try(&outcome) else { return Ok(outcome) };
        say(&format!("{}: {}: {}: a second try", outcome.name(), lost.step, lost.why));
        let kept = outcome.results.with_extension("first");
        if kept.exists() {
            fs::remove_dir_all(&kept)?;
        }
        fs::rename(&outcome.results, &kept)?;
        let mut second = self.boot.run(lab, self.store, self.selection)?;
        second.first = Some(Box::new(FirstTry { lost, results: kept }));
        Ok(second)
    }
}

/// Runs all jobs in their order, at most `at_once` at a time; returns their outcomes in the order
/// in which they end.
pub(super) fn run(lab: &Lab, jobs: Vec<BootJob<'_>>, at_once: usize) -> Result<Vec<Outcome>> {
    let waiting = Mutex::new(VecDeque::from(jobs));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let outcome = job.run(lab);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

/// Returns the number of boots that this machine can run at once: each has two processors, 4 GiB,
/// and QEMU's own memory.
pub(super) fn at_once() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    let fit = kib.unwrap_or(0) / (5 << 20);
    processors.min(fit).clamp(1, 2)
}
