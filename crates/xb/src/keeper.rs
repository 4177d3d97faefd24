//! The keeper: one process of a hosted host that writes what guests print into logs of bounded size, and does what
//! a configuration says when a guest has ended.
//!
//! A guest prints into a FIFO in its folder. Who creates it hands the reading end to the keeper with the guest's name,
//! and goes on once the keeper has said that it has it. Without a keeper no guest is created.
//!
//! The guest's end reads as well, so a guest whose keeper ends is not ended by what it prints: it waits once the FIFO
//! is full. The next keeper opens the FIFOs again and goes on with the logs.
//!
//! A guest that prints without end is read at [`PRINT_RATE`], and waits.
//!
//! The keeper takes away what a dead domain has left in the store, where nobody else does. It bounds the daemons' logs,
//! too.

mod clean;
mod ended;
mod log;

use crate::Error;
use crate::domain::create;
use crate::host::daemons::DAEMONS;
use crate::host::folder::Folder;
use crate::host::{Choice, Host};
use clean::Cleaner;
use ended::Lives;
use log::{LOG_MAX, Log};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock, inotify};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::collections::HashSet;
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::DomId;
use xen::domctl::RunState;

pub use ended::Ended;
pub use log::{PRINT_BURST, PRINT_RATE, await_line, keep_log, log_of};
pub(crate) use log::{await_log, watch_log};

/// How long the keeper may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a guest's name at most.
const NAME_MAX: usize = 64;
/// Guests that have ended, of which logs are kept.
const KEPT: usize = 256;

/// Writes a line of the keeper's own log; where the disk is full, it is lost.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "keeper: {line}");
}

/// Is the keeper of the host in `folder`, until it is ended.
///
/// # Errors
/// The store or the broker is gone, or another keeper is there.
pub fn run(folder: &Folder) -> Result<(), Error> {
    let path = folder.keeper();
    let mut host = Host::open(Choice::Hosted(folder.clone()))?;
    // One keeper at a time is started; see `host::bring`.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::io(path.display()))?;
    listener.set_nonblocking(true).map_err(Error::io(path.display()))?;
    host.store.watch("@releaseDomain", "ended")?;
    say(&format!("serving {}", folder.path().display()));
    let (mut logs, mut settled) = (Log::left(folder), HashSet::new());
    let lives = Lives::default();
    let cleaner = Cleaner::start(folder);
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
            match take_log(folder, &stream, &lives) {
                Ok(log) => {
                    logs.push(log);
                    forget_old(folder, &mut host, &logs, &lives);
                }
                Err(error) => say(&format!("a guest's log: {error}")),
            }
        }
        let before = logs.len();
        logs.retain_mut(Log::take);
        // The store tells of no domain that it was not told of; but nobody prints any more.
        if changed || logs.len() < before {
            cleaner.look();
        }
        if changed {
            settle_all(folder, &mut host, &mut settled, &lives)?;
        }
        // Last: the first event came with the reply to the watch, and is for guests that ended without a keeper.
        wait(&host, &listener, &daemons, &mut logs)?;
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
    for daemon in DAEMONS {
        let path = daemon.log(folder);
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
    logs: &mut [Log],
) -> Result<(), Error> {
    let rests: Vec<Option<Duration>> = logs.iter_mut().map(Log::rests).collect();
    let soonest = rests.iter().flatten().min().and_then(|rest| Timespec::try_from(*rest).ok());
    let mut fds = vec![
        PollFd::new(&host.store, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(daemons, PollFlags::IN),
    ];
    let read = logs.iter().zip(&rests).filter(|(_, rest)| rest.is_none());
    fds.extend(read.map(|(log, _)| PollFd::new(&log.pipe, PollFlags::IN)));
    match poll(&mut fds, soonest.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::io("waiting")(errno.into())),
    }
}

/// The pipe and name that a connection brings; answered once the log is there.
fn take_log(folder: &Folder, mut stream: &UnixStream, lives: &Lives) -> std::io::Result<Log> {
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
    lives.begin(name);
    stream.write_all(b".")?;
    Ok(log)
}

/// Sees who has ended, and has each settled by a thread of its own: devices may take their time.
fn settle_all(
    folder: &Folder,
    host: &mut Host,
    settled: &mut HashSet<(DomId, [u8; 16])>,
    lives: &Lives,
) -> Result<(), Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    settled.retain(|known| infos.iter().any(|info| (info.domid, info.handle) == *known));
    for info in infos {
        if let RunState::Shutdown(reason) = info.state
            && settled.insert((info.domid, info.handle))
        {
            let (folder, lives) = (folder.clone(), lives.clone());
            std::thread::spawn(move || {
                if let Err(error) = ended::settle(&folder, &info, reason, &lives) {
                    say(&format!("domain {}: {error}", info.domid));
                }
            });
        }
    }
    Ok(())
}

/// Removes the folders of guests that have ended longest ago, where there are too many.
fn forget_old(folder: &Folder, host: &mut Host, logs: &[Log], lives: &Lives) {
    let mut ended: Vec<PathBuf> = folder.guest_folders().collect();
    if ended.len() <= logs.len() + KEPT {
        return;
    }
    ended.retain(|guest| !logs.iter().any(|log| log.guest() == Some(guest)));
    let age = |guest: &PathBuf| {
        std::fs::metadata(guest.join("domid")).and_then(|data| data.modified()).ok()
    };
    ended.sort_by_cached_key(age);
    ended.truncate(ended.len().saturating_sub(KEPT));
    for guest in ended {
        let Some(name) = guest.file_name().and_then(|name| name.to_str()) else { continue };
        // One that is kept to be looked at is there still; one that is being created is locked.
        let is_there =
            create::last(folder, name).is_some_and(|domid| host.control().info(domid).is_ok());
        let Ok(dir) = File::open(&guest) else { continue };
        if !is_there && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(&guest);
            lives.forget(name);
        }
    }
}
