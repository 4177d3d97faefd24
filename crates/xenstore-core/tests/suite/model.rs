//! Random operations by several domains, transactions and crashes included, compared with a plain
//! map.
//!
//! `MODEL_SEEDS=8000` runs that many seeds, `MODEL_SEEDS=17..18` the one that failed.

use crate::common::model::{SeededChoices, run};

/// Returns the seeds to run.
fn seeds() -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("MODEL_SEEDS") else { return 0..400 };
    let number =
        |text: &str| text.parse().expect("MODEL_SEEDS is a number, or two with .. between");
    match wanted.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&wanted),
    }
}

#[test]
fn the_store_behaves_as_a_naive_map() {
    for seed in seeds() {
        if let Err(panic) = std::panic::catch_unwind(|| run(SeededChoices::new(seed, 1500))) {
            eprintln!("seed {seed} fails; MODEL_SEEDS={seed}..{} repeats it", seed + 1);
            std::panic::resume_unwind(panic);
        }
    }
}
