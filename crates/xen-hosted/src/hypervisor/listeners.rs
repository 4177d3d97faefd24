//! The sockets at which processes of domain 0 connect.

use super::directory::Directory;
use super::poll::{EventSubject, Poll};
use super::say::say;
use crate::Role;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::socket_peercred;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One socket for each role.
pub(super) struct Listeners {
    poll: Arc<Poll>,
    sockets: Vec<(Role, OwnedFd)>,
    /// The sockets that are to be tried again after a rest.
    resting: BTreeSet<Role>,
}

impl Listeners {
    /// Makes a set without sockets; they are waited for in `poll`.
    pub(super) fn new(poll: Arc<Poll>) -> Self {
        Self { poll, sockets: Vec::new(), resting: BTreeSet::new() }
    }

    /// Listens in the host's directory.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn open(&mut self, directory: &Directory) -> io::Result<()> {
        for role in Role::ALL {
            let socket = directory.listen(role)?;
            self.poll.watch(&socket, EventSubject::Listener(role), EventFlags::IN)?;
            self.sockets.push((role, socket));
        }
        Ok(())
    }

    /// Accepts the connection that waits longest at a socket, if it is of the broker's user or
    /// root.
    pub(super) fn accept(&mut self, role: Role) -> Option<OwnedFd> {
        let (_, listener) = self.sockets.iter().find(|(of, _)| *of == role)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
            Err(errno) => {
                say(&format!("a process of domain 0 cannot connect: {errno}"));
                // The connection still waits to be accepted: without a rest this loop would do
                // nothing else.
                self.poll.change(listener, EventSubject::Listener(role), EventFlags::empty());
                self.resting.insert(role);
                return None;
            }
        };
        // The folder admits its owner alone; this is a second check.
        let same = socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root());
        same.then_some(socket)
    }

    /// True while some rest.
    pub(super) fn are_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Tries all again that have rested.
    pub(super) fn wake(&mut self) {
        for role in std::mem::take(&mut self.resting) {
            if let Some((_, listener)) = self.sockets.iter().find(|(of, _)| *of == role) {
                self.poll.change(listener, EventSubject::Listener(role), EventFlags::IN);
            }
        }
    }

    /// Closes and removes all.
    pub(super) fn close(&mut self, directory: &Directory) {
        for (role, _) in self.sockets.drain(..) {
            let _ = directory.remove_socket(role);
        }
    }
}
