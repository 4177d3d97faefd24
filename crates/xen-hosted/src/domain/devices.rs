//! A domain's `/dev`: a mount of FUSE that its own program serves.
//!
//! The domain's first process mounts it, and passes the broker descriptors that name the mount
//! ([`Names`]). A process that waits for an answer through FUSE receives no signal, so the broker
//! ends the connection before it ends the domain.

use super::root::ROOT;
use super::user::{INNER_ID, User};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The flags that a connection is opened with.
const FUSE_FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
/// The flags of a descriptor that only names something.
const NAME_FLAGS: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A mount of FUSE that is attached to no path yet, and the connection of the process that serves
/// it.
pub(crate) struct DeviceMount {
    pub(crate) fuse: OwnedFd,
    pub(crate) mount: OwnedFd,
}

impl DeviceMount {
    /// Makes a mount of the host's user namespace, for files of the user `id` alone. Needs root.
    pub(crate) fn of_the_host(id: u32, source: &str) -> Result<Self, Errno> {
        let fuse = open_fuse()?;
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let id = id.to_string();
        for (key, value) in [
            ("source", source.to_owned()),
            ("fd", fuse.as_raw_fd().to_string()),
            ("rootmode", "40755".into()),
            ("user_id", id.clone()),
            ("group_id", id),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self { fuse, mount })
    }
}

/// Descriptors that name a domain's mount. While they are open, the number of its connection is not
/// reused.
#[derive(Debug)]
pub(crate) struct Names {
    /// The root of the mount.
    pub(crate) mount: OwnedFd,
    /// The mount namespace that it is in, and the user namespace that owns this one.
    pub(crate) namespaces: [OwnedFd; 2],
}

impl Names {
    /// Opens those of the calling process's mount, before it enters its root.
    fn own() -> Result<Self, Errno> {
        let namespace = |name| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            open(format!("/proc/self/ns/{name}"), flags, Mode::empty())
        };
        Ok(Self {
            mount: open(format!("{ROOT}/dev"), NAME_FLAGS, Mode::empty())?,
            namespaces: [namespace("mnt")?, namespace("user")?],
        })
    }

    /// Returns the descriptors that a domain's process has passed; `None` where their number is
    /// wrong.
    pub(crate) fn of(fds: Vec<OwnedFd>) -> Option<Self> {
        let [mount, mounts, users] = fds.try_into().ok()?;
        Some(Self { mount, namespaces: [mounts, users] })
    }

    /// Returns all descriptors, in the order in which they are passed.
    pub(crate) fn all(&self) -> [&OwnedFd; 3] {
        let [mounts, users] = &self.namespaces;
        [&self.mount, mounts, users]
    }

    /// Returns the number of the connection, which is the minor number of the mount's device. The
    /// server of the mount is not asked.
    pub(crate) fn connection(&self) -> Result<u32, Errno> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        Ok(statx(&self.mount, c"", flags, StatxFlags::empty())?.stx_dev_minor)
    }
}

/// Opens a connection to FUSE that has no mount yet.
pub(super) fn open_fuse() -> Result<OwnedFd, Errno> {
    open("/dev/fuse", FUSE_FLAGS, Mode::empty())
}

/// Opens the connection for the domain's `/dev`: in its user namespace, as only mounts of that
/// namespace can use it, and while the process has the broker's user, which may open it. `given` is
/// the mount that root has made already.
pub(super) fn connect(given: Option<&DeviceMount>) -> Result<OwnedFd, Errno> {
    match given {
        Some(given) => rustix::io::fcntl_dupfd_cloexec(&given.fuse, 3),
        None => open_fuse(),
    }
}

/// Mounts the file system at the domain's `/dev`: the mount that root has made already, or a new
/// one for files of `user`.
pub(super) fn mount(
    fuse: &OwnedFd,
    given: Option<&DeviceMount>,
    user: User,
    source: &str,
) -> Result<Names, Errno> {
    if let Some(given) = given {
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&given.mount, "", rustix::fs::CWD, format!("{ROOT}/dev"), from)?;
    } else {
        mount_fuse(fuse, user.id(), source)?;
    }
    Names::own()
}

fn mount_fuse(fuse: &OwnedFd, id: u32, source: &str) -> Result<(), Errno> {
    let (to, flags) = (format!("{ROOT}/dev"), MountFlags::NOSUID | MountFlags::NODEV);
    let fd = fuse.as_raw_fd();
    let options = format!("fd={fd},rootmode=40755,user_id={id},group_id={id}");
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, to, "fuse", flags, options.as_c_str())
}

/// Tries what [`end_by_unmounting`] will do: mounts FUSE at the new root's `/dev`, and unmounts it
/// by force.
pub(super) fn try_to_unmount(fuse: &OwnedFd) -> Result<(), Errno> {
    mount_fuse(fuse, INNER_ID, "probe")?;
    unmount(format!("{ROOT}/dev"), UnmountFlags::FORCE)
}

/// Ends the connection of a domain's mount from inside the domain's namespaces, since a process
/// with all rights in them may unmount by force from Linux 6.15 on. To be called in a process of
/// its own.
pub(crate) fn end_by_unmounting(namespaces: [BorrowedFd<'_>; 2]) -> Result<(), Errno> {
    let [mounts, users] = namespaces;
    // Refused where the broker is in that user namespace already, and has all rights there.
    let _ = rustix::thread::move_into_link_name_space(users, None);
    rustix::thread::move_into_link_name_space(mounts, None)?;
    match unmount("/dev", UnmountFlags::FORCE) {
        // The files are in use: the connection has ended, the mount has not.
        Err(Errno::BUSY) => Ok(()),
        unmounted => unmounted,
    }
}
