//! The further consoles of domains, and channels: the devices of the kind `console` on the bus.
//!
//! Their frontends make the ring and the port, as those of other devices do. The first console of a
//! domain, which has the number 0, is none of them, and neither is one that another program serves.
//!
//! | module | contents |
//! |---|---|
//! | `device` | one such console, as its bus calls it |

mod device;

use super::console::{ServedConsole, time_us};
use super::first::ENDED_MAX;
use super::settings::ConsoleSettings;
use super::slot::EndedConsole;
use super::terminal::Terminal;
use crate::bus_front::KIND;
use crate::service::{ConsoleId, ConsoleOutput};
pub use device::{FURTHER_BACKLOG_MAX, NUMBER_MAX};
use device::{FurtherConsole, FurtherContext};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;
use xen::DomId;
use xen_driver::backend::{DescriptorId, DeviceSet, Platform, TendOutcome};
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Bus, Error, Id, Side};
use xenstore::{Client, Event};

/// The number of a domain's first console, which is on no bus: its backend has a folder there.
const FIRST_NUMBER: u32 = 0;

/// The further consoles of all domains.
#[derive(Debug)]
pub struct FurtherConsoles {
    bus: Bus<FurtherConsole>,
    context: Rc<FurtherContext>,
    /// The consoles of the terminals' descriptors.
    streams: BTreeMap<DescriptorId, Id>,
    /// Consoles that are gone, for clients that have not got all of their output.
    ended: VecDeque<EndedConsole>,
}

impl FurtherConsoles {
    /// Finds the consoles that the domain `own_domid`, which is the caller's, is to serve.
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(
        store: &mut Client,
        own_domid: DomId,
        platform: Platform,
        settings: Rc<ConsoleSettings>,
    ) -> Result<Self, Error> {
        let context = Rc::new(FurtherContext::new(platform, settings));
        let make = {
            let context = Rc::clone(&context);
            move |id| FurtherConsole::new(id, Rc::clone(&context))
        };
        let bus = Bus::start(store, Side::Backend, own_domid, KIND, make)?.without(FIRST_NUMBER);
        Ok(Self { bus, context, streams: BTreeMap::new(), ended: VecDeque::new() })
    }

    /// Closes all logs and opens them by their names again.
    pub fn reopen_logs(&mut self) {
        for (id, device) in self.bus.drivers() {
            if let Some(console) = device.console_mut()
                && let Err(error) = console.feed().reopen_log(time_us())
            {
                self.context.report(id, format!("its log cannot be opened again: {error}"));
            }
        }
    }

    /// True if a descriptor is one of these consoles.
    #[must_use]
    pub fn has_stream(&self, stream: DescriptorId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns a console, while its device is there.
    #[must_use]
    pub fn find(&self, id: Id) -> Option<ConsoleId> {
        let device = self.bus.driver_ref(id)?;
        device.console().map(|_| device.name())
    }

    /// Returns the output of a console.
    #[must_use]
    pub fn output(&self, console: ConsoleId) -> ConsoleOutput<'_> {
        if let Some(device) = self.bus.driver_ref(console.device())
            && device.name() == console
        {
            let backlog = device.console().map(ServedConsole::backlog);
            return ConsoleOutput { backlog, ended: false };
        }
        let ended = self.ended.iter().find(|ended| ended.id == console);
        ConsoleOutput { backlog: ended.map(|ended| ended.console.backlog()), ended: true }
    }

    /// Types bytes. Returns the number that the guest has room for.
    pub fn type_in(&mut self, console: ConsoleId, bytes: &[u8]) -> usize {
        match self.device_mut(console) {
            // While it has no ring, it is for the one that follows.
            Some(device) => device.served_mut().map_or(0, |console| console.type_in(bytes)),
            // Nobody takes it any more.
            None => bytes.len(),
        }
    }

    /// Sets the size of a console's pseudoterminal, in characters.
    pub fn set_size(&mut self, console: ConsoleId, columns: u16, rows: u16) {
        let console = self.device_mut(console).and_then(|device| device.console());
        if let Some(pty) = console.and_then(ServedConsole::terminal).and_then(Terminal::pty) {
            // It is for programs that ask the terminal; without it they have 80 by 24.
            let _ = pty.set_size(columns, rows);
        }
    }

    fn device_mut(&mut self, console: ConsoleId) -> Option<&mut FurtherConsole> {
        self.bus.driver(console.device()).filter(|device| device.name() == console)
    }

    /// Takes the consoles whose devices are gone.
    fn take_ended(&mut self) {
        self.ended.extend(self.context.take_ended());
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
    }
}

impl DeviceSet for FurtherConsoles {
    type Backend = ServedConsole;
    type Key = Id;

    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        self.bus.note(store, event)
    }

    fn is_due(&self) -> bool {
        self.bus.is_due()
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        let looked = self.bus.look_next(store);
        self.take_ended();
        looked
    }

    fn note_device(&mut self, id: Id) {
        self.bus.note_device(id);
    }

    fn waiting(&self) -> impl Iterator<Item = Id> {
        self.bus.ids().filter(|id| self.bus.waits(*id))
    }

    fn backends(&mut self) -> impl Iterator<Item = (Id, &mut ServedConsole)> {
        let devices = self.bus.drivers();
        devices.filter_map(|(id, device)| Some((id, device.console_mut()?)))
    }

    fn backends_ref(&self) -> impl Iterator<Item = (Id, &ServedConsole)> {
        let devices = self.bus.drivers_ref();
        devices.filter_map(|(id, device)| Some((id, device.console()?)))
    }

    fn fail(&mut self, store: &mut Client, id: Id, error: Error) -> Result<(), Error> {
        if let Some(device) = self.bus.driver(id) {
            // Nothing in a broken ring means anything, until its frontend closes.
            device.end_ring();
        }
        let failed = self.bus.fail(store, id, error);
        self.take_ended();
        failed
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        let mut news = self.context.take_news();
        news.extend(self.bus.take_news());
        for DeviceNews { id, event } in &news {
            // There may be another one of its number already.
            if matches!(event, DeviceEvent::Removed) && self.bus.driver_ref(*id).is_none() {
                self.context.forget(*id);
            }
        }
        news
    }

    fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let consoles = self.backends_ref().map(|(_, console)| console);
        consoles.filter_map(ServedConsole::terminal).flat_map(Terminal::streams)
    }

    fn ready(&mut self, stream: DescriptorId) {
        let id = self.streams.get(&stream).copied();
        let console = id.and_then(|id| self.bus.driver(id)).and_then(FurtherConsole::console_mut);
        if let Some(terminal) = console.and_then(ServedConsole::terminal_mut) {
            terminal.ready();
        }
    }

    fn tend(&mut self, _: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        while self.ended.front().is_some_and(|ended| ended.until <= now) {
            self.ended.pop_front();
        }
        if !self.is_due() {
            self.context.trim_logs();
        }
        let mut streams_changed = self.context.take_streams_changed();
        for (_, console) in self.backends() {
            streams_changed |= console.terminal_mut().is_some_and(Terminal::take_change);
        }
        if streams_changed {
            let consoles = self.backends_ref();
            let terminals = consoles.filter_map(|(id, console)| Some((id, console.terminal()?)));
            let streams = terminals
                .flat_map(|(id, terminal)| terminal.streams().map(move |(stream, _)| (stream, id)));
            self.streams = streams.collect();
        }
        Ok(TendOutcome { streams_changed, ..TendOutcome::default() })
    }
}
