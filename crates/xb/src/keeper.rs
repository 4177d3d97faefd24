//! The keeper: one process of a hosted host that does the action of the configuration when a guest
//! has ended.
//!
//! It removes the nodes that a dead domain has left in the store, where nobody else does. The creator
//! of a guest tells it first (`host/creation.rs`), and no guest is created without a keeper.
//!
//! It also limits the size of the daemons' logs. What guests print is in the hands of `xenconsoled`.

mod clean;
mod log;
mod settle;

use crate::Error;
use crate::host::creation::KnownCreation;
use crate::host::files::FileWatch;
use crate::host::folder::Folder;
use crate::host::guest_folder::GuestFolder;
use crate::host::{Host, HostChoice};
use clean::Cleaner;
use log::{bound_logs, say};
use rustix::event::{PollFd, PollFlags, poll};
use settle::LifeTable;
use std::collections::HashSet;
use std::os::unix::net::UnixListener;
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};

/// The number of ended guests whose folders are kept.
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
    let (mut creations, mut settled) = (Vec::new(), HashSet::new());
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
            match KnownCreation::accept(stream) {
                Ok((creation, name)) => {
                    lives.begin(&name);
                    creations.push(creation);
                }
                Err(error) => say(&format!("the creation of a guest: {error}")),
            }
        }
        let before = creations.len();
        creations.retain_mut(|creation| !creation.is_over());
        // The store has no event for a domain that it was never told of.
        if changed || creations.len() < before {
            cleaner.look();
            forget_old(folder, &mut host, &lives);
        }
        if changed {
            settle_all(folder, &mut host, &mut settled, &lives)?;
        }
        // Last: the first event came with the reply to the watch, and is for guests that ended
        // without a keeper.
        wait(&host, &listener, &daemons, &creations)?;
    }
}

fn wait(
    host: &Host,
    listener: &UnixListener,
    daemons: &FileWatch,
    creations: &[KnownCreation],
) -> Result<(), Error> {
    let mut fds = vec![
        PollFd::new(&host.store, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(daemons, PollFlags::IN),
    ];
    fds.extend(creations.iter().map(|creation| PollFd::new(creation, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::io("waiting")(errno.into())),
    }
}

/// Finds guests that have ended, and settles each in a thread of its own, as devices may take long.
fn settle_all(
    folder: &Folder,
    host: &mut Host,
    settled: &mut HashSet<(DomId, [u8; 16])>,
    lives: &LifeTable,
) -> Result<(), Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    // A successor may have the number and the handle of one that was settled.
    settled.retain(|known| {
        let same = |info: &&DomainInfo| (info.domid, info.handle) == *known;
        infos.iter().find(same).is_some_and(|info| matches!(info.state, RunState::Shutdown(_)))
    });
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
fn forget_old(folder: &Folder, host: &mut Host, lives: &LifeTable) {
    let mut ended: Vec<GuestFolder> = folder.guest_folders().collect();
    if ended.len() <= KEPT {
        return;
    }
    let Ok(infos) = host.control().list() else { return };
    let domids: HashSet<DomId> = infos.iter().map(|info| info.domid).collect();
    ended.retain(|guest| guest.last().is_none_or(|domid| !domids.contains(&domid)));
    let age = |guest: &GuestFolder| {
        std::fs::metadata(guest.domid()).and_then(|data| data.modified()).ok()
    };
    ended.sort_by_cached_key(age);
    ended.truncate(ended.len().saturating_sub(KEPT));
    for guest in ended {
        // A guest of the name may have come meanwhile; one that is being created is locked.
        let is_there = guest.last().is_some_and(|domid| host.control().info(domid).is_ok());
        let Some(_lock) = guest.try_lock().filter(|_| !is_there) else { continue };
        let _ = std::fs::remove_dir_all(guest.path());
        lives.forget(guest.name());
    }
}
