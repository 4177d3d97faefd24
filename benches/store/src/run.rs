//! The rounds: every scenario with every daemon, in alternation, with progress and an estimate.

use crate::Result;
use crate::daemon::{Guests, MeasuredDaemon, Places};
use crate::report::Results;
use crate::scenario::{Context, SCENARIOS, Scenario};
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::time::Instant;

/// The plan of a run.
pub(crate) struct RunPlan<'a> {
    /// The places of the programs.
    pub(crate) places: &'a Places,
    /// The CPU of all processes.
    pub(crate) cpu: usize,
    /// The processors that the benchmark may use; the daemons have one of them.
    pub(crate) allowed: CpuSet,
    /// The descriptor limit.
    pub(crate) descriptors: u64,
    /// The number of times that each daemon runs each scenario.
    pub(crate) rounds: usize,
    /// True for small sizes.
    pub(crate) quick: bool,
    /// Names of the scenarios.
    pub(crate) scenarios: Vec<&'static str>,
    /// The daemons.
    pub(crate) kinds: Vec<MeasuredDaemon>,
}

/// Measured and guessed durations, for the estimate.
#[derive(Default)]
struct Durations(BTreeMap<(&'static str, MeasuredDaemon), (f64, usize)>);

impl Durations {
    fn add(&mut self, scenario: &'static str, kind: MeasuredDaemon, seconds: f64) {
        let entry = self.0.entry((scenario, kind)).or_default();
        *entry = (entry.0 + seconds, entry.1 + 1);
    }

    fn expected(&self, scenario: &Scenario, kind: MeasuredDaemon) -> f64 {
        let known = self.0.get(&(scenario.name, kind));
        known.map_or(scenario.seconds, |(sum, count)| sum / *count as f64)
    }
}

/// Runs the plan. A daemon that fails in a scenario is noted and not tried in it again. `keep` gets
/// the results after each measurement, so that an interrupted run leaves its figures.
pub(crate) fn run(plan: &RunPlan<'_>, keep: impl Fn(&Results) -> Result<()>) -> Result<Results> {
    let mut results = Results::default();
    let mut left: Vec<(usize, &Scenario, MeasuredDaemon)> = Vec::new();
    for scenario in SCENARIOS.iter().filter(|one| plan.scenarios.contains(&one.name)) {
        let guests = if scenario.guests { Guests::Any } else { Guests::None };
        let mut kinds: Vec<_> =
            scenario.kinds.iter().copied().filter(|kind| plan.kinds.contains(kind)).collect();
        kinds.retain(|kind| match plan.places.missing(*kind, guests) {
            Some(why) => {
                eprintln!("{:14} {:5} {why}", scenario.name, kind.short());
                results.trouble(*kind, scenario.name, why);
                false
            }
            None => true,
        });
        for round in 1..=plan.rounds {
            left.extend(kinds.iter().map(|kind| (round, scenario, *kind)));
            // The next round has the reverse order, so that no daemon always follows the same one.
            kinds.reverse();
        }
    }
    let start = Instant::now();
    let mut durations = Durations::default();
    left.reverse();
    while let Some((round, scenario, kind)) = left.pop() {
        let began = Instant::now();
        let mut record =
            |metric: &str, value| results.add(kind, format!("{}.{metric}", scenario.name), value);
        let mut context = Context {
            places: plan.places,
            cpu: plan.cpu,
            allowed: plan.allowed,
            quick: plan.quick,
            descriptors: plan.descriptors,
            record: &mut record,
        };
        let outcome = (scenario.run)(&mut context, kind);
        durations.add(scenario.name, kind, began.elapsed().as_secs_f64());
        let trouble = outcome.err().map(|error| error.to_string());
        if let Some(why) = &trouble {
            left.retain(|(_, other, whose)| other.name != scenario.name || *whose != kind);
            results.trouble(kind, scenario.name, why.clone());
        }
        keep(&results)?;
        let remaining: f64 =
            left.iter().map(|(_, scenario, kind)| durations.expected(scenario, *kind)).sum();
        eprintln!(
            "{:14} {:5} round {round}/{} took {:5.1} s; elapsed {}, some {} to go{}",
            scenario.name,
            kind.short(),
            plan.rounds,
            began.elapsed().as_secs_f64(),
            clock(start.elapsed().as_secs_f64()),
            clock(remaining),
            trouble.map(|why| format!("; FAILED: {why}")).unwrap_or_default(),
        );
    }
    Ok(results)
}

/// Formats minutes and seconds.
fn clock(seconds: f64) -> String {
    format!("{}:{:02}", seconds as u64 / 60, seconds as u64 % 60)
}
