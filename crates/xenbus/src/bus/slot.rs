//! One device with its driver: does the steps of its course, in the store and with the driver.

use super::course::{Course, CourseStep, RESTARTS_MAX};
use super::end::BusEnd;
use super::news::{DeviceEvent, DeviceNews};
use super::nodes::{EndNodes, peer_error, peer_state, write, write_error};
use crate::device::Device;
use crate::driver::{Driver, Progress};
use crate::error::Error;
use crate::path::Id;
use crate::side::Side;
use crate::state::EndAction;
use xen::DomId;
use xen_io::xenbus::State;
use xenstore::Client;

/// Most steps that one look at a device takes: from any state to any other there are fewer.
const STEPS_MAX: u32 = 8;

/// Nodes that a driver puts, below its device.
type PutNodes = Vec<(String, Vec<u8>)>;

/// The surroundings of a device: what its steps need, and all devices of its bus share.
pub(super) struct BusContext<'a, D> {
    pub(super) store: &'a mut Client,
    pub(super) end: &'a BusEnd,
    /// Makes the driver of a device.
    pub(super) make: &'a mut dyn FnMut(Id) -> D,
    pub(super) news: &'a mut Vec<DeviceNews>,
}

impl<D> BusContext<'_, D> {
    fn add_news(&mut self, id: Id, event: DeviceEvent) {
        self.news.push(DeviceNews { id, event });
    }
}

/// A device, its course and its driver.
pub(super) struct DeviceSlot<D> {
    id: Id,
    course: Course,
    peer: DomId,
    path: String,
    peer_path: String,
    driver: D,
}

impl<D: Driver> DeviceSlot<D> {
    /// A device that was found; `None` where its course is over.
    pub(super) fn found(around: &mut BusContext<'_, D>, id: Id, nodes: EndNodes) -> Option<Self> {
        let EndNodes { peer, peer_path, state, online } = nodes;
        let course = Course::found(around.end.side(), state, online)?;
        let path = around.end.device_path(id);
        Some(Self { id, course, peer, path, peer_path, driver: (around.make)(id) })
    }

    pub(super) fn course(&self) -> &Course {
        &self.course
    }

    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    pub(super) fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Notes the nodes that the toolstack has written.
    pub(super) fn note(&mut self, nodes: &EndNodes) {
        self.course.note(nodes.state, nodes.online);
    }

    /// This end does not want the device any more.
    pub(super) fn note_unwanted(&mut self) {
        self.course.note_unwanted();
    }

    /// True if the device is for its driver.
    pub(super) fn is_served(&mut self, around: &mut BusContext<'_, D>) -> Result<bool, Error> {
        match self.call(around, Driver::serves).0 {
            Err(gone) if gone.is_store_gone() => Err(gone),
            served => Ok(served.unwrap_or(false)),
        }
    }

    /// Watches the peer, and closes what a driver that has ended has left.
    pub(super) fn begin(&mut self, around: &mut BusContext<'_, D>) -> Result<(), Error> {
        around.end.watch_peer(around.store, self.id, &self.peer_path)?;
        if self.course.has_lost_rings() {
            self.switch(around, State::Closing, &[])?;
        }
        Ok(())
    }

    /// Does the steps that are due.
    pub(super) fn take_due_steps(&mut self, around: &mut BusContext<'_, D>) -> Result<(), Error> {
        for _ in 0..STEPS_MAX {
            let peer = peer_state(around.store, &self.peer_path)?;
            let progress = match self.course.next(peer) {
                Ok(CourseStep::Adopt) => self.adopt(around)?,
                Ok(CourseStep::Act(action)) => self.perform(around, action)?,
                Err(illegal) => return self.complain(around, illegal.peer, illegal.into()),
            };
            if progress == Progress::Pending {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Begins anew after a resume: the peer is another.
    pub(super) fn resume(&mut self, around: &mut BusContext<'_, D>) -> Result<(), Error> {
        // The store has no watch of this end's after a migration.
        around.end.unwatch_peer(around.store, self.id, &self.peer_path);
        let _ = self.call(around, Driver::release);
        let nodes = EndNodes::read(around.store, around.end.side(), &self.path)?;
        let Some(nodes) = nodes else { return Ok(()) };
        self.course.note_released();
        self.peer = nodes.peer;
        self.peer_path = nodes.peer_path;
        around.end.watch_peer(around.store, self.id, &self.peer_path)?;
        self.switch(around, State::Initialising, &[])
    }

    /// Drops a device that is gone, with its driver and the driver's requests in flight.
    pub(super) fn end(mut self, around: &mut BusContext<'_, D>) {
        // Nobody is left to be told.
        let _ = self.call(around, Driver::release);
        around.end.unwatch_peer(around.store, self.id, &self.peer_path);
        around.add_news(self.id, DeviceEvent::Removed);
    }

    /// Writes nodes and its state once more.
    pub(super) fn rewrite(
        &self,
        store: &mut Client,
        nodes: &[(&str, String)],
    ) -> Result<(), Error> {
        let puts =
            nodes.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes()));
        write(store, &self.path, &puts.collect::<Vec<_>>(), Some(self.course.own_state()))
    }

    /// Gives the device up because of an error, which is written, and closes it.
    pub(super) fn fail(
        &mut self,
        around: &mut BusContext<'_, D>,
        error: Error,
    ) -> Result<(), Error> {
        if error.is_store_gone() {
            return Err(error);
        }
        self.course.note_unwanted();
        self.report(around, error)
    }

    /// Takes over a device that is Connected.
    fn adopt(&mut self, around: &mut BusContext<'_, D>) -> Result<Progress, Error> {
        self.course.note_held();
        let (result, _) = self.call(around, Driver::reattach);
        match result {
            Ok(Progress::Pending) => {
                self.course.wait();
                return Ok(Progress::Pending);
            }
            Ok(Progress::Done) => {
                self.course.end_adoption();
                around.add_news(self.id, DeviceEvent::State(State::Connected));
            }
            Err(error) => {
                self.course.end_adoption();
                self.fail(around, error)?;
            }
        }
        Ok(Progress::Done)
    }

    /// Does one step; pending where nothing more is to be done now.
    fn perform(
        &mut self,
        around: &mut BusContext<'_, D>,
        action: EndAction,
    ) -> Result<Progress, Error> {
        let (side, opened) = (around.end.side(), self.course.opened());
        if side == Side::Frontend && matches!(action, EndAction::Close | EndAction::Release) {
            self.copy_peer_error(around)?;
        }
        match action {
            EndAction::Stay if side == Side::Backend => {
                if self.course.own_state() == State::Connected {
                    let _ = self.call(around, Driver::nodes_changed);
                }
                Ok(Progress::Pending)
            }
            // The device is forgotten once its nodes are gone; till then it stays closed.
            EndAction::Stay | EndAction::Remove => Ok(Progress::Pending),
            EndAction::Open => self.run(around, opened, Driver::open),
            EndAction::Connect => self.run(around, State::Connected, Driver::connect),
            EndAction::Refresh => self.refresh(around).map(|()| Progress::Pending),
            EndAction::Reconfigure(next) => {
                self.run(around, next, |driver, device| driver.reconfigure(device, next))
            }
            EndAction::Close => self.close(around),
            EndAction::Release => self.release(around),
            EndAction::Restart => self.restart(around),
        }
    }

    /// Copies the error of a backend that gives a device up into the frontend's `error` node.
    fn copy_peer_error(&mut self, around: &mut BusContext<'_, D>) -> Result<(), Error> {
        if !self.course.wants_peer_error() {
            return Ok(());
        }
        match peer_error(around.store, &self.peer_path)? {
            Some(why) => self.complain(around, State::Closing, why),
            None => Ok(()),
        }
    }

    /// Has the driver do a step, and goes to `next` where that is done.
    fn run(
        &mut self,
        around: &mut BusContext<'_, D>,
        next: State,
        step: impl FnOnce(&mut D, &mut Device<'_>) -> Result<Progress, Error>,
    ) -> Result<Progress, Error> {
        self.course.note_held();
        let (result, puts) = self.call(around, step);
        match result {
            Ok(Progress::Pending) => {
                self.course.wait();
                Ok(Progress::Pending)
            }
            Ok(Progress::Done) => {
                self.course.complete(next);
                self.switch(around, next, &puts)?;
                Ok(Progress::Done)
            }
            Err(error) => {
                self.fail(around, error)?;
                Ok(Progress::Done)
            }
        }
    }

    /// Tells the driver that the peer may have changed something: once for each write of its state.
    fn refresh(&mut self, around: &mut BusContext<'_, D>) -> Result<(), Error> {
        if !self.course.take_change() {
            return Ok(());
        }
        let (result, puts) = self.call(around, Driver::refresh);
        match result {
            Ok(()) if puts.is_empty() => Ok(()),
            Ok(()) => write(around.store, &self.path, &puts, None),
            Err(error) => self.fail(around, error),
        }
    }

    /// Stops, unless the device is wanted and its driver says that it is in use.
    fn close(&mut self, around: &mut BusContext<'_, D>) -> Result<Progress, Error> {
        if self.course.may_be_in_use() {
            let (progress, _) = self.call(around, Driver::closing);
            if progress == Progress::Pending {
                self.course.wait();
                let why =
                    "it is in use; it closes when it is not, and at once when it is taken by force";
                self.complain(around, State::Closing, Error::Busy(why.into()))?;
                return Ok(Progress::Pending);
            }
        }
        self.switch(around, State::Closing, &[])?;
        Ok(Progress::Done)
    }

    /// Gives back all that is the peer's, and is closed.
    fn release(&mut self, around: &mut BusContext<'_, D>) -> Result<Progress, Error> {
        if self.release_peer(around) == Progress::Pending {
            return Ok(Progress::Pending);
        }
        if around.end.side() == Side::Frontend {
            // What comes after Closed may be another device: nothing of this one reaches it.
            self.driver = (around.make)(self.id);
        }
        self.switch(around, State::Closed, &[])?;
        Ok(Progress::Done)
    }

    /// Gives back all that is the peer's, and begins anew.
    fn restart(&mut self, around: &mut BusContext<'_, D>) -> Result<Progress, Error> {
        if self.release_peer(around) == Progress::Pending {
            return Ok(Progress::Pending);
        }
        if !self.course.count_restart() {
            self.fail(around, Error::Flaps { restarts: RESTARTS_MAX })?;
            return Ok(Progress::Done);
        }
        match around.end.side() {
            Side::Backend => self.run(around, self.course.opened(), Driver::open),
            Side::Frontend => {
                self.switch(around, State::Initialising, &[]).map(|()| Progress::Done)
            }
        }
    }

    /// Has the driver give back all that is the peer's.
    pub(super) fn release_peer(&mut self, around: &mut BusContext<'_, D>) -> Progress {
        if self.course.is_held() {
            let (progress, _) = self.call(around, Driver::release);
            if progress == Progress::Pending {
                self.course.wait();
                return Progress::Pending;
            }
        }
        self.course.note_released();
        Progress::Done
    }

    /// Puts the driver's nodes and the state into the store, all at once.
    fn switch(
        &mut self,
        around: &mut BusContext<'_, D>,
        next: State,
        puts: &[(String, Vec<u8>)],
    ) -> Result<(), Error> {
        self.course.enter(next);
        write(around.store, &self.path, puts, Some(next))?;
        around.add_news(self.id, DeviceEvent::State(next));
        Ok(())
    }

    /// Reports what is wrong with the peer's state, once for each state.
    fn complain(
        &mut self,
        around: &mut BusContext<'_, D>,
        peer: State,
        error: Error,
    ) -> Result<(), Error> {
        if self.course.take_complaint(peer) { self.report(around, error) } else { Ok(()) }
    }

    /// Writes an error into the store, and adds it to the news.
    fn report(&self, around: &mut BusContext<'_, D>, error: Error) -> Result<(), Error> {
        write_error(around.store, around.end.domid(), &self.path, &error)?;
        around.add_news(self.id, DeviceEvent::Error(error));
        Ok(())
    }

    /// Calls the driver; returns its result, and the nodes that it put.
    fn call<T>(
        &mut self,
        around: &mut BusContext<'_, D>,
        call: impl FnOnce(&mut D, &mut Device<'_>) -> T,
    ) -> (T, PutNodes) {
        let Self { id, path, peer_path, peer, driver, .. } = self;
        let (side, domid) = (around.end.side(), around.end.domid());
        let (id, peer, puts) = (*id, *peer, Vec::new());
        let store = &mut *around.store;
        let mut device = Device { store, side, id, domid, path, peer, peer_path, puts };
        let result = call(driver, &mut device);
        (result, device.puts)
    }
}
