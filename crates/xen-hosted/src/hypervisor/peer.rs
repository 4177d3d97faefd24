//! A connection: who is at the other end, what it may do, what it has not read yet.

use crate::limits::{REQUESTS_BURST, REQUESTS_PER_S};
use crate::{Rights, proto};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xen::DomId;
use xen::domwatch::DomainEvent;

/// Answers that may wait while further requests are read. One who waits for each has one at most.
const WAITING_ANSWERS_MAX: usize = 16;
/// Messages with descriptors that may wait for a guest which does not read.
const WAITING_FDS_MAX: usize = 64;

/// One connection.
pub(super) struct Peer {
    pub(super) socket: OwnedFd,
    pub(super) domid: DomId,
    pub(super) rights: Rights,
    /// The memory where it counts.
    pub(super) counters: OwnedFd,
    /// Ports of its domain that it holds.
    pub(super) ports: BTreeSet<u32>,
    /// Arenas that it has looked up: granter, slot, which arena of those that were there.
    pub(super) mapped: BTreeSet<(DomId, u32, u64)>,
    /// Arenas that it has made.
    pub(super) offered: Vec<u32>,
    /// Changes of domains that it has not heard of, if it watches them.
    pub(super) changes: Option<VecDeque<DomainEvent>>,
    /// The number of messages that it was told unasked.
    pub(super) told: u64,
    /// Messages that its socket did not take.
    unsent: VecDeque<QueuedMessage>,
    /// The number of answers among them.
    unsent_answers: usize,
    /// Requests that it may still make, in thousandths.
    credit: u64,
    credit_at_ms: u64,
    pub(super) state: State,
}

/// The state of a connection's service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Served,
    /// It asks too often: for a while it is sent to, and not read.
    ReadLater,
    /// The kernel has no room for what it is to be sent, which no event tells the end of: for a while it
    /// is read, and not sent to.
    SentLater,
    /// A guest has ended or closed its end. What it held stays until the guest is destroyed.
    HungUp,
}

/// A message that waits for its receiver to read others.
struct QueuedMessage {
    packet: Vec<u8>,
    fds: Vec<OwnedFd>,
    keep: DeliveryPolicy,
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

impl Peer {
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
            told: 0,
            unsent: VecDeque::new(),
            unsent_answers: 0,
            credit: u64::from(REQUESTS_BURST) * 1000,
            credit_at_ms: 0,
            state: State::Served,
        }
    }

    /// Sends, or keeps for later: then true.
    ///
    /// # Errors
    /// The message cannot be sent, ever, or is refused ([`DeliveryPolicy::WithinBounds`]).
    pub(super) fn send(
        &mut self,
        packet: Vec<u8>,
        fds: &[BorrowedFd<'_>],
        keep: DeliveryPolicy,
    ) -> Result<bool, Errno> {
        if self.state == State::HungUp {
            // As on Xen, where it would be told: nobody is there to hear it.
            return Ok(false);
        }
        if self.unsent.is_empty() {
            match proto::send(self.socket.as_fd(), &packet, fds, SendFlags::DONTWAIT) {
                Ok(()) => return Ok(false),
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => {}
                Err(Errno::PIPE | Errno::CONNRESET) if self.domid != DomId::DOM0 => {
                    // Dead, and the event that says so is still to be looked at.
                    self.hang_up();
                    return Ok(false);
                }
                Err(errno) => return Err(errno),
            }
        }
        let with_fds = self.unsent.iter().filter(|unsent| !unsent.fds.is_empty()).count();
        if keep == DeliveryPolicy::WithinBounds
            && self.domid != DomId::DOM0
            && with_fds >= WAITING_FDS_MAX
        {
            return Err(Errno::BUSY);
        }
        let owned: std::io::Result<Vec<OwnedFd>> =
            fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let fds = owned.map_err(|_| Errno::MFILE)?;
        self.unsent_answers += usize::from(keep == DeliveryPolicy::Answer);
        self.unsent.push_back(QueuedMessage { packet, fds, keep });
        Ok(true)
    }

    /// Sends what was kept, as far as it goes.
    ///
    /// # Errors
    /// The peer is gone.
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        while let Some(QueuedMessage { packet, fds, keep }) = self.unsent.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match proto::send(self.socket.as_fd(), packet, &fds, SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::NOBUFS | Errno::TOOMANYREFS) => {
                    self.state = State::SentLater;
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
            self.unsent_answers -= usize::from(*keep == DeliveryPolicy::Answer);
            self.unsent.pop_front();
        }
        Ok(())
    }

    /// The events that are waited for at its socket.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.is_read() && self.state != State::ReadLater);
        flags.set(EventFlags::OUT, !self.unsent.is_empty() && self.state != State::SentLater);
        flags
    }

    /// It has gone, or has closed its end: what it was still to be told is nobody's.
    pub(super) fn hang_up(&mut self) {
        self.state = State::HungUp;
        self.unsent.clear();
        self.unsent_answers = 0;
    }

    /// True where its next request is read now. News never keeps it from that: who lets go of many things
    /// at once tells so while it is still being told of them.
    pub(super) fn is_read(&self) -> bool {
        self.unsent_answers < WAITING_ANSWERS_MAX
    }

    /// True where the peer may make another request; else it has to rest. Domain 0 never rests.
    pub(super) fn may_ask(&mut self, now_ms: u64) -> bool {
        if self.domid == DomId::DOM0 {
            return true;
        }
        let earned = now_ms.saturating_sub(self.credit_at_ms).saturating_mul(REQUESTS_PER_S.into());
        self.credit = self.credit.saturating_add(earned).min(u64::from(REQUESTS_BURST) * 1000);
        self.credit_at_ms = now_ms;
        self.credit >= 1000
    }

    /// Takes a request that was made off what the peer may make.
    pub(super) fn has_asked(&mut self) {
        self.credit = self.credit.saturating_sub(1000);
    }
}
