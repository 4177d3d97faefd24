//! The keeper: one process of a hosted host that writes the output of guests into logs of limited
//! size, and does the action of the configuration when a guest has ended.
//!
//! A guest prints into a FIFO in its folder. Its creator hands the reading end to the keeper with
//! the guest's name, and continues once the keeper has confirmed it. Without a keeper no guest is
//! created.
//!
//! The guest's end is open for reading as well, so a guest is not killed by SIGPIPE when its keeper
//! ends: it waits once the FIFO is full. The next keeper opens the FIFOs again and continues the
//! logs.
//!
//! A guest that prints without end is read at [`PRINT_RATE`], and waits.
//!
//! The keeper removes the nodes that a dead domain has left in the store, where nobody else does.
//! It also limits the size of the daemons' logs.

mod clean;
mod log;
mod settle;

use crate::Error;
use crate::host::daemons::DAEMONS;
use crate::host::files::FileWatch;
use crate::host::folder::Folder;
use crate::host::guest_folder::GuestFolder;
use crate::host::handover::{self, Output};
use crate::host::{Host, HostChoice};
use clean::Cleaner;
use log::{GuestLog, LOG_MAX, say};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use settle::LifeTable;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use xen::DomId;
use xen::domctl::RunState;

pub use log::{PRINT_BURST, PRINT_RATE};

/// The number of ended guests whose logs are kept.
const KEPT: usize = 256;

/// Runs the keeper of the host in `folder`, until it is ended.
///
/// # Errors
/// The store or the broker is gone, or another keeper runs.
pub fn run(folder: &Folder) -> Result<(), Error> {
    let path = folder.keeper();
    let mut host = Host::open(HostChoice::Hosted(folder.clone()))?;
    // One keeper at a time is started; see `host::bring`.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::io(path.display()))?;
    listener.set_nonblocking(true).map_err(Error::io(path.display()))?;
    host.store.watch("@releaseDomain", "ended")?;
    say(&format!("serving {}", folder.path().display()));
    let (mut logs, mut settled) = (GuestLog::open_all(folder), HashSet::new());
    let lives = LifeTable::default();
    let cleaner = Cleaner::start(folder);
    let daemons = folder.watch_logs().map_err(Error::io("the logs"))?;
    loop {
        if daemons.take() {
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
        logs.retain_mut(GuestLog::take);
        // The store has no event for a domain that it was never told of, but such a domain no
        // longer prints.
        if changed || logs.len() < before {
            cleaner.look();
        }
        if changed {
            settle_all(folder, &mut host, &mut settled, &lives)?;
        }
        // Last: the first event came with the reply to the watch, and is for guests that ended
        // without a keeper.
        wait(&host, &listener, &daemons, &mut logs)?;
    }
}

/// Replaces daemons' logs that have become large. Their daemons hold them open for appending, so
/// each is copied and then emptied; lines that are written in between are lost.
fn bound_logs(folder: &Folder) {
    for daemon in DAEMONS {
        let path = daemon.log(folder);
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_MAX) {
            // Without room for a copy the log is emptied all the same, as it fills the disk.
            let _ = std::fs::copy(&path, path.with_extension("1"));
            let _ = File::options().write(true).truncate(true).open(&path);
        }
    }
}

fn wait(
    host: &Host,
    listener: &UnixListener,
    daemons: &FileWatch,
    logs: &mut [GuestLog],
) -> Result<(), Error> {
    let rests: Vec<Option<Duration>> = logs.iter_mut().map(GuestLog::rest_time).collect();
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

/// Takes the log of the guest whose output a connection brings, and answers once the log exists.
fn take_log(folder: &Folder, stream: &UnixStream, lives: &LifeTable) -> std::io::Result<GuestLog> {
    let Output { name, pipe } = Output::receive(stream)?;
    let log = GuestLog::new(folder.guest(&name), pipe)?;
    lives.begin(&name);
    handover::confirm(stream)?;
    Ok(log)
}

/// Finds guests that have ended, and settles each in a thread of its own, as devices may take long.
fn settle_all(
    folder: &Folder,
    host: &mut Host,
    settled: &mut HashSet<(DomId, [u8; 16])>,
    lives: &LifeTable,
) -> Result<(), Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    settled.retain(|known| infos.iter().any(|info| (info.domid, info.handle) == *known));
    for info in infos {
        if let RunState::Shutdown(reason) = info.state
            && settled.insert((info.domid, info.handle))
        {
            let (folder, lives) = (folder.clone(), lives.clone());
            std::thread::spawn(move || {
                if let Err(error) = settle::settle(&folder, &info, reason, &lives) {
                    say(&format!("domain {}: {error}", info.domid));
                }
            });
        }
    }
    Ok(())
}

/// Removes the folders of the guests that ended longest ago, where there are too many.
fn forget_old(folder: &Folder, host: &mut Host, logs: &[GuestLog], lives: &LifeTable) {
    let mut ended: Vec<GuestFolder> = folder.guest_folders().collect();
    if ended.len() <= logs.len() + KEPT {
        return;
    }
    ended.retain(|guest| !logs.iter().any(|log| log.guest() == guest));
    let age = |guest: &GuestFolder| {
        std::fs::metadata(guest.domid()).and_then(|data| data.modified()).ok()
    };
    ended.sort_by_cached_key(age);
    ended.truncate(ended.len().saturating_sub(KEPT));
    for guest in ended {
        // A preserved guest still exists; one that is being created is locked.
        let is_there = guest.last().is_some_and(|domid| host.control().info(domid).is_ok());
        let Some(_lock) = guest.try_lock().filter(|_| !is_there) else { continue };
        let _ = std::fs::remove_dir_all(guest.path());
        lives.forget(guest.name());
    }
}
