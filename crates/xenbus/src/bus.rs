//! Finds the devices of a kind by watches, and takes each from state to state.
//!
//! A bus is one end of all devices of a kind in a domain: `/local/domain/0/backend/vbd`, or
//! `/local/domain/3/device/vif`. It watches that node with all below it, and the `state` of each peer.
//! Whatever fires, the device is looked at afresh: what the watches said on the way does not matter, so
//! events may come twice, late or be merged.

mod step;

use crate::device::Device;
use crate::driver::Driver;
use crate::error::Error;
use crate::path::{self, Id};
use crate::state::Standing;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use xen::DomId;
use xen_io::xenbus::State;
use xenstore::{Client, Event, Store};
use xenstore_core::wire;

/// One of the two ends of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The end that uses the device.
    Frontend,
    /// The end that is the device.
    Backend,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Frontend => Self::Backend,
            Self::Backend => Self::Frontend,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
        })
    }
}

/// Something that happened to a device, for the log and for whoever waits.
#[derive(Debug)]
pub struct News {
    /// Which device.
    pub id: Id,
    /// What.
    pub what: What,
}

/// What happened to a device.
#[derive(Debug)]
#[non_exhaustive]
pub enum What {
    /// It is in this state now.
    State(State),
    /// Something went wrong with it; its `error` node says so too.
    Error(Error),
    /// It is forgotten.
    Removed,
}

/// A device and how far it has come.
struct Slot<D> {
    own: State,
    /// Whether what is the peer's may be held.
    held: bool,
    standing: Standing,
    /// It is Connected by a process that has ended, and not yet taken over.
    orphan: bool,
    peer: DomId,
    path: String,
    peer_path: String,
    /// The state that the last complaint was about, so that each is made once.
    complained: Option<State>,
    /// The peer's state when it was last told of a change while connected.
    refreshed: bool,
    restarts: u32,
    /// What its driver was last asked for is pending.
    waits: bool,
    driver: D,
}

/// One end of all devices of one kind in one domain.
pub struct Bus<D> {
    side: Side,
    domid: DomId,
    kind: String,
    root: String,
    make: Box<dyn FnMut(Id) -> D>,
    /// The only device that this is about, if it is not about all.
    only: Option<Id>,
    slots: BTreeMap<Id, Slot<D>>,
    /// Devices of which an event has told and that were not looked at since, each once.
    due: VecDeque<Id>,
    news: Vec<News>,
}

impl<D> fmt::Debug for Bus<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("root", &self.root).finish_non_exhaustive()
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
        let root = path::root(side, domid, kind);
        let make = Box::new(make);
        let (slots, due, news) = (BTreeMap::new(), VecDeque::new(), Vec::new());
        let bus = Self { side, domid, kind: kind.into(), root, make, only: None, slots, due, news };
        store.watch(&bus.root, bus.token(None))?;
        Ok(bus)
    }

    /// Leaves all devices but this one to whoever has them.
    #[must_use]
    pub fn only(self, id: Id) -> Self {
        Self { only: Some(id), ..self }
    }

    /// The kind of its devices.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The devices that there are.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.slots.keys().copied()
    }

    /// The state of this end of a device.
    #[must_use]
    pub fn state(&self, id: Id) -> Option<State> {
        self.slots.get(&id).map(|slot| slot.own)
    }

    /// The driver of a device, for its rings.
    pub fn driver(&mut self, id: Id) -> Option<&mut D> {
        self.slots.get_mut(&id).map(|slot| &mut slot.driver)
    }

    /// All drivers, with their devices.
    pub fn drivers(&mut self) -> impl Iterator<Item = (Id, &mut D)> {
        self.slots.iter_mut().map(|(id, slot)| (*id, &mut slot.driver))
    }

    /// All drivers, with their devices, to look at.
    pub fn drivers_ref(&self) -> impl Iterator<Item = (Id, &D)> {
        self.slots.iter().map(|(id, slot)| (*id, &slot.driver))
    }

    /// Whether the driver of a device has said that it waits for something.
    #[must_use]
    pub fn waits(&self, id: Id) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.waits)
    }

    /// What has happened since this was last called.
    pub fn take_news(&mut self) -> Vec<News> {
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
        let Some(id) = self.parse_token(&event.token) else { return Ok(false) };
        match id.or_else(|| path::device_at(self.side, self.domid, &self.root, &event.path)) {
            Some(id) => self.note_device(id),
            None => self.scan(store)?,
        }
        Ok(true)
    }

    /// Has [`Bus::look_next`] look at a device.
    pub fn note_device(&mut self, id: Id) {
        if !self.due.contains(&id) {
            self.due.push_back(id);
        }
    }

    /// Whether there is a device for [`Bus::look_next`].
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Looks at the device whose turn it is; false where there is none.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        match self.due.pop_front() {
            Some(id) => self.look(store, id).map(|()| true),
            None => Ok(false),
        }
    }

    /// Looks at one device again: what its driver waited for may be there.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn poke(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        self.look(store, id)
    }

    /// Something is wrong with a device while it is connected: it closes.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn fail(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        if self.slots.contains_key(&id) {
            self.failed(store, id, error)?;
            self.look(store, id)?;
        }
        Ok(())
    }

    /// Changes nodes of a device while it is connected, and writes its state once more, upon which the
    /// other end looks at them: so a backend tells a new size.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn announce(
        &mut self,
        store: &mut Client,
        id: Id,
        nodes: &[(&str, String)],
    ) -> Result<(), Error> {
        self.rewrite(store, id, nodes)
    }

    /// This end does not want the device any more: it closes, and stays so. (A backend is told by the
    /// toolstack, through the store.)
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn leave(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.standing = Standing::Leaving;
            self.look(store, id)?;
        }
        Ok(())
    }

    /// A frontend's domain goes on after a suspend or a migration: the backends are others, and know
    /// nothing of the rings. Every device is opened anew; drivers keep what was not answered.
    ///
    /// # Errors
    /// As [`Bus::take`].
    pub fn resume(&mut self, store: &mut Client) -> Result<(), Error> {
        store.watch(&self.root, self.token(None)).or_else(already)?;
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            // The store has no watch of this end's after a migration.
            let peer_state = format!("{}/state", slot.peer_path);
            let _ = store.unwatch(peer_state, self.token(Some(id)));
            self.resume_one(store, id)?;
        }
        self.scan(store)?;
        while self.look_next(store)? {}
        Ok(())
    }

    /// Has looked at all devices that the store lists, and those that are gone.
    fn scan(&mut self, store: &mut Client) -> Result<(), Error> {
        let mut found: Vec<Id> = self.slots.keys().copied().collect();
        for name in store.list(&self.root)? {
            let first = format!("{}/{name}", self.root);
            let below = match self.side {
                Side::Frontend => vec![first],
                Side::Backend => {
                    let names = store.list(&first)?;
                    names.into_iter().map(|name| format!("{first}/{name}")).collect()
                }
            };
            let at =
                |path: &String| path::device_at(self.side, self.domid, &self.root, path.as_bytes());
            found.extend(below.iter().filter_map(at));
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().for_each(|id| self.note_device(id));
        Ok(())
    }

    /// `xenbus:backend/vbd`, with `:3/51712` behind it for the watch of one peer.
    fn token(&self, id: Option<Id>) -> String {
        let (side, kind) = (self.side, &self.kind);
        match id {
            None => format!("xenbus:{side}/{kind}"),
            Some(id) => format!("xenbus:{side}/{kind}:{id}"),
        }
    }

    /// Whose token this is; `Some(None)` for the bus itself.
    #[expect(clippy::option_option, reason = "not ours, the bus's, a device's")]
    fn parse_token(&self, token: &[u8]) -> Option<Option<Id>> {
        let rest = token.strip_prefix(self.token(None).as_bytes())?;
        if rest.is_empty() {
            return Some(None);
        }
        let mut numbers = rest.strip_prefix(b":")?.split(|byte| *byte == b'/');
        let frontend = DomId(path::number(numbers.next()?)?);
        Some(Some(Id { frontend, devid: path::number(numbers.next()?)? }))
    }
}

/// A watch that is set is as good as one that was set now.
fn already(error: xenstore::Error) -> Result<(), xenstore::Error> {
    if error.refusal() == Some(wire::Error::Exist) { Ok(()) } else { Err(error) }
}
