//! The processes of a hosted host: started, found again, ended.

use super::folder::{Folder, Found};
use super::programs;
use crate::Error;
use crate::wait::Limit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::Timespec;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a daemon may take to end when it is asked, and when it is killed. All four one after the other take
/// less than systemd gives `host down`.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A process of a hosted host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Daemon {
    /// `xen-hosted`: plays the hypervisor.
    Broker,
    /// `xenstored`.
    Store,
    /// `xen-blockd`: serves disks.
    Block,
    /// `xb keeper`: keeps guests' logs, and acts when they end.
    Keeper,
}

impl Daemon {
    /// All, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Broker, Self::Store, Self::Keeper, Self::Block];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Store => "xenstored",
            Self::Block => "xen-blockd",
            Self::Keeper => "keeper",
        }
    }

    /// Its program, beside this one.
    fn program(self) -> Result<PathBuf, Error> {
        match self {
            Self::Keeper => std::env::current_exe().map_err(Error::io("this program's own path")),
            Self::Broker => programs::beside("xen-hosted"),
            Self::Store | Self::Block => programs::beside(self.name()),
        }
    }

    fn command(self, folder: &Folder) -> Result<Command, Error> {
        let mut command = Command::new(self.program()?);
        let broker = folder.broker();
        match self {
            Self::Broker => command.arg(broker.path()),
            Self::Store => command
                .arg("--no-fork")
                .env("XENSTORED_RUNDIR", folder.run())
                .env("XENSTORED_ROOTDIR", folder.run()),
            Self::Block => {
                command.arg("--record-dir").arg(folder.record());
                folder
                    .image_dirs()
                    .iter()
                    .fold(&mut command, |command, dir| command.arg("--image-dir").arg(dir))
            }
            Self::Keeper => command.arg("--host").arg(folder.path()).arg("keeper"),
        };
        command.env("XEN_HOSTED_HOST", broker.path()).env("XENSTORED_PATH", folder.store());
        command.env_remove("NOTIFY_SOCKET").current_dir("/").stdin(Stdio::null()).process_group(0);
        Ok(command)
    }

    /// Whether a line of its log says that it serves.
    fn says_serving(self, line: &str) -> bool {
        match self {
            Self::Broker => line.starts_with("xen-hosted: serving "),
            Self::Store => line.contains(" pid=") && line.ends_with(" msg=\"serving\""),
            Self::Block => line.starts_with("xen-blockd: serving "),
            Self::Keeper => line.starts_with("keeper: serving "),
        }
    }

    fn pid_file(self, folder: &Folder) -> PathBuf {
        folder.run().join(format!("{}.pid", self.name()))
    }

    /// Its process, if it runs.
    #[must_use]
    pub fn running(self, folder: &Folder) -> Option<Process> {
        if !matches!(folder.look(), Ok(Found::Host)) {
            return None;
        }
        let text = std::fs::read_to_string(self.pid_file(folder)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        // First the handle, then the look: what is looked at is what the handle is of.
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let same = started_at(pid).as_deref() == Some(started);
        same.then_some(Process { pid, handle })
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// A sentence, with the end of its log where it has one.
    pub fn start(self, folder: &Folder, limit: Limit) -> Result<(), Error> {
        let name = self.name();
        let path = folder.log(name);
        // What one before has said stays, and says why it ended; the keeper bounds it.
        let log = File::options().append(true).create(true).open(&path);
        let log = log.map_err(Error::io(path.display()))?;
        let from = log.metadata().map_err(Error::io(path.display()))?.len();
        let watch = watch(&path).map_err(|errno| Error::io(path.display())(errno.into()))?;
        let mut command = self.command(folder)?;
        let errors = log.try_clone().map_err(Error::io(path.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.stdout(log).stderr(errors).spawn().map_err(Error::io(program))?;
        let written = self.note(folder, &child);
        let served = written.and_then(|()| serves(self, &mut child, (&path, from), &watch, limit));
        if served.is_err() {
            // It may have ended by itself; if not, it has made things that it takes away when it is asked to end.
            if let Some(process) = Process::of(&child) {
                let _ = process.end(name);
            }
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(self.pid_file(folder));
        }
        served
    }

    /// Writes the pid file.
    fn note(self, folder: &Folder, child: &Child) -> Result<(), Error> {
        let pid = child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let started = raw.and_then(started_at).unwrap_or_default();
        let path = self.pid_file(folder);
        std::fs::write(&path, format!("{pid} {started}\n")).map_err(Error::io(path.display()))
    }
}

/// When a process began: the 22nd field of its `stat`, in clock ticks since the machine's start. A zombie is none.
fn started_at(pid: Pid) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18).map(str::to_owned) }
}

fn watch(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

/// Reads a log from a byte on, or all of one that was emptied meanwhile.
fn read_from(path: &Path, from: u64) -> Result<String, Error> {
    let log = std::fs::read(path).map_err(Error::io(path.display()))?;
    let new = usize::try_from(from).ok().and_then(|from| log.get(from..)).unwrap_or(&log);
    Ok(String::from_utf8_lossy(new).into_owned())
}

/// Waits until its log says that it serves, from a byte on, or it ends.
fn serves(
    daemon: Daemon,
    child: &mut Child,
    (path, from): (&Path, u64),
    watch: &OwnedFd,
    limit: Limit,
) -> Result<(), Error> {
    let name = daemon.name();
    loop {
        let log = read_from(path, from)?;
        // A line without an end is not yet what it will be.
        if log
            .rsplit_once('\n')
            .is_some_and(|(whole, _)| whole.lines().any(|line| daemon.says_serving(line)))
        {
            return Ok(());
        }
        if let Some(status) = child.try_wait().map_err(Error::io(name))? {
            let last = log.lines().rev().find(|line| !line.trim().is_empty());
            let last = last.map_or_else(|| status.to_string(), str::to_owned);
            return Err(Error::Refused(format!("{name} does not start: {last}")));
        }
        let slice = limit.slice(&|| format!("{name} serves (its log: {})", path.display()))?;
        let slice = Timespec::try_from(slice).ok();
        // Whatever comes, the log is looked at again.
        let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], slice.as_ref());
        let _ = rustix::io::read(watch, &mut [0_u8; 1024]);
    }
}

/// A daemon's process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// A child that was not waited for yet.
    fn of(child: &Child) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(child.id()).ok()?)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { pid, handle })
    }

    /// Asks it to end, and waits until it has; ends it if it does not.
    ///
    /// # Errors
    /// A sentence where it cannot be ended.
    pub fn end(&self, name: &str) -> Result<(), Error> {
        self.signal(Signal::TERM);
        if self.ended(ENDS_WITHIN) {
            return Ok(());
        }
        self.signal(Signal::KILL);
        if self.ended(ENDS_WITHIN) {
            return Ok(());
        }
        let pid = self.pid.as_raw_nonzero();
        Err(Error::Refused(format!("{name} (pid {pid}) does not end, not even by SIGKILL")))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.ended(ENDS_WITHIN);
    }

    fn signal(&self, signal: Signal) {
        // One that has ended needs none.
        let _ = rustix::process::pidfd_send_signal(&self.handle, signal);
    }

    /// Whether it ends within this time.
    fn ended(&self, within: Duration) -> bool {
        let within = Timespec::try_from(within).ok();
        matches!(poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], within.as_ref()), Ok(1..))
    }
}

/// What [`up`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Came {
    /// Everything ran before.
    WasUp,
    /// Something was started.
    Up,
}

/// Starts what does not run of a host. A disks' daemon that runs is started anew where one of `image_dirs` is new to it:
/// guests see a pause.
///
/// # Errors
/// The first that does not start; what was started for it is ended again. A folder that is not there.
pub fn up(folder: &Folder, image_dirs: &[PathBuf], limit: Limit) -> Result<Came, Error> {
    folder.make()?;
    let _lock = lock(folder)?;
    if folder.add_image_dirs(image_dirs)? {
        stop(Daemon::Block, folder)?;
    }
    let mut started = Vec::new();
    for daemon in Daemon::ALL {
        if daemon.running(folder).is_some() {
            continue;
        }
        if let Err(error) = daemon.start(folder, limit) {
            for before in started.into_iter().rev() {
                stop(before, folder)?;
            }
            if Daemon::ALL.into_iter().all(|daemon| daemon.running(folder).is_none())
                && clear(folder).is_ok()
            {
                folder.remove();
            }
            return Err(error);
        }
        started.push(daemon);
    }
    Ok(if started.is_empty() { Came::WasUp } else { Came::Up })
}

/// One at a time changes which daemons run.
fn lock(folder: &Folder) -> Result<File, Error> {
    let path = folder.run();
    let dir = File::open(&path).map_err(Error::io(path.display()))?;
    let flags = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::flock(&dir, flags) {
        Ok(()) => Ok(dir),
        Err(_) => Err(Error::Refused(format!(
            "another xb is bringing the host in {} up or down; try again when it is done",
            folder.path().display()
        ))),
    }
}

/// Ends one daemon, if it runs.
///
/// # Errors
/// Where it cannot be ended.
pub fn stop(daemon: Daemon, folder: &Folder) -> Result<(), Error> {
    if let Some(process) = daemon.running(folder) {
        process.end(daemon.name())?;
    }
    let _ = std::fs::remove_file(daemon.pid_file(folder));
    Ok(())
}

/// Ends all daemons and what a killed broker has left, and removes the folder. Domains are to be destroyed before.
///
/// # Errors
/// Something does not end: the folder stays, so that it can be tried again.
pub fn down(folder: &Folder) -> Result<(), Error> {
    if folder.look()? != Found::Host {
        return Ok(());
    }
    let _lock = lock(folder)?;
    for daemon in [Daemon::Keeper, Daemon::Block, Daemon::Store, Daemon::Broker] {
        stop(daemon, folder)?;
    }
    clear(folder)?;
    folder.remove();
    Ok(())
}

/// Ends what a broker has left.
///
/// # Errors
/// Something does not end: the folder is to stay, as it has the note of that.
fn clear(folder: &Folder) -> Result<(), Error> {
    let broker = folder.broker();
    let left = xen_hosted::hypervisor::clear(&broker);
    let left = left.map_err(Error::io(broker.path().display()))?;
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    let dir = folder.path().display();
    Err(Error::Refused(format!(
        "the daemons of the host in {dir} have ended, and of its guests is left: {}; \
         xb --host {dir} host down tries again",
        left.join(", ")
    )))
}
