//! The listening socket: the lock on its path, and the takeover of a stale one.
//!
//! A lock file next to the socket (`socket.lock`) lets two daemons that start at once see each
//! other. A daemon that holds it still checks if another process answers at the path, which may be
//! a daemon that does not know the lock. If one answers, it gives up. Otherwise it removes the
//! socket that a dead daemon left behind.

use crate::Error;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The result of one call of accept(2).
pub(crate) enum AcceptOutcome {
    /// A client.
    Client(OwnedFd),
    /// No further client is waiting.
    Nobody,
    /// There is no descriptor or memory for another client now.
    Exhausted(Errno),
}

/// The socket that clients connect to. Dropping it removes the path.
pub(crate) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    lock: LockFile,
}

impl Listener {
    /// Takes the path and listens on it, mode 0600.
    ///
    /// # Errors
    /// [`Error::Start`]: another daemon serves the path, or it cannot be used.
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::start(format!("{what} {}: {error}", path.display()))
        };
        let address = SocketAddrUnix::new(path).map_err(|_| {
            Error::start(format!(
                "{} is too long for a socket; set XENSTORED_PATH to at most 107 bytes",
                path.display()
            ))
        })?;
        daemon::create_parents(path)
            .map_err(|error| failed("cannot create the directory of", error))?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = LockFile::take(Path::new(&lock_path))?.ok_or_else(|| in_use_error(path))?;
        remove_stale(path, &address)?;
        let fd = new_socket().map_err(|error| failed("no socket for", error.into()))?;
        // The mode must hold from the moment at which the path exists.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = bind(&fd, &address);
        rustix::process::umask(before);
        bound.map_err(|error| failed("cannot bind", error.into()))?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
            .map_err(|error| failed("cannot set the mode of", error))?;
        listen(&fd, BACKLOG).map_err(|error| failed("cannot listen at", error.into()))?;
        Ok(Self { fd, path: path.to_owned(), lock })
    }

    /// Accepts the next client, non-blocking and close-on-exec.
    pub(crate) fn accept(&self) -> AcceptOutcome {
        loop {
            match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => return AcceptOutcome::Client(fd),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(Errno::AGAIN) => return AcceptOutcome::Nobody,
                Err(error) => return AcceptOutcome::Exhausted(error),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.lock.remove();
    }
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn in_use_error(path: &Path) -> Error {
    Error::start(format!(
        "another xenstored serves {}; stop it, or set XENSTORED_PATH to another path",
        path.display()
    ))
}

/// Removes a socket on which no process listens any more.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Error> {
    let failed = |error: io::Error| Error::start(format!("{}: {error}", path.display()));
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::start(format!(
                "{} is there and is no socket; remove it, or set XENSTORED_PATH to another path",
                path.display()
            )));
        }
        Ok(_) => {}
    }
    let probe = new_socket().map_err(|error| failed(error.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        // A full backlog (EAGAIN) means a live daemon, too.
        Ok(()) | Err(Errno::AGAIN) => Err(in_use_error(path)),
        Err(error) => Err(failed(error.into())),
    }
}

/// A file that exists for its lock.
struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock; `None` if another process holds it.
    fn take(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |error: io::Error| Error::start(format!("{}: {error}", path.display()));
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(failed(error.into())),
            }
            // The holder may have removed the file between the open and the lock.
            let mine = file.metadata().map_err(failed)?.ino();
            if std::fs::metadata(path).is_ok_and(|there| there.ino() == mine) {
                return Ok(Some(Self { file, path: path.to_owned() }));
            }
        }
    }

    /// Removes the file while the lock is still held.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}
