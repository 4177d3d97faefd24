//! Counters of a device: its requests, and their latencies.

use rustix::io::Errno;
use std::time::{Duration, Instant};
use xen_driver::backend::histogram::Histogram;

/// The counters of one kind of request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestCounters {
    /// The number of answered requests.
    pub requests: u64,
    /// The number of sectors, of 512 bytes, in these requests.
    pub sectors: u64,
    /// The number of segments that were contiguous with another in memory and were merged.
    pub merges: u64,
    /// The number of requests that the disk failed.
    pub errors: u64,
    /// The time from taking a request off the ring to showing its answer.
    pub latency: Histogram,
}

/// The counters of a device since it was connected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Reads.
    pub read: RequestCounters,
    /// Writes.
    pub write: RequestCounters,
    /// Flushes, and barriers without data.
    pub flush: RequestCounters,
    /// Discards.
    pub discard: RequestCounters,
    /// The number of requests refused before they got to the disk: they make no sense, or their
    /// pages cannot be reached. No other counter includes them.
    pub wrong: u64,
    /// The number of requests taken over from a process that was killed.
    pub replayed: u64,
    /// The number of pages that are mapped persistently at the moment (persistent grants).
    pub persistent: u64,
    /// The last time that a request had to wait for a limit of the device.
    pub(crate) throttled_at: Option<Instant>,
    /// The number of requests that the disk failed since the last report, and the error of the
    /// first.
    pub(crate) failures: Option<(u64, Errno)>,
}

/// The time for which a device counts as throttled after a request has waited for a limit. The
/// statistics are written twice in it.
const THROTTLED_FOR: Duration = Duration::from_secs(10);

impl Stats {
    /// True if a request had to wait for a limit of the device lately.
    pub(crate) fn is_throttled(&self) -> bool {
        self.throttled_at.is_some_and(|at| at.elapsed() < THROTTLED_FOR)
    }

    /// Notes that the disk has failed a request.
    pub(crate) fn fail(&mut self, errno: Errno) {
        let (count, first) = self.failures.unwrap_or((0, errno));
        self.failures = Some((count.saturating_add(1), first));
    }
}
