//! A connection: its domain, its rights, and its unsent messages.

use crate::limits::{REQUESTS_BURST, REQUESTS_PER_S};
use crate::{Rights, proto};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xen::DomId;
use xen::domwatch::DomainEvent;

/// The number of answers that may wait while further requests are read. A peer that waits for each
/// answer has one at most.
const WAITING_ANSWERS_MAX: usize = 16;
/// The number of messages with descriptors that may wait for a guest which does not read.
const WAITING_FDS_MAX: usize = 64;

/// One connection.
pub(super) struct PeerConnection {
    pub(super) socket: OwnedFd,
    pub(super) domid: DomId,
    pub(super) rights: Rights,
    /// The memory where it counts.
    pub(super) counters: OwnedFd,
    /// The ports of its domain that it holds.
    pub(super) ports: BTreeSet<u32>,
    /// The arenas that it has looked up: granter, slot, and number of the arena.
    pub(super) mapped: BTreeSet<(DomId, u32, u64)>,
    /// The slots of the arenas that it has made.
    pub(super) offered: Vec<u32>,
    /// The changes of domains that it has not read, if it watches domains.
    pub(super) changes: Option<VecDeque<DomainEvent>>,
    /// The number of messages that it was sent without a request.
    pub(super) messages_sent: u64,
    /// The messages that its socket had no room for.
    unsent: VecDeque<QueuedMessage>,
    /// The number of answers among the unsent messages.
    unsent_answers: usize,
    /// The number of requests that it may still make, in thousandths.
    credit: u64,
    credit_at_ms: u64,
    pub(super) state: ServiceState,
}

/// The state of a connection's service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceState {
    Served,
    /// It sends requests too often: for a while it is sent messages, and not read.
    ReadLater,
    /// The kernel has no room for a message to it, and no event tells when it has: for a while it
    /// is read, and not sent messages.
    SentLater,
    /// A guest has ended or closed its end. Its resources stay until the guest is destroyed.
    HungUp,
}

/// A message that waits for its receiver to read others.
struct QueuedMessage {
    packet: Vec<u8>,
    fds: Vec<OwnedFd>,
    policy: DeliveryPolicy,
}

/// The treatment of a message whose receiver does not read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryPolicy {
    /// It is kept; there are never more of them than the receiver has ports and arenas.
    Always,
    /// It is kept, and while there are many of them no further request is read.
    Answer,
    /// It is refused for a guest that has left many unread.
    WithinBounds,
}

impl PeerConnection {
    pub(super) fn new(socket: OwnedFd, domid: DomId, rights: Rights, counters: OwnedFd) -> Self {
        Self {
            socket,
            domid,
            rights,
            counters,
            ports: BTreeSet::new(),
            mapped: BTreeSet::new(),
            offered: Vec::new(),
            changes: rights.has(Rights::DOMAIN_WATCH).then(VecDeque::new),
            messages_sent: 0,
            unsent: VecDeque::new(),
            unsent_answers: 0,
            credit: u64::from(REQUESTS_BURST) * 1000,
            credit_at_ms: 0,
            state: ServiceState::Served,
        }
    }

    /// Sends a message, or keeps it for later: then the result is true.
    ///
    /// # Errors
    /// The message cannot be sent, ever, or is refused ([`DeliveryPolicy::WithinBounds`]).
    pub(super) fn send(
        &mut self,
        packet: Vec<u8>,
        fds: &[BorrowedFd<'_>],
        policy: DeliveryPolicy,
    ) -> Result<bool, Errno> {
        if self.state == ServiceState::HungUp {
            // As on Xen, nobody is there to receive it.
            return Ok(false);
        }
        if self.unsent.is_empty() {
            match proto::send(self.socket.as_fd(), &packet, fds, SendFlags::DONTWAIT) {
                Ok(()) => return Ok(false),
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => {}
                Err(Errno::PIPE | Errno::CONNRESET) if self.domid != DomId::DOM0 => {
                    // The peer is dead, and the event of its end has not been handled yet.
                    self.hang_up();
                    return Ok(false);
                }
                Err(errno) => return Err(errno),
            }
        }
        let with_fds = self.unsent.iter().filter(|unsent| !unsent.fds.is_empty()).count();
        if policy == DeliveryPolicy::WithinBounds
            && self.domid != DomId::DOM0
            && with_fds >= WAITING_FDS_MAX
        {
            return Err(Errno::BUSY);
        }
        let owned: std::io::Result<Vec<OwnedFd>> =
            fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let fds = owned.map_err(|_| Errno::MFILE)?;
        self.unsent_answers += usize::from(policy == DeliveryPolicy::Answer);
        self.unsent.push_back(QueuedMessage { packet, fds, policy });
        Ok(true)
    }

    /// Sends the kept messages, as far as the socket has room.
    ///
    /// # Errors
    /// The peer is gone.
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        while let Some(QueuedMessage { packet, fds, policy }) = self.unsent.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match proto::send(self.socket.as_fd(), packet, &fds, SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::NOBUFS | Errno::TOOMANYREFS) => {
                    self.state = ServiceState::SentLater;
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
            self.unsent_answers -= usize::from(*policy == DeliveryPolicy::Answer);
            self.unsent.pop_front();
        }
        Ok(())
    }

    /// Returns the events that are waited for at its socket.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.is_read() && self.state != ServiceState::ReadLater);
        flags
            .set(EventFlags::OUT, !self.unsent.is_empty() && self.state != ServiceState::SentLater);
        flags
    }

    /// Notes that it has gone, or has closed its end: its unsent messages are dropped.
    pub(super) fn hang_up(&mut self) {
        self.state = ServiceState::HungUp;
        self.unsent.clear();
        self.unsent_answers = 0;
    }

    /// True if its next request is read now. Unsent news never prevent that: a peer that releases
    /// many things at once sends requests while it is still being sent news of them.
    pub(super) fn is_read(&self) -> bool {
        self.unsent_answers < WAITING_ANSWERS_MAX
    }

    /// True if the peer may make another request; otherwise it has to rest. Domain 0 never rests.
    pub(super) fn may_ask(&mut self, now_ms: u64) -> bool {
        if self.domid == DomId::DOM0 {
            return true;
        }
        let earned = now_ms.saturating_sub(self.credit_at_ms).saturating_mul(REQUESTS_PER_S.into());
        self.credit = self.credit.saturating_add(earned).min(u64::from(REQUESTS_BURST) * 1000);
        self.credit_at_ms = now_ms;
        self.credit >= 1000
    }

    /// Subtracts a request from those that the peer may make.
    pub(super) fn has_asked(&mut self) {
        self.credit = self.credit.saturating_sub(1000);
    }
}
