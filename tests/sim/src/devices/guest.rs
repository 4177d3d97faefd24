//! A guest: its process, with its devices.

use super::kind::{RequestRecord, TestedDevice};
use super::machine::{self, ProcessChannels, ProcessGrantOffer};
use crate::host::text;
use crate::hypervisor::{Hypervisor, NewDomain};
use crate::rng::Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use xen::evtchn::EventChannels;
use xen::{DomId, Port};
use xen_driver::GuestDevices;
use xen_driver::frontend;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Bus, Error, Side, State};
use xenstore::{Client, Event};

/// A domain that was built and not started.
pub(super) struct BuiltDomain {
    domid: DomId,
    evtchn: ProcessChannels,
    channels: u64,
    store: Client,
    offers: ProcessGrantOffer,
    /// Its port to the store.
    pub(super) port: Port,
}

impl BuiltDomain {
    pub(super) fn new(hypervisor: &Hypervisor, built: NewDomain) -> Result<Self, String> {
        let NewDomain { domid, ring, .. } = built;
        let channels = hypervisor.event_channels(domid).map_err(text)?;
        let mut channels = ProcessChannels::new(channels).map_err(text)?;
        let (number, port) = (channels.number(), channels.alloc_for_store(domid).map_err(text)?);
        let store = Client::over_ring(ring, port, Box::new(channels.clone()));
        let offers = ProcessGrantOffer(hypervisor.grant_offer(domid).map_err(text)?);
        Ok(Self { domid, evtchn: channels, channels: number, store, offers, port })
    }
}

/// The devices of a guest and its requests to them.
struct UsedDevices<K: TestedDevice> {
    bus: Bus<K::Front>,
    ledgers: BTreeMap<u32, K::Ledger>,
    /// True if the last turn ended without anything to do.
    sleeps: bool,
}

impl<K: TestedDevice> UsedDevices<K> {
    /// Calls `call` for each device and its requests, and ends the devices at fault. True if there
    /// were any.
    fn each(
        &mut self,
        store: &mut Client,
        mut call: impl FnMut(&mut K::Ledger, &mut K::Front) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut failed = Vec::new();
        for (id, front) in self.bus.drivers() {
            if let Err(error) = call(self.ledgers.entry(id.devid).or_default(), front) {
                failed.push((id, error));
            }
        }
        let some = !failed.is_empty();
        for (id, error) in failed {
            self.bus.fail(store, id, error)?;
        }
        Ok(some)
    }
}

impl<K: TestedDevice> GuestDevices for UsedDevices<K> {
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        self.bus.note(store, event)
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        self.bus.look_next(store)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        self.bus.take_news()
    }

    fn work(&mut self, store: &mut Client) -> Result<usize, Error> {
        let mut moved = 0;
        self.each(store, |ledger, front| {
            moved += ledger.work(front)?;
            Ok(())
        })?;
        Ok(moved)
    }

    fn final_check(&mut self, store: &mut Client) -> Result<bool, Error> {
        let mut more = false;
        more |= self.each(store, |ledger, front| {
            more |= ledger.final_check(front)?;
            Ok(())
        })?;
        self.sleeps = !more;
        Ok(more)
    }
}

/// The process of a guest. Dropping it is its death.
pub(super) struct GuestProcess<K: TestedDevice> {
    used: UsedDevices<K>,
    guest: xen_driver::Guest,
    channels: u64,
}

impl<K: TestedDevice> GuestProcess<K> {
    /// Starts the process.
    ///
    /// # Errors
    /// The error of a store that is gone.
    pub(super) fn start(start: BuiltDomain) -> Result<Self, Error> {
        let BuiltDomain { domid, evtchn, channels, mut store, offers, .. } = start;
        let evtchn: Rc<RefCell<dyn EventChannels>> = Rc::new(RefCell::new(evtchn));
        let grants = Rc::new(RefCell::new(offers));
        let platform = frontend::Platform { evtchn: Rc::clone(&evtchn), grants };
        let make = move |_| K::front(platform.clone());
        let bus = Bus::start(&mut store, Side::Frontend, domid, K::NAME, make)?;
        let used = UsedDevices { bus, ledgers: BTreeMap::new(), sleeps: false };
        let guest = xen_driver::Guest::new(store, evtchn);
        Ok(Self { used, guest, channels })
    }

    /// True if it has something to do.
    pub(super) fn is_awake(&self) -> bool {
        !self.used.sleeps || machine::is_awake(self.channels)
    }

    /// Makes requests.
    pub(super) fn ask(&mut self, rng: &mut Rng) {
        for (id, front) in self.used.bus.drivers() {
            self.used.ledgers.entry(id.devid).or_default().ask(front, rng);
        }
        self.used.sleeps = false;
    }

    /// Makes one turn of its loop.
    ///
    /// # Errors
    /// The error of a store or platform that is gone.
    pub(super) fn turn(&mut self) -> Result<Vec<DeviceNews>, Error> {
        self.used.sleeps = false;
        let turn = self.guest.turn(&mut [&mut self.used], Duration::ZERO, &[])?;
        let news: Vec<DeviceNews> = turn.news.into_iter().map(|(_, news)| news).collect();
        for DeviceNews { id, event } in &news {
            if matches!(event, DeviceEvent::State(State::Closed) | DeviceEvent::Removed)
                && let Some(ledger) = self.used.ledgers.get_mut(&id.devid)
            {
                ledger.lose();
            }
        }
        Ok(news)
    }

    /// Returns the state of a device.
    pub(super) fn state(&self, devid: u32) -> Option<State> {
        let id = self.used.bus.ids().find(|id| id.devid == devid)?;
        self.used.bus.state(id)
    }

    /// Returns the number of its event channels to backends.
    pub(super) fn channels(&self) -> usize {
        self.used.bus.drivers_ref().map(|(_, front)| K::channels(front)).sum()
    }

    /// Returns its requests to its devices.
    pub(super) fn ledgers(&self) -> impl Iterator<Item = (u32, &K::Ledger)> {
        self.used.ledgers.iter().map(|(devid, ledger)| (*devid, ledger))
    }
}
