//! The frontend of a guest's further consoles and channels.
//!
//! A guest's program has a [`Bus`](xenbus::Bus) of these, of the kind [`KIND`], and reads and writes
//! each as it likes. The console with the number 0 is the first one, and not on the bus.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use xen::gnttab::PageAccess;
use xen_driver::Channel;
use xen_driver::frontend::{Frontend, Platform};
use xen_io::console::{ConsoleFrontRing, RingError};
use xenbus::{Device, Driver, Error, Progress};

/// The kind of consoles on the bus.
pub const KIND: &str = "console";

/// The frontend of one further console or channel.
pub struct BusConsole {
    platform: Platform,
    /// The ring and its channel, once the backend was offered them.
    offered: Option<(ConsoleFrontRing, Channel)>,
}

impl fmt::Debug for BusConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusConsole").field("offered", &self.offered).finish_non_exhaustive()
    }
}

impl BusConsole {
    /// A console that has no ring yet.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self { platform, offered: None }
    }

    /// Writes output; returns how many bytes the ring has taken. Without a ring it takes none. If it is
    /// less than all, there is room again after an event. A backend that is not there yet gets what the
    /// ring holds.
    ///
    /// # Errors
    /// The backend has broken the ring.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.move_bytes(|ring| ring.write(bytes))
    }

    /// Reads input; returns how many bytes.
    ///
    /// # Errors
    /// The backend has broken the ring.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, Error> {
        self.move_bytes(|ring| ring.read(into))
    }

    fn move_bytes(
        &self,
        move_them: impl FnOnce(&ConsoleFrontRing) -> Result<usize, RingError>,
    ) -> Result<usize, Error> {
        let Some((ring, channel)) = &self.offered else { return Ok(0) };
        let moved = move_them(ring);
        let moved = moved.map_err(|error| Error::Driver(format!("the console's ring: {error}")))?;
        if moved > 0 {
            // A backend that is away looks when it is there again.
            let _ = channel.notify();
        }
        Ok(moved)
    }
}

impl Driver for BusConsole {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let Platform { evtchn, grants } = &self.platform;
        let page = grants.borrow_mut().offer(device.peer(), PageAccess::ReadWrite);
        let page = page.map_err(Error::platform("granting the console's page"))?;
        let channel = Channel::offer(evtchn, device.peer())?;
        device.put("ring-ref", page.grant());
        device.put("port", channel.port());
        self.offered = Some((ConsoleFrontRing::new(page.into_page()), channel));
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        self.offered = None;
        Progress::Done
    }
}

impl Frontend for BusConsole {
    fn work(&mut self) -> Result<usize, Error> {
        // The guest's program moves bytes.
        Ok(0)
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        Ok(false)
    }
}
