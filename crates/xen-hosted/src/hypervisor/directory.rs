//! The host's directory, opened by the broker once and used by that descriptor.
//!
//! The path may lie in a folder that others write into, and the files in the directory may be
//! theirs or there by mistake. A link is therefore followed only where root or this user has made
//! it, owner and mode are checked on the opened file, and nothing is removed but sockets.

use crate::{HostDir, Role};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, mkdirat, openat,
    readlinkat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The number of links that one path may lead through.
const LINKS_MAX: u32 = 40;
/// The flags that a folder or link on the way is opened with.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The flags that the lock is opened with.
const LOCK: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A host's directory, locked against other brokers while this value exists.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    /// The name of the host's control groups and mounts.
    pub(super) name: String,
    /// The number of its inode.
    pub(super) inode: u64,
    _lock: OwnedFd,
}

impl Directory {
    /// Opens the directory and locks it; makes it where it does not exist.
    ///
    /// # Errors
    /// `WouldBlock` where another broker has it; the error where it is not this user's alone; or
    /// the system's error.
    pub(super) fn make(host: &HostDir) -> io::Result<Self> {
        let fd = open(host.path(), MissingFolderPolicy::Make)?;
        let lock = openat(&fd, "lock", LOCK | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
        Self::locked(fd, lock)
    }

    /// Opens a directory in which a broker was, and locks it; `None` where there is none. It needs
    /// no room on the disk.
    ///
    /// # Errors
    /// As [`Directory::make`].
    pub(super) fn find(host: &HostDir) -> io::Result<Option<Self>> {
        let fd = match open(host.path(), MissingFolderPolicy::Leave) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match openat(&fd, "lock", LOCK, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            lock => Self::locked(fd, lock?).map(Some),
        }
    }

    fn locked(fd: OwnedFd, lock: OwnedFd) -> io::Result<Self> {
        let Stat { st_dev, st_ino, .. } = fstat(&fd)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let name = format!("xenbus-{st_dev:x}-{st_ino:x}");
        Ok(Self { fd, name, inode: st_ino, _lock: lock })
    }

    /// Returns the path of a file in the directory, by the open descriptor.
    fn inside(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()).into()
    }

    /// Makes a socket that listens for processes of domain 0 with this role.
    ///
    /// # Errors
    /// A file of that name is no socket, or the system's error.
    pub(super) fn listen(&self, role: Role) -> io::Result<OwnedFd> {
        self.remove_socket(role)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::UNIX;
        let socket = rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None)?;
        // The directory is the owner's alone, so no other user can reach the socket.
        rustix::net::bind(&socket, &SocketAddrUnix::new(self.inside(role.name()))?)?;
        rustix::net::listen(&socket, 128)?;
        Ok(socket)
    }

    /// Removes the socket of a role, if it is there.
    ///
    /// # Errors
    /// A file of that name is no socket, or the system's error.
    pub(super) fn remove_socket(&self, role: Role) -> io::Result<()> {
        let name = role.name();
        let is_socket = match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Socket,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if !is_socket {
            let why = format!(
                "{name} in it is no socket of a broker; move it away, or name another directory"
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Reads a file; a file that does not exist is empty.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut bytes = Vec::new();
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => File::from(file).read_to_end(&mut bytes)?,
            Err(Errno::NOENT) => 0,
            Err(errno) => return Err(errno.into()),
        };
        Ok(bytes)
    }

    /// Appends to a file.
    pub(super) fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(bytes)
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Replaces a file: after a failure it has its old content.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = openat(&self.fd, new.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(bytes)?;
        Ok(renameat(&self.fd, new.as_str(), &self.fd, name)?)
    }
}

/// The treatment of folders that do not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingFolderPolicy {
    Make,
    Leave,
}

/// Opens the directory at a path: this user's, and closed to others.
fn open(path: &Path, missing: MissingFolderPolicy) -> io::Result<OwnedFd> {
    let fd = walk(path, missing)?;
    let stat = fstat(&fd)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        let why = "the directory is another user's, or open to others (chmod 700)";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    // For locks and for its files, for which a descriptor of `O_PATH` is not enough.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(&fd, ".", flags, Mode::empty())?)
}

/// Opens a path step by step.
fn walk(path: &Path, missing: MissingFolderPolicy) -> io::Result<OwnedFd> {
    let start = |path: &Path| if path.is_absolute() { "/" } else { "." };
    let mut at = rustix::fs::open(start(path), STEP, Mode::empty())?;
    let mut rest = steps(path);
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let name = name.as_os_str();
        // Opened as a folder first, which triggers an automount; anything else may be a link.
        let next = match openat(&at, name, STEP | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => openat(&at, name, STEP, Mode::empty())?,
            Err(Errno::NOENT) if missing == MissingFolderPolicy::Make => {
                match mkdirat(&at, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                openat(&at, name, STEP, Mode::empty())?
            }
            opened => opened?,
        };
        let stat = fstat(&next)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            at = next;
            continue;
        }
        links += 1;
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != 0 && stat.st_uid != own {
            let (name, owner) = (name.display(), stat.st_uid);
            let why =
                format!("{name} in its path is a link of user {owner}, which is not followed");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        let target = readlinkat(&next, c"", Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes())).to_owned();
        if target.is_absolute() {
            at = rustix::fs::open("/", STEP, Mode::empty())?;
        }
        for step in steps(&target).into_iter().rev() {
            rest.push_front(step);
        }
    }
    Ok(at)
}

/// Returns the names in a path, in the order in which they are opened.
fn steps(path: &Path) -> VecDeque<OsString> {
    let steps = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn host(folder: &TempDir, below: &str) -> HostDir {
        HostDir::new(folder.path().join(below))
    }

    #[test]
    fn a_directory_is_made_locked_and_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Directory::find(&host(&folder, "a/b")).unwrap().is_none());
        let made = Directory::make(&host(&folder, "a/b")).unwrap();
        let mode = std::fs::metadata(folder.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let again = Directory::make(&host(&folder, "a/../a/b")).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        drop(made);
        assert!(Directory::find(&host(&folder, "a/b")).unwrap().is_some());
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::set_permissions(folder.path().join("a"), PermissionsExt::from_mode(0o750))
            .unwrap();
        let refused = Directory::make(&host(&folder, "a")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn links_of_this_user_lead_on_and_not_in_a_circle() {
        let folder = tempfile::tempdir().unwrap();
        symlink("to/../to", folder.path().join("link")).unwrap();
        std::fs::create_dir(folder.path().join("to")).unwrap();
        Directory::make(&host(&folder, "link/host")).unwrap();
        assert!(folder.path().join("to/host/lock").is_file());
        symlink(folder.path().join("circle"), folder.path().join("circle")).unwrap();
        let refused = Directory::make(&host(&folder, "circle/host")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn a_link_of_another_user_is_not_followed() {
        if !rustix::process::geteuid().is_root() {
            conformance::skip("another user's link", "root alone gives a file away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::fs::create_dir(folder.path().join("to")).unwrap();
        symlink("to", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(12_345), None).unwrap();
        for path in ["link", "link/host"] {
            let refused = Directory::make(&host(&folder, path)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
        assert_eq!(std::fs::read_dir(folder.path().join("to")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let made = Directory::make(&host(&folder, "a")).unwrap();
        drop(made.listen(Role::Store).unwrap());
        drop(made.listen(Role::Store).unwrap());
        let control = folder.path().join("a/control");
        std::fs::write(&control, "somebody's").unwrap();
        let refused = made.listen(Role::Control).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&control).unwrap(), b"somebody's");
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let made = Directory::make(&host(&folder, "a")).unwrap();
        assert_eq!(made.read("x").unwrap(), b"");
        made.write("x", b"long").unwrap();
        made.write("x", b"s").unwrap();
        assert_eq!(made.read("x").unwrap(), b"s");
        assert!(!folder.path().join("a/x.new").exists());
    }
}
