//! The daemon's part of a connection: the transport of a [`ConnId`], and its unread input.

use rustix::event::epoll::{self, EventData, EventFlags};
use std::os::fd::OwnedFd;
use xen::Port;
use xen_io::xs_ring::ServerRing;
use xenstore_core::server::ConnId;

/// The class of a connection, which decides its place in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConnectionClass {
    /// Socket clients, and the rings of the store's and of the privileged domain.
    Privileged,
    /// All other domains.
    Guest,
}

/// The transport of a connection.
pub(crate) enum Transport {
    /// A client of the Unix socket.
    Socket(ClientSocket),
    /// A domain's ring.
    Ring(AttachedRing),
}

/// A domain's ring, attached.
pub(crate) struct AttachedRing {
    pub(crate) ring: ServerRing,
    pub(crate) port: Port,
    /// True if its port has reported an event. The port is masked until the ring has been drained.
    pub(crate) masked: bool,
    /// True if the ring is no longer served, until the domain reconnects or is introduced again.
    pub(crate) ended: bool,
}

/// A client's socket and the events that epoll reports for it.
pub(crate) struct ClientSocket {
    pub(crate) fd: OwnedFd,
    interest: EventFlags,
}

impl ClientSocket {
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

    /// Makes epoll report `what` too.
    pub(crate) fn watch_for(&mut self, epoll: &OwnedFd, id: ConnId, what: EventFlags) {
        self.set_interest(epoll, id, self.interest | what);
    }

    /// Stops epoll from reporting `what`.
    pub(crate) fn stop_watching_for(&mut self, epoll: &OwnedFd, id: ConnId, what: EventFlags) {
        self.set_interest(epoll, id, self.interest - what);
    }

    /// Sets the reported events. Makes a system call only if they change.
    fn set_interest(&mut self, epoll: &OwnedFd, id: ConnId, wanted: EventFlags) {
        if wanted != self.interest {
            self.interest = wanted;
            // This cannot fail for a socket that was added. A lost change would stall the client.
            let data = EventData::new_u64(u64::from(id.0));
            let _ = epoll::modify(epoll, &self.fd, data, wanted);
        }
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) transport: Transport,
    pub(crate) domid: u16,
    pub(crate) class: ConnectionClass,
    /// The input that was read and not given to the core yet: an incomplete message, or the input
    /// over the budget of a round. Nothing is allocated while it is empty.
    pub(crate) pending: Vec<u8>,
    /// The number of bytes of the core's output for this connection that are already counted and
    /// traced.
    pub(crate) accounted_out: usize,
    /// The remaining budget. It is negative after an expensive request: a debt.
    pub(crate) credit: i64,
    /// True if the connection is in a ready queue.
    pub(crate) queued: bool,
    /// True if its output is queued to be sent together with others'.
    pub(crate) send_queued: bool,
    /// True if the core refused further requests from it. No input is read until the core accepts
    /// them again.
    pub(crate) parked: bool,
}

impl Connection {
    pub(crate) fn new(transport: Transport, domid: u16, class: ConnectionClass) -> Self {
        Self {
            transport,
            domid,
            class,
            pending: Vec::new(),
            accounted_out: 0,
            credit: 0,
            queued: false,
            send_queued: false,
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
