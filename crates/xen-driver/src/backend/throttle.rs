//! Limits on what a device may do in a second.

use std::time::{Duration, Instant};

/// At most so much; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RateLimits {
    /// Bytes a second, read and written together.
    pub bytes_per_second: Option<u64>,
    /// Requests a second.
    pub requests_per_second: Option<u64>,
}

/// The longest time whose allowance may be used at once after a pause, unless another is said.
const BURST: Duration = Duration::from_millis(100);

/// One limit: what was used beyond is a debt that time pays off.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// The longest time whose allowance may be used at once.
    burst: Duration,
    /// When nothing will be owed any more; in the past where something is saved.
    even: Instant,
}

impl Bucket {
    fn ready(&self, now: Instant) -> Result<(), Instant> {
        if self.even <= now { Ok(()) } else { Err(self.even) }
    }

    fn spend(&mut self, amount: u64, now: Instant) {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let cost = Duration::from_secs_f64(amount as f64 / self.per_second.max(1) as f64);
        self.even = self.even.max(earliest) + cost;
    }
}

/// Keeps to [`RateLimits`].
#[derive(Debug, Default)]
pub struct Throttle {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

impl Throttle {
    /// Keeps to these.
    #[must_use]
    pub fn new(limits: RateLimits, now: Instant) -> Self {
        Self::from(limits, BURST, now)
    }

    /// Keeps to these, but for the allowance of a time `burst`, which may be used at once: at the beginning, and after
    /// a pause.
    #[must_use]
    pub fn with_burst(limits: RateLimits, burst: Duration, now: Instant) -> Self {
        Self::from(limits, burst, now.checked_sub(burst).unwrap_or(now))
    }

    fn from(limits: RateLimits, burst: Duration, even: Instant) -> Self {
        let bucket = |per_second: Option<u64>| {
            per_second.map(|per_second| Bucket { per_second, burst, even })
        };
        let RateLimits { bytes_per_second, requests_per_second } = limits;
        Self { bytes: bucket(bytes_per_second), requests: bucket(requests_per_second) }
    }

    /// True if there is any limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.requests.is_some()
    }

    /// Checks if a request may be taken now.
    ///
    /// # Errors
    /// The time at which it may.
    pub fn ready(&self, now: Instant) -> Result<(), Instant> {
        let buckets = [&self.bytes, &self.requests];
        let waits = buckets.into_iter().flatten().filter_map(|bucket| bucket.ready(now).err());
        waits.max().map_or(Ok(()), Err)
    }

    /// Counts a request that was taken.
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes, now);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.spend(1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of 4096 bytes that pass in ten seconds.
    fn passed(limits: RateLimits) -> u64 {
        let start = Instant::now();
        let (mut throttle, mut now, mut count) = (Throttle::new(limits, start), start, 0);
        while now < start + Duration::from_secs(10) {
            match throttle.ready(now) {
                Ok(()) => {
                    throttle.spend(4096, now);
                    count += 1;
                }
                Err(later) => now = later,
            }
        }
        count
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_limit_holds() {
        let limits = RateLimits { bytes_per_second: Some(1 << 20), ..RateLimits::default() };
        let (start, burst) = (Instant::now(), Duration::from_secs(8));
        let start = start + burst;
        let mut throttle = Throttle::with_burst(limits, burst, start);
        let (mut now, mut bytes) = (start, 0_u64);
        while now < start + Duration::from_secs(10) {
            match throttle.ready(now) {
                Ok(()) => {
                    throttle.spend(2048, now);
                    bytes += 2048;
                    assert!(bytes > 8 << 20 || now == start, "the burst waits for nothing");
                }
                Err(later) => now = later,
            }
        }
        assert!(bytes.abs_diff(18 << 20) < 1 << 16, "{bytes}");
    }

    #[test]
    fn limits_hold_over_time() {
        let requests = RateLimits { requests_per_second: Some(100), ..RateLimits::default() };
        assert!((995..=1011).contains(&passed(requests)), "{}", passed(requests));
        let bytes = RateLimits { bytes_per_second: Some(1 << 20), ..RateLimits::default() };
        assert!((2550..=2590).contains(&passed(bytes)), "{}", passed(bytes));
        let both = RateLimits { requests_per_second: Some(10), ..bytes };
        assert!((98..=103).contains(&passed(both)), "{}", passed(both));
        assert!(!Throttle::new(RateLimits::default(), Instant::now()).is_limited());
    }
}
