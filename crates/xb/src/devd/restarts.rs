//! The rule for starting a backend again: at once, later where it ends again and again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The delay after the second end in a row; it doubles with each.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(5);
/// The life after which an end is not one of a row.
pub(super) const LASTED: Duration = Duration::from_secs(60);
/// The time in which ends are counted.
const A_MINUTE: Duration = Duration::from_secs(60);
/// The number of ends within a minute that are reported.
pub const ENDS_MAX: usize = 5;

/// The ends of one backend.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// The times of the ends within the last minute, at most [`ENDS_MAX`].
    ends: VecDeque<Instant>,
    /// The number of ends in a row.
    in_a_row: u32,
}

/// The consequence of an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EndVerdict {
    /// The time after which the backend is started again.
    pub(super) delay: Duration,
    /// True if it has ended too often lately.
    pub(super) is_often: bool,
}

impl Restarts {
    /// Notes the end of a backend that has lived so long.
    pub(super) fn ended(&mut self, now: Instant, lived: Duration) -> EndVerdict {
        if lived >= LASTED {
            self.in_a_row = 0;
        }
        let before = self.in_a_row;
        self.in_a_row = before.saturating_add(1);
        self.ends.push_back(now);
        if self.ends.len() > ENDS_MAX {
            self.ends.pop_front();
        }
        let lately = self.ends.iter().filter(|end| now.duration_since(**end) < A_MINUTE);
        let is_often = lately.count() >= ENDS_MAX;
        let delay = match before.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => DELAY_FIRST.saturating_mul(1 << doublings.min(16)).min(DELAY_MAX),
        };
        EndVerdict { delay, is_often }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end_with_a_life_that_lasts() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let mut delay = |lived| restarts.ended(now, lived).delay.as_millis();
        let hasty: Vec<u128> = (0..9).map(|_| delay(Duration::ZERO)).collect();
        assert_eq!(hasty, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(delay(LASTED), 0);
        assert_eq!(delay(Duration::ZERO), 100);
    }

    #[test]
    fn five_ends_in_a_minute_are_often() {
        let (mut restarts, begin) = (Restarts::default(), Instant::now());
        let mut is_often =
            |second| restarts.ended(begin + Duration::from_secs(second), Duration::ZERO).is_often;
        assert!(![0, 10, 20, 30].map(&mut is_often).contains(&true));
        assert!(is_often(59));
        // The first is a minute ago, and then the second, too.
        assert!(is_often(61));
        assert!(!is_often(200));
    }
}
