//! A device type, as a run needs it.

use crate::rng::Rng;
use std::path::Path;
use xen_driver::backend::{self, Backend, rings};
use xen_driver::frontend;
use xenbus::toolstack::NewDevice;
use xenbus::{Driver, Error};

/// A device type with something to do.
pub(super) trait Kind: 'static {
    /// Its frontend.
    type Front: Driver;
    /// Its backend.
    type Back: Backend;
    /// The things that the backends of all processes share.
    type Media: Clone + Default + 'static;
    /// A guest's knowledge of the requests of one device.
    type Ledger: Ledger<Front = Self::Front>;

    /// Its name in the store.
    const NAME: &'static str;

    /// Adds the nodes of the `serial`th device that is made.
    fn describe(device: &mut NewDevice, serial: u64) {
        let _ = (device, serial);
    }

    /// Makes the frontend of a device.
    fn front(platform: frontend::Platform) -> Self::Front;

    /// The number of event channels that a frontend which is connected has to its backend.
    fn channels(front: &Self::Front) -> usize;

    /// Makes what makes the backend of each device.
    fn backs(
        platform: backend::Platform,
        options: rings::Options,
        media: Self::Media,
    ) -> Box<dyn Fn() -> Self::Back>;
}

/// The requests of one device, as its user knows them.
pub(super) trait Ledger: Default {
    /// The frontend.
    type Front;

    /// Makes some requests, if it is to have more.
    fn ask(&mut self, front: &mut Self::Front, rng: &mut Rng);

    /// Takes answers and shows requests; how much of either there was. Notes a wrong answer.
    ///
    /// # Errors
    /// As [`frontend::Frontend::work`].
    fn work(&mut self, front: &mut Self::Front) -> Result<usize, Error>;

    /// As [`frontend::Frontend::final_check`].
    ///
    /// # Errors
    /// As [`frontend::Frontend::work`].
    fn final_check(&mut self, front: &mut Self::Front) -> Result<bool, Error>;

    /// The frontend is gone, with its requests.
    fn lose(&mut self);

    /// Requests without an answer.
    fn open(&self) -> usize;

    /// Requests that were answered.
    fn answered(&self) -> u64;

    /// The fault of an answer.
    fn wrong(&self) -> Option<&str>;
}

/// The options of a backend: its record is in this folder, and it takes as many connects as a run has.
pub(super) fn options(record_dir: &Path) -> rings::Options {
    let connects_max = (u32::MAX, std::time::Duration::from_secs(1));
    rings::Options { connects_max, ..rings::Options::recorded_in(record_dir) }
}
