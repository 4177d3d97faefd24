//! What a device has done: counters, and how long requests took.

use rustix::io::Errno;
use std::time::Duration;

/// Buckets of a histogram: bucket n counts what took less than 2^n µs, and the last everything else.
pub const BUCKETS: usize = 26;

/// How long requests took, in powers of two of a microsecond.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Histogram([u64; BUCKETS]);

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.0[bucket.min(BUCKETS - 1)] += 1;
    }

    /// The counts.
    #[must_use]
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.0
    }

    /// An upper bound of what `share` (0.0 to 1.0) of all took, in µs; 0 where there was nothing.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> u64 {
        let all: u64 = self.0.iter().sum();
        let wanted = (all as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

/// What one kind of request came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kind {
    /// Requests answered.
    pub requests: u64,
    /// Sectors of 512 bytes in them.
    pub sectors: u64,
    /// Segments that lay behind one another in memory and became one.
    pub merges: u64,
    /// Requests that the disk has failed.
    pub errors: u64,
    /// From taking a request off the ring to showing its answer.
    pub latency: Histogram,
}

/// What a device has done since it was connected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Reads.
    pub read: Kind,
    /// Writes.
    pub write: Kind,
    /// Flushes, and barriers without data.
    pub flush: Kind,
    /// Discards.
    pub discard: Kind,
    /// Requests refused before the disk was asked: they make no sense, or their pages cannot be reached.
    /// They are counted nowhere else.
    pub wrong: u64,
    /// Requests taken over from a process that was killed.
    pub replayed: u64,
    /// Pages that are mapped for good at the moment (persistent grants).
    pub persistent: u64,
    /// Requests that the disk has failed and nobody was told of yet, and the error of the first.
    pub(crate) failures: Option<(u64, Errno)>,
}

impl Stats {
    /// Notes that the disk has failed a request.
    pub(crate) fn fail(&mut self, errno: Errno) {
        let (count, first) = self.failures.unwrap_or((0, errno));
        self.failures = Some((count.saturating_add(1), first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_into_powers_of_two() {
        let mut histogram = Histogram::default();
        for us in [0, 1, 2, 3, 4, 1000, u64::MAX] {
            histogram.add(Duration::from_micros(us));
        }
        assert_eq!(histogram.buckets()[..4], [1, 1, 2, 1]);
        assert_eq!(histogram.buckets()[10], 1);
        assert_eq!(histogram.buckets()[BUCKETS - 1], 1);
        assert_eq!(histogram.quantile_us(0.5), 4);
        assert_eq!(Histogram::default().quantile_us(0.99), 0);
    }
}
