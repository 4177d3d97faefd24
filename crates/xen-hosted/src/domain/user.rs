//! The user that a domain's process becomes.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// The user that a domain's program is in its own user namespace.
pub(crate) const INNER_ID: u32 = 1000;

/// The means by which the process gets its user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum User {
    /// The broker maps an id of the host into the new user namespace.
    Mapped,
    /// Root changes to this id, once it has what only root can give it; there is no user namespace.
    DropsTo(u32),
    /// It keeps its user, as the broker has no right to change it; there are no namespaces.
    Same,
}

impl User {
    /// Returns the id of the domain's user in the user namespace that the domain is in.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::DropsTo(id) => id,
            Self::Mapped | Self::Same => INNER_ID,
        }
    }
}

/// Becomes this user, with that user's group alone.
pub(super) fn become_user(id: u32) -> Result<(), Errno> {
    match rustix::thread::set_thread_groups(&[]) {
        // An ordinary user may not give up groups, as some systems use groups to deny access to
        // files.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}
