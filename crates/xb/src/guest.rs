//! The built-in guest init: the program of a hosted guest that names no kernel.
//!
//! It connects the domain's disks and its console, runs what the command line says (`extra`, by `/bin/sh`), and obeys
//! `control/shutdown`. The program finds each disk as the file `/dev/xvda` where there is FUSE, and as an NBD
//! server at `/tmp/xvda.nbd` where its root is its own; `XEN_DISKS` names them all. Its exit status goes to `data/exit-status`: the
//! domain has shut down where it is 0, and crashed else, as a machine whose init has ended.

use crate::Error;
use crate::devd::{BackendPlace, GUEST_STORE, Supervisor};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xen::DomId;
use xen_block::front::Options;
use xen_block::front::disks::{Disks, TELLS_READY};
use xen_block::front::fuse::Fuse;
use xen_block::vbd;
use xen_console::front::ConsoleFrontend;
use xen_driver::process::guest::GuestConnections;
use xen_driver::{Guest, GuestDevices};
use xen_hosted::domain::SHUTDOWN_STATUS;
use xen_io::xenbus::State;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::negotiate::QueueLimits;
use xenstore::share::SharedStore;
use xenstore::{Client, Event, Store};

/// The longest time that a program may take to end once it was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// The part of that time after which a program with a terminal is told that the terminal hangs up: a
/// shell that somebody types into ignores the request to end.
const HANGS_UP_AFTER: Duration = Duration::from_secs(3);
/// The longest time for which the last output of a program that has ended waits for the console's
/// daemon.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// The type of terminal that the program is told of: what every emulation understands.
const TERMINAL: &str = "vt220";
/// The limits of a disk: eight disks have room in one arena of 1024 pages.
const DISK: Options =
    Options { rings: QueueLimits { order_max: 1, queues_max: 1 }, segments_max: 64, buffers: 120 };
/// The longest sleep; every event of interest ends it.
const SLEEP: Duration = Duration::from_secs(3600);
/// The time after which a process that does not read what the store tells it is tried again.
const UNREAD_AGAIN: Duration = Duration::from_millis(10);
/// The watch on requests of the toolstack.
const CONTROL: &str = "control/shutdown";

/// The role of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestRole {
    /// It uses devices.
    Plain,
    /// It serves devices of others, too.
    DriverDomain,
}

/// A request of the toolstack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ShutdownRequest {
    Poweroff,
    Reboot,
}

/// The state of the program.
enum ProgramState {
    /// It waits until as many disks are there as were at the start.
    Waiting(usize),
    /// It runs.
    Running(Pid),
    /// There is none, or it has ended with this status.
    Ended(Option<u8>),
}

/// A program that was asked to end.
#[derive(Clone, Copy, Debug)]
struct EndingProgram {
    hang_up_at: Option<Instant>,
    kill_at: Instant,
}

impl EndingProgram {
    fn asked_now(has_terminal: bool) -> Self {
        let now = Instant::now();
        let hang_up_at = has_terminal.then_some(now + HANGS_UP_AFTER);
        Self { hang_up_at, kill_at: now + ENDS_WITHIN }
    }

    /// Returns the time of the next signal.
    fn next(&self) -> Instant {
        self.hang_up_at.unwrap_or(self.kill_at)
    }
}

/// The backends of a driver domain.
struct GuestBackends {
    supervisor: Supervisor,
    /// The store, for the backends' processes.
    shared: SharedStore,
}

struct Init {
    guest: Guest,
    backends: Option<GuestBackends>,
    disks: Disks,
    /// The console; none where the sandbox has no terminals.
    console: Option<ConsoleFrontend>,
    program: ProgramState,
    line: String,
    request: Option<ShutdownRequest>,
    ending: Option<EndingProgram>,
    /// The end of the time in which the last output is to be taken by the console's daemon.
    show_until: Option<Instant>,
    children: UnixStream,
}

/// Runs as the init of the domain whose program this is; of a driver domain, also as the supervisor
/// of its backends. Returns the domain's exit status.
///
/// # Errors
/// This is no domain's program, or the store is gone.
pub fn run(line: &str, role: GuestRole) -> Result<u8, Error> {
    // First: where there is no FUSE, the number of its descriptor is not yet reused.
    let fuse = xen_hosted::guest_devices();
    let terminal = xen_hosted::guest_terminal().ok();
    // Not in a guest of Xen, whose kernel has its devices.
    let mut open = GuestConnections::hosted()
        .map_err(|error| Error::Refused(format!("guest-init: {error}")))?;
    let (store, platform) = (&mut open.store, open.platform.clone());
    // Made with these flags, as the sandbox has no ioctl(2) to change them.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (children, write) = pair.map_err(|errno| Error::io("guest-init")(errno.into()))?;
    let children = UnixStream::from(children);
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, write)
        .map_err(Error::io("SIGCHLD"))?;
    store.watch(CONTROL, CONTROL)?;
    for feature in ["control/feature-poweroff", "control/feature-reboot"] {
        store.write(feature, "1")?;
    }
    // All devices that exist at the start are known before the program runs.
    let expected = store.list("device/vbd")?.len();
    store.write(TELLS_READY, "1")?;
    let console = match (open.console.take(), terminal) {
        (Some(ring), Some(terminal)) => {
            let evtchn = platform.evtchn.clone();
            Some(ConsoleFrontend::start(store, open.domid, evtchn, ring, terminal)?)
        }
        _ => None,
    };
    let mut disks = Disks::start(store, open.domid, platform, DISK)?;
    if let Ok(fuse) = fuse {
        disks.serve_files(Fuse::new(fuse));
    }
    // A guest with a root of its own has no /proc; without one, /tmp is everybody's.
    if !Path::new("/proc").exists() {
        disks.serve_sockets("/tmp");
    }
    let backends = match (role, open.hosted.take()) {
        (GuestRole::DriverDomain, Some(platform)) => {
            Some(GuestBackends::start(platform, &mut open.store, open.domid)?)
        }
        _ => None,
    };
    let init = Init {
        guest: open.guest(),
        backends,
        disks,
        console,
        program: ProgramState::Waiting(expected),
        line: line.to_owned(),
        request: None,
        ending: None,
        show_until: None,
        children,
    };
    init.serve()
}

impl GuestBackends {
    fn start(
        platform: xen_hosted::Platform,
        store: &mut Client,
        domid: DomId,
    ) -> Result<Self, Error> {
        let shared = SharedStore::bind(Path::new(GUEST_STORE)).map_err(Error::io(GUEST_STORE))?;
        let place = BackendPlace::HostedGuest(platform);
        let supervisor = Supervisor::start(place, store, domid)?;
        Ok(Self { supervisor, shared })
    }

    /// Does what is to be done now. Returns the longest time until the next look.
    fn look(&mut self, store: &mut Client) -> Result<Duration, Error> {
        let next = self.supervisor.look(store)?;
        self.shared.serve(store)?;
        let left = next.saturating_duration_since(Instant::now());
        Ok(if self.shared.has_unread() { left.min(UNREAD_AGAIN) } else { left })
    }

    fn take(&mut self, store: &mut Client, event: &Event) -> Result<(), Error> {
        if self.shared.take(event) { Ok(()) } else { self.supervisor.take(store, event) }
    }
}

impl Init {
    fn serve(mut self) -> Result<u8, Error> {
        loop {
            if let ProgramState::Waiting(expected) = self.program
                && self.disks.devices().count() >= expected
            {
                self.start()?;
            }
            let until = self.ending.map(|ending| ending.next()).or(self.show_until);
            let mut sleep = until.map_or(SLEEP, |at| at.saturating_duration_since(Instant::now()));
            // Its own disks may be what it serves: a backend that finds none there gives devices up.
            let has_disks = !matches!(self.program, ProgramState::Waiting(_));
            if let Some(backends) = self.backends.as_mut().filter(|_| has_disks) {
                // Before others are waited for, so that the ends of its own are told.
                sleep = sleep.min(backends.look(self.guest.store())?);
            }
            self.reap()?;
            if let Some(code) = self.domain_status()
                && self.is_shown()
            {
                return Ok(code);
            }
            let mut waited = vec![self.children.as_fd()];
            if let Some(GuestBackends { supervisor, shared }) = &self.backends {
                waited.extend(supervisor.descriptors().chain(shared.descriptors()));
            }
            let mut kinds: Vec<&mut dyn GuestDevices> = vec![&mut self.disks];
            kinds.extend(self.console.as_mut().map(|console| console as &mut dyn GuestDevices));
            let turn = self.guest.turn(&mut kinds, sleep, &waited)?;
            for (kind, news) in &turn.news {
                match kind {
                    0 => tell(news),
                    _ => tell_of_console(news),
                }
            }
            for event in &turn.events {
                self.take(event)?;
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Error> {
        if let Some(backends) = &mut self.backends {
            backends.take(self.guest.store(), event)?;
        }
        if *event.token != *CONTROL.as_bytes() {
            return Ok(());
        }
        let request = self.guest.store().transaction(|tx| {
            let word = tx.read(CONTROL)?;
            if !word.is_empty() {
                // The request is acknowledged.
                tx.write(CONTROL, "")?;
            }
            Ok(word)
        })?;
        self.request = match request.as_slice() {
            b"poweroff" | b"halt" => Some(ShutdownRequest::Poweroff),
            b"reboot" => Some(ShutdownRequest::Reboot),
            _ => self.request,
        };
        if self.request.is_some()
            && let ProgramState::Running(pid) = self.program
        {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
            self.ending = Some(EndingProgram::asked_now(self.console.is_some()));
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), Error> {
        if self.line.is_empty() {
            self.program = ProgramState::Ended(None);
            return Ok(());
        }
        let names: Vec<String> = self.disks.devices().map(|(name, _)| name).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &self.line]);
        match &self.console {
            Some(console) => give_terminal(&mut command, console.peer())?,
            None => drop(command.process_group(0)),
        }
        command.env("XEN_DISKS", names.join(" "));
        for variable in xen_hosted::descriptors::VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn().map_err(Error::io("/bin/sh"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        self.program = pid.map_or(ProgramState::Ended(Some(127)), ProgramState::Running);
        Ok(())
    }

    /// Reaps processes: the program, and those that it left behind.
    fn reap(&mut self) -> Result<(), Error> {
        let mut bytes = [0; 64];
        while self.children.read(&mut bytes).is_ok_and(|count| count > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if matches!(self.program, ProgramState::Running(program) if program == pid) {
                let status = exit_status(status);
                self.guest.store().write("data/exit-status", status.to_string())?;
                self.program = ProgramState::Ended(Some(status));
            }
        }
        self.hasten();
        Ok(())
    }

    /// Sends a program that does not end the signals that are due.
    fn hasten(&mut self) {
        let (Some(ending), ProgramState::Running(pid)) = (&mut self.ending, &self.program) else {
            self.ending = None;
            return;
        };
        let now = Instant::now();
        if ending.hang_up_at.is_some_and(|at| now >= at) {
            ending.hang_up_at = None;
            let _ = rustix::process::kill_process_group(*pid, Signal::HUP);
        }
        if now >= ending.kill_at {
            say("the program does not end by SIGTERM; SIGKILL");
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
            self.ending = None;
        }
    }

    /// True once the last output is in the console's ring, or has waited long enough for room in it.
    fn is_shown(&mut self) -> bool {
        let Some(console) = &mut self.console else { return true };
        let until = *self.show_until.get_or_insert_with(|| Instant::now() + SHOWN_WITHIN);
        !console.has_output() || Instant::now() >= until
    }

    /// Returns the domain's exit status, if the domain is to end.
    fn domain_status(&self) -> Option<u8> {
        match (&self.program, self.request) {
            (ProgramState::Running(_), _) => None,
            (_, Some(ShutdownRequest::Reboot)) => Some(SHUTDOWN_STATUS + 1),
            (_, Some(ShutdownRequest::Poweroff)) | (ProgramState::Ended(Some(0)), None) => Some(0),
            (ProgramState::Ended(Some(_)), None) => Some(1),
            (ProgramState::Waiting(_) | ProgramState::Ended(None), None) => None,
        }
    }
}

/// Writes a line into the log, where there is room: nobody reads it while the keeper is gone, and
/// disks have to be served all the same.
fn say(line: &str) {
    crate::text::print_where_room(&std::io::stderr(), &format!("guest-init: {line}\n"));
}

/// Makes the terminal's end that is for programs the terminal of a session that `command` leads.
fn give_terminal(command: &mut Command, peer: &OwnedFd) -> Result<(), Error> {
    let end = || peer.try_clone().map(Stdio::from).map_err(Error::io("the terminal"));
    command.stdin(end()?).stdout(end()?).stderr(end()?).env("TERM", TERMINAL);
    xen_hosted::lead_session(command);
    Ok(())
}

/// Logs news of the console.
fn tell_of_console(news: &DeviceNews) {
    if let DeviceEvent::Error(error) = &news.event {
        say(&format!("console: {error}"));
    }
}

/// Logs news of disks.
fn tell(news: &DeviceNews) {
    let name = vbd::name(news.id.devid);
    match &news.event {
        DeviceEvent::State(state @ (State::Connected | State::Closed)) => {
            say(&format!("disk {name}: {state}"));
        }
        DeviceEvent::Error(error) => say(&format!("disk {name}: {error}")),
        _ => {}
    }
}

/// Returns the exit status of a process as a shell has it.
fn exit_status(status: WaitStatus) -> u8 {
    let signal = status.terminating_signal().map(|signal| signal.saturating_add(128));
    let status = status.exit_status().or(signal).unwrap_or(255);
    u8::try_from(status).unwrap_or(255)
}
