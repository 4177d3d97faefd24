//! The devices of a server, as it finds and ends them: by the buses of kinds, or in another way.

use super::{Backend, DescriptorId};
use std::os::fd::BorrowedFd;
use std::time::Instant;
use xen::DomId;
use xenbus::bus::DeviceNews;
use xenbus::{Bus, Driver, Error, Id, Side};
use xenstore::{Client, Event};

/// All devices that a [`BackendServer`](super::BackendServer) serves. [`Buses`] are one such set; a device type
/// without the states of the bus has its own.
pub trait DeviceSet {
    /// The backend of each device.
    type Backend: Backend;
    /// The name of a device in the set.
    type Key: Copy + PartialEq;

    /// Takes a watch event for [`DeviceSet::look_next`]; false where it is not about a device of the set.
    ///
    /// # Errors
    /// The store is gone.
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error>;

    /// True if there is a device for [`DeviceSet::look_next`].
    fn is_due(&self) -> bool;

    /// Looks at the nodes of some devices whose turn it is, one of each kind; false where there are none.
    ///
    /// # Errors
    /// The store is gone.
    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error>;

    /// Has [`DeviceSet::look_next`] look at a device.
    fn note_device(&mut self, key: Self::Key);

    /// The devices that wait for something that no event tells of.
    fn waiting(&self) -> impl Iterator<Item = Self::Key>;

    /// All backends.
    fn backends(&mut self) -> impl Iterator<Item = (Self::Key, &mut Self::Backend)>;

    /// All backends, to look at.
    fn backends_ref(&self) -> impl Iterator<Item = (Self::Key, &Self::Backend)>;

    /// Ends a device because of an error.
    ///
    /// # Errors
    /// The store is gone.
    fn fail(&mut self, store: &mut Client, key: Self::Key, error: Error) -> Result<(), Error>;

    /// Takes what has happened to devices since the last call.
    fn take_news(&mut self) -> Vec<DeviceNews>;

    /// Descriptors that the set reads and writes until they block: of its devices, or its own. When one can be read or
    /// written again, [`DeviceSet::ready`] is called with its name.
    fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        std::iter::empty()
    }

    /// Takes the news that a descriptor can be read or written again, or was closed by its other end.
    fn ready(&mut self, stream: DescriptorId) {
        let _ = stream;
    }

    /// Does what is due besides the devices' own work, a little of it.
    ///
    /// # Errors
    /// The store is gone.
    fn tend(&mut self, store: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        let _ = (store, now);
        Ok(TendOutcome::default())
    }
}

/// The outcome of [`DeviceSet::tend`].
#[derive(Clone, Copy, Default, Debug)]
pub struct TendOutcome {
    /// There are streams that were not there before.
    pub streams_changed: bool,
    /// There is more to do at once.
    pub more: bool,
    /// When there is more to do, if nothing happens before.
    pub again_at: Option<Instant>,
    /// The store was asked something: events may have come with the answers.
    pub asked_store: bool,
}

/// The devices of several kinds that are served alike (`vbd` and `qdisk`), each found by a bus.
#[derive(Debug)]
pub struct Buses<B> {
    buses: Vec<Bus<B>>,
}

impl<B: Driver + Backend> Buses<B> {
    /// All devices below `/local/domain/<domid>/backend/<kind>`, for each of `kinds`; `make` makes the backend of each.
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(
        store: &mut Client,
        domid: DomId,
        kinds: &[&str],
        make: impl Fn(Id) -> B + Clone + 'static,
    ) -> Result<Self, Error> {
        let start = |kind: &&str| Bus::start(store, Side::Backend, domid, kind, make.clone());
        Ok(Self { buses: kinds.iter().map(start).collect::<Result<_, _>>()? })
    }

    /// The devices of a kind and their drivers, if this kind is served.
    pub fn bus(&mut self, kind: &str) -> Option<&mut Bus<B>> {
        self.buses.iter_mut().find(|bus| bus.kind() == kind)
    }

    /// Looks whether devices have changed ([`Backend::changes`]), and tells the frontends. Returns true if the store
    /// was asked something.
    ///
    /// # Errors
    /// The store is gone.
    pub fn announce_changes(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut asked = false;
        for bus in &mut self.buses {
            let changes = bus.drivers().map(|(id, back)| (id, back.changes()));
            let changes: Vec<_> = changes.filter(|(_, nodes)| !nodes.is_empty()).collect();
            for (id, nodes) in changes {
                asked = true;
                unless_gone(bus.announce(store, id, &nodes))?;
            }
        }
        Ok(asked)
    }
}

impl<B: Driver + Backend> DeviceSet for Buses<B> {
    type Backend = B;
    /// The number of the bus, and the device on it.
    type Key = (usize, Id);

    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        for bus in &mut self.buses {
            if bus.note(store, event)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_due(&self) -> bool {
        self.buses.iter().any(Bus::is_due)
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut looked = false;
        for bus in &mut self.buses {
            looked |= bus.look_next(store)?;
        }
        Ok(looked)
    }

    fn note_device(&mut self, (at, id): Self::Key) {
        if let Some(bus) = self.buses.get_mut(at) {
            bus.note_device(id);
        }
    }

    fn waiting(&self) -> impl Iterator<Item = Self::Key> {
        let numbered = self.buses.iter().enumerate();
        numbered.flat_map(|(at, bus)| bus.ids().filter(|id| bus.waits(*id)).map(move |id| (at, id)))
    }

    fn backends(&mut self) -> impl Iterator<Item = (Self::Key, &mut B)> {
        let numbered = self.buses.iter_mut().enumerate();
        numbered.flat_map(|(at, bus)| bus.drivers().map(move |(id, back)| ((at, id), back)))
    }

    fn backends_ref(&self) -> impl Iterator<Item = (Self::Key, &B)> {
        let numbered = self.buses.iter().enumerate();
        numbered.flat_map(|(at, bus)| bus.drivers_ref().map(move |(id, back)| ((at, id), back)))
    }

    fn fail(&mut self, store: &mut Client, key: Self::Key, error: Error) -> Result<(), Error> {
        let (at, id) = key;
        self.buses.get_mut(at).map_or(Ok(()), |bus| bus.fail(store, id, error))
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        self.buses.iter_mut().flat_map(Bus::take_news).collect()
    }
}

/// An error of one device's nodes ends nothing; that the store is gone ends all.
fn unless_gone(told: Result<(), Error>) -> Result<(), Error> {
    told.or_else(|error| if error.is_store_gone() { Err(error) } else { Ok(()) })
}
