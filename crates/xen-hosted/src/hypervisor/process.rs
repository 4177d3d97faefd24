//! The broker's side of a process that it starts: the connection, the mapping of ids, the wait for
//! its end.

use crate::domain::user::INNER_ID;
use crate::errno::from_errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use xen::Error;

/// Makes both ends of a connection: the broker's, which never blocks, and the domain's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (broker, domain) = ends.map_err(from_errno)?;
    rustix::io::ioctl_fionbio(&broker, true).map_err(from_errno)?;
    Ok((broker, domain))
}

/// Maps the one user and group of a new user namespace: to `outer`, or to the broker's own.
pub(super) fn map_ids(pid: Pid, outer: Option<u32>) -> Result<(), Error> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = outer.map_or(own, |id| (id, id));
    if outer.is_none() {
        // An ordinary user may map a group only where no process can leave a group.
        std::fs::write(format!("{proc}/setgroups"), "deny")?;
    }
    std::fs::write(format!("{proc}/uid_map"), format!("{INNER_ID} {uid} 1"))?;
    std::fs::write(format!("{proc}/gid_map"), format!("{INNER_ID} {gid} 1"))?;
    Ok(())
}

/// Kills a process that is in no table, and waits for its end.
pub(super) fn end_now(pidfd: &OwnedFd) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Waits for the end of a process until `end`; false where it does not end.
pub(super) fn ends_until(pidfd: &OwnedFd, end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
