//! The rate at which the output of a guest is taken, which all of its consoles share.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_driver::backend::throttle::{RateLimits, Throttle};

/// The rate at which a guest's output is taken, in bytes a second: three times that of C's daemon.
pub const OUTPUT_RATE: u64 = 1 << 20;
/// The time whose bytes a guest may have taken at once after it was quiet: 8 MiB.
pub const OUTPUT_BURST: Duration = Duration::from_secs(8);
/// The moves of output a second that are taken from a guest; what comes meanwhile is in the next.
pub const MOVES_RATE: u64 = 2000;

/// The rates of all guests.
#[derive(Default, Debug)]
pub struct GuestRates(RefCell<BTreeMap<DomId, Rc<RefCell<SharedRate>>>>);

impl GuestRates {
    /// Returns the part of one more console in the rate of a guest.
    #[must_use]
    pub fn of(&self, domid: DomId) -> GuestRate {
        let mut rates = self.0.borrow_mut();
        let shared = Rc::clone(rates.entry(domid).or_insert_with(SharedRate::start));
        let number = {
            let mut shared = shared.borrow_mut();
            shared.count = shared.count.saturating_add(1);
            shared.count
        };
        GuestRate { shared, number }
    }

    /// Forgets the rate of a guest that is gone. Until then it stays, so that a guest that closes its
    /// consoles and opens them again gains nothing.
    pub fn forget(&self, domid: DomId) {
        self.0.borrow_mut().remove(&domid);
    }
}

/// The rate of one guest.
#[derive(Debug)]
struct SharedRate {
    throttle: Throttle,
    /// The consoles that wait for their turn, the first first.
    waiting: VecDeque<u64>,
    /// The number of consoles that there were.
    count: u64,
}

impl SharedRate {
    fn start() -> Rc<RefCell<Self>> {
        let limits = RateLimits {
            bytes_per_second: Some(OUTPUT_RATE),
            requests_per_second: Some(MOVES_RATE),
        };
        let throttle = Throttle::with_burst(limits, OUTPUT_BURST, Instant::now());
        Rc::new(RefCell::new(Self { throttle, waiting: VecDeque::new(), count: 0 }))
    }
}

/// The part of one console in the rate of its guest. The consoles of a guest that all have output take
/// turns: a flood on one of them does not silence the others.
///
/// A console that is asked to work either takes output, or waits for its turn, or leaves the line: one
/// that is in line and does neither would hold up the others.
#[derive(Debug)]
pub struct GuestRate {
    shared: Rc<RefCell<SharedRate>>,
    number: u64,
}

impl GuestRate {
    /// True if the console, which has output, may take a chunk of it now. If not, it waits in line.
    #[must_use]
    pub fn admits(&self, now: Instant) -> bool {
        let SharedRate { throttle, waiting, .. } = &mut *self.shared.borrow_mut();
        let is_next = waiting.front().is_none_or(|first| *first == self.number);
        if is_next && throttle.ready(now).is_ok() {
            waiting.pop_front();
            return true;
        }
        if !waiting.contains(&self.number) {
            waiting.push_back(self.number);
        }
        false
    }

    /// Counts a chunk of so many bytes that was taken.
    pub fn spend(&self, bytes: usize, now: Instant) {
        self.shared.borrow_mut().throttle.spend(bytes as u64, now);
    }

    /// Leaves the line: the console has no output, or cannot take it.
    pub fn leave(&self) {
        self.shared.borrow_mut().waiting.retain(|number| *number != self.number);
    }

    /// Returns the time before which no console of the guest may take anything, if there is one.
    #[must_use]
    pub fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.shared.borrow().throttle.ready(now).err()
    }
}

impl Drop for GuestRate {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(7);

    /// The bytes that consoles take from `start` on in ten seconds, each as fast as it may.
    fn taken(consoles: &[GuestRate], start: Instant) -> Vec<u64> {
        let (mut now, mut taken) = (start, vec![0_u64; consoles.len()]);
        while now.duration_since(start) < Duration::from_secs(10) {
            for (console, taken) in consoles.iter().zip(&mut taken) {
                if console.admits(now) {
                    console.spend(2048, now);
                    *taken = taken.saturating_add(2048);
                }
            }
            now = consoles[0].limited_until(now).unwrap_or(now);
        }
        taken
    }

    #[test]
    fn the_consoles_of_a_guest_share_what_one_has() {
        let (alone, rates) = (GuestRates::default(), GuestRates::default());
        let start = Instant::now() + OUTPUT_BURST;
        let one: u64 = taken(&[alone.of(GUEST)], start).iter().sum();
        let three = taken(&[rates.of(GUEST), rates.of(GUEST), rates.of(GUEST)], start);
        assert!(three.iter().sum::<u64>().abs_diff(one) < 1 << 16, "{three:?} of {one}");
        let (least, most) = (three.iter().min().unwrap(), three.iter().max().unwrap());
        assert!(most - least < 1 << 16, "{three:?}");
        // Another guest has its own.
        assert!(rates.of(DomId(8)).admits(start + Duration::from_secs(10)));
    }

    #[test]
    fn closing_and_opening_again_gains_nothing() {
        let rates = GuestRates::default();
        let now = Instant::now() + OUTPUT_BURST;
        for _ in 0..2 {
            let console = rates.of(GUEST);
            while console.admits(now) {
                console.spend(1 << 20, now);
            }
        }
        assert!(rates.of(GUEST).limited_until(now).is_some());
        rates.forget(GUEST);
        assert!(rates.of(GUEST).admits(now));
    }

    #[test]
    fn who_leaves_the_line_holds_up_nobody() {
        let rates = GuestRates::default();
        let mut now = Instant::now();
        let (one, two, three) = (rates.of(GUEST), rates.of(GUEST), rates.of(GUEST));
        while one.admits(now) {
            one.spend(1 << 20, now);
        }
        assert!(!two.admits(now) && !three.admits(now));
        now = one.limited_until(now).unwrap();
        // The order is one, two, three.
        assert!(!three.admits(now));
        one.leave();
        assert!(!three.admits(now));
        drop(two);
        assert!(three.admits(now));
        three.spend(1, now);
        assert!(!one.admits(now));
    }
}
