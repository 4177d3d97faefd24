//! The adder: the device type of `xen-driver`'s tests, unchanged.

use super::kind::{RequestRecord, TestedDevice};
use crate::rng::Rng;
use std::collections::BTreeMap;
use xen_driver::backend::{self, Rings, rings};
use xen_driver::frontend::{self, Frontend};
use xenbus::Error;

#[path = "../../../../crates/xen-driver/tests/adder/back.rs"]
mod back;
#[path = "../../../../crates/xen-driver/tests/adder/front.rs"]
mod front;
#[path = "../../../../crates/xen-driver/tests/adder/wire.rs"]
mod wire;

/// The adder.
pub(super) struct Adder;

impl TestedDevice for Adder {
    type Front = front::AdderFrontend;
    type Back = back::AdderBackend;
    type Media = ();
    type Ledger = Sums;

    const NAME: &'static str = wire::KIND;

    fn front(platform: frontend::Platform) -> Self::Front {
        front::AdderFrontend::new(platform)
    }

    fn backs(
        platform: backend::Platform,
        options: rings::RingOptions,
        (): (),
    ) -> Box<dyn Fn() -> Self::Back> {
        Box::new(move || back::AdderBackend::new(Rings::new(platform.clone(), options.clone())))
    }

    fn channels(_: &Self::Front) -> usize {
        1
    }
}

/// The sums that are requested of one device, by the number that each begins with.
#[derive(Default)]
pub(super) struct Sums {
    open: BTreeMap<u32, u32>,
    next: u32,
    answered: u64,
    wrong: Option<String>,
}

impl RequestRecord for Sums {
    type Front = front::AdderFrontend;

    fn ask(&mut self, front: &mut Self::Front, rng: &mut Rng) {
        while self.open.len() < 40 && rng.chance(700) {
            let numbers = (self.next, rng.number() as u32);
            self.next += 1;
            self.open.insert(numbers.0, numbers.1);
            front.wanted.push_back(numbers);
        }
    }

    fn work(&mut self, front: &mut Self::Front) -> Result<usize, Error> {
        let worked = front.work();
        for ((a, b), sum) in front.sums.drain(..) {
            self.answered += 1;
            if self.open.remove(&a) != Some(b) || sum != u64::from(a) + u64::from(b) {
                self.wrong = Some(format!("{a} + {b} = {sum}, or that was answered before"));
            }
        }
        worked
    }

    fn final_check(&mut self, front: &mut Self::Front) -> Result<bool, Error> {
        front.final_check()
    }

    fn lose(&mut self) {
        self.open.clear();
    }

    fn open(&self) -> usize {
        self.open.len()
    }

    fn answered(&self) -> u64 {
        self.answered
    }

    fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }
}
