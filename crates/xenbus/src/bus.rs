//! Finds the devices of a kind by watches, and takes each from state to state.
//!
//! A bus is one end of all devices of a kind in a domain: `/local/domain/0/backend/vbd`, or
//! `/local/domain/3/device/vif`. It watches that node with all below it, and the `state` of each
//! peer. After any event the device is looked at afresh: the contents of the events do not matter,
//! so they may come twice, late or merged.
//!
//! | module | what it is |
//! |---|---|
//! | `end` | where all devices are in the store, and the watches |
//! | `due` | the devices that are to be looked at |
//! | `course` | how far a device has come, and its next step; knows no store |
//! | `slot` | a device with its driver: does the steps |
//! | `nodes` | a device's nodes in the store |
//! | `news` | what has happened to a device |

mod course;
mod due;
mod end;
mod news;
mod nodes;
mod slot;

use crate::driver::{Driver, Progress};
use crate::error::Error;
use crate::path::Id;
use crate::side::Side;
use due::DueDevices;
use end::{BusEnd, WatchSubject};
use nodes::EndNodes;
use slot::{BusContext, DeviceSlot};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use xen::DomId;
use xen_io::xenbus::State;
use xenstore::{Client, Event};

pub use news::{DeviceEvent, DeviceNews};

/// One end of all devices of one kind in one domain.
pub struct Bus<D> {
    end: BusEnd,
    make: Box<dyn FnMut(Id) -> D>,
    /// The only device that this is about, if it is not about all.
    only: Option<Id>,
    /// The number of devices that this is not about.
    skipped: Option<u32>,
    slots: BTreeMap<Id, DeviceSlot<D>>,
    due: DueDevices,
    news: Vec<DeviceNews>,
}

impl<D> fmt::Debug for Bus<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("root", &self.end.root()).finish_non_exhaustive()
    }
}

impl<D: Driver> Bus<D> {
    /// The `side` of all devices of `kind` in `domid`, which is the caller's own domain; `make` makes the
    /// driver of each that is found. Starts to watch; the first events come at once.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn start(
        store: &mut Client,
        side: Side,
        domid: DomId,
        kind: &str,
        make: impl FnMut(Id) -> D + 'static,
    ) -> Result<Self, Error> {
        let end = BusEnd::new(side, domid, kind);
        end.watch(store)?;
        let (slots, due, news) = (BTreeMap::new(), DueDevices::default(), Vec::new());
        let (make, only, skipped) = (Box::new(make), None, None);
        Ok(Self { end, make, only, skipped, slots, due, news })
    }

    /// Restricts the bus to this device; all others are left to other processes.
    #[must_use]
    pub fn only(self, id: Id) -> Self {
        Self { only: Some(id), ..self }
    }

    /// Leaves the devices of this number to other processes, without a look at their nodes.
    #[must_use]
    pub fn without(self, devid: u32) -> Self {
        Self { skipped: Some(devid), ..self }
    }

    /// The kind of its devices.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.end.kind()
    }

    /// The devices that there are.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.slots.keys().copied()
    }

    /// The state of this end of a device.
    #[must_use]
    pub fn state(&self, id: Id) -> Option<State> {
        self.slots.get(&id).map(|slot| slot.course().own_state())
    }

    /// The driver of a device, for its rings.
    pub fn driver(&mut self, id: Id) -> Option<&mut D> {
        self.slots.get_mut(&id).map(DeviceSlot::driver_mut)
    }

    /// The driver of a device, to look at.
    #[must_use]
    pub fn driver_ref(&self, id: Id) -> Option<&D> {
        self.slots.get(&id).map(DeviceSlot::driver)
    }

    /// All drivers, with their devices.
    pub fn drivers(&mut self) -> impl Iterator<Item = (Id, &mut D)> {
        self.slots.iter_mut().map(|(id, slot)| (*id, slot.driver_mut()))
    }

    /// All drivers, with their devices, to look at.
    pub fn drivers_ref(&self) -> impl Iterator<Item = (Id, &D)> {
        self.slots.iter().map(|(id, slot)| (*id, slot.driver()))
    }

    /// True if the driver of the device has said that it waits for something.
    #[must_use]
    pub fn waits(&self, id: Id) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.course().waits())
    }

    /// Takes the news since the last call.
    pub fn take_news(&mut self) -> Vec<DeviceNews> {
        std::mem::take(&mut self.news)
    }

    /// Takes a watch event, and does all that follows from it; false where it is not this bus's.
    ///
    /// # Errors
    /// [`Error::Store`] where the store is gone. What goes wrong with a device goes to its `error` node,
    /// and to [`Bus::take_news`].
    pub fn take(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        let taken = self.note(store, event)?;
        while self.look_next(store)? {}
        Ok(taken)
    }

    /// Takes a watch event for [`Bus::look_next`]; false where it is not this bus's. However often a peer
    /// writes its state meanwhile, its device is looked at once.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        match self.end.subject(event) {
            None => return Ok(false),
            Some(WatchSubject::Device(id)) => self.note_device(id),
            Some(WatchSubject::All) => self.scan(store)?,
        }
        Ok(true)
    }

    /// Has [`Bus::look_next`] look at a device.
    pub fn note_device(&mut self, id: Id) {
        if self.skipped != Some(id.devid) {
            self.due.add(id);
        }
    }

    /// True if there is a device for [`Bus::look_next`].
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Looks at the device whose turn it is; false where there is none.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        match self.due.take() {
            Some(id) => self.look(store, id).map(|()| true),
            None => Ok(false),
        }
    }

    /// Looks at one device again: what its driver waited for may be there.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn look_again(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        self.look(store, id)
    }

    /// Closes a connected device because of an error.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn fail(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        let (slot, mut around) = self.slot(store, id);
        let Some(slot) = slot else { return Ok(()) };
        slot.fail(&mut around, error)?;
        self.look(store, id)
    }

    /// Changes nodes of a device while it is connected, and writes its state once more, which makes
    /// the other end look at them. A backend tells a new size in this way.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn announce(
        &mut self,
        store: &mut Client,
        id: Id,
        nodes: &[(&str, String)],
    ) -> Result<(), Error> {
        self.slots.get(&id).map_or(Ok(()), |slot| slot.rewrite(store, nodes))
    }

    /// Closes a device that this end does not want any more; it stays closed. (A backend is told by
    /// the toolstack, through the store.)
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn leave(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        slot.note_unwanted();
        self.look(store, id)
    }

    /// Opens every device anew after a suspend or a migration of the frontend's domain: the
    /// backends are others and know nothing of the rings. Drivers keep their unanswered requests.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn resume(&mut self, store: &mut Client) -> Result<(), Error> {
        self.end.watch_again(store)?;
        let Self { end, make, slots, news, .. } = self;
        let mut around = BusContext { store, end, make, news };
        for slot in slots.values_mut() {
            slot.resume(&mut around)?;
        }
        self.scan(store)?;
        while self.look_next(store)? {}
        Ok(())
    }

    /// Has looked at all devices that the store lists, and those that are gone.
    fn scan(&mut self, store: &mut Client) -> Result<(), Error> {
        let mut found: Vec<Id> = self.ids().collect();
        found.extend(self.end.listed(store)?);
        found.sort_unstable();
        found.dedup();
        found.into_iter().for_each(|id| self.note_device(id));
        Ok(())
    }

    /// Looks at a device and does what there is to do.
    fn look(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        if self.only.is_some_and(|only| only != id) {
            return Ok(());
        }
        if self.find(store, id)? == Progress::Pending {
            return Ok(());
        }
        match self.slot(store, id) {
            (Some(slot), mut around) => slot.take_due_steps(&mut around),
            (None, _) => Ok(()),
        }
    }

    /// Reads what the toolstack has written; makes the device known, or notices that it is gone. Pending while another
    /// has its place, and the driver of the one before has still to give back what it holds.
    fn find(&mut self, store: &mut Client, id: Id) -> Result<Progress, Error> {
        let Self { end, make, slots, news, .. } = self;
        let nodes = EndNodes::read(store, end.side(), &end.device_path(id))?;
        let mut around = BusContext { store, end, make, news };
        let is_another =
            |slot: &DeviceSlot<D>, nodes: &EndNodes| slot.course().is_another(nodes.state);
        let is_gone = match (slots.get_mut(&id), &nodes) {
            (Some(slot), Some(nodes)) if is_another(slot, nodes) => {
                if slot.release_peer(&mut around) == Progress::Pending {
                    return Ok(Progress::Pending);
                }
                true
            }
            (_, nodes) => nodes.is_none(),
        };
        if is_gone && let Some(slot) = slots.remove(&id) {
            slot.end(&mut around);
        }
        let Some(nodes) = nodes else { return Ok(Progress::Done) };
        match slots.entry(id) {
            Entry::Occupied(known) => known.into_mut().note(&nodes),
            Entry::Vacant(place) => {
                if let Some(mut slot) = DeviceSlot::found(&mut around, id, nodes)
                    && slot.is_served(&mut around)?
                {
                    place.insert(slot).begin(&mut around)?;
                }
            }
        }
        Ok(Progress::Done)
    }

    /// A device, if it is known, and what surrounds it.
    fn slot<'a>(
        &'a mut self,
        store: &'a mut Client,
        id: Id,
    ) -> (Option<&'a mut DeviceSlot<D>>, BusContext<'a, D>) {
        let Self { end, make, slots, news, .. } = self;
        (slots.get_mut(&id), BusContext { store, end, make, news })
    }
}
