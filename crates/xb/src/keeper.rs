//! The keeper: one process of a hosted host that writes what guests print into logs of bounded size, and does what
//! a configuration says when a guest has ended.
//!
//! A guest prints into a FIFO in its folder. Who creates it hands the reading end to the keeper with the guest's name,
//! and goes on once the keeper has said that it has it. Without a keeper no guest is created.
//!
//! The guest's end reads as well, so a guest whose keeper ends is not ended by what it prints: it waits once the FIFO
//! is full. The next keeper opens the FIFOs again and goes on with the logs.
//!
//! The keeper bounds the daemons' logs too.

use crate::config::{self, Action, Description, Syntax};
use crate::domain::create::{self, Then};
use crate::domain::{self, reason_word};
use crate::host::daemon::Daemon;
use crate::host::folder::Folder;
use crate::host::{Choice, Host};
use crate::wait::Limit;
use crate::{Error, devices};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, inotify, mknodat, open};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::time::Timespec;
use std::collections::HashSet;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};
use xen::domwatch::ShutdownReason;
use xenstore::Store;

/// A log at this size is set aside, and the one that was set aside before is dropped.
const LOG_MAX: u64 = 1 << 20;
/// How long the keeper may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// A guest that ends sooner than this is not started again.
const LIVED_MIN: Duration = Duration::from_secs(1);
/// Bytes of a guest's name at most.
const NAME_MAX: usize = 64;
/// Bytes that are taken from a pipe at a time.
const READ_BYTES: usize = 16 << 10;

/// A guest's log.
#[must_use]
pub fn log_of(folder: &Folder, name: &str) -> PathBuf {
    folder.guest(name).join("log")
}

/// Has the keeper write a new log of a guest; what is written into the answer goes there.
///
/// # Errors
/// A sentence where no keeper answers.
pub fn keep_log(folder: &Folder, name: &str) -> Result<OwnedFd, Error> {
    let path = folder.keeper();
    let said = |error: std::io::Error| {
        let cause = crate::text::cause(&error);
        let dir = folder.path().display();
        Error::Refused(format!(
            "the keeper at {} does not answer: {cause}; xb --host {dir} host up starts it",
            path.display()
        ))
    };
    let (read, write) = fifo(&output_of(folder, name))?;
    let mut stream = UnixStream::connect(&path).map_err(said)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(said)?;
    let fds = [read.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        &stream,
        &[IoSlice::new(name.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    sent.map_err(|errno| said(errno.into()))?;
    stream.read_exact(&mut [0]).map_err(said)?;
    Ok(write)
}

/// What a guest prints into.
fn output_of(folder: &Folder, name: &str) -> PathBuf {
    folder.guest(name).join("output")
}

/// Makes a FIFO anew: the keeper's end and the guest's, which reads as well.
fn fifo(path: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    let said = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
    // One of before has another guest's words in it, perhaps.
    let _ = std::fs::remove_file(path);
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(said)?;
    let read = open_output(path).map_err(said)?;
    let write = open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
    Ok((read, write.map_err(said)?))
}

/// The keeper's end of a FIFO; it is not waited for anybody at the other.
fn open_output(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    open(path, flags, Mode::empty())
}

/// Writes a line of the keeper's own log; where the disk is full, it is lost.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "keeper: {line}");
}

/// Waits until a guest has printed a line of which `wanted` makes something; lines of before count.
///
/// # Errors
/// [`Error::Timeout`], [`Error::Interrupted`], or there is no such guest.
pub fn await_line<T>(
    folder: &Folder,
    name: &str,
    limit: Limit,
    wanted: &dyn Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    let path = log_of(folder, name);
    let failed = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
    let watch = watch_log(folder, name).map_err(failed)?;
    loop {
        let text = std::fs::read(&path).map_err(Error::io(path.display()))?;
        let text = String::from_utf8_lossy(&text);
        // A line without an end is not yet what it will be.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(found) = whole.lines().find_map(wanted) {
            return Ok(found);
        }
        await_log(&watch, limit, &|| {
            format!("{name} prints what is waited for ({})", path.display())
        })?;
    }
}

/// Watches a guest's log.
pub(crate) fn watch_log(folder: &Folder, name: &str) -> Result<OwnedFd, rustix::io::Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // The folder, as a full log is set aside.
    inotify::add_watch(
        &watch,
        folder.guest(name),
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE,
    )?;
    Ok(watch)
}

/// Waits until a log that is watched may have grown, or for a moment.
pub(crate) fn await_log(
    watch: &OwnedFd,
    limit: Limit,
    what: &dyn Fn() -> String,
) -> Result<(), Error> {
    let slice = Timespec::try_from(limit.slice(what)?).ok();
    // Whatever comes, the log is looked at again.
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], slice.as_ref());
    let _ = rustix::io::read(watch, &mut [0_u8; 4096]);
    Ok(())
}

/// A guest that has ended, as the keeper saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Its number.
    pub domid: DomId,
    /// Why: a word of [`reason_word`].
    pub reason: String,
    /// What its program ended with, where it said so.
    pub status: Option<u8>,
}

impl Ended {
    /// What is noted of the guest that last had this name.
    #[must_use]
    pub fn of(folder: &Folder, name: &str) -> Option<Self> {
        let text = std::fs::read_to_string(folder.guest(name).join("ended")).ok()?;
        let mut words = text.split_whitespace();
        let domid = DomId(words.next()?.parse().ok()?);
        let reason = words.next()?.to_owned();
        Some(Self { domid, reason, status: words.next().and_then(|word| word.parse().ok()) })
    }

    fn note(&self, folder: &Folder, name: &str) -> std::io::Result<()> {
        let status = self.status.map(|status| status.to_string()).unwrap_or_default();
        let text = format!("{} {} {status}\n", self.domid, self.reason);
        let path = folder.guest(name).join("ended");
        let new = path.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)
    }
}

/// A guest's pipe and log.
struct Log {
    pipe: File,
    path: PathBuf,
    file: File,
    written: u64,
}

impl Log {
    fn new(folder: &Folder, name: &str, pipe: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let path = log_of(folder, name);
        let file = File::create(&path)?;
        Ok(Self { pipe: pipe.into(), path, file, written: 0 })
    }

    /// Those of the guests that print: what a keeper before this one has left.
    fn left(folder: &Folder) -> Vec<Self> {
        let guests = std::fs::read_dir(folder.guests()).into_iter().flatten().flatten();
        guests.filter_map(|guest| Self::again(&guest.path()).ok()).collect()
    }

    fn again(guest: &Path) -> std::io::Result<Self> {
        let pipe = File::from(open_output(&guest.join("output"))?);
        let path = guest.join("log");
        let file = File::options().append(true).create(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { pipe, path, file, written })
    }

    /// Takes what there is; false where nothing will come any more.
    fn take(&mut self) -> bool {
        let mut buffer = [0; READ_BYTES];
        match self.pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                // A disk that is full costs the log, not the guest.
                let _ = self.write(buffer.get(..count).unwrap_or_default());
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.written > LOG_MAX {
            std::fs::rename(&self.path, self.path.with_extension("1"))?;
            self.file = File::create(&self.path)?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// Is the keeper of the host in `folder`, until it is ended.
///
/// # Errors
/// The store or the broker is gone, or another keeper is there.
pub fn run(folder: &Folder) -> Result<(), Error> {
    let path = folder.keeper();
    let mut host = Host::open(Choice::Hosted(folder.clone()))?;
    // One keeper at a time is started; see `host::daemon`.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::io(path.display()))?;
    listener.set_nonblocking(true).map_err(Error::io(path.display()))?;
    host.store.watch("@releaseDomain", "ended")?;
    say(&format!("serving {}", folder.path().display()));
    let (mut logs, mut settled) = (Log::left(folder), HashSet::new());
    let daemons = watch_daemons(folder).map_err(|errno| Error::io("the logs")(errno.into()))?;
    loop {
        if matches!(rustix::io::read(&daemons, &mut [0_u8; 4096]), Ok(1..)) {
            bound_logs(folder);
        }
        let mut changed = false;
        while host.store.poll_event()?.is_some() {
            changed = true;
        }
        while let Ok((stream, _)) = listener.accept() {
            match take_log(folder, &stream) {
                Ok(log) => logs.push(log),
                Err(error) => say(&format!("a guest's log: {error}")),
            }
        }
        logs.retain_mut(Log::take);
        if changed {
            settle_all(folder, &mut host, &mut settled)?;
        }
        // Last: the first event came with the reply to the watch, and is for guests that ended without a keeper.
        wait(&host, &listener, &daemons, &logs)?;
    }
}

/// Watches the daemons' logs.
fn watch_daemons(folder: &Folder) -> Result<OwnedFd, rustix::io::Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, folder.logs(), inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

/// Sets daemons' logs aside that have become large. Their daemons hold them open for appending, so a copy is made and
/// they are emptied; what is written in between is lost.
fn bound_logs(folder: &Folder) {
    for daemon in Daemon::ALL {
        let path = folder.log(daemon.name());
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_MAX) {
            // Without room for a copy the log is emptied all the same: it is what fills the disk.
            let _ = std::fs::copy(&path, path.with_extension("1"));
            let _ = File::options().write(true).truncate(true).open(&path);
        }
    }
}

fn wait(
    host: &Host,
    listener: &UnixListener,
    daemons: &OwnedFd,
    logs: &[Log],
) -> Result<(), Error> {
    let mut fds = vec![
        PollFd::new(&host.store, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(daemons, PollFlags::IN),
    ];
    fds.extend(logs.iter().map(|log| PollFd::new(&log.pipe, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::io("waiting")(errno.into())),
    }
}

/// The pipe and name that a connection brings; answered once the log is there.
fn take_log(folder: &Folder, mut stream: &UnixStream) -> std::io::Result<Log> {
    // Who connects is this user; it sends at once.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut name = [0; NAME_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut ancillary, flags)?;
    let mut pipe = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            pipe = fds.next();
        }
    }
    let wrong = || std::io::Error::other("a name and a pipe are needed");
    let name =
        std::str::from_utf8(name.get(..got.bytes).unwrap_or_default()).map_err(|_| wrong())?;
    let is_name = Path::new(name).components().count() == 1 && !name.starts_with('.');
    let log = Log::new(folder, name, pipe.filter(|_| is_name).ok_or_else(wrong)?)?;
    stream.write_all(b".")?;
    Ok(log)
}

/// Sees who has ended, and has each settled by a thread of its own: devices may take their time.
fn settle_all(
    folder: &Folder,
    host: &mut Host,
    settled: &mut HashSet<(DomId, [u8; 16])>,
) -> Result<(), Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    settled.retain(|known| infos.iter().any(|info| (info.domid, info.handle) == *known));
    for info in infos {
        if let RunState::Shutdown(reason) = info.state
            && settled.insert((info.domid, info.handle))
        {
            let folder = folder.clone();
            std::thread::spawn(move || {
                if let Err(error) = settle(&folder, &info, reason) {
                    say(&format!("domain {}: {error}", info.domid));
                }
            });
        }
    }
    Ok(())
}

/// Does what the configuration of an ended guest says.
fn settle(folder: &Folder, info: &DomainInfo, reason: ShutdownReason) -> Result<(), Error> {
    let domid = info.domid;
    let mut host = Host::open(Choice::Hosted(folder.clone()))?;
    let Some(name) = domain::read(&mut host.store, &format!("{}/name", domain::home(domid)))?
    else {
        return Ok(());
    };
    let guest = folder.guest(&name);
    let status =
        domain::read(&mut host.store, &format!("{}/data/exit-status", domain::home(domid)))?;
    let status = status.and_then(|text| text.parse().ok());
    let ended = Ended { domid, reason: reason_word(reason).into(), status };
    ended.note(folder, &name).map_err(Error::io(guest.display()))?;
    host.store.write(format!("/libxl/{domid}/ended"), &ended.reason)?;
    let text = config::load(&guest.join("config")).map_err(Error::Refused)?;
    let settings = config::parse(&name, &text, Syntax::Xl)?;
    let (description, _) = Description::read(&name, &settings)?;
    let mut action = match reason {
        ShutdownReason::Reboot => description.on_reboot,
        ShutdownReason::Crash | ShutdownReason::Watchdog => description.on_crash,
        _ => description.on_poweroff,
    };
    let lived = std::fs::metadata(guest.join("domid")).and_then(|data| data.modified());
    let lived = lived.ok().and_then(|since| since.elapsed().ok()).unwrap_or_default();
    if action == Action::Restart && lived < LIVED_MIN && reason != ShutdownReason::Reboot {
        say(&format!(
            "{name} has ended after {}: too soon to start it again",
            crate::text::took(lived)
        ));
        action = Action::Destroy;
    }
    say(&format!("{name} (domain {domid}): {}, exit status {status:?}: {action:?}", ended.reason));
    if action == Action::Preserve {
        return Ok(());
    }
    let limit = || Limit::new(devices::CLOSES_WITHIN);
    domain::destroy(&mut host, domid, limit())?;
    if action == Action::Restart {
        let new = create::create(&mut host, &description, &settings, Then::Run, limit())?;
        say(&format!("{name} runs again, as domain {}", new.domid));
    }
    Ok(())
}
