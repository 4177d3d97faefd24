//! The namespaces that domains can have on this machine, found once by trying.

use super::process::{end_now, map_ids, pair};
use crate::domain::MissingFeature;
use crate::domain::sandbox;
use crate::domain::user::User;
use crate::proto::{self, BrokerMessage};
use crate::sys;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The namespaces that are available for domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Namespaces {
    /// All.
    All,
    /// All but a user namespace, which root can do without.
    NotOfUsers,
    /// None.
    None,
}

impl Namespaces {
    /// Tries the steps by which a domain enters them. `root_id` is an id that root may give to a
    /// domain.
    ///
    /// # Errors
    /// The attempt failed for another reason than a refusal: then nothing is known.
    pub(super) fn find(root_id: Option<u32>) -> io::Result<Self> {
        for found in [Self::All, Self::NotOfUsers] {
            if (found == Self::All || root_id.is_some()) && found.work(root_id)? {
                return Ok(found);
            }
        }
        Ok(Self::None)
    }

    /// Returns the means by which a domain's process gets its user, and the namespaces that it is
    /// created in. It enters the others itself, so that the broker does not wait for them.
    pub(super) fn birth(self, root_id: Option<u32>) -> (User, i32) {
        let drops = root_id.map_or(User::Same, User::DropsTo);
        match self {
            Self::All => (User::Mapped, libc::CLONE_NEWUSER | libc::CLONE_NEWPID),
            Self::NotOfUsers => (drops, libc::CLONE_NEWPID),
            Self::None => (drops, 0),
        }
    }

    /// Returns the bits of the parts that domains run without.
    pub(super) fn lacks(self) -> u64 {
        match self {
            Self::All => 0,
            Self::NotOfUsers => MissingFeature::UserNamespace.bit(),
            Self::None if sys::landlock_abi() > 0 => MissingFeature::Namespaces.bit(),
            Self::None => MissingFeature::Namespaces.bit() | MissingFeature::Landlock.bit(),
        }
    }

    /// True if a process can enter them.
    fn work(self, root_id: Option<u32>) -> io::Result<bool> {
        self.attempt(root_id, sandbox::try_namespaces)
    }

    /// Tries to unmount a domain's mount of FUSE by force from inside them. Returns false after any
    /// failure.
    pub(super) fn let_unmount(self, root_id: Option<u32>) -> bool {
        self != Self::None && self.attempt(root_id, sandbox::try_devices).unwrap_or(false)
    }

    /// Has a process that is created in them try something. Returns true if it succeeds.
    fn attempt(self, root_id: Option<u32>, tries: fn(&OwnedFd, User) -> !) -> io::Result<bool> {
        let (user, flags) = self.birth(root_id);
        let (broker_end, child_end) = pair().map_err(|error| errno_of(error.errno()))?;
        let (pid, pidfd) = match sys::clone_process(flags, None, || tries(&child_end, user)) {
            Ok(process_identity) => process_identity,
            Err(errno) => return refused(errno),
        };
        if user == User::Mapped
            && let Err(error) = map_ids(pid, root_id)
        {
            end_now(&pidfd);
            return refused(Errno::from_raw_os_error(error.errno()));
        }
        proto::send(broker_end.as_fd(), &BrokerMessage::Mapped.encode(), &[], SendFlags::DONTWAIT)?;
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(true),
            Some(errno) => refused(Errno::from_raw_os_error(errno)),
            None => Err(io::Error::other("the first process of a sandbox was killed")),
        }
    }
}

fn errno_of(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// True if an error says that something is refused here, to everybody or to this user. With
/// Ubuntu's AppArmor, clone(2) succeeds and the operations that follow fail with `EACCES` or
/// `EPERM`.
fn refused(errno: Errno) -> io::Result<bool> {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::NOSYS => {
            Ok(false)
        }
        _ => Err(errno.into()),
    }
}
