//! A device type, as a run needs it.

use crate::rng::Rng;
use std::path::Path;
use xen_driver::backend::{self, Backend, rings};
use xen_driver::frontend;
use xenbus::toolstack::NewDevice;
use xenbus::{Driver, Error};

/// A device type and the requests to its devices.
pub(super) trait TestedDevice: 'static {
    /// Its frontend.
    type Front: Driver;
    /// Its backend.
    type Back: Driver + Backend;
    /// The data that the backends of all processes share.
    type Media: Clone + Default + 'static;
    /// The requests of a guest to one device.
    type Ledger: RequestRecord<Front = Self::Front>;

    /// Its name in the store.
    const NAME: &'static str;

    /// Adds the nodes of the `serial`th device that is made.
    fn describe(device: &mut NewDevice, serial: u64) {
        let _ = (device, serial);
    }

    /// Makes the frontend of a device.
    fn front(platform: frontend::Platform) -> Self::Front;

    /// Returns the number of event channels that a connected frontend has to its backend.
    fn channels(front: &Self::Front) -> usize;

    /// Makes the maker of the backends of all devices.
    fn backs(
        platform: backend::Platform,
        options: rings::RingOptions,
        media: Self::Media,
    ) -> Box<dyn Fn() -> Self::Back>;
}

/// The requests of one device, as its user knows them.
pub(super) trait RequestRecord: Default {
    /// The frontend.
    type Front;

    /// Makes some requests, if there are to be more.
    fn ask(&mut self, front: &mut Self::Front, rng: &mut Rng);

    /// Takes responses and publishes requests. Returns the number of both. Notes a wrong response.
    ///
    /// # Errors
    /// As [`frontend::Frontend::work`].
    fn work(&mut self, front: &mut Self::Front) -> Result<usize, Error>;

    /// As [`frontend::Frontend::final_check`].
    ///
    /// # Errors
    /// As [`frontend::Frontend::work`].
    fn final_check(&mut self, front: &mut Self::Front) -> Result<bool, Error>;

    /// Handles the loss of the frontend with its requests.
    fn lose(&mut self);

    /// Returns the number of requests without a response.
    fn open(&self) -> usize;

    /// Returns the number of requests that were answered.
    fn answered(&self) -> u64;

    /// Returns the fault of a wrong response.
    fn wrong(&self) -> Option<&str>;
}

/// Returns the options of a backend: its record is in this folder, and its limit of connects covers
/// a run.
pub(super) fn options(record_dir: &Path) -> rings::RingOptions {
    let connects_max = (u32::MAX, std::time::Duration::from_secs(1));
    rings::RingOptions { connects_max, ..rings::RingOptions::recorded_in(record_dir) }
}
