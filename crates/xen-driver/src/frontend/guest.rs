//! The loop of a guest: one store connection and one set of event channels, for devices of all kinds.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;
use xen::evtchn::EventChannels;
use xenbus::bus::DeviceNews;
use xenbus::{Bus, Driver, Error};
use xenstore::{Client, Event};

/// Most events of the store that are taken in a turn.
const EVENTS_MAX: u32 = 64;

/// The frontend of one device: a [`Driver`] with rings.
pub trait Frontend: Driver {
    /// Takes what was answered and asks what there is to ask; how much of either there was.
    ///
    /// # Errors
    /// The backend has broken a ring, or the event channel is gone: the device is to be closed.
    fn work(&mut self) -> Result<usize, Error>;

    /// Lets the backend notify again, before the guest sleeps. True if there is an answer after all.
    ///
    /// # Errors
    /// As [`Frontend::work`].
    fn final_check(&mut self) -> Result<bool, Error>;
}

/// All devices of a kind in a guest, with what its programs do with them.
///
/// The bus of a [`Frontend`] is one. What goes wrong with one device ends that device: errors are those of the store
/// and of the platform.
pub trait GuestDevices {
    /// Takes a watch event; false where it is not about these devices ([`Bus::note`]).
    ///
    /// # Errors
    /// [`Error::Store`].
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error>;

    /// Looks at one device of which an event has told; false where there is none ([`Bus::look_next`]).
    ///
    /// # Errors
    /// [`Error::Store`].
    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error>;

    /// Events of devices since this was last called.
    fn take_news(&mut self) -> Vec<DeviceNews>;

    /// Works for each device; how much there was to do.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn work(&mut self, store: &mut Client) -> Result<usize, Error>;

    /// Lets the backends notify again. True if there is an answer after all.
    ///
    /// # Errors
    /// [`Error::Store`].
    fn final_check(&mut self, store: &mut Client) -> Result<bool, Error>;

    /// Descriptors besides the event channels whose readiness is work.
    fn polled(&self) -> Vec<PollFd<'_>> {
        Vec::new()
    }
}

impl<F: Frontend> GuestDevices for Bus<F> {
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        Bus::note(self, store, event)
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        Bus::look_next(self, store)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        Bus::take_news(self)
    }

    fn work(&mut self, store: &mut Client) -> Result<usize, Error> {
        let mut moved = 0;
        each(self, store, |front| {
            moved += front.work()?;
            Ok(())
        })?;
        Ok(moved)
    }

    fn final_check(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut more = false;
        let failed = each(self, store, |front| {
            more |= front.final_check()?;
            Ok(())
        })?;
        Ok(more || failed)
    }
}

/// Calls `call` for each device, and ends those with which something is wrong; whether there were any.
///
/// # Errors
/// [`Error::Store`].
pub fn each<D: Driver>(
    bus: &mut Bus<D>,
    store: &mut Client,
    mut call: impl FnMut(&mut D) -> Result<(), Error>,
) -> Result<bool, Error> {
    let failed = bus.drivers().filter_map(|(id, front)| call(front).err().map(|error| (id, error)));
    let failed: Vec<_> = failed.collect();
    let some = !failed.is_empty();
    for (id, error) in failed {
        bus.fail(store, id, error)?;
    }
    Ok(some)
}

/// A guest's connection to the store and its event channels.
pub struct Guest {
    store: Client,
    evtchn: Rc<RefCell<dyn EventChannels>>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

/// The outcome of one turn.
#[derive(Debug, Default)]
pub struct GuestTurn {
    /// Events of devices, with the place of their kind among those of the turn.
    pub news: Vec<(usize, DeviceNews)>,
    /// Watch events that are not of the devices.
    pub events: Vec<Event>,
}

impl Guest {
    /// A guest with these. The event channels may be those that the store's client uses ([`xen::evtchn::SharedEventChannels`]).
    #[must_use]
    pub fn new(store: Client, evtchn: Rc<RefCell<dyn EventChannels>>) -> Self {
        Self { store, evtchn }
    }

    /// The store, for what else the guest does with it. [`Guest::turn`] is to be called afterwards, before
    /// the process sleeps in another way.
    pub fn store(&mut self) -> &mut Client {
        &mut self.store
    }

    /// Does what there is to do for devices of these kinds, which are all that the guest has; where there is nothing,
    /// waits for it or for one of `also` to be readable, at most `timeout`.
    ///
    /// # Errors
    /// The store or the platform is gone. What goes wrong with one device ends that device.
    pub fn turn(
        &mut self,
        kinds: &mut [&mut dyn GuestDevices],
        timeout: Duration,
        also: &[BorrowedFd<'_>],
    ) -> Result<GuestTurn, Error> {
        let mut turn = GuestTurn::default();
        self.take_port_events()?;
        let more = self.take_store_events(kinds, &mut turn)?;
        for (at, devices) in kinds.iter_mut().enumerate() {
            turn.news.extend(devices.take_news().into_iter().map(|news| (at, news)));
        }
        let mut moved = 0;
        for devices in &mut *kinds {
            moved += devices.work(&mut self.store)?;
        }
        // Whoever is told something looks at it before anybody sleeps.
        if moved > 0 || more || !turn.news.is_empty() || !turn.events.is_empty() {
            return Ok(turn);
        }
        let mut more = false;
        for devices in &mut *kinds {
            more |= devices.final_check(&mut self.store)?;
        }
        if !more {
            self.sleep(kinds, timeout, also)?;
        }
        Ok(turn)
    }

    /// Takes some of what the store has to tell, and looks at one device of each kind; whether there may be more. A
    /// backend that writes without end does not keep this guest from its other devices.
    fn take_store_events(
        &mut self,
        kinds: &mut [&mut dyn GuestDevices],
        turn: &mut GuestTurn,
    ) -> Result<bool, Error> {
        let mut left = EVENTS_MAX;
        while left > 0
            && let Some(event) = self.store.poll_event()?
        {
            left -= 1;
            let mut noted = false;
            for devices in &mut *kinds {
                noted = noted || devices.note(&mut self.store, &event)?;
            }
            if !noted {
                turn.events.push(event);
            }
        }
        // Events may have come with the answers to what a look asks.
        let mut more = left == 0;
        for devices in kinds {
            more |= devices.look_next(&mut self.store)?;
        }
        Ok(more)
    }

    fn take_port_events(&self) -> Result<(), Error> {
        let mut evtchn = self.evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().map_err(Error::platform("event channels"))? {
            // It may have been closed meanwhile.
            let _ = evtchn.unmask(port);
        }
        Ok(())
    }

    fn sleep(
        &self,
        kinds: &[&mut dyn GuestDevices],
        timeout: Duration,
        also: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let evtchn = self.evtchn.borrow();
        let mut fds = vec![PollFd::new(&self.store, PollFlags::IN)];
        fds.push(PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN));
        fds.extend(also.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        fds.extend(kinds.iter().flat_map(|devices| devices.polled()));
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Driver(format!("waiting for work: {errno}"))),
        }
    }
}
