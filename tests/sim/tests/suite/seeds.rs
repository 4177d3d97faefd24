//! Checks that the first seeds hold, and that every fault occurred.

use sim::run::{RunSummary, run};

const SEEDS: u64 = 200;

#[test]
fn seeds_hold() {
    let mut all = RunSummary::default();
    for seed in 0..SEEDS {
        match run(seed) {
            Ok(summary) => all.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    let never: Vec<_> = all.rows().into_iter().filter(|(_, count)| *count == 0).collect();
    assert!(never.is_empty(), "did not happen in {SEEDS} runs: {never:?}");
}

/// A seed gives equal results in two runs.
#[test]
fn a_run_is_a_function_of_its_seed() {
    for seed in 0..5 {
        let rows = |seed| run(seed).map(|summary| summary.rows()).map_err(|failure| failure.why);
        assert_eq!(rows(seed), rows(seed));
    }
}
