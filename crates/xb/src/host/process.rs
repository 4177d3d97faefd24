//! The process of a daemon: starting it, finding it again, ending it.

use super::daemons::{DaemonArgument, HostDaemon};
use super::files::FileWatch;
use super::folder::{Folder, FolderContent};
use super::{programs, signs};
use crate::Error;
use crate::wait::Limit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::WatchFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::Timespec;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The time that a daemon has to end when it is asked, and again when it is killed. All of them one
/// after the other take less than systemd gives `host down`.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// The time between two looks at a process that is being stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl HostDaemon {
    fn command(&self, folder: &Folder) -> Result<Command, Error> {
        let mut command = Command::new(programs::find(self.program)?);
        for argument in self.arguments {
            match argument {
                DaemonArgument::Word(word) => command.arg(word),
                DaemonArgument::Place(place) => command.arg(place(folder)),
                DaemonArgument::ImageDirs(option) => command
                    .args(folder.image_dirs().iter().flat_map(|dir| [Path::new(option), dir])),
            };
        }
        command.envs(self.environment.iter().map(|(name, place)| (name, place(folder))));
        command
            .env("XEN_HOSTED_HOST", folder.broker().path())
            .env("XENSTORED_PATH", folder.store());
        signs::ask_for(&mut command, self.is_backend().then(|| folder.signs(self.name())));
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        Ok(command)
    }

    /// Returns the path of its record: its number, and when it started.
    pub(super) fn pid_file(&self, folder: &Folder) -> PathBuf {
        folder.run().join(format!("{}.pid", self.name()))
    }

    /// Returns its process, if it runs.
    #[must_use]
    pub fn running(&self, folder: &Folder) -> Option<DaemonProcess> {
        if !matches!(folder.look(), Ok(FolderContent::Host)) {
            return None;
        }
        let text = std::fs::read_to_string(self.pid_file(folder)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        // The handle is opened before the check, so that the check is of the process of the handle.
        let process = DaemonProcess::open(Pid::from_raw(pid.parse().ok()?)?)?;
        let same = started_at(process.pid).as_deref() == Some(started);
        same.then_some(process)
    }

    /// Starts its process, and records it. It may not serve yet.
    ///
    /// # Errors
    /// Its log, its program or its record cannot be used.
    pub(crate) fn spawn(&self, folder: &Folder) -> Result<Child, Error> {
        let path = self.log(folder);
        // The log of an earlier run stays, with the reason of its end; the keeper limits its size.
        let log = File::options().append(true).create(true).open(&path);
        let log = log.map_err(Error::io(path.display()))?;
        let errors = log.try_clone().map_err(Error::io(path.display()))?;
        let mut command = self.command(folder)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.stdout(log).stderr(errors).spawn().map_err(Error::io(program))?;
        if let Err(error) = self.note(folder, &child) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// A sentence, with the end of its log where it has one.
    pub fn start(&self, folder: &Folder, limit: Limit) -> Result<(), Error> {
        let name = self.name();
        let path = self.log(folder);
        let log = File::options().append(true).create(true).open(&path);
        let log = log.and_then(|log| log.metadata()).map_err(Error::io(path.display()))?;
        let watch = FileWatch::new(&path, WatchFlags::MODIFY).map_err(Error::io(path.display()))?;
        let mut child = self.spawn(folder)?;
        let served = serves(self, &mut child, (&path, log.len()), &watch, limit);
        if served.is_err() {
            // It may have ended by itself; if not, it removes its files when it is asked to end.
            if let Some(process) = DaemonProcess::of(&child) {
                let _ = process.end(name);
            }
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(self.pid_file(folder));
        }
        served
    }

    /// Ends it, if it runs.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn stop(&self, folder: &Folder) -> Result<(), Error> {
        if let Some(process) = self.running(folder) {
            process.end(self.name())?;
        }
        let _ = std::fs::remove_file(self.pid_file(folder));
        Ok(())
    }

    /// Writes the pid file.
    fn note(&self, folder: &Folder, child: &Child) -> Result<(), Error> {
        let pid = child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let started = raw.and_then(started_at).unwrap_or_default();
        let path = self.pid_file(folder);
        std::fs::write(&path, format!("{pid} {started}\n")).map_err(Error::io(path.display()))
    }
}

/// Returns the fields of a process's `stat` from the third on, see proc_pid_stat(5).
fn stat_of(pid: Pid) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field is a name in brackets, which may contain anything.
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some(fields.map(str::to_owned).collect())
}

/// Returns the letter of a process's state: `T` of one that is stopped.
pub(super) fn state_of(pid: Pid) -> Option<char> {
    stat_of(pid)?.first()?.chars().next()
}

/// Returns the start of a process: the 22nd field of its `stat`, in clock ticks since the machine's
/// start; `None` for a zombie.
fn started_at(pid: Pid) -> Option<String> {
    let mut fields = stat_of(pid)?.into_iter();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18) }
}

/// Reads a log from byte `from` on, or all of a log that was emptied meanwhile.
fn read_from(path: &Path, from: u64) -> Result<String, Error> {
    let log = std::fs::read(path).map_err(Error::io(path.display()))?;
    let new = usize::try_from(from).ok().and_then(|from| log.get(from..)).unwrap_or(&log);
    Ok(String::from_utf8_lossy(new).into_owned())
}

/// Waits until its log, from a byte on, says that it serves, or until it ends.
fn serves(
    daemon: &HostDaemon,
    child: &mut Child,
    (path, from): (&Path, u64),
    watch: &FileWatch,
    limit: Limit,
) -> Result<(), Error> {
    let name = daemon.name();
    loop {
        let log = read_from(path, from)?;
        // A line without an end is not complete yet.
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
        watch.wait(limit, &|| format!("{name} serves (its log: {})", path.display()))?;
    }
}

/// A daemon's process.
#[derive(Debug)]
pub struct DaemonProcess {
    /// Its number.
    pub pid: Pid,
    handle: OwnedFd,
}

impl DaemonProcess {
    /// Returns the process of a child that was not waited for yet.
    pub(crate) fn of(child: &Child) -> Option<Self> {
        Self::open(Pid::from_child(child))
    }

    /// Returns the process that has this number now.
    pub(crate) fn open(pid: Pid) -> Option<Self> {
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { pid, handle })
    }

    /// Asks it to end, and waits until it has ended; kills it if it does not end.
    ///
    /// # Errors
    /// A sentence where it cannot be ended.
    pub fn end(&self, name: &str) -> Result<(), Error> {
        self.signal(Signal::TERM);
        // One that is stopped would not be told.
        self.signal(Signal::CONT);
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

    /// Kills it at once, as a crash would.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.ended(ENDS_WITHIN);
    }

    /// Stops it, and waits until it is stopped. It goes on with SIGCONT, and ends by [`kill`](Self::kill).
    ///
    /// # Errors
    /// [`Error::Timeout`] if it ends instead.
    pub(crate) fn suspend(&self, limit: Limit) -> Result<(), Error> {
        self.signal(Signal::STOP);
        while state_of(self.pid) != Some('T') {
            let pid = self.pid.as_raw_nonzero();
            let slice = limit.slice(&|| format!("process {pid} is stopped"))?;
            std::thread::sleep(slice.min(LOOK_AGAIN));
        }
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // A process that has ended needs no signal.
        let _ = rustix::process::pidfd_send_signal(&self.handle, signal);
    }

    /// True if it ends within this time.
    pub(crate) fn ended(&self, within: Duration) -> bool {
        let within = Timespec::try_from(within).ok();
        matches!(poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], within.as_ref()), Ok(1..))
    }
}

impl AsFd for DaemonProcess {
    /// Returns its handle, which polls readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::ENDS_WITHIN;
    use crate::host::daemons::DAEMONS;

    #[test]
    fn all_end_within_the_time_that_systemd_gives() {
        let unit = include_str!("../../systemd/xb-host.service");
        let seconds = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let seconds: u64 = seconds.unwrap().parse().unwrap();
        assert!(2 * ENDS_WITHIN.as_secs() * (DAEMONS.len() as u64) < seconds);
    }
}
