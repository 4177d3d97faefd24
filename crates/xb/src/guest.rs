//! The built-in guest init: what a hosted guest runs that names no kernel.
//!
//! It connects the domain's disks, runs what the command line says (`extra`, by `/bin/sh`), and obeys
//! `control/shutdown`. The program finds each disk as an NBD server at `/tmp/xvda.nbd`. Its exit status goes to
//! `data/exit-status`; the domain has shut down where it is 0, and crashed else, as a machine whose init has
//! ended.

use crate::Error;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::time::Timespec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::evtchn::{EventChannels, Shared};
use xen_block::front::export::Export;
use xen_block::front::{Front, Options, Platform};
use xen_hosted::domain::SHUTDOWN_STATUS;
use xen_hosted::evtchn::Channels;
use xen_io::xenbus::State;
use xenbus::bus::What;
use xenbus::{Bus, Id, Side};
use xenstore::{Client, Event, Store};

/// How long a program may take to end once it was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Where programs find their disks.
const DISKS: &str = "/tmp";
/// The watch on what the toolstack asks for.
const CONTROL: &str = "control/shutdown";

/// What the toolstack has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Poweroff,
    Reboot,
}

/// What runs, and how far it has come.
enum Program {
    /// Waits until the disks are there.
    Waiting,
    Running(Pid),
    /// There is none, or it has ended with this status.
    Ended(Option<u8>),
}

struct Init {
    store: Client,
    channels: Shared<Channels>,
    bus: Bus<Front>,
    exports: BTreeMap<Id, Export>,
    program: Program,
    line: String,
    asked: Option<Asked>,
    /// When a program that was asked to end is ended.
    kill_at: Option<Instant>,
    children: UnixStream,
}

/// Is the init of the domain whose program this is; returns what the domain ends with.
///
/// # Errors
/// This is no domain's program, or store or backend are gone.
pub fn run(line: &str) -> Result<u8, Error> {
    let failed = |what: &'static str| Error::platform(format!("guest-init: {what}"));
    let platform = xen_hosted::Platform::guest()
        .map_err(failed("this is for domains; xb create makes one"))?;
    let channels = platform.channels().and_then(Shared::new).map_err(failed("event channels"))?;
    let mut offers = platform.offers();
    let (page, port) = platform.store_ring(&mut offers).map_err(failed("the store's ring"))?;
    let mut store = Client::over_ring(page, port, Box::new(channels.clone()));
    let front = Rc::new(Platform {
        evtchn: Rc::new(RefCell::new(channels.clone())),
        grants: Rc::new(RefCell::new(offers)),
        options: Options::default(),
    });
    let (children, write) = UnixStream::pair().map_err(Error::io("guest-init"))?;
    children.set_nonblocking(true).map_err(Error::io("guest-init"))?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, write)
        .map_err(Error::io("SIGCHLD"))?;
    store.watch(CONTROL, CONTROL)?;
    for feature in ["control/feature-poweroff", "control/feature-reboot"] {
        store.write(feature, "1")?;
    }
    let bus = Bus::start(&mut store, Side::Frontend, platform.domid(), "vbd", move |_| {
        Front::new(Rc::clone(&front))
    })?;
    let (program, asked, kill_at) = (Program::Waiting, None, None);
    let (exports, line) = (BTreeMap::new(), line.to_owned());
    let init = Init { store, channels, bus, exports, program, line, asked, kill_at, children };
    init.serve()
}

impl Init {
    fn serve(mut self) -> Result<u8, Error> {
        // All devices that are there at the start are known before the program runs.
        let expected = crate::domain::children(&mut self.store, "device/vbd")?.len();
        loop {
            let mut ports = Vec::new();
            while let Some(port) =
                self.channels.pending().map_err(Error::platform("event channels"))?
            {
                ports.push(port);
            }
            while let Some(event) = self.store.poll_event()? {
                self.take(&event)?;
            }
            self.tell();
            let mut moved = self.serve_disks()?;
            if matches!(self.program, Program::Waiting) && self.all_connected(expected) {
                self.start()?;
            }
            self.reap()?;
            if let Some(code) = self.over()? {
                return Ok(code);
            }
            for port in ports {
                // It may have been closed meanwhile.
                let _ = self.channels.unmask(port);
            }
            for (_, front) in self.bus.drivers() {
                moved |= front.final_check()?;
            }
            if !moved {
                self.sleep()?;
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Error> {
        if *event.token != *CONTROL.as_bytes() {
            self.bus.take(&mut self.store, event)?;
            return Ok(());
        }
        let asked = self.store.transaction(|tx| {
            let word = tx.read(CONTROL)?;
            if !word.is_empty() {
                // It is taken note of.
                tx.write(CONTROL, "")?;
            }
            Ok(word)
        })?;
        self.asked = match asked.as_slice() {
            b"poweroff" | b"halt" => Some(Asked::Poweroff),
            b"reboot" => Some(Asked::Reboot),
            _ => self.asked,
        };
        if self.asked.is_some()
            && let Program::Running(pid) = self.program
        {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
            self.kill_at = Some(Instant::now() + ENDS_WITHIN);
        }
        Ok(())
    }

    /// What happens to disks goes to the log.
    fn tell(&mut self) {
        for news in self.bus.take_news() {
            match news.what {
                What::State(state @ (State::Connected | State::Closed)) => {
                    eprintln!("guest-init: disk {}: {state}", name(news.id));
                }
                What::Error(error) => eprintln!("guest-init: disk {}: {error}", name(news.id)),
                _ => {}
            }
        }
    }

    /// Whether every disk that was there at the start can be used.
    fn all_connected(&self, expected: usize) -> bool {
        let connected = self.bus.ids().filter(|id| self.bus.state(*id) == Some(State::Connected));
        connected.count() >= expected
    }

    fn serve_disks(&mut self) -> Result<bool, Error> {
        let connected: Vec<Id> = self.bus.ids().collect();
        self.exports.retain(|id, _| connected.contains(id));
        let mut moved = false;
        for id in connected {
            let is_connected = self.bus.state(id) == Some(State::Connected);
            if is_connected && !self.exports.contains_key(&id) {
                let path = socket(id);
                let export = Export::listen(&path).map_err(Error::io(path.display()))?;
                self.exports.insert(id, export);
            }
            if let (Some(export), Some(front)) = (self.exports.get_mut(&id), self.bus.driver(id)) {
                match export.turn(front) {
                    Ok(count) => moved |= count > 0,
                    Err(error) => self.bus.fail(&mut self.store, id, error)?,
                }
            }
        }
        Ok(moved)
    }

    fn start(&mut self) -> Result<(), Error> {
        if self.line.is_empty() {
            self.program = Program::Ended(None);
            return Ok(());
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &self.line]).process_group(0);
        command.env_remove(xen_hosted::domain::GUEST_VARIABLE).env("XEN_DISKS", DISKS);
        let child = command.spawn().map_err(Error::io("/bin/sh"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        self.program = pid.map_or(Program::Ended(Some(127)), Program::Running);
        Ok(())
    }

    /// Takes the ends of processes: the program's, and of those that it left behind.
    fn reap(&mut self) -> Result<(), Error> {
        let mut bytes = [0; 64];
        while self.children.read(&mut bytes).is_ok_and(|count| count > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if matches!(self.program, Program::Running(program) if program == pid) {
                let status = exit_status(status);
                self.store.write("data/exit-status", status.to_string())?;
                self.program = Program::Ended(Some(status));
            }
        }
        if let (Some(at), Program::Running(pid)) = (self.kill_at, &self.program)
            && Instant::now() >= at
        {
            eprintln!("guest-init: the program does not end by SIGTERM; SIGKILL");
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
            self.kill_at = None;
        }
        Ok(())
    }

    /// What the domain ends with, if it does.
    fn over(&mut self) -> Result<Option<u8>, Error> {
        Ok(match (&self.program, self.asked) {
            (Program::Running(_), _) => None,
            (_, Some(Asked::Reboot)) => Some(SHUTDOWN_STATUS + 1),
            (_, Some(Asked::Poweroff)) | (Program::Ended(Some(0)), None) => Some(0),
            (Program::Ended(Some(_)), None) => Some(1),
            (Program::Waiting | Program::Ended(None), None) => None,
        })
    }

    fn sleep(&self) -> Result<(), Error> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.channels.fd(), PollFlags::IN),
            PollFd::new(&self.children, PollFlags::IN),
        ];
        for export in self.exports.values() {
            let flags =
                if export.has_output() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.extend(export.fds().map(|fd| PollFd::from_borrowed_fd(fd, flags)));
        }
        let left = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::io("waiting")(errno.into())),
        }
    }
}

/// What a shell says of a process that has ended.
fn exit_status(status: WaitStatus) -> u8 {
    let signal = status.terminating_signal().map(|signal| signal.saturating_add(128));
    let status = status.exit_status().or(signal).unwrap_or(255);
    u8::try_from(status).unwrap_or(255)
}

/// A disk's name: `xvda` for 51712, its number where it has none.
fn name(id: Id) -> String {
    let letter = |disk: u32| u8::try_from(disk).ok().map(|disk| char::from(b'a' + disk));
    let partition =
        |partition: u32| if partition == 0 { String::new() } else { partition.to_string() };
    let named = match (id.devid >> 8, id.devid & 0xff) {
        (202, minor) => {
            letter(minor >> 4).map(|disk| format!("xvd{disk}{}", partition(minor & 15)))
        }
        (8, minor) => letter(minor >> 4).map(|disk| format!("sd{disk}{}", partition(minor & 15))),
        (3, minor) => letter(minor >> 6).map(|disk| format!("hd{disk}{}", partition(minor & 63))),
        (22, minor) => {
            letter(2 + (minor >> 6)).map(|disk| format!("hd{disk}{}", partition(minor & 63)))
        }
        _ => None,
    };
    named.unwrap_or_else(|| id.devid.to_string())
}

fn socket(id: Id) -> PathBuf {
    Path::new(DISKS).join(format!("{}.nbd", name(id)))
}
