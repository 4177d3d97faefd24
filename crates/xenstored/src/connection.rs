//! The connections as the daemon sees them: what a [`ConnId`] stands for, and its unread input.

use rustix::event::epoll::{self, EventData, EventFlags};
use std::os::fd::OwnedFd;
use xen::Port;
use xen_io::xs_ring::ServerRing;
use xenstore_core::server::ConnId;

/// Whose turn comes first in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Socket clients, and the rings of the store's and of the privileged domain.
    Privileged,
    /// All other domains.
    Guest,
}

/// The transport.
pub(crate) enum End {
    /// A client of the Unix socket.
    Socket(Socket),
    /// A domain's ring.
    Ring(Ring),
}

/// A domain's ring, attached.
pub(crate) struct Ring {
    pub(crate) ring: ServerRing,
    pub(crate) port: Port,
    /// Its port has reported an event and is masked until the ring has been drained.
    pub(crate) masked: bool,
    /// It is left alone until the domain reconnects or is introduced again.
    pub(crate) ended: bool,
}

/// A client's socket and what epoll watches it for.
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    interest: EventFlags,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, interest: EventFlags::empty() }
    }

    /// Begins to watch for input.
    pub(crate) fn watch(&mut self, epoll: &OwnedFd, id: ConnId) -> rustix::io::Result<()> {
        self.interest = EventFlags::IN;
        epoll::add(epoll, &self.fd, EventData::new_u64(u64::from(id.0)), self.interest)
    }

    pub(crate) fn watches(&self, what: EventFlags) -> bool {
        self.interest.contains(what)
    }

    /// Watches for `what` too.
    pub(crate) fn watch_for(&mut self, epoll: &OwnedFd, id: ConnId, what: EventFlags) {
        self.set_interest(epoll, id, self.interest | what);
    }

    /// Watches no longer for `what`.
    pub(crate) fn leave(&mut self, epoll: &OwnedFd, id: ConnId, what: EventFlags) {
        self.set_interest(epoll, id, self.interest - what);
    }

    /// A system call only where that is a change.
    fn set_interest(&mut self, epoll: &OwnedFd, id: ConnId, wanted: EventFlags) {
        if wanted != self.interest {
            self.interest = wanted;
            // Cannot fail for a socket that was added; a lost change would end in a stalled client.
            let data = EventData::new_u64(u64::from(id.0));
            let _ = epoll::modify(epoll, &self.fd, data, wanted);
        }
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) end: End,
    pub(crate) domid: u16,
    pub(crate) class: Class,
    /// Input that was read and not handed to the core yet: an incomplete message, or what went over
    /// the budget of a round. Nothing is allocated while it is empty.
    pub(crate) pending: Vec<u8>,
    /// How many bytes of the core's output for this connection are in counters and trace already.
    pub(crate) seen_out: usize,
    /// What may still be spent; below zero it is a debt from an expensive request.
    pub(crate) credit: i64,
    /// It is in a ready queue.
    pub(crate) queued: bool,
    /// Its output is noted to be sent together with others'.
    pub(crate) noted: bool,
    /// The core did not want more of its requests; no input is read until it does.
    pub(crate) parked: bool,
}

impl Connection {
    pub(crate) fn new(end: End, domid: u16, class: Class) -> Self {
        Self {
            end,
            domid,
            class,
            pending: Vec::new(),
            seen_out: 0,
            credit: 0,
            queued: false,
            noted: false,
            parked: false,
        }
    }
}

/// All connections, by the core's index.
#[derive(Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Connection>>,
}

impl Connections {
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn insert(&mut self, id: ConnId, connection: Connection) {
        let at = id.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(connection);
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Connection> {
        self.slots.get_mut(id.0 as usize)?.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection)> {
        let ids = (0..).map(ConnId);
        ids.zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.as_ref()?)))
    }
}
