//! The device model on the simulated host: a backend's process in domain 0, guests with frontends, the real store
//! between them, under faults that a seed determines.
//!
//! The promise: after any loss, delay or half written index, and any death at any call, in the end
//! every device is connected again, every request has had one right response, and no page or port
//! that was given out is still held.
//!
//! Processes run as on a real machine. A process with nothing to do sleeps until an event of its
//! ports or of the store wakes it. It waits for each of its calls of the store. It can die at each of
//! its calls.
//!
//! | module | what it is |
//! |---|---|
//! | `machine` | the store that answers, and the calls of processes, at each of which one can die |
//! | `kind` | a device type, as a run needs it |
//! | `adder`, `block` | two of them |
//! | `backend`, `guest` | the processes |
//! | `plan`, `tally` | the plan of a run; the counts of its events |
//! | `host` | the schedule, the faults |
//! | `toolstack` | the toolstack, which makes guests and devices, removes them, and cleans up |
//! | `check` | the checks |

mod adder;
mod backend;
mod block;
mod check;
mod guest;
mod host;
mod kind;
mod machine;
mod plan;
mod tally;
mod toolstack;

use crate::plan::RunTrace;
pub use crate::subject::DeviceType;
use crate::subject::Subject;
use crate::verdict::{FailedRun, verdict};
use adder::Adder;
use block::BlockDevice;
use host::DeviceRun;
use kind::TestedDevice;
use tally::DeviceTally;

/// The counts of runs that held.
#[derive(Clone, Debug, Default)]
pub struct DeviceSummary {
    runs: u64,
    tally: DeviceTally,
}

impl DeviceSummary {
    /// Returns the counts with their names; 0 for an event that did not happen.
    #[must_use]
    pub fn rows(&self) -> Vec<(String, u64)> {
        let runs = ("runs".to_owned(), self.runs);
        [runs].into_iter().chain(self.tally.rows()).collect()
    }

    /// Adds the counts of another summary.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.tally.add(&other.tally);
    }
}

/// Runs one seed.
///
/// # Errors
/// The check that did not hold, with the last steps.
pub fn run(device_type: DeviceType, seed: u64) -> Result<DeviceSummary, FailedRun> {
    let (trace, subject) = (RunTrace::default(), Subject::Devices(device_type));
    let played = match device_type {
        DeviceType::Adder => verdict(subject, seed, &trace, || play::<Adder>(seed, &trace)),
        DeviceType::Block => verdict(subject, seed, &trace, || play::<BlockDevice>(seed, &trace)),
    };
    played.map(|tally| DeviceSummary { runs: 1, tally })
}

fn play<K: TestedDevice>(seed: u64, trace: &RunTrace) -> Result<DeviceTally, String> {
    let mut host = DeviceRun::<K>::new(seed, trace.clone())?;
    let mut left = host.steps();
    while left > 0 {
        let steps = left.min(host.steps_unchecked());
        for _ in 0..steps {
            host.step()?;
        }
        left -= steps;
        host.check()?;
    }
    host.end()
}
