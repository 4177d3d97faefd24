//! The first consoles of all domains: found in the store, connected, ended with their domains.
//!
//! A domain's first console is there before the guest runs, and the guest writes nothing to the
//! store for it. The daemon maps its page, binds its port, and writes the path of a terminal.

use super::console::{BrokenRing, ServedConsole, Terminal, broken, time_us};
use super::nodes::{self, ConsoleNodes, DomainNodes};
use super::settings::{BACKLOG_MAX, BACKLOG_MIN, ConsoleSettings, log_name};
use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, ConsoleFiles};
use crate::log::ConsoleLog;
use crate::record::ConsoleRecord;
use crate::service::{ConsoleId, ConsoleOutput, OpenConsoles};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};
use xen::gnttab::PageAccess;
use xen::{DomId, GrantRef, Port};
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
const KEPT_WITHIN: Duration = Duration::from_secs(10);
/// The most such domains.
const ENDED_MAX: usize = 64;

/// The first consoles of all domains but this one.
#[derive(Debug)]
pub struct FirstConsoles {
    own_domid: DomId,
    platform: Platform,
    settings: ConsoleSettings,
    domains: BTreeMap<DomId, ConsoleSlot>,
    /// Domains whose nodes are to be looked at.
    due: BTreeSet<DomId>,
    /// Domains whose port was written.
    touched: BTreeSet<DomId>,
    /// The list of domains is to be looked at.
    scan_due: Option<ScanRange>,
    /// The domains of the terminals' descriptors.
    streams: BTreeMap<DescriptorId, DomId>,
    streams_changed: bool,
    /// The number of consoles that there were.
    count: u64,
    /// The output of consoles whose domains are gone, for clients that have not got all of it.
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

/// A domain, and how far its console has come.
#[derive(Debug)]
struct ConsoleSlot {
    id: ConsoleId,
    /// The domain's name.
    name: Vec<u8>,
    state: ConsoleState,
    /// The name of its log; empty before it has one.
    log_name: String,
    /// The terminal and the output of a console that was ended, for the one that follows.
    kept: Option<(Option<Terminal>, Backlog)>,
}

/// The output of a console whose domain is gone.
#[derive(Debug)]
struct EndedConsole {
    id: ConsoleId,
    backlog: Backlog,
    until: Instant,
}

#[derive(Default, Debug)]
enum ConsoleState {
    /// Its nodes are not there, or not for this daemon.
    #[default]
    Absent,
    /// It could not be connected; it is tried again until then.
    Retrying { until: Instant },
    /// It is served.
    Served {
        nodes: ConsoleNodes,
        console: Box<ServedConsole>,
        /// Its terminal is not in the store yet.
        terminal_due: bool,
    },
    /// Its ring is broken. With other nodes it is tried again.
    Failed { nodes: ConsoleNodes },
}

impl FirstConsoles {
    /// Watches the list of domains; the first events come at once.
    ///
    /// # Errors
    /// The store is gone.
    pub fn start(
        store: &mut Client,
        own_domid: DomId,
        platform: Platform,
        settings: ConsoleSettings,
    ) -> Result<Self, Error> {
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
            streams_changed: false,
            count: 0,
            ended: VecDeque::new(),
            logs_opened: false,
            news: Vec::new(),
        })
    }

    /// Closes all logs and opens them by their names again.
    pub fn reopen_logs(&mut self) {
        for (domid, slot) in &mut self.domains {
            if let ConsoleState::Served { console, .. } = &mut slot.state
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
        let id = ConsoleId { domid: domid.0, count: self.count };
        self.domains.insert(domid, ConsoleSlot::new(id));
        Ok(())
    }

    /// Ends the console of a domain that is gone, with its last output.
    fn forget(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        let Some(slot) = self.domains.remove(&domid) else { return Ok(()) };
        let mut kept = slot.kept.map(|(_, backlog)| backlog);
        if let ConsoleState::Served { mut console, .. } = slot.state {
            console.drain();
            kept = Some(console.into_kept().1);
            self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Removed });
        }
        if let Some(backlog) = kept {
            let until = Instant::now() + KEPT_WITHIN;
            self.ended.push_back(EndedConsole { id: slot.id, backlog, until });
            if self.ended.len() > ENDED_MAX {
                self.ended.pop_front();
            }
        }
        self.streams.retain(|_, owner| *owner != domid);
        self.touched.remove(&domid);
        self.settings.remove_record(domid.0);
        self.due.remove(&domid);
        nodes::unless_gone(store.unwatch(nodes::folder(domid), token(domid)))
    }

    /// Looks at a domain's nodes, and connects its console where there is one.
    fn look(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        if !self.domains.contains_key(&domid) {
            return Ok(());
        }
        let about = DomainNodes::read(store, domid)?;
        let nodes = about.console.clone();
        let touched = self.touched.remove(&domid);
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        slot.name = about.name.clone().unwrap_or_default();
        match (&slot.state, &nodes) {
            (ConsoleState::Served { nodes: served, .. }, Some(nodes))
                if served == nodes && !(touched && is_free(&self.platform, domid, nodes.port)) =>
            {
                return self.show_terminal(store, domid);
            }
            (ConsoleState::Failed { nodes: failed }, Some(nodes)) if failed == nodes => {
                return Ok(());
            }
            _ => {}
        }
        slot.end();
        let Some(nodes) = nodes else {
            slot.state = ConsoleState::Absent;
            return Ok(());
        };
        match self.connect(domid, &nodes, &about) {
            Ok(console) => self.serve(store, domid, nodes, console)?,
            Err(ConnectFailure::Ring(error)) => {
                self.set_state(domid, ConsoleState::Failed { nodes });
                self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
            }
            Err(ConnectFailure::Other(error)) => self.retry(domid, error),
        }
        Ok(())
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

    /// Notes that a console could not be connected, for a later try.
    fn retry(&mut self, domid: DomId, error: Error) {
        let Some(slot) = self.domains.get_mut(&domid) else { return };
        let until = match slot.state {
            ConsoleState::Retrying { until } => until,
            _ => Instant::now() + RETRY_MAX,
        };
        if Instant::now() < until {
            slot.state = ConsoleState::Retrying { until };
        } else {
            // The next event of its nodes makes another try.
            slot.state = ConsoleState::Absent;
            self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
        }
    }

    /// Maps the page, binds the port and opens the log.
    fn connect(
        &mut self,
        domid: DomId,
        nodes: &ConsoleNodes,
        about: &DomainNodes,
    ) -> Result<ServedConsole, ConnectFailure> {
        let channel = Channel::bind(&self.platform.evtchn, domid, nodes.port)?;
        let mapped =
            self.platform.grants.borrow_mut().map(domid, GrantRef::CONSOLE, PageAccess::ReadWrite);
        let page = mapped.map_err(Error::platform("mapping the console's page"))?.into_page();
        let ring = ConsoleBackRing::new(page);
        // Before anything is written: a guest may have broken it while no daemon ran.
        ring.peek_output(&mut []).map_err(broken)?;
        let life = life(domid, about.machine.as_deref(), nodes);
        let record = self.settings.open_record(domid.0);
        let log = about.name.as_deref().map(|name| self.open_log(domid, name));
        let log = log.transpose().unwrap_or_else(|error| {
            self.news.push(failure(domid, format!("its log cannot be opened: {error}")));
            None
        });
        let mut format = self.settings.guest_format();
        let log = log.flatten().map(|mut log| {
            // An index that cannot be written costs times, and no output.
            let _ = note_life(&mut log, record.as_ref(), life, domid);
            if let Some(format) = &mut format {
                log.append(format.opened(time_us()), time_us());
            }
            log
        });
        let limit = nodes.limit.and_then(|limit| usize::try_from(limit).ok());
        let backlog = limit.unwrap_or(BACKLOG_MAX).clamp(BACKLOG_MIN, BACKLOG_MAX);
        let files = ConsoleFiles { log, record, format };
        let kept = self.domains.get_mut(&domid).and_then(|slot| slot.kept.take());
        let (terminal, backlog) = kept.unwrap_or_else(|| (None, Backlog::new(backlog)));
        let feed = ConsoleFeed::new(ring, files, backlog, life);
        let feed = feed.map_err(broken)?;
        if feed.ring().was_served().map_err(broken)? {
            // An earlier daemon may have been killed between the move of an index and its event.
            channel.notify()?;
        }
        let terminal = terminal.map_or_else(|| Terminal::open(0).map(Some), |kept| Ok(Some(kept)));
        let terminal = terminal.unwrap_or_else(|error| {
            self.news.push(failure(domid, format!("it has no terminal: {error}")));
            None
        });
        Ok(ServedConsole::new(channel, feed, terminal, self.settings.overflow))
    }

    /// Opens the log of a guest of this name.
    fn open_log(&mut self, domid: DomId, name: &[u8]) -> std::io::Result<Option<ConsoleLog>> {
        let mut name = log_name(name);
        let used = |name: &str, domains: &BTreeMap<DomId, ConsoleSlot>| {
            domains.iter().any(|(other, slot)| *other != domid && slot.log_name == name)
        };
        while used(&name, &self.domains) {
            // Two guests of one name would write into one log.
            name = format!("{}.{domid}.log", name.strip_suffix(".log").unwrap_or(&name));
        }
        let log = self.settings.open_log(&name)?;
        if let Some(slot) = self.domains.get_mut(&domid) {
            slot.log_name = name;
        }
        self.logs_opened = true;
        Ok(log)
    }

    /// Writes the path of a console's terminal for clients, where that is due. What the store refuses
    /// is tried again: the toolstack waits for that node.
    fn show_terminal(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        let ConsoleState::Served { console, terminal_due, .. } = &mut slot.state else {
            return Ok(());
        };
        let Some(terminal) = console.terminal().filter(|_| *terminal_due) else { return Ok(()) };
        let path = terminal.pty().path().as_os_str().as_bytes();
        match nodes::write_terminal(store, domid, path).map_err(Error::from) {
            Ok(()) => *terminal_due = false,
            Err(error) if error.is_store_gone() => return Err(error),
            Err(error) => {
                self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
            }
        }
        Ok(())
    }

    /// Takes a console that was connected, and shows its terminal to clients.
    fn serve(
        &mut self,
        store: &mut Client,
        domid: DomId,
        nodes: ConsoleNodes,
        console: ServedConsole,
    ) -> Result<(), Error> {
        if let Some(terminal) = console.terminal() {
            self.streams.insert(terminal.stream().0, domid);
            self.streams_changed = true;
        }
        let console = Box::new(console);
        self.set_state(domid, ConsoleState::Served { nodes, console, terminal_due: true });
        self.show_terminal(store, domid)?;
        let event = DeviceEvent::State(xenbus::State::Connected);
        self.news.push(DeviceNews { id: id(domid), event });
        Ok(())
    }
}

impl ConsoleSlot {
    fn new(id: ConsoleId) -> Self {
        let (state, name, log_name) = (ConsoleState::Absent, Vec::new(), String::new());
        Self { id, name, state, log_name, kept: None }
    }

    fn terminal(&self) -> Option<&Terminal> {
        match &self.state {
            ConsoleState::Served { console, .. } => console.terminal(),
            _ => self.kept.as_ref()?.0.as_ref(),
        }
    }

    fn terminal_mut(&mut self) -> Option<&mut Terminal> {
        match &mut self.state {
            ConsoleState::Served { console, .. } => console.terminal_mut(),
            _ => self.kept.as_mut()?.0.as_mut(),
        }
    }

    /// Ends the ring that is served, and keeps its terminal.
    fn end(&mut self) {
        match std::mem::replace(&mut self.state, ConsoleState::Absent) {
            ConsoleState::Served { mut console, .. } => {
                console.drain();
                self.kept = Some(console.into_kept());
            }
            // When the tries end is not for another try to say.
            retrying @ ConsoleState::Retrying { .. } => self.state = retrying,
            ConsoleState::Absent | ConsoleState::Failed { .. } => {}
        }
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
        // The daemon's own word.
        if !event.path.ends_with(b"/console/tty") {
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
                ConsoleState::Retrying { .. } | ConsoleState::Served { terminal_due: true, .. }
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
        if let ConsoleState::Served { nodes, .. } = &slot.state {
            let nodes = nodes.clone();
            slot.end();
            slot.state = ConsoleState::Failed { nodes };
            self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
        }
        Ok(())
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        std::mem::take(&mut self.news)
    }

    fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        // Also those that wait for a ring that follows: they stay open.
        self.domains.values().filter_map(ConsoleSlot::terminal).map(Terminal::stream)
    }

    fn ready(&mut self, stream: DescriptorId) {
        let Some(slot) = self.streams.get(&stream).and_then(|domid| self.domains.get_mut(domid))
        else {
            return;
        };
        if let Some(terminal) = slot.terminal_mut() {
            terminal.ready();
        }
    }

    fn tend(&mut self, _: &mut Client, now: Instant) -> Result<TendOutcome, Error> {
        while self.ended.front().is_some_and(|ended| ended.until <= now) {
            self.ended.pop_front();
        }
        // Once for many guests that come together.
        if !self.is_due() && std::mem::take(&mut self.logs_opened) {
            let used: BTreeSet<&str> =
                self.domains.values().map(|slot| slot.log_name.as_str()).collect();
            self.logs_opened = self.settings.trim_logs(|name| used.contains(name));
        }
        let streams_changed = std::mem::take(&mut self.streams_changed);
        Ok(TendOutcome { streams_changed, ..TendOutcome::default() })
    }
}

impl OpenConsoles for FirstConsoles {
    fn find(&self, domain: &[u8]) -> Option<ConsoleId> {
        let slot = match parse(domain) {
            Some(domid) => self.domains.get(&domid),
            // A domain without a name has none that could be asked for.
            None if domain.is_empty() => None,
            None => self.domains.values().find(|slot| slot.name == domain),
        };
        slot.filter(|slot| matches!(slot.state, ConsoleState::Served { .. })).map(|slot| slot.id)
    }

    fn output(&self, console: ConsoleId) -> ConsoleOutput<'_> {
        if let Some(slot) = self.slot(console) {
            let backlog = match &slot.state {
                ConsoleState::Served { console, .. } => Some(console.backlog()),
                _ => slot.kept.as_ref().map(|(_, backlog)| backlog),
            };
            return ConsoleOutput { backlog, ended: false };
        }
        let ended = self.ended.iter().find(|ended| ended.id == console);
        ConsoleOutput { backlog: ended.map(|ended| &ended.backlog), ended: true }
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
        if let Some(terminal) = self.slot(console).and_then(ConsoleSlot::terminal) {
            // It is for programs that ask the terminal; without it they have 80 by 24.
            let _ = terminal.pty().set_size(columns, rows);
        }
    }
}

/// True if the guest's port can be bound: no end of it is here.
fn is_free(platform: &Platform, domid: DomId, port: Port) -> bool {
    // Dropped, it is free again.
    Channel::bind(&platform.evtchn, domid, port).is_ok()
}

/// The reason why a console is not connected.
enum ConnectFailure {
    /// Its ring is broken.
    Ring(Error),
    /// Anything else: it may be over in a moment.
    Other(Error),
}

impl From<Error> for ConnectFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<BrokenRing> for ConnectFailure {
    fn from(BrokenRing(error): BrokenRing) -> Self {
        Self::Ring(error)
    }
}

/// Notes in the index of a log that a life of the domain begins, or that an earlier process's goes on.
fn note_life(
    log: &mut ConsoleLog,
    record: Option<&ConsoleRecord>,
    life: u64,
    domid: DomId,
) -> std::io::Result<()> {
    let recorded = record.and_then(ConsoleRecord::read).map(|state| state.life);
    if recorded == Some(life) { log.resume(time_us()) } else { log.begin_life(domid.0, time_us()) }
}

/// The identity of a ring in a domain's life (FNV-1a). Numbers of domains are used again; the path of
/// the virtual machine has its UUID. A domain that is reset has another port.
fn life(domid: DomId, machine: Option<&[u8]>, nodes: &ConsoleNodes) -> u64 {
    let numbers = [u64::from(domid.0), nodes.port.0.into(), nodes.frame];
    let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
    let bytes = numbers.chain(machine.unwrap_or_default().iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn id(domid: DomId) -> Id {
    Id { frontend: domid, devid: 0 }
}

fn failure(domid: DomId, sentence: String) -> DeviceNews {
    DeviceNews { id: id(domid), event: DeviceEvent::Error(Error::Driver(sentence)) }
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
