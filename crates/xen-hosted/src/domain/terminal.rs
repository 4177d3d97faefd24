//! The terminal of a domain's console: a pseudoterminal in an instance of devpts that is the
//! domain's own.
//!
//! The instance is mounted at no path, so the host and other domains cannot name what is in it. The
//! domain has the master, and opens the other end through it (`TIOCGPTPEER`).

use super::user::User;
use crate::limits::{TERMINAL_COLUMNS, TERMINAL_ROWS};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use rustix::pty::unlockpt;
use rustix::termios::{Winsize, tcsetwinsize};
use std::os::fd::OwnedFd;

/// The flags that the master is opened with: it never blocks, and is nobody's controlling terminal.
const MASTER_FLAGS: OFlags =
    OFlags::RDWR.union(OFlags::NOCTTY).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Makes the instance and its only pseudoterminal, whose other end belongs to `user`, and returns
/// the master. To be called in the domain's mount namespace, with all rights in it.
pub(super) fn open(user: User) -> Result<OwnedFd, Errno> {
    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let id = user.id().to_string();
    // Terminals are counted for the whole machine, so the instance makes one and no more.
    for (key, value) in
        [("max", "1"), ("ptmxmode", "0600"), ("mode", "0600"), ("uid", &id), ("gid", &id)]
    {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let master = openat(&mount, "ptmx", MASTER_FLAGS, Mode::empty())?;
    unlockpt(&master)?;
    let size =
        Winsize { ws_row: TERMINAL_ROWS, ws_col: TERMINAL_COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size)?;
    Ok(master)
}
