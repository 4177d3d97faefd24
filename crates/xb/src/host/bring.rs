//! The bringing up and taking down of a hosted host, with all its daemons.

use super::daemons::{DAEMONS, HostDaemon};
use super::folder::{Folder, FolderContent};
use crate::Error;
use crate::wait::Limit;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

/// The time between two looks at a lock that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The outcome of [`up`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Startup {
    /// Everything ran before.
    WasUp,
    /// Something was started.
    Started,
}

/// Starts the daemons of a host that do not run. A daemon that serves images is restarted where one
/// of `image_dirs` is new to it: guests see a pause.
///
/// # Errors
/// The first daemon that does not start; the daemons that were started before it are ended again. A
/// folder that does not exist.
pub fn up(folder: &Folder, image_dirs: &[PathBuf], limit: Limit) -> Result<Startup, Error> {
    folder.make()?;
    let _lock = lock(folder)?;
    let _start = StartLock::wait(folder, limit)?;
    if folder.add_image_dirs(image_dirs)? {
        for daemon in DAEMONS.iter().filter(|daemon| daemon.takes_image_dirs()) {
            daemon.stop(folder)?;
        }
    }
    let mut started = Vec::new();
    for daemon in DAEMONS {
        if daemon.running(folder).is_some() {
            continue;
        }
        if let Err(error) = daemon.start(folder, limit) {
            for before in started.into_iter().rev() {
                HostDaemon::stop(before, folder)?;
            }
            if DAEMONS.iter().all(|daemon| daemon.running(folder).is_none())
                && clear(folder).is_ok()
            {
                folder.remove(left());
            }
            return Err(error);
        }
        started.push(daemon);
    }
    Ok(if started.is_empty() { Startup::WasUp } else { Startup::Started })
}

/// Locks the host, as only one command at a time may start and end daemons.
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

/// The lock of whoever starts daemons of a host: a command that brings it up, or its supervisor.
#[derive(Debug)]
pub(crate) struct StartLock {
    _file: File,
}

impl StartLock {
    /// Takes the lock; `None` if another process has it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn try_take(folder: &Folder) -> Result<Option<Self>, Error> {
        let path = folder.start_lock();
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(path.display()))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io(path.display())(errno.into())),
        }
    }

    /// Waits for the lock, which the supervisor has for a moment only.
    fn wait(folder: &Folder, limit: Limit) -> Result<Self, Error> {
        loop {
            if let Some(lock) = Self::try_take(folder)? {
                return Ok(lock);
            }
            let slice = limit.slice(&|| "the supervisor has started a backend".into())?;
            std::thread::sleep(slice.min(LOOK_AGAIN));
        }
    }
}

/// Ends all daemons and what a killed broker has left, and removes the folder. Domains have to be
/// destroyed before, and the keeper stopped, which would start them again.
///
/// # Errors
/// A process does not end: the folder stays, so that another attempt is possible.
pub fn down(folder: &Folder) -> Result<(), Error> {
    if folder.look()? != FolderContent::Host {
        return Ok(());
    }
    let _lock = lock(folder)?;
    for daemon in DAEMONS.iter().rev() {
        daemon.stop(folder)?;
    }
    clear(folder)?;
    folder.remove(left());
    Ok(())
}

/// Returns the names of all files that daemons leave in the folder.
fn left() -> impl Iterator<Item = &'static str> {
    DAEMONS.iter().flat_map(HostDaemon::leaves).copied()
}

/// Ends what a broker has left.
///
/// # Errors
/// A process does not end: the folder has to stay, as the record of that is in it.
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
