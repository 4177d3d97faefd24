//! The backend's process in domain 0.

use super::kind::{TestedDevice, options};
use super::machine::{self, HostStream, ProcessChannels, ProcessGrantMap};
use crate::host::text;
use crate::hypervisor::Hypervisor;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;
use xen::DomId;
use xen::evtchn::EventChannels;
use xen_driver::Backend as _;
use xen_driver::backend::Platform;
use xenbus::bus::DeviceNews;
use xenbus::{Bus, Error, Id, Side};
use xenstore::Client;

/// The process. Dropping it is its death: its ports close, its pages are unmapped, its connection ends.
pub(super) struct BackendProcess<K: TestedDevice> {
    bus: Bus<K::Back>,
    store: Client,
    evtchn: Rc<RefCell<dyn EventChannels>>,
    channels: u64,
    /// True if its last turn found nothing to do.
    sleeps: bool,
    /// The time at which its last turn began.
    turned_at: Instant,
}

impl<K: TestedDevice> BackendProcess<K> {
    /// Starts the process.
    ///
    /// # Errors
    /// The error of a store that is gone.
    pub(super) fn start(
        hypervisor: &Hypervisor,
        record_dir: &Path,
        media: K::Media,
        now: Instant,
    ) -> Result<Self, String> {
        let channels = hypervisor.event_channels(DomId::DOM0).map_err(text)?;
        let channels = ProcessChannels::new(channels).map_err(text)?;
        let number = channels.number();
        let evtchn: Rc<RefCell<dyn EventChannels>> = Rc::new(RefCell::new(channels));
        let grants = ProcessGrantMap(hypervisor.grant_map(DomId::DOM0).map_err(text)?);
        let platform =
            Platform { evtchn: Rc::clone(&evtchn), grants: Rc::new(RefCell::new(grants)) };
        let backs = K::backs(platform, options(record_dir), media);
        let mut store = Client::over(Box::new(HostStream::connect().map_err(text)?));
        let (side, domid) = (Side::Backend, DomId::DOM0);
        let bus = Bus::start(&mut store, side, domid, K::NAME, move |_| backs()).map_err(text)?;
        Ok(Self { bus, store, evtchn, channels: number, sleeps: false, turned_at: now })
    }

    /// True if it has something to do.
    pub(super) fn is_awake(&self, now: Instant) -> bool {
        !self.sleeps
            || machine::is_awake(self.channels)
            || machine::has_input(&self.store)
            || self.bus.drivers_ref().any(|(id, back)| {
                self.bus.waits(id)
                    || back.is_at_work()
                    || back.limited_until(self.turned_at).is_some_and(|until| until <= now)
            })
    }

    /// True if its last turn found nothing to do.
    pub(super) fn sleeps(&self) -> bool {
        self.sleeps
    }

    /// Returns the time at which it wakes without an event, if there is one.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        self.bus.drivers_ref().filter_map(|(_, back)| back.limited_until(now)).min()
    }

    /// Makes one turn of its loop, as `xen_driver`'s server does.
    ///
    /// # Errors
    /// The error of a store or platform that is gone.
    pub(super) fn turn(&mut self, now: Instant) -> Result<Vec<DeviceNews>, Error> {
        (self.sleeps, self.turned_at) = (false, now);
        loop {
            let mut evtchn = self.evtchn.borrow_mut();
            let Some(port) = evtchn.pending().map_err(Error::platform("event channels"))? else {
                break;
            };
            let _ = evtchn.unmask(port);
        }
        while let Some(event) = self.store.poll_event()? {
            self.bus.note(&mut self.store, &event)?;
        }
        let mut moved = self.bus.look_next(&mut self.store)?;
        let mut failed = Vec::new();
        for (id, back) in self.bus.drivers() {
            match back.work(now, None) {
                Ok(worked) => moved |= worked.moved > 0 || worked.more,
                Err(error) => failed.push((id, error)),
            }
        }
        for (id, error) in failed {
            self.bus.fail(&mut self.store, id, error)?;
            moved = true;
        }
        let waiting: Vec<Id> = self.bus.ids().filter(|id| self.bus.waits(*id)).collect();
        for id in waiting {
            self.bus.look_again(&mut self.store, id)?;
        }
        if !moved {
            self.sleeps = !self.final_check()?;
        }
        Ok(self.bus.take_news())
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        let (mut more, mut failed) = (false, Vec::new());
        for (id, back) in self.bus.drivers() {
            match back.final_check() {
                Ok(found) => more |= found,
                Err(error) => failed.push((id, error)),
            }
        }
        for (id, error) in failed {
            self.bus.fail(&mut self.store, id, error)?;
            more = true;
        }
        Ok(more || self.bus.is_due())
    }
}
