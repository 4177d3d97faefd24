//! Checks that devices hold under the first seeds, and that every fault occurred.

use sim::devices::{DeviceSummary, DeviceType, run};

const SEEDS: u64 = 200;

fn seeds_hold(device_type: DeviceType) {
    let mut all = DeviceSummary::default();
    for seed in 0..SEEDS {
        match run(device_type, seed) {
            Ok(summary) => all.add(&summary),
            Err(failure) => panic!("{failure}"),
        }
    }
    let never: Vec<_> = all.rows().into_iter().filter(|(_, count)| *count == 0).collect();
    assert!(never.is_empty(), "did not happen in {SEEDS} runs: {never:?}");
}

#[test]
fn adders_hold() {
    seeds_hold(DeviceType::Adder);
}

#[test]
fn block_devices_hold() {
    seeds_hold(DeviceType::Block);
}

/// A run is a function of its seed.
#[test]
fn a_run_is_a_function_of_its_seed() {
    for device_type in DeviceType::ALL {
        for seed in 0..5 {
            let rows =
                || run(device_type, seed).map(|all| all.rows()).map_err(|failure| failure.why);
            assert_eq!(rows(), rows(), "{device_type:?}, seed {seed}");
        }
    }
}
