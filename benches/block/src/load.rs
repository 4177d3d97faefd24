//! The load of a measurement, its duration, and the rate that it reached.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Requests in flight.
pub(crate) const DEPTH: usize = 32;

/// The order of the sectors of successive requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Random,
    Sequential,
}

/// One kind of work: reads of so many pages each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    pub(crate) pages: usize,
    pub(crate) order: Order,
}

impl Load {
    /// Bytes of a request.
    pub(crate) fn bytes(self) -> usize {
        self.pages * 4096
    }
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Seconds of processor time for each request, summed over all processes that take part.
    pub(crate) cpu: f64,
}

/// Measures the rate and the processor time of one measurement.
pub(crate) struct Meter {
    start: Instant,
    time: Duration,
    cpu: Duration,
}

/// Returns the processor time of all threads of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

impl Meter {
    pub(crate) fn start(time: Duration) -> Self {
        Self { start: Instant::now(), time, cpu: cpu_time() }
    }

    pub(crate) fn running(&self) -> bool {
        self.start.elapsed() < self.time
    }

    pub(crate) fn throughput(&self, count: u64) -> Throughput {
        let (cpu, time) = (cpu_time() - self.cpu, self.start.elapsed());
        let count = count as f64;
        Throughput { rate: count / time.as_secs_f64(), cpu: cpu.as_secs_f64() / count }
    }
}

/// The generator of the first sectors of the requests.
pub(crate) struct Sectors {
    seed: u64,
    next: u64,
    requests: u64,
    load: Load,
}

impl Sectors {
    pub(crate) fn new(load: Load, sectors: u64) -> Self {
        Self { seed: 1, next: 0, requests: sectors / (load.pages as u64 * 8), load }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.next += 1;
        let number = match self.load.order {
            Order::Random => self.seed >> 33,
            Order::Sequential => self.next,
        };
        number % self.requests * self.load.pages as u64 * 8
    }
}
