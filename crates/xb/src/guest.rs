//! The built-in guest init: the program of a hosted guest that names no kernel.
//!
//! It connects the domain's disks, runs what the command line says (`extra`, by `/bin/sh`), and obeys
//! `control/shutdown`. The program finds each disk as the file `/dev/xvda` where there is FUSE, and as an NBD
//! server at `/tmp/xvda.nbd` where its root is its own; `XEN_DISKS` names them all. Its exit status goes to `data/exit-status`: the
//! domain has shut down where it is 0, and crashed else, as a machine whose init has ended.

use crate::Error;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::time::Timespec;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use xen_block::front::Options;
use xen_block::front::disks::{Disks, TELLS_READY};
use xen_block::front::fuse::Fuse;
use xen_block::vbd;
use xen_driver::process::guest::GuestConnections;
use xen_driver::{Guest, GuestDevices};
use xen_hosted::domain::SHUTDOWN_STATUS;
use xen_io::xenbus::State;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::negotiate::QueueLimits;
use xenstore::{Event, Store};

/// The longest time that a program may take to end once it was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// The limits of a disk: eight disks have room in one arena of 1024 pages.
const DISK: Options =
    Options { rings: QueueLimits { order_max: 1, queues_max: 1 }, segments_max: 64, buffers: 120 };
/// The longest sleep; every event of interest ends it.
const SLEEP: Duration = Duration::from_secs(3600);
/// The watch on requests of the toolstack.
const CONTROL: &str = "control/shutdown";

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

struct Init {
    guest: Guest,
    disks: Disks,
    program: ProgramState,
    line: String,
    request: Option<ShutdownRequest>,
    /// The time at which a program that was asked to end is killed.
    kill_at: Option<Instant>,
    children: UnixStream,
}

/// Runs as the init of the domain whose program this is. Returns the domain's exit status.
///
/// # Errors
/// This is no domain's program, or the store is gone.
pub fn run(line: &str) -> Result<u8, Error> {
    // First: where there is no FUSE, the number of its descriptor is not yet reused.
    let fuse = xen_hosted::guest_devices();
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
    let mut disks = Disks::start(store, open.domid, platform, DISK)?;
    if let Ok(fuse) = fuse {
        disks.serve_files(Fuse::new(fuse));
    }
    // A guest with a root of its own has no /proc; without one, /tmp is everybody's.
    if !Path::new("/proc").exists() {
        disks.serve_sockets("/tmp");
    }
    let (program, request, kill_at) = (ProgramState::Waiting(expected), None, None);
    let guest = open.guest();
    Init { guest, disks, program, line: line.to_owned(), request, kill_at, children }.serve()
}

impl Init {
    fn serve(mut self) -> Result<u8, Error> {
        loop {
            if let ProgramState::Waiting(expected) = self.program
                && self.disks.devices().count() >= expected
            {
                self.start()?;
            }
            self.reap()?;
            if let Some(code) = self.domain_status() {
                return Ok(code);
            }
            let sleep =
                self.kill_at.map_or(SLEEP, |at| at.saturating_duration_since(Instant::now()));
            let kinds: &mut [&mut dyn GuestDevices] = &mut [&mut self.disks];
            let turn = self.guest.turn(kinds, sleep, &[self.children.as_fd()])?;
            turn.news.iter().for_each(|(_, news)| tell(news));
            for event in &turn.events {
                self.take(event)?;
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Error> {
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
            self.kill_at = Some(Instant::now() + ENDS_WITHIN);
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
        command.args(["-c", &self.line]).process_group(0);
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
        if let (Some(at), ProgramState::Running(pid)) = (self.kill_at, &self.program)
            && Instant::now() >= at
        {
            say("the program does not end by SIGTERM; SIGKILL");
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
            self.kill_at = None;
        }
        Ok(())
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
    let error = std::io::stderr();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let room = poll(&mut [PollFd::new(&error, PollFlags::OUT)], Some(&at_once));
    if matches!(room, Ok(1..)) {
        let _ = (&error).write_all(format!("guest-init: {line}\n").as_bytes());
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
