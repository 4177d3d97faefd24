//! One further console or channel, as its bus calls it.
//!
//! Source: `docs/misc/console.txt`, `docs/misc/channel.txt`; libxl's `libxl_console.c`; what Linux's
//! frontend does (`drivers/tty/hvc/hvc_xen.c`).
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, ConsoleFiles, ConsoleSources};
use crate::serve::channel::ChannelError;
use crate::serve::console::ServedConsole;
use crate::serve::files::open_files;
use crate::serve::first::KEPT_WITHIN;
use crate::serve::nodes::{OWN_TYPE, identity};
use crate::serve::ring::{open_ring, wake_guest};
use crate::serve::settings::{BACKLOG_MIN, ConsoleSettings, log_name};
use crate::serve::slot::EndedConsole;
use crate::serve::terminal::{ReaderKind, Terminal};
use crate::service::ConsoleId;
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::{GrantRef, Port};
use xen_driver::Channel;
use xen_driver::backend::Platform;
use xen_driver::backend::connects::ConnectLimit;
use xen_io::console::ConsoleBackRing;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Device, Driver, Error, Id, Progress};

/// The highest number of a console that is served, and so the most further consoles of a domain.
pub const NUMBER_MAX: u32 = 16;
/// The most bytes of output of a further console that wait for a reader, whatever `limit` says: all
/// those of a domain take as much memory as its first one.
pub const FURTHER_BACKLOG_MAX: usize = 64 << 10;
/// The most connects of a frontend, and the time within which they are counted: each opens a log.
const CONNECTS_MAX: (u32, Duration) = (16, Duration::from_secs(10));
/// The time for which a process that was killed may still have the frontend's port.
const BOUND_MAX: Duration = Duration::from_secs(5);
/// The most bytes of a node that an error repeats.
const VALUE_MAX: usize = 64;

/// The surroundings that all further consoles share.
#[derive(Debug)]
pub(super) struct FurtherContext {
    platform: Platform,
    settings: Rc<ConsoleSettings>,
    /// The consoles whose devices are gone.
    ended: RefCell<Vec<EndedConsole>>,
    news: RefCell<Vec<DeviceNews>>,
    /// The number of consoles that there were.
    count: Cell<u64>,
    streams_changed: Cell<bool>,
    /// A log was opened: there may be too many.
    logs_opened: Cell<bool>,
}

impl FurtherContext {
    pub(super) fn new(platform: Platform, settings: Rc<ConsoleSettings>) -> Self {
        Self {
            platform,
            settings,
            ended: RefCell::default(),
            news: RefCell::default(),
            count: Cell::default(),
            streams_changed: Cell::default(),
            logs_opened: Cell::default(),
        }
    }

    /// Adds a sentence about a console to the news.
    pub(super) fn report(&self, id: Id, sentence: String) {
        let event = DeviceEvent::Error(Error::Driver(sentence));
        self.news.borrow_mut().push(DeviceNews { id, event });
    }

    pub(super) fn take_news(&self) -> Vec<DeviceNews> {
        self.news.take()
    }

    pub(super) fn take_ended(&self) -> Vec<EndedConsole> {
        self.ended.take()
    }

    pub(super) fn take_streams_changed(&self) -> bool {
        self.streams_changed.take()
    }

    /// Removes logs where there are too many.
    pub(super) fn trim_logs(&self) {
        if self.logs_opened.take() {
            self.logs_opened.set(self.settings.trim_logs());
        }
    }

    /// Forgets what outlives the process, of a console that is gone.
    pub(super) fn forget(&self, id: Id) {
        self.settings.remove_record(id);
        self.settings.log_names.release(id);
    }
}

/// The use of a console, as the toolstack has written it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ConsoleUse {
    /// People read it.
    Console,
    /// A program reads it, through a pseudoterminal.
    PtyChannel,
    /// A program reads it, through the socket at this path.
    SocketChannel(PathBuf),
}

impl ConsoleUse {
    /// Reads it from this end's nodes, which the guest cannot write.
    fn read(device: &mut Device<'_>) -> Result<Self, Error> {
        match device.own("connection")?.as_deref() {
            None | Some(b"pty") if device.own("name")?.is_none() => Ok(Self::Console),
            None | Some(b"pty") => Ok(Self::PtyChannel),
            Some(b"socket") => socket_path(device).map(Self::SocketChannel),
            Some(other) => {
                let value = other.get(..other.len().min(VALUE_MAX)).unwrap_or_default().to_vec();
                let path = format!("{}/connection", device.path());
                Err(Error::Bad { path, value, wanted: "pty or socket" })
            }
        }
    }
}

/// Reads the path of a channel's socket. One that another domain may have written is not used: this
/// process makes files where that domain could not.
fn socket_path(device: &mut Device<'_>) -> Result<PathBuf, Error> {
    let path = format!("{}/path", device.path());
    let is_guarded = device.own_is_guarded("path")?;
    let value = device.own("path")?.ok_or_else(|| Error::Missing { path: path.clone() })?;
    if !is_guarded {
        return Err(Error::Driver(format!(
            "another domain may write {path}, so no socket is made there; \
             let domain {} alone write it",
            device.domid()
        )));
    }
    Ok(OsStr::from_bytes(&value).into())
}

/// The history of a ring that is to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RingOrigin {
    /// The frontend has just made it.
    New,
    /// A process that has ended has served it.
    TakenOver,
}

/// A further console or a channel.
pub(super) struct FurtherConsole {
    id: Id,
    context: Rc<FurtherContext>,
    name: ConsoleId,
    purpose: ConsoleUse,
    connects: ConnectLimit,
    /// The time at which an earlier process was first found to have the frontend's port still.
    bound_since: Option<Instant>,
    /// The console, once the device is offered; without a ring while its frontend has none.
    console: Option<Box<ServedConsole>>,
    has_ring: bool,
}

impl fmt::Debug for FurtherConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("FurtherConsole");
        debug.field("id", &self.id).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl FurtherConsole {
    pub(super) fn new(id: Id, context: Rc<FurtherContext>) -> Self {
        let count = context.count.get().saturating_add(1);
        context.count.set(count);
        Self {
            id,
            name: ConsoleId { domid: id.frontend.0, number: id.devid, count },
            context,
            purpose: ConsoleUse::Console,
            connects: ConnectLimit::new(CONNECTS_MAX),
            bound_since: None,
            console: None,
            has_ring: false,
        }
    }

    /// Returns the name of the console in the daemon.
    pub(super) fn name(&self) -> ConsoleId {
        self.name
    }

    /// Returns the console, once the device is offered.
    pub(super) fn console(&self) -> Option<&ServedConsole> {
        self.console.as_deref()
    }

    pub(super) fn console_mut(&mut self) -> Option<&mut ServedConsole> {
        self.console.as_deref_mut()
    }

    /// Returns the console, while it has a ring.
    pub(super) fn served_mut(&mut self) -> Option<&mut ServedConsole> {
        self.console.as_deref_mut().filter(|_| self.has_ring)
    }

    /// Ends the service of the ring, with its last output.
    pub(super) fn end_ring(&mut self) {
        if let Some(console) = self.served_mut() {
            console.end_ring();
        }
        self.has_ring = false;
    }

    /// Opens the terminal unless that is done, and shows its path, which a guest that could make its
    /// folder anew would have forged.
    fn prepare(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        self.open_console(device)?;
        let terminal = self.console().and_then(ServedConsole::terminal);
        let Some(pty) = terminal.and_then(Terminal::pty) else { return Ok(()) };
        match device.show("tty", pty.path().as_os_str().as_bytes()) {
            Err(gone) if gone.is_store_gone() => return Err(gone),
            Err(error) => {
                self.context.report(self.id, format!("its terminal is not shown: {error}"));
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Opens the terminal, unless that is done.
    fn open_console(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        if self.console.is_some() {
            return Ok(());
        }
        let Id { frontend, devid } = self.id;
        if devid > NUMBER_MAX {
            return Err(Error::Driver(format!(
                "console {devid} of domain {frontend} is not served: \
                 a domain has consoles up to {NUMBER_MAX}; give it a lower number"
            )));
        }
        self.purpose = ConsoleUse::read(device)?;
        let most = u32::try_from(FURTHER_BACKLOG_MAX).unwrap_or(u32::MAX);
        let limit = usize::try_from(device.their_setting("limit", most)?).unwrap_or(usize::MAX);
        let terminal = self.open_terminal()?;
        let backlog = Backlog::new(limit.clamp(BACKLOG_MIN, FURTHER_BACKLOG_MAX));
        self.set_console(None, ConsoleFiles::default(), (terminal, backlog), 0);
        self.context.streams_changed.set(true);
        Ok(())
    }

    /// Opens the terminal. One that people would read may be missing: there is the log.
    fn open_terminal(&self) -> Result<Option<Terminal>, Error> {
        let reader = match &self.purpose {
            ConsoleUse::SocketChannel(path) => return listen(path).map(Some),
            ConsoleUse::Console => ReaderKind::People,
            ConsoleUse::PtyChannel => ReaderKind::Program,
        };
        let opened = Terminal::open(reader, 0).map_err(|error| {
            self.context.report(self.id, format!("it has no terminal: {error}"));
        });
        Ok(opened.ok())
    }

    /// Maps the ring and binds the port that the frontend has named.
    fn open_ring(&self, device: &mut Device<'_>) -> Result<(Channel, ConsoleBackRing), Error> {
        let grant = GrantRef(device.their_needed("ring-ref")?);
        let port = Port(device.their_needed("port")?);
        Ok(open_ring(&self.context.platform, device.peer(), port, grant)?)
    }

    /// Serves a ring.
    fn serve(
        &mut self,
        device: &mut Device<'_>,
        ring: (Channel, ConsoleBackRing),
        origin: RingOrigin,
    ) -> Result<(), Error> {
        let Id { frontend, devid } = self.id;
        let machine = device.of_their_domain("vm")?;
        let life = identity(&[frontend.0.into(), devid.into()], machine.as_deref());
        let context = Rc::clone(&self.context);
        let is_logged = self.purpose == ConsoleUse::Console || context.settings.log_channels;
        let guest = if is_logged { device.of_their_domain("name")? } else { None };
        let log = guest.map(|name| log_name(&name, devid));
        context.logs_opened.set(context.logs_opened.get() || log.is_some());
        let (files, failed) = open_files(&context.settings, self.id, log, life);
        if let Some(error) = failed {
            context.report(self.id, format!("its log cannot be opened: {error}"));
        }
        if let Some(record) = files.record.as_ref().filter(|_| origin == RingOrigin::New) {
            // It is of a ring that was there before. One that stays may cost bytes of the log.
            let cleared = record.clear();
            cleared.map_err(|error| Error::Driver(format!("its record: {error}")))?;
        }
        let kept = self.console.take().map(|console| console.into_kept());
        let (terminal, backlog, _) =
            kept.unwrap_or_else(|| (None, Backlog::new(BACKLOG_MIN), None));
        self.set_console(Some(ring), files, (terminal, backlog), life);
        Ok(())
    }

    /// Sets the console, over this ring.
    fn set_console(
        &mut self,
        ring: Option<(Channel, ConsoleBackRing)>,
        files: ConsoleFiles,
        (terminal, backlog): (Option<Terminal>, Backlog),
        life: u64,
    ) {
        self.has_ring = ring.is_some();
        let (channel, ring) = ring.unzip();
        let sources = ConsoleSources { ring, fifo: None };
        let feed = ConsoleFeed::new(sources, files, backlog, life);
        wake_guest(channel.as_ref(), feed.ring());
        let settings = &self.context.settings;
        let (overflow, rate) = (settings.overflow, settings.rates.of(self.id.frontend));
        let console = ServedConsole::new(channel, feed, terminal, overflow, rate);
        self.console = Some(Box::new(console));
    }

    /// True while it is not too long ago that the frontend's port was found bound first.
    fn may_wait_for_port(&mut self) -> bool {
        self.bound_since.get_or_insert_with(Instant::now).elapsed() < BOUND_MAX
    }
}

impl Driver for FurtherConsole {
    fn serves(&mut self, device: &mut Device<'_>) -> Result<bool, Error> {
        match device.theirs("type")? {
            Some(kind) => Ok(kind == OWN_TYPE),
            // Where the frontend has removed all of its nodes, nobody knows whose it was.
            None => Ok(device.theirs("backend-id")?.is_some()),
        }
    }

    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.prepare(device).map(|()| Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        if !self.connects.allows_another() {
            return Ok(Progress::Pending);
        }
        self.connects.note();
        self.prepare(device)?;
        let ring = self.open_ring(device)?;
        self.serve(device, ring, RingOrigin::New).map(|()| Progress::Done)
    }

    fn reattach(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.prepare(device)?;
        let ring = match self.open_ring(device) {
            Err(Error::PortTaken(_)) if self.may_wait_for_port() => return Ok(Progress::Pending),
            ring => ring?,
        };
        self.serve(device, ring, RingOrigin::TakenOver).map(|()| Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        self.end_ring();
        Progress::Done
    }
}

impl Drop for FurtherConsole {
    fn drop(&mut self) {
        // What clients have not got yet is kept for a while; the terminal is not.
        if let Some(mut console) = self.console.take() {
            console.end();
            self.context.streams_changed.set(true);
            let until = Instant::now().checked_add(KEPT_WITHIN).unwrap_or_else(Instant::now);
            // Who asks by the domain's name has had it open before.
            let ended = EndedConsole { id: self.name, name: Vec::new(), console, until };
            self.context.ended.borrow_mut().push(ended);
        }
    }
}

fn listen(path: &Path) -> Result<Terminal, Error> {
    Terminal::listen(path, 0).map_err(|error| match error {
        ChannelError::InUse(_) => Error::Busy(error.to_string()),
        _ => Error::Driver(error.to_string()),
    })
}
