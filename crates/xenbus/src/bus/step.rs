//! One device's way from state to state.

use super::{Bus, Device, Driver, Error, Id, News, Side, Slot, State, What, already};
use crate::driver::Progress;
use crate::path;
use crate::state::{Action, Peer, Standing, react};
use xen::DomId;
use xen_io::xenbus::number;
use xenstore::{Client, Store};

/// Most steps that one look at a device takes: from any state to any other there are fewer.
const STEPS_MAX: u32 = 8;
/// Most bytes of an error in the store; of a backend's, that a frontend repeats.
const ERROR_MAX: usize = 512;
/// No errno(3) number is this or more (`MAX_ERRNO`, `linux/err.h`).
const ERRNO_MAX: i32 = 4096;
/// How often a peer may begin anew without being connected in between.
const RESTARTS_MAX: u32 = 8;

/// Where a device stands in the store.
struct Nodes {
    peer: DomId,
    peer_path: String,
    state: State,
    online: bool,
}

impl<D: Driver> Bus<D> {
    /// Looks at a device and does what there is to do.
    pub(super) fn look(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        if self.only.is_some_and(|only| only != id) || !self.find(store, id)? {
            return Ok(());
        }
        for _ in 0..STEPS_MAX {
            let Some(slot) = self.slots.get(&id) else { return Ok(()) };
            let (own, standing, orphan) = (slot.own, slot.standing, slot.orphan);
            let peer = peer_state(store, &slot.peer_path)?;
            // While its driver waits for something the peer may have left: nothing is to be taken over then.
            let is_left = slot.waits && !peer.has_rings();
            if orphan && standing == Standing::Wanted && !is_left {
                if self.adopt(store, id)? == Progress::Pending {
                    return Ok(());
                }
                continue;
            }
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.waits = false;
                slot.orphan = slot.orphan && !is_left;
            }
            let action = match react(self.side, own, peer, standing) {
                Ok(action) => action,
                Err(illegal) => return self.complain(store, id, illegal.peer, illegal.into()),
            };
            if self.perform(store, id, action)? == Progress::Pending {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads what the toolstack has written; makes the device known, or notices that it is gone. Whether
    /// there is something to look at.
    fn find(&mut self, store: &mut Client, id: Id) -> Result<bool, Error> {
        let path = match self.side {
            Side::Frontend => path::frontend(&self.kind, id),
            Side::Backend => path::backend(self.domid, &self.kind, id),
        };
        let Some(nodes) = self.nodes(store, &path)? else {
            self.lose(store, id);
            return Ok(false);
        };
        // This end did not write that: the device was taken away and made again before it could look.
        let anew = |slot: &Slot<D>| slot.own != State::Initialising;
        if nodes.state == State::Initialising && self.slots.get(&id).is_some_and(anew) {
            self.lose(store, id);
        }
        match self.slots.get_mut(&id) {
            Some(slot) => {
                let asked = self.side == Side::Backend
                    && nodes.state == State::Closing
                    && slot.own != State::Closing
                    && slot.own != State::Closed;
                if !nodes.online || asked {
                    slot.standing = Standing::Leaving;
                }
                if self.side == Side::Backend
                    && nodes.state == State::Reconfiguring
                    && matches!(slot.own, State::Connected | State::Reconfigured)
                {
                    slot.own = State::Reconfiguring;
                }
            }
            None => self.discover(store, id, path, nodes)?,
        }
        Ok(true)
    }

    fn nodes(&self, store: &mut Client, path: &str) -> Result<Option<Nodes>, Error> {
        let (peer_name, id_name) = match self.side {
            Side::Frontend => ("backend", "backend-id"),
            Side::Backend => ("frontend", "frontend-id"),
        };
        let peer_path = store.try_read(format!("{path}/{peer_name}"))?;
        let peer = store.try_read(format!("{path}/{id_name}"))?;
        let (Some(peer_path), Some(peer)) = (peer_path, peer) else { return Ok(None) };
        let (Ok(peer_path), Some(peer)) = (String::from_utf8(peer_path), number(&peer)) else {
            return Ok(None);
        };
        let state = store.try_read(format!("{path}/state"))?.unwrap_or_default();
        let online = match self.side {
            Side::Frontend => true,
            Side::Backend => is_online(store, path)?,
        };
        let (peer, state) = (DomId(peer), State::parse(&state));
        Ok(Some(Nodes { peer, peer_path, state, online }))
    }

    fn discover(
        &mut self,
        store: &mut Client,
        id: Id,
        path: String,
        nodes: Nodes,
    ) -> Result<(), Error> {
        let Nodes { peer, peer_path, state, online } = nodes;
        if state == State::Closed && !online {
            return Ok(());
        }
        let standing =
            if online && state != State::Closing { Standing::Wanted } else { Standing::Leaving };
        let orphan = self.side == Side::Backend && state == State::Connected;
        let own = match (self.side, state) {
            // Said by a process that has ended, and not acted upon: said again.
            (Side::Backend, State::InitWait | State::Initialised) | (_, State::Unknown) => {
                State::Initialising
            }
            (_, state) => state,
        };
        let slot = Slot {
            own,
            // By a process that has ended and may have left something for its successor to take away.
            held: self.side == Side::Backend && own != State::Initialising && own != State::Closed,
            standing,
            orphan,
            peer,
            path,
            peer_path,
            complained: None,
            refreshed: false,
            restarts: 0,
            waits: false,
            driver: (self.make)(id),
        };
        let watched = format!("{}/state", slot.peer_path);
        self.slots.insert(id, slot);
        store.watch(watched, self.token(Some(id))).or_else(already)?;
        if self.side == Side::Frontend && !matches!(own, State::Initialising | State::Closed) {
            // Rings of a driver that has ended: the backend gives them up when this end closes.
            self.switch(store, id, State::Closing, &[])?;
        }
        Ok(())
    }

    /// The peer is another after a resume; everything begins anew.
    pub(super) fn resume_one(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        let _ = slot.with(store, self.side, self.domid, id, Driver::release);
        let path = slot.path.clone();
        let Some(nodes) = self.nodes(store, &path)? else { return Ok(()) };
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        slot.held = false;
        slot.peer = nodes.peer;
        slot.peer_path = nodes.peer_path;
        let watched = format!("{}/state", slot.peer_path);
        store.watch(watched, self.token(Some(id))).or_else(already)?;
        self.switch(store, id, State::Initialising, &[])
    }

    /// Takes over a device that is Connected.
    fn adopt(&mut self, store: &mut Client, id: Id) -> Result<Progress, Error> {
        let (side, domid) = (self.side, self.domid);
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Progress::Pending) };
        slot.held = true;
        let (result, _) = slot.with(store, side, domid, id, Driver::reattach);
        match result {
            Ok(Progress::Pending) => {
                slot.waits = true;
                return Ok(Progress::Pending);
            }
            Ok(Progress::Done) => {
                slot.orphan = false;
                slot.waits = false;
                self.tell(id, What::State(State::Connected));
            }
            Err(error) => {
                slot.orphan = false;
                self.failed(store, id, error)?;
            }
        }
        Ok(Progress::Done)
    }

    /// Does one step; pending where nothing more is to be done now.
    fn perform(&mut self, store: &mut Client, id: Id, action: Action) -> Result<Progress, Error> {
        let side = self.side;
        if !matches!(action, Action::Stay | Action::Refresh | Action::Close)
            && let Some(slot) = self.slots.get_mut(&id)
        {
            slot.refreshed = false;
            slot.complained = None;
        }
        let opened = match side {
            Side::Frontend => State::Initialised,
            Side::Backend => State::InitWait,
        };
        if side == Side::Frontend && matches!(action, Action::Close | Action::Release) {
            self.tell_why(store, id)?;
        }
        match action {
            Action::Stay if side == Side::Backend => {
                self.notice(store, id);
                Ok(Progress::Pending)
            }
            // What is to be forgotten is, once its nodes are gone; till then it stays closed.
            Action::Stay | Action::Remove => Ok(Progress::Pending),
            Action::Open => self.run(store, id, opened, Driver::open),
            Action::Connect => self.run(store, id, State::Connected, Driver::connect),
            Action::Refresh => self.refresh(store, id).map(|()| Progress::Pending),
            Action::Reconfigure(next) => {
                self.run(store, id, next, |driver, device| driver.reconfigure(device, next))
            }
            Action::Close => self.close(store, id),
            Action::Release => self.release(store, id, Some(State::Closed)),
            Action::Restart => self.restart(store, id, opened),
        }
    }

    fn notice(&mut self, store: &mut Client, id: Id) {
        let (side, domid) = (self.side, self.domid);
        if let Some(slot) = self.slots.get_mut(&id)
            && slot.own == State::Connected
        {
            let _ = slot.with(store, side, domid, id, Driver::noticed);
        }
    }

    /// A backend that gives a device up says why in its `error` node: the frontend's says so too. Of one that
    /// was asked to close (`online` is 0) nothing is to be told.
    fn tell_why(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        let Some(slot) = self.slots.get(&id) else { return Ok(()) };
        if slot.standing == Standing::Leaving {
            return Ok(());
        }
        let path = slot.peer_path.clone();
        let mut theirs =
            |name: &str| match store.try_read(format!("{path}/{name}")).map_err(Error::from) {
                Err(gone) if gone.is_store_gone() => Err(gone),
                value => Ok(value.ok().flatten()),
            };
        if theirs("online")?.is_some_and(|value| number(&value) == Some(0_u32)) {
            return Ok(());
        }
        let Some(why) = theirs("error")? else { return Ok(()) };
        // Not more of it than an error has.
        let why = String::from_utf8_lossy(&why[..why.len().min(ERROR_MAX)]);
        let (errno, text) = match why.split_once(' ') {
            Some((errno, text)) => (number(errno.as_bytes()), text),
            None => (None, &*why),
        };
        let errno = errno.filter(|errno| (1..ERRNO_MAX).contains(errno));
        let errno = errno.unwrap_or(xen::Error::Inval.errno());
        let text = text.escape_debug().to_string();
        self.complain(store, id, State::Closing, Error::Theirs { errno, text })
    }

    /// Has the driver do a step, and goes to `next` where that is done.
    fn run(
        &mut self,
        store: &mut Client,
        id: Id,
        next: State,
        step: impl FnOnce(&mut D, &mut Device<'_>) -> Result<Progress, Error>,
    ) -> Result<Progress, Error> {
        let (side, domid) = (self.side, self.domid);
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Progress::Pending) };
        slot.held = true;
        let (result, puts) = slot.with(store, side, domid, id, step);
        match result {
            Ok(Progress::Pending) => {
                slot.waits = true;
                Ok(Progress::Pending)
            }
            Ok(Progress::Done) => {
                if next == State::Connected {
                    slot.restarts = 0;
                    slot.refreshed = true;
                }
                self.switch(store, id, next, &puts)?;
                Ok(Progress::Done)
            }
            Err(error) => {
                self.failed(store, id, error)?;
                Ok(Progress::Done)
            }
        }
    }

    /// The peer may have changed something: once for each time that its state was written.
    fn refresh(&mut self, store: &mut Client, id: Id) -> Result<(), Error> {
        let (side, domid) = (self.side, self.domid);
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        // What this end has read when it connected is not news.
        if std::mem::take(&mut slot.refreshed) {
            return Ok(());
        }
        let (result, puts) = slot.with(store, side, domid, id, Driver::refresh);
        match result {
            Ok(()) if puts.is_empty() => Ok(()),
            Ok(()) => write(store, &slot.path, &puts, None),
            Err(error) => self.failed(store, id, error),
        }
    }

    /// Stops, unless the device is wanted and its driver says that it is in use.
    fn close(&mut self, store: &mut Client, id: Id) -> Result<Progress, Error> {
        let (side, domid) = (self.side, self.domid);
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Progress::Pending) };
        if side == Side::Frontend
            && slot.own == State::Connected
            && slot.standing == Standing::Wanted
        {
            let (progress, _) = slot.with(store, side, domid, id, Driver::closing);
            if progress == Progress::Pending {
                slot.waits = true;
                let why =
                    "it is in use; it closes when it is not, and at once when it is taken by force";
                self.complain(store, id, State::Closing, Error::Busy(why.into()))?;
                return Ok(Progress::Pending);
            }
        }
        self.switch(store, id, State::Closing, &[])?;
        Ok(Progress::Done)
    }

    fn release(
        &mut self,
        store: &mut Client,
        id: Id,
        next: Option<State>,
    ) -> Result<Progress, Error> {
        let (side, domid) = (self.side, self.domid);
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Progress::Pending) };
        if slot.held {
            let (progress, _) = slot.with(store, side, domid, id, Driver::release);
            if progress == Progress::Pending {
                slot.waits = true;
                return Ok(Progress::Pending);
            }
            slot.held = false;
        }
        slot.orphan = false;
        if let Some(next) = next {
            if side == Side::Frontend {
                // What comes after Closed may be another device: nothing of this one reaches it.
                slot.driver = (self.make)(id);
            }
            self.switch(store, id, next, &[])?;
        }
        Ok(Progress::Done)
    }

    fn restart(&mut self, store: &mut Client, id: Id, opened: State) -> Result<Progress, Error> {
        if self.release(store, id, None)? == Progress::Pending {
            return Ok(Progress::Pending);
        }
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Progress::Pending) };
        slot.restarts += 1;
        let restarts = slot.restarts;
        if restarts > RESTARTS_MAX {
            self.failed(store, id, Error::Flaps { restarts: RESTARTS_MAX })?;
            return Ok(Progress::Done);
        }
        match self.side {
            Side::Backend => self.run(store, id, opened, Driver::open),
            Side::Frontend => {
                self.switch(store, id, State::Initialising, &[]).map(|()| Progress::Done)
            }
        }
    }

    /// Puts the driver's nodes and the state into the store, all at once.
    fn switch(
        &mut self,
        store: &mut Client,
        id: Id,
        next: State,
        puts: &[(String, Vec<u8>)],
    ) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        slot.own = next;
        let path = slot.path.clone();
        write(store, &path, puts, Some(next))?;
        self.tell(id, What::State(next));
        Ok(())
    }

    pub(super) fn rewrite(
        &mut self,
        store: &mut Client,
        id: Id,
        nodes: &[(&str, String)],
    ) -> Result<(), Error> {
        let Some(slot) = self.slots.get(&id) else { return Ok(()) };
        let puts =
            nodes.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes()));
        write(store, &slot.path, &puts.collect::<Vec<_>>(), Some(slot.own))
    }

    /// This end cannot go on with the device: it says why, and closes.
    pub(super) fn failed(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        if error.is_store_gone() {
            return Err(error);
        }
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.standing = Standing::Leaving;
        }
        self.report(store, id, error)
    }

    /// Says what is wrong with the peer's state, once for each state.
    fn complain(
        &mut self,
        store: &mut Client,
        id: Id,
        peer: State,
        error: Error,
    ) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(()) };
        if slot.complained.replace(peer) == Some(peer) {
            return Ok(());
        }
        self.report(store, id, error)
    }

    /// Writes an error where the toolstack, the other end and Linux's tools look for it.
    fn report(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        let Some(slot) = self.slots.get(&id) else { return Ok(()) };
        let mut text = format!("{} {error}", error.errno());
        // Some of it may be a server's own words.
        text.truncate(text.floor_char_boundary(ERROR_MAX));
        let (path, second) = (&slot.path, path::error(self.domid, &slot.path));
        // Each by itself: a guest's quota may be used up for one; the news say it all the same.
        for node in [format!("{path}/error"), second] {
            let written = store.transaction(|tx| {
                // A device that was taken away meanwhile does not come back as an error.
                if tx.exists(path)? { tx.write(&node, &text) } else { Ok(()) }
            });
            match written.map_err(Error::from) {
                Err(gone) if gone.is_store_gone() => return Err(gone),
                _ => {}
            }
        }
        self.tell(id, What::Error(error));
        Ok(())
    }

    /// The device is gone, and with it the driver and what it has in flight.
    fn lose(&mut self, store: &mut Client, id: Id) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        // Nobody is left to be told.
        let _ = slot.with(store, self.side, self.domid, id, Driver::release);
        // The watch is gone already where the daemon has forgotten this domain.
        let _ = store.unwatch(format!("{}/state", slot.peer_path), self.token(Some(id)));
        self.tell(id, What::Removed);
    }

    fn tell(&mut self, id: Id, what: What) {
        self.news.push(News { id, what });
    }
}

impl<D> Slot<D> {
    /// Calls the driver; returns what it said, and what it put.
    fn with<T>(
        &mut self,
        store: &mut Client,
        side: Side,
        domid: DomId,
        id: Id,
        call: impl FnOnce(&mut D, &mut Device<'_>) -> T,
    ) -> (T, Vec<(String, Vec<u8>)>) {
        let Self { path, peer_path, peer, driver, .. } = self;
        let (peer, puts) = (*peer, Vec::new());
        let mut device = Device { store, side, id, domid, path, peer, peer_path, puts };
        let result = call(driver, &mut device);
        (result, device.puts)
    }
}

/// False where the toolstack wants a backend's device no more: its `online` is 0. A toolstack that writes no such node wants it.
fn is_online(store: &mut Client, path: &str) -> Result<bool, Error> {
    let online = store.try_read(format!("{path}/online"))?;
    Ok(online.is_none_or(|value| number(&value) != Some(0_u32)))
}

fn peer_state(store: &mut Client, peer_path: &str) -> Result<Peer, Error> {
    let value = match store.try_read(format!("{peer_path}/state")) {
        // The domain's nodes belong to another one by now.
        Err(error) if error.refusal().is_some() => None,
        value => value?,
    };
    Ok(value.map_or(Peer::Gone, |value| Peer::Is(State::parse(&value))))
}

/// Writes nodes below a device, in a transaction where there are several. A device that is gone stays
/// gone.
fn write(
    store: &mut Client,
    path: &str,
    puts: &[(String, Vec<u8>)],
    state: Option<State>,
) -> Result<(), Error> {
    store.transaction(|tx| {
        if !tx.exists(path)? {
            return Ok(());
        }
        for (name, value) in puts {
            tx.write(format!("{path}/{name}"), value)?;
        }
        match state {
            Some(state) => tx.write(format!("{path}/state"), [state.digit()]),
            None => Ok(()),
        }
    })?;
    Ok(())
}
