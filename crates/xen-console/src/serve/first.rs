//! The first consoles of all domains: found in the store, connected, ended with their domains.
//!
//! A domain's first console is there before the guest runs, and the guest writes nothing to the
//! store for it. The daemon maps its page, binds its port, and writes the path of a terminal.

use super::console::{ServedConsole, Terminal, broken, time_us};
use super::nodes::{self, ConsoleNodes, DomainNodes};
use super::settings::{BACKLOG_MAX, BACKLOG_MIN, ConsoleSettings, log_name};
use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, ConsoleFiles};
use crate::log::ConsoleLog;
use crate::record::ConsoleRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};
use xen::evtchn::PortStatus;
use xen::gnttab::PageAccess;
use xen::{DomId, GrantRef};
use xen_driver::Channel;
use xen_driver::backend::{DescriptorId, DeviceSet, Platform};
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

/// The first consoles of all domains but this one.
#[derive(Debug)]
pub struct FirstConsoles {
    own_domid: DomId,
    platform: Platform,
    settings: ConsoleSettings,
    domains: BTreeMap<DomId, ConsoleSlot>,
    /// Domains whose nodes are to be looked at.
    due: BTreeSet<DomId>,
    /// The list of domains is to be looked at.
    scan_due: Option<ScanRange>,
    /// The domains of the terminals' descriptors.
    streams: BTreeMap<DescriptorId, DomId>,
    streams_changed: bool,
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
#[derive(Default, Debug)]
struct ConsoleSlot {
    state: ConsoleState,
    /// The name of its log; empty before it has one.
    log_name: String,
    /// The terminal of a console that was ended, for the one that follows.
    terminal: Option<Terminal>,
}

#[derive(Default, Debug)]
enum ConsoleState {
    /// Its nodes are not there, or not for this daemon.
    #[default]
    Absent,
    /// It could not be connected; it is tried again until then.
    Retrying { until: Instant },
    /// It is served.
    Served { nodes: ConsoleNodes, console: Box<ServedConsole> },
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
            scan_due: Some(ScanRange::All),
            streams: BTreeMap::new(),
            streams_changed: false,
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
        self.domains.insert(domid, ConsoleSlot::default());
        Ok(())
    }

    /// Ends the console of a domain that is gone, with its last output.
    fn forget(&mut self, store: &mut Client, domid: DomId) -> Result<(), Error> {
        let Some(slot) = self.domains.remove(&domid) else { return Ok(()) };
        if let ConsoleState::Served { mut console, .. } = slot.state {
            console.drain();
            self.streams_changed = true;
            self.streams.retain(|_, owner| *owner != domid);
            self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Removed });
        }
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
        let Some(slot) = self.domains.get_mut(&domid) else { return Ok(()) };
        match (&slot.state, &nodes) {
            (ConsoleState::Served { nodes: served, console }, Some(nodes))
                if served == nodes && is_bound(&self.platform, console) =>
            {
                return Ok(());
            }
            (ConsoleState::Failed { nodes: failed }, Some(nodes)) if failed == nodes => {
                return Ok(());
            }
            _ => {}
        }
        slot.end();
        let Some(nodes) = nodes else { return Ok(()) };
        match self.connect(domid, &nodes, &about) {
            Ok(console) => {
                self.serve(store, domid, nodes, console)?;
            }
            Err(error) => self.retry(domid, error),
        }
        Ok(())
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
    ) -> Result<ServedConsole, Error> {
        let channel = Channel::bind(&self.platform.evtchn, domid, nodes.port)?;
        let mapped =
            self.platform.grants.borrow_mut().map(domid, GrantRef::CONSOLE, PageAccess::ReadWrite);
        let page = mapped.map_err(Error::platform("mapping the console's page"))?.into_page();
        let life = life(domid, about.machine.as_deref());
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
        let ring = ConsoleBackRing::new(page);
        let files = ConsoleFiles { log, record, format };
        let feed = ConsoleFeed::new(ring, files, Backlog::new(backlog), life);
        let feed = feed.map_err(broken)?;
        if feed.ring().was_served().map_err(broken)? {
            // An earlier daemon may have been killed between the move of an index and its event.
            channel.notify()?;
        }
        let slot = self.domains.get_mut(&domid);
        let terminal = slot
            .and_then(|slot| slot.terminal.take())
            .map_or_else(|| Terminal::open(0).map(Some), |terminal| Ok(Some(terminal)));
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
        if used(&name, &self.domains) {
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
            let path = terminal.pty().path().as_os_str().as_bytes();
            match nodes::write_terminal(store, domid, path).map_err(Error::from) {
                Err(error) if error.is_store_gone() => return Err(error),
                Err(error) => {
                    self.news.push(DeviceNews { id: id(domid), event: DeviceEvent::Error(error) });
                }
                Ok(()) => {}
            }
        }
        if let Some(slot) = self.domains.get_mut(&domid) {
            slot.state = ConsoleState::Served { nodes, console: Box::new(console) };
        }
        let event = DeviceEvent::State(xenbus::State::Connected);
        self.news.push(DeviceNews { id: id(domid), event });
        Ok(())
    }
}

impl ConsoleSlot {
    /// Ends the ring that is served, and keeps its terminal.
    fn end(&mut self) {
        match std::mem::replace(&mut self.state, ConsoleState::Absent) {
            ConsoleState::Served { mut console, .. } => {
                console.drain();
                self.terminal = console.into_terminal();
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
        let waits = |slot: &ConsoleSlot| matches!(slot.state, ConsoleState::Retrying { .. });
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
        self.backends_ref().filter_map(|(_, console)| console.terminal()).map(Terminal::stream)
    }

    fn ready(&mut self, stream: DescriptorId) {
        let Some(slot) = self.streams.get(&stream).and_then(|domid| self.domains.get_mut(domid))
        else {
            return;
        };
        if let ConsoleState::Served { console, .. } = &mut slot.state
            && let Some(terminal) = console.terminal_mut()
        {
            terminal.ready();
        }
    }

    fn tend(&mut self, _: &mut Client, _: Instant) -> Result<bool, Error> {
        // Once for many guests that come together.
        if !self.is_due() && std::mem::take(&mut self.logs_opened) {
            let used: BTreeSet<&str> =
                self.domains.values().map(|slot| slot.log_name.as_str()).collect();
            self.settings.trim_logs(|name| used.contains(name));
        }
        Ok(std::mem::take(&mut self.streams_changed))
    }
}

/// True if the console's port still leads to its domain.
fn is_bound(platform: &Platform, console: &ServedConsole) -> bool {
    use xen_driver::backend::Backend;
    let mut ports = console.ports();
    ports.all(|port| {
        let status = platform.evtchn.borrow_mut().status(port);
        // Where the platform does not tell, the nodes are the only word.
        !matches!(status, Ok(PortStatus::Closed | PortStatus::Unbound(_)))
    })
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

/// The identity of a domain's life. Numbers of domains are used again; the path of its virtual machine
/// has its UUID.
fn life(domid: DomId, machine: Option<&[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (domid.0, machine).hash(&mut hasher);
    hasher.finish()
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
