//! Ending domains' connections to FUSE.
//!
//! A process that waits for an answer through FUSE receives no signal, and it may be the server of
//! the files itself. A domain that has stopped serving is therefore killed only after its
//! connection has ended.

use super::namespaces::Namespaces;
use super::process::ends_until;
use super::users::Users;
use crate::domain::devices::{Names, end_by_unmounting};
use crate::sys;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, openat, statat, statfs, statvfs};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// The folder where the start of a system mounts fusectl.
const MOUNTED: &str = "/sys/fs/fuse/connections";
/// The time that unmounting may take, which is a few system calls.
const UNMOUNTS_WITHIN: Duration = Duration::from_secs(2);
/// `FUSE_CTL_SUPER_MAGIC`.
const FUSE_CTL: i64 = 0x6573_5543;

/// The means by which the broker ends connections.
#[derive(Debug)]
pub(super) enum FuseConnections {
    /// By fusectl: its root.
    Control(OwnedFd),
    /// By unmounting in the domain's own namespaces.
    Unmount,
    /// None: domains have no connection then.
    None,
}

/// A domain's connection, as the broker ends it.
#[derive(Debug)]
pub(super) enum FuseConnection {
    /// By its number, which is not reused while its mount is held.
    Numbered {
        /// The minor number of the mount's device.
        number: u32,
        /// The mount.
        _held: OwnedFd,
    },
    /// By unmounting inside its mount and user namespaces.
    Inside([OwnedFd; 2]),
}

impl FuseConnections {
    /// Finds the means that this machine has.
    pub(super) fn find(namespaces: Namespaces, root_id: Option<u32>) -> Self {
        match control() {
            _ if namespaces == Namespaces::None => Self::None,
            Ok(root) => Self::Control(root),
            Err(_) if namespaces.let_unmount(root_id) => Self::Unmount,
            Err(_) => Self::None,
        }
    }

    /// True if there are no means to end a connection.
    pub(super) fn cannot_end(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Returns the means to try with connections that a dead broker has left.
    pub(super) fn for_cleanup() -> Self {
        control().map_or(Self::Unmount, Self::Control)
    }

    /// Ends the connections of these users, where the kernel lists them.
    pub(super) fn end_of_users(&self, users: &Users) {
        let Self::Control(root) = self else { return };
        for entry in rustix::fs::Dir::read_from(root).into_iter().flatten().flatten() {
            let Ok(stat) = statat(root, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let number = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|_| users.has(stat.st_uid)) {
                let _ = end_by_number(root, number);
            }
        }
    }

    /// Ends a connection that a dead broker has left, by the folder in `/proc` of a task that has
    /// it. A connection that has ended since is no error.
    pub(super) fn end_of_task(&self, task: &Path, number: u32) {
        let _ = match self {
            Self::Control(root) => end_by_number(root, number),
            Self::Unmount => {
                let open = |name: &str| {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    rustix::fs::open(task.join("ns").join(name), flags, Mode::empty())
                };
                open("mnt").and_then(|mounts| {
                    open("user").and_then(|users| end_inside([mounts.as_fd(), users.as_fd()]))
                })
            }
            Self::None => Ok(()),
        };
    }

    /// Returns the connection that a domain's process has reported; `None` where it has none.
    pub(super) fn connection_from(&self, number: u32, fds: Vec<OwnedFd>) -> Option<FuseConnection> {
        let Names { mount, namespaces } = Names::of(fds)?;
        match self {
            Self::Control(_) => Some(FuseConnection::Numbered { number, _held: mount }),
            Self::Unmount => Some(FuseConnection::Inside(namespaces)),
            Self::None => None,
        }
    }

    /// Ends a connection: every process that waits through it gets an error.
    pub(super) fn end(&self, connection: &FuseConnection) -> Result<(), Errno> {
        match (self, connection) {
            (Self::Control(root), FuseConnection::Numbered { number, .. }) => {
                end_by_number(root, *number)
            }
            (_, FuseConnection::Inside([mounts, users])) => {
                end_inside([mounts.as_fd(), users.as_fd()])
            }
            _ => Err(Errno::NOTSUP),
        }
    }
}

/// Opens the root of fusectl: of the system's mount, or of one for this broker alone.
fn control() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let is_of_use = || {
        let is_read_only = statvfs(MOUNTED)?.f_flag.contains(StatVfsMountFlags::RDONLY);
        Ok::<bool, Errno>(statfs(MOUNTED)?.f_type == FUSE_CTL && !is_read_only)
    };
    if is_of_use().unwrap_or(false) {
        return rustix::fs::open(MOUNTED, flags, Mode::empty());
    }
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    openat(mount, ".", flags, Mode::empty())
}

fn end_by_number(root: &OwnedFd, number: u32) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let abort = openat(root, format!("{number}/abort"), flags, Mode::empty())?;
    rustix::io::write(abort, b"1").map(drop)
}

/// Ends a connection in a process of its own, as a process cannot leave a namespace that it has
/// entered. It has none of the broker's descriptors but these two, and the wait for it is limited.
fn end_inside(namespaces: [BorrowedFd<'_>; 2]) -> Result<(), Errno> {
    let child = || {
        let mut kept = namespaces.map(|namespace| namespace.as_raw_fd());
        let ended = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .and_then(|()| sys::keep_only(&mut kept))
            .and_then(|()| end_by_unmounting(namespaces));
        sys::exit_now(ended.err().map_or(0, Errno::raw_os_error))
    };
    let (_, pidfd) = sys::clone_process(0, None, child)?;
    if !ends_until(&pidfd, Instant::now() + UNMOUNTS_WITHIN) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        return Err(Errno::TIMEDOUT);
    }
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        status => Err(Errno::from_raw_os_error(status.unwrap_or(libc::EINTR))),
    }
}
