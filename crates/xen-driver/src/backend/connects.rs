//! A limit of how often a frontend may connect: each time its pages are mapped anew, and more is done, by device type.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Counts how often the frontend of one device has connected lately.
#[derive(Debug)]
pub struct ConnectLimit {
    /// The most connects, and the time within which they are counted.
    most: (u32, Duration),
    /// The times of those, the first first.
    connects: VecDeque<Instant>,
}

impl ConnectLimit {
    /// Allows so many connects within that time.
    #[must_use]
    pub fn new(most: (u32, Duration)) -> Self {
        Self { most, connects: VecDeque::new() }
    }

    /// True if the frontend may connect now. If not, it is to wait.
    pub fn allows_another(&mut self) -> bool {
        let (now, (most, within)) = (Instant::now(), self.most);
        self.connects.retain(|at| now.saturating_duration_since(*at) < within);
        self.connects.len() < most as usize
    }

    /// Counts a connect.
    pub fn note(&mut self) {
        self.connects.push_back(Instant::now());
    }

    /// Returns the number of connects that count.
    #[must_use]
    pub fn recent(&self) -> usize {
        let (_, within) = self.most;
        self.connects.iter().filter(|at| at.elapsed() < within).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_waits_after_so_many_connects() {
        let mut limit = ConnectLimit::new((2, Duration::from_secs(3600)));
        for count in 0..2 {
            assert_eq!(limit.recent(), count);
            assert!(limit.allows_another());
            limit.note();
        }
        assert!(!limit.allows_another());
        let mut limit = ConnectLimit::new((1, Duration::ZERO));
        limit.note();
        assert_eq!(limit.recent(), 0, "the time is over");
        assert!(limit.allows_another());
    }
}
