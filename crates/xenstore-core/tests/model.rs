//! Random operations by several domains, transactions and crashes included, against a naive map.

mod common;

use common::model::{Seeded, run};

#[test]
fn the_store_behaves_as_a_naive_map() {
    for seed in 0..400 {
        if let Err(panic) = std::panic::catch_unwind(|| run(Seeded::new(seed, 1500))) {
            eprintln!("seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}
