//! Times of requests, counted in powers of two.

use std::time::Duration;

/// Buckets of a histogram: bucket n counts what took less than 2^n µs, and the last everything else.
pub const BUCKETS: usize = 26;

/// Times of requests, in powers of two of a microsecond.
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
        quantile_us(&self.0, share).unwrap_or(0)
    }
}

/// Returns an upper bound of what `share` (0.0 to 1.0) of all took, in µs, by the counts of their
/// buckets; `None` where there was nothing.
#[must_use]
pub fn quantile_us(counts: &[u64], share: f64) -> Option<u64> {
    let all = counts.iter().fold(0_u64, |all, count| all.saturating_add(*count));
    let wanted = (all as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0_u64;
    let bucket = counts.iter().position(|count| {
        seen = seen.saturating_add(*count);
        seen >= wanted
    })?;
    1_u64.checked_shl(u32::try_from(bucket).ok()?)
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
        assert_eq!(quantile_us(&[0, 3, 1], 0.5), Some(2));
        assert_eq!(quantile_us(&[0, 0], 0.5), None);
        assert_eq!(quantile_us(&[], 0.5), None);
    }
}
