//! The first consoles of all domains: found in the store, connected, ended with their domains.
//!
//! A domain's first console is there before the guest runs, and the guest writes nothing to the
//! store for it. The daemon maps its page, binds its port, and writes the path of a terminal.

use super::console::{ServedConsole, time_us};
use super::files::open_files;
use super::nodes::{self, ConsoleNodes, DomainNodes};
use super::outputs::GuestOutputs;
use super::ring::{ConnectFailure, is_free, open_ring, wake_guest};
use super::settings::{BACKLOG_MAX, BACKLOG_MIN, ConsoleSettings, log_name};
use super::slot::{ConsoleSlot, ConsoleState, EndedConsole, RingState};
use super::terminal::{ReaderKind, Terminal};
use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, ConsoleSources};
use crate::fifo::{OutputFifo, OutputFolder};
use crate::service::{ConsoleId, ConsoleOutput, OpenConsoles};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::{DomId, GrantRef};
use xen_driver::Channel;
use xen_driver::backend::{DescriptorId, DeviceSet, Platform, TendOutcome};
use xen_io::console::ConsoleBackRing;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Error, Id};
use xenstore::{Client, Event, Store};

/// The watch on domains that come; its path and its token.
const INTRODUCED: &str = "@introduceDomain";
/// The watch on domains that end.
const RELEASED: &str = "@releaseDomain";
/// The time for which a console that cannot be connected is tried again without an event: an earlier
/// process may still have its port, or the builder of the domain has not granted its page yet.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The time for which clients can read the output of a domain that is gone.
pub(super) const KEPT_WITHIN: Duration = Duration::from_secs(10);
/// The most such domains.
pub(super) const ENDED_MAX: usize = 64;

/// The first consoles of all domains but this one.
#[derive(Debug)]
pub struct FirstConsoles {
    own_domid: DomId,
    platform: Platform,
    settings: Rc<ConsoleSettings>,
    domains: BTreeMap<DomId, ConsoleSlot>,
    /// Domains whose nodes are to be looked at.
    due: BTreeSet<DomId>,
    /// Domains whose port was written.
    touched: BTreeSet<DomId>,
    /// The list of domains is to be looked at.
    scan_due: Option<ScanRange>,
    /// The domains of the terminals' descriptors.
    streams: BTreeMap<DescriptorId, DomId>,
    /// The FIFOs that domains print into, on a hosted host.
    outputs: Option<GuestOutputs>,
    streams_changed: bool,
    /// The number of consoles that there were.
    count: u64,
    /// Domains whose window has another size than the store says.
    windows: BTreeSet<DomId>,
    /// The consoles of domains that are gone, for clients that have not got all of their output.
    ended: VecDeque<EndedConsole>,
    /// A log was opened: there may be too many.
    logs_opened: bool,
    news: Vec<DeviceNews>,
}

/// The domains that a look at their list is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ScanRange {
    /// Those that are not known yet.
    New,
    /// All: some may be gone.
    All,
}

impl FirstConsoles {
    /// Watches the list of domains; the first events come at once. `outputs` has the FIFOs that guests
    /// print into, on a hosted host.
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(
        store: &mut Client,
        own_domid: DomId,
        platform: Platform,
        settings: Rc<ConsoleSettings>,
        outputs: Option<OutputFolder>,
    ) -> Result<Self, Error> {
        let outputs = outputs.map(GuestOutputs::new);
        for path in [INTRODUCED, RELEASED] {
            store.watch(path, path)?;
        }
        Ok(Self {
            own_domid,
            platform,
            settings,
            domains: BTreeMap::new(),
            due: BTreeSet::new(),
            touched: BTreeSet::new(),
            scan_due: Some(ScanRange::All),
            streams: BTreeMap::new(),
            outputs,
            streams_changed: false,
            count: 0,
            windows: BTreeSet::new(),
            ended: VecDeque::new(),
            logs_opened: false,
            news: Vec::new(),
        })
    }

    /// Closes all logs and opens them by their names again.
    pub fn reopen_logs(&mut self) {
        for (domid, slot) in &mut self.domains {
            if let Some(console) = slot.console_mut()
                && let Err(error) = console.feed().reopen_log(time_us())
            {
                self.news.push(failure(*domid, format!("its log cannot be opened again: {error}")));
            }
        }
    }

    /// Finds the domains that have come, and where `all` says so those that are gone.
    fn scan(&mut self, store: &mut Client, all: ScanRange) -> Result<(), Error> {
        let listed = nodes::unless_gone(store.directory("/local/domain"))?;
        let listed: BTreeSet<DomId> = listed.iter().filter_map(|name| parse(name)).collect();
        let known = |domid: &DomId| self.domains.contains_key(domid);
        let asked = listed
            .iter()
            .copied()
            .filter(|domid| *domid != self.own_domid && (all == ScanRange::All || !known(domid)));
        let introduced = nodes::introduced(store, asked)?;
        let come: Vec<DomId> = introduced.iter().copied().filter(|domid| !known(domid)).collect();
        if all == ScanRange::All {
            let gone = self.domains.keys().copied().filter(|domid| !introduced.contains(domid));
            for domid in gone.collect::<Vec<_>>() {
                self.forget(store, domid)?;
            }
        }
        come.into_iter().try_for_each(|domid| self.watch(store, domid))
    }

    fn watch(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        // The first event comes at once.
        store.watch(nodes::folder(domid), token(domid))?;
        self.count = self.count.saturating_add(1);
        let id = ConsoleId { domid: domid.0, number: 0, count: self.count };
        self.domains.insert(domid, ConsoleSlot::new(id));
        Ok(())
    }

    /// Ends the console of a domain that is gone, with its last output.
    fn forget(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        self.keep_printed(domid);
        let Some(mut slot) = self.domains.remove(&domid) else { return Ok(()) };
        if matches!(slot.state, ConsoleState::Served { .. }) {
            self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Removed });
        }
        if let Some(mut console) = slot.take_console() {
            console.end();
            let until = Instant::now() + KEPT_WITHIN;
            self.ended.push_back(EndedConsole { id: slot.id, name: slot.name, console, until });
            if self.ended.len() > ENDED_MAX {
                self.ended.pop_front();
            }
        }
        self.streams.retain(|_, owner| *owner != domid);
        if let Some(outputs) = &mut self.outputs {
            outputs.forget(domid);
        }
        self.touched.remove(&domid);
        self.windows.remove(&domid);
        self.settings.remove_record(id(domid));
        self.settings.log_names.release(id(domid));
        self.settings.rates.forget(domid);
        self.due.remove(&domid);
        nodes::unless_gone(store.unwatch(nodes::folder(domid), token(domid)))
    }

    /// Makes the console of a domain whose ring was never had, if it has printed into a FIFO.
    fn keep_printed(&mut self, domid: DomId) {
        if self.domains.get(&domid).is_some_and(|slot| slot.fifo.is_some()) {
            let console = self.prepare(domid, None);
            if let Some(slot) = self.domains.get_mut(&domid) {
                slot.kept = Some(Box::new(console));
            }
        }
    }

    /// Looks at a domain's nodes, and connects its console where there is one.
    fn look(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        if !self.domains.contains_key(&domid) {
            return Ok(());
        }
        let about = DomainNodes::read(store, domid)?;
        let touched = self.touched.remove(&domid);
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        slot.name = about.name.clone().unwrap_or_default();
        match (&slot.state, &about.console) {
            (ConsoleState::Served { nodes: served, ring, .. }, Some(nodes)) if served == nodes => {
                let stays = match ring {
                    RingState::Served => !(touched && is_free(&self.platform, domid, nodes.port)),
                    RingState::Broken => true,
                    RingState::Missing => false,
                };
                if stays {
                    return self.announce(store, domid);
                }
            }
            (ConsoleState::Failed { nodes: failed }, Some(nodes)) if failed == nodes => {
                return Ok(());
            }
            _ => {}
        }
        slot.end();
        let Some(nodes) = about.console.clone() else {
            self.keep_printed(domid);
            self.set_state(domid, ConsoleState::Absent);
            return Ok(());
        };
        slot.about = about;
        self.find_fifo(store, domid)?;
        match open_ring(&self.platform, domid, nodes.port, GrantRef::CONSOLE) {
            Ok(ring) => {
                let console = self.prepare(domid, Some(ring));
                self.serve(store, domid, nodes, console, RingState::Served)?;
                let event = DeviceEvent::State(xenbus::State::Connected);
                self.news.push(DeviceNews { id: id(domid), event });
                Ok(())
            }
            Err(ConnectFailure::Ring(error)) => {
                self.serve_printed(store, domid, nodes, RingState::Broken, error)
            }
            Err(ConnectFailure::Other(error)) => {
                if self.tries_again(domid) {
                    return Ok(());
                }
                // The next event of its nodes makes another try.
                self.serve_printed(store, domid, nodes, RingState::Missing, error)
            }
        }
    }

    /// Serves the FIFO alone of a domain whose ring cannot be served; without one, nothing.
    fn serve_printed(
        &mut self,
        store: &mut Client,
        domid: DomId,
        nodes: ConsoleNodes,
        ring: RingState,
        error: Error,
    ) -> Result<(), Error> {
        let has_fifo = self.domains.get(&domid).is_some_and(|slot| slot.fifo().is_some());
        self.news.push(lost_ring(domid, error, has_fifo));
        if has_fifo {
            let console = self.prepare(domid, None);
            return self.serve(store, domid, nodes, console, ring);
        }
        let state = match ring {
            RingState::Broken => ConsoleState::Failed { nodes },
            RingState::Served | RingState::Missing => ConsoleState::Absent,
        };
        self.set_state(domid, state);
        Ok(())
    }

    /// Returns the domain of this name or number.
    #[must_use]
    pub fn domain(&self, words: &[u8]) -> Option<DomId> {
        match parse(words) {
            Some(domid) => self.domains.contains_key(&domid).then_some(domid),
            // A domain without a name has none that could be asked for.
            None if words.is_empty() => None,
            None => {
                let mut named = self.domains.iter().filter(|(_, slot)| slot.name == words);
                named.next().map(|(domid, _)| *domid)
            }
        }
    }

    /// Returns the domain of a console, while it is there.
    fn slot(&self, console: ConsoleId) -> Option<&ConsoleSlot> {
        self.domains.get(&DomId(console.domid)).filter(|slot| slot.id == console)
    }

    fn set_state(&mut self, domid: DomId, state: ConsoleState) {
        if let Some(slot) = self.domains.get_mut(&domid) {
            slot.state = state;
        }
    }

    /// Notes that a console could not be connected. False if it was tried for long enough.
    fn tries_again(&mut self, domid: DomId) -> bool {
        let Some(slot) = self.domains.get_mut(&domid) else { return false };
        let until = match slot.state {
            ConsoleState::Retrying { until } => until,
            _ => Instant::now() + RETRY_MAX,
        };
        let again = Instant::now() < until;
        slot.state = if again { ConsoleState::Retrying { until } } else { ConsoleState::Absent };
        again
    }

    /// Opens the FIFO that a domain prints into, if guests have some here and it has none yet. Said
    /// once, where it cannot be opened.
    fn find_fifo(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        let (Some(outputs), Some(slot)) = (&mut self.outputs, self.domains.get_mut(&domid)) else {
            return Ok(());
        };
        if slot.fifo().is_some() || slot.fifo_tried.as_ref() == Some(&slot.name) {
            return Ok(());
        }
        slot.fifo_tried = Some(slot.name.clone());
        let naming = nodes::naming(store, domid)?;
        let earlier = self.settings.open_record(id(domid)).and_then(|record| record.read());
        let earlier = earlier.filter(|state| Some(state.life) == slot.about.life(domid));
        match outputs.open(domid, &slot.name, naming, earlier) {
            Ok(fifo) => {
                // A domain that was started again under its name: what is there is for its new life.
                let ended = self.ended.iter_mut().map(|ended| &mut ended.console);
                let has_it = |other: &OutputFifo| other.inode() == fifo.inode();
                for console in ended.filter(|console| console.fifo().is_some_and(has_it)) {
                    console.feed().close();
                }
                slot.fifo = Some(fifo);
            }
            Err(refusal) => {
                let text = format!("the FIFO that it prints into is not read: {refusal}");
                self.news.push(failure(domid, text));
            }
        }
        Ok(())
    }

    /// Notes which FIFOs can be read.
    fn note_printed(&mut self) {
        let Some(outputs) = &self.outputs else { return };
        for (inode, owner) in outputs.take_ready() {
            let fifo = match owner.and_then(|domid| self.domains.get_mut(&domid)) {
                // One that no console has yet is looked at when it has.
                Some(slot) => slot.console_mut().and_then(ServedConsole::fifo_mut),
                None => {
                    let ended = self.ended.iter_mut();
                    let mut fifos = ended.filter_map(|ended| ended.console.fifo_mut());
                    fifos.find(|fifo| fifo.inode() == inode)
                }
            };
            if let Some(fifo) = fifo {
                fifo.note_ready();
            }
        }
    }

    /// Opens the files and the terminal of a console, over this ring and the FIFO of its slot.
    fn prepare(&mut self, domid: DomId, ring: Option<(Channel, ConsoleBackRing)>) -> ServedConsole {
        let slot = self.domains.get_mut(&domid);
        let (about, kept, fifo) = slot.map_or_else(Default::default, |slot| {
            (slot.about.clone(), slot.kept.take(), slot.fifo.take())
        });
        let life = about.life(domid).unwrap_or_default();
        let log = about.name.as_deref().map(|name| log_name(name, 0));
        self.logs_opened |= log.is_some();
        let (files, failed) = open_files(&self.settings, id(domid), log, life);
        if let Some(error) = failed {
            self.news.push(failure(domid, format!("its log cannot be opened: {error}")));
        }
        let kept = kept.map(|console| console.into_kept());
        let (terminal, backlog, kept_fifo) = kept.unwrap_or_else(|| {
            let limit = about.console.and_then(|nodes| usize::try_from(nodes.limit?).ok());
            let limit = limit.unwrap_or(BACKLOG_MAX).clamp(BACKLOG_MIN, BACKLOG_MAX);
            (None, Backlog::new(limit), None)
        });
        let (channel, ring) = ring.unzip();
        let sources = ConsoleSources { ring, fifo: kept_fifo.or(fifo) };
        let feed = ConsoleFeed::new(sources, files, backlog, life);
        wake_guest(channel.as_ref(), feed.ring());
        let open = || Terminal::open(ReaderKind::People, 0).map(Some);
        let terminal = terminal.map_or_else(open, |kept| Ok(Some(kept)));
        let terminal = terminal.unwrap_or_else(|error| {
            self.news.push(failure(domid, format!("it has no terminal: {error}")));
            None
        });
        let rate = self.settings.rates.of(domid);
        ServedConsole::new(channel, feed, terminal, self.settings.overflow, rate)
    }

    /// Tells the toolstack that a console is served, and where its terminal is, if that is due. What the
    /// store refuses is tried again: the toolstack waits for it.
    fn announce(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        let ConsoleState::Served { console, announcement_due, .. } = &mut slot.state else {
            return Ok(());
        };
        if !*announcement_due {
            return Ok(());
        }
        let pty = console.terminal().and_then(Terminal::pty);
        let path = pty.map(|pty| pty.path().as_os_str().as_bytes());
        match nodes::announce(store, domid, path).map_err(Error::from) {
            Ok(()) => *announcement_due = false,
            Err(error) if error.is_store_gone() => return Err(error),
            Err(error) => {
                self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
            }
        }
        Ok(())
    }

    /// Takes a console that was connected, and announces it.
    fn serve(
        &mut self,
        store: &mut Client,
        domid: DomId,
        nodes: ConsoleNodes,
        console: ServedConsole,
        ring: RingState,
    ) -> Result<(), Error> {
        if let Some(terminal) = console.terminal() {
            self.streams.extend(terminal.streams().map(|(stream, _)| (stream, domid)));
            self.streams_changed = true;
        }
        let console = Box::new(console);
        let announcement_due = true;
        self.set_state(domid, ConsoleState::Served { nodes, console, ring, announcement_due });
        self.announce(store, domid)
    }

    /// Writes the sizes of windows that clients have said, where that is due.
    fn write_windows(
        &mut self,
        store: &mut Client,
        now: Instant,
        outcome: &mut TendOutcome,
    ) -> Result<(), Error> {
        for domid in std::mem::take(&mut self.windows) {
            let Some(slot) = self.domains.get_mut(&domid) else { continue };
            let size = match slot.window.take(now) {
                Ok(Some(size)) => size,
                Ok(None) => continue,
                Err(later) => {
                    self.windows.insert(domid);
                    outcome.again_at = [outcome.again_at, Some(later)].into_iter().flatten().min();
                    continue;
                }
            };
            outcome.asked_store = true;
            match nodes::write_window(store, domid, size).map_err(Error::from) {
                Ok(()) => {}
                Err(error) if error.is_store_gone() => return Err(error),
                Err(error) => {
                    self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
                }
            }
        }
        Ok(())
    }
}

impl DeviceSet for FirstConsoles {
    type Backend = ServedConsole;
    type Key = DomId;

    fn note(&mut self, _: &mut Client, event: &Event) -> Result<bool, Error> {
        if event.token == INTRODUCED.as_bytes() {
            self.scan_due.get_or_insert(ScanRange::New);
            return Ok(true);
        }
        if event.token == RELEASED.as_bytes() {
            self.scan_due = Some(ScanRange::All);
            return Ok(true);
        }
        let Some(domid) = domid_of(&event.token) else { return Ok(false) };
        // The daemon's own words.
        let own = [&b"/console/tty"[..], b"/console/window"];
        if !own.iter().any(|own| event.path.ends_with(own)) {
            self.due.insert(domid);
        }
        // Written once more with the same value, it may be another port all the same.
        if event.path.ends_with(b"/console/port") {
            self.touched.insert(domid);
        }
        Ok(true)
    }

    fn is_due(&self) -> bool {
        self.scan_due.is_some() || !self.due.is_empty()
    }

    fn look_next(&mut self, store: &mut Client) -> Result<bool, Error> {
        if let Some(range) = self.scan_due.take() {
            self.scan(store, range)?;
            return Ok(true);
        }
        match self.due.pop_first() {
            Some(domid) => self.look(store, domid).map(|()| true),
            None => Ok(false),
        }
    }

    fn note_device(&mut self, domid: DomId) {
        self.due.insert(domid);
    }

    fn waiting(&self) -> impl Iterator<Item = DomId> {
        let waits = |slot: &ConsoleSlot| {
            matches!(
                slot.state,
                ConsoleState::Retrying { .. } | ConsoleState::Served { announcement_due: true, .. }
            )
        };
        self.domains.iter().filter(move |(_, slot)| waits(slot)).map(|(domid, _)| *domid)
    }

    fn backends(&mut self) -> impl Iterator<Item = (DomId, &mut ServedConsole)> {
        self.domains.iter_mut().filter_map(|(domid, slot)| match &mut slot.state {
            ConsoleState::Served { console, .. } => Some((*domid, &mut **console)),
            _ => None,
        })
    }

    fn backends_ref(&self) -> impl Iterator<Item = (DomId, &ServedConsole)> {
        self.domains.iter().filter_map(|(domid, slot)| match &slot.state {
            ConsoleState::Served { console, .. } => Some((*domid, &**console)),
            _ => None,
        })
    }

    fn fail(&mut self, _: &mut Client, domid: DomId, error: Error) -> Result<(), Error> {
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        let ConsoleState::Served { nodes, console, ring, .. } = &mut slot.state else {
            return Ok(());
        };
        let has_fifo = console.fifo().is_some();
        if has_fifo {
            console.end_ring();
            *ring = RingState::Broken;
        } else {
            let nodes = nodes.clone();
            slot.end();
            slot.state = ConsoleState::Failed { nodes };
        }
        self.news.push(lost_ring(domid, error, has_fifo));
        Ok(())
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        std::mem::take(&mut self.news)
    }

    fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let outputs = self.outputs.iter().map(GuestOutputs::stream);
        // Also those that wait for a ring that follows: they stay open.
        let consoles = self.domains.values().filter_map(ConsoleSlot::console);
        outputs.chain(consoles.filter_map(ServedConsole::terminal).flat_map(Terminal::streams))
    }

    fn ready(&mut self, stream: DescriptorId) {
        if self.outputs.as_ref().is_some_and(|outputs| outputs.stream().0 == stream) {
            self.note_printed();
            return;
        }
        let slot = self.streams.get(&stream).and_then(|domid| self.domains.get_mut(domid));
        if let Some(terminal) =
            slot.and_then(ConsoleSlot::console_mut).and_then(ServedConsole::terminal_mut)
        {
            terminal.ready();
        }
    }

    fn tend(&mut self, store: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        while self.ended.front().is_some_and(|ended| ended.until <= now) {
            self.ended.pop_front();
        }
        let mut outcome = TendOutcome::default();
        for ended in &mut self.ended {
            if ended.console.fifo().is_some_and(OutputFifo::is_ready) {
                ended.console.drain_fifo();
                outcome.more |= ended.console.fifo().is_some_and(OutputFifo::is_ready);
            }
        }
        // Once for many guests that come together.
        if !self.is_due() && std::mem::take(&mut self.logs_opened) {
            self.logs_opened = self.settings.trim_logs();
        }
        self.write_windows(store, now, &mut outcome)?;
        outcome.streams_changed = std::mem::take(&mut self.streams_changed);
        Ok(outcome)
    }
}

impl OpenConsoles for FirstConsoles {
    fn find(&self, domain: &[u8], number: u32) -> Option<ConsoleId> {
        // A domain without a name has none that could be asked for.
        if domain.is_empty() || number != 0 {
            return None;
        }
        if let Some(slot) = self.domain(domain).and_then(|domid| self.domains.get(&domid)) {
            return matches!(slot.state, ConsoleState::Served { .. }).then_some(slot.id);
        }
        // Of a domain that is gone, the last output can still be read.
        let domid = parse(domain);
        let is_asked_for = |ended: &&EndedConsole| match domid {
            Some(domid) => ended.id.domid == domid.0,
            None => ended.name == domain,
        };
        self.ended.iter().rev().find(is_asked_for).map(|ended| ended.id)
    }

    fn output(&self, console: ConsoleId) -> ConsoleOutput<'_> {
        if let Some(slot) = self.slot(console) {
            let backlog = slot.console().map(ServedConsole::backlog);
            return ConsoleOutput { backlog, ended: false };
        }
        let ended = self.ended.iter().find(|ended| ended.id == console);
        ConsoleOutput { backlog: ended.map(|ended| ended.console.backlog()), ended: true }
    }

    fn type_in(&mut self, console: ConsoleId, bytes: &[u8]) -> usize {
        let slot = self.domains.get_mut(&DomId(console.domid));
        match slot.filter(|slot| slot.id == console).map(|slot| &mut slot.state) {
            Some(ConsoleState::Served { console, .. }) => console.type_in(bytes),
            // It is for the ring that follows.
            Some(ConsoleState::Absent | ConsoleState::Retrying { .. }) => 0,
            // Nobody takes it any more.
            Some(ConsoleState::Failed { .. }) | None => bytes.len(),
        }
    }

    fn set_size(&mut self, console: ConsoleId, columns: u16, rows: u16) {
        let domid = DomId(console.domid);
        let slot = self.domains.get_mut(&domid).filter(|slot| slot.id == console);
        let Some(slot) = slot else { return };
        let terminal = slot.console().and_then(ServedConsole::terminal);
        if let Some(pty) = terminal.and_then(Terminal::pty) {
            // It is for programs that ask the terminal; without it they have 80 by 24.
            let _ = pty.set_size(columns, rows);
        }
        if columns > 0 && rows > 0 {
            slot.window.set((columns, rows));
            self.windows.insert(domid);
        }
    }
}

fn id(domid: DomId) -> Id {
    Id { frontend: domid, devid: 0 }
}

fn failure(domid: DomId, sentence: String) -> DeviceNews {
    DeviceNews { id: id(domid), event: DeviceEvent::Error(Error::Driver(sentence)) }
}

/// The news that a ring is not served any more, or not yet.
fn lost_ring(domid: DomId, error: Error, has_fifo: bool) -> DeviceNews {
    if has_fifo {
        return failure(domid, format!("{error}; the FIFO that it prints into is served alone"));
    }
    DeviceNews { id: id(domid), event: DeviceEvent::Error(error) }
}

/// The token of the watch on a domain's console.
fn token(domid: DomId) -> String {
    format!("console-{domid}")
}

fn domid_of(token: &[u8]) -> Option<DomId> {
    parse(token.strip_prefix(b"console-")?)
}

fn parse(number: &[u8]) -> Option<DomId> {
    std::str::from_utf8(number).ok()?.parse().ok().map(DomId)
}
