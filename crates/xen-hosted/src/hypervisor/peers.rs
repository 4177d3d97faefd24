//! All connections: their messages, the watchers of domains, and those that rest.

use super::answer::AnswerResult;
use super::peer::{DeliveryPolicy, PeerConnection, ServiceState};
use super::poll::{EventSubject, PeerId, Poll};
use crate::Rights;
use crate::counters::{Counter, counters_len};
use crate::errno::from_errno;
use crate::limits::{CHANGES_AT_ONCE, UNREAD_MAX};
use crate::map::memfd;
use crate::proto::BrokerMessage;
use rustix::event::epoll::EventFlags;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use xen::domwatch::DomainEvent;
use xen::{DomId, Error};

/// All connections.
pub(super) struct PeerConnections {
    poll: Arc<Poll>,
    places: Vec<(u32, Option<PeerConnection>)>,
    free: Vec<u32>,
    count: usize,
    /// The connections that watch domains.
    watchers: Vec<PeerId>,
    /// The connections that are to be tried again after a rest.
    resting: BTreeSet<PeerId>,
}

impl PeerConnections {
    /// Makes an empty table; the sockets of connections are waited for in `poll`.
    pub(super) fn new(poll: Arc<Poll>) -> Self {
        Self {
            poll,
            places: Vec::new(),
            free: Vec::new(),
            count: 0,
            watchers: Vec::new(),
            resting: BTreeSet::new(),
        }
    }

    /// Adds a new connection for `domid`, whose counters have room for `ports_max` ports.
    pub(super) fn add(
        &mut self,
        socket: OwnedFd,
        domid: DomId,
        rights: Rights,
        ports_max: u32,
    ) -> Result<PeerId, Error> {
        let len = counters_len(ports_max);
        let counters = memfd("counters", len).map_err(from_errno)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&counters, seals).map_err(from_errno)?;
        // The kernel's own limit applies where it is lower.
        let _ = set_socket_send_buffer_size(&socket, UNREAD_MAX);
        let id = self.place(PeerConnection::new(socket, domid, rights, counters));
        let watched = self.get(id).map_or(Err(Errno::NOENT), |peer| {
            self.poll.watch(&peer.socket, EventSubject::Peer(id), EventFlags::IN)
        });
        if let Err(errno) = watched {
            self.vacate(id);
            return Err(from_errno(errno));
        }
        if rights.has(Rights::DOMAIN_WATCH) {
            self.watchers.push(id);
        }
        Ok(id)
    }

    fn place(&mut self, peer: PeerConnection) -> PeerId {
        self.count += 1;
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            // Never 0: a word of 0 stands for no connection.
            place.0 = (place.0.wrapping_add(1) & 0xff_ffff).max(1);
            place.1 = Some(peer);
            return PeerId { index, generation: place.0 };
        }
        // Limited by the number of descriptors, which is lower.
        let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push((1, Some(peer)));
        PeerId { index, generation: 1 }
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&PeerConnection> {
        let (generation, peer) = self.places.get(id.index as usize)?;
        peer.as_ref().filter(|_| *generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut PeerConnection> {
        let (generation, peer) = self.places.get_mut(id.index as usize)?;
        peer.as_mut().filter(|_| *generation == id.generation)
    }

    fn vacate(&mut self, id: PeerId) -> Option<PeerConnection> {
        let (generation, peer) = self.places.get_mut(id.index as usize)?;
        if *generation != id.generation {
            return None;
        }
        let peer = peer.take()?;
        self.free.push(id.index);
        self.count -= 1;
        Some(peer)
    }

    /// Returns the number of connections.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Removes a connection, with all that it held.
    pub(super) fn remove(&mut self, id: PeerId) -> Option<PeerConnection> {
        let peer = self.vacate(id)?;
        self.poll.forget(&peer.socket);
        self.watchers.retain(|watcher| *watcher != id);
        self.resting.remove(&id);
        Some(peer)
    }

    /// Handles the end of a guest's connection. Returns the arenas that it had looked up.
    pub(super) fn hang_up(&mut self, id: PeerId) -> BTreeSet<(DomId, u32, u64)> {
        let Some(peer) = self.get_mut(id) else { return BTreeSet::new() };
        peer.hang_up();
        let mapped = std::mem::take(&mut peer.mapped);
        if let Some(peer) = self.get(id) {
            self.poll.forget(&peer.socket);
        }
        self.resting.remove(&id);
        mapped
    }

    pub(super) fn reply(&mut self, id: PeerId, errno: i32, words: Vec<u64>, fds: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let _ = self.push(id, &BrokerMessage::Reply { errno, words }, &fds, DeliveryPolicy::Answer);
    }

    /// Sends a message, now or when its receiver reads.
    ///
    /// # Errors
    /// The message cannot be delivered.
    pub(super) fn push(
        &mut self,
        id: PeerId,
        message: &BrokerMessage,
        fds: &[BorrowedFd<'_>],
        policy: DeliveryPolicy,
    ) -> Result<(), Errno> {
        let peer = self.get_mut(id).ok_or(Errno::PIPE)?;
        let waits = peer.send(message.encode(), fds, policy)?;
        if policy != DeliveryPolicy::Answer {
            // A notifying peer looks at this counter, and not into the socket.
            peer.messages_sent += 1;
            let messages_sent = peer.messages_sent.to_ne_bytes();
            rustix::io::pwrite(&peer.counters, &messages_sent, Counter::Told.offset() as u64)?;
        }
        if waits {
            self.refresh(id);
        }
        Ok(())
    }

    /// Waits for requests of a peer, and for room in its socket where messages wait; for a peer
    /// that rests, only for the events that its rest allows.
    pub(super) fn refresh(&mut self, id: PeerId) {
        let Some(peer) = self.get(id) else { return };
        self.poll.change(&peer.socket, EventSubject::Peer(id), peer.interest());
        if matches!(peer.state, ServiceState::ReadLater | ServiceState::SentLater) {
            self.resting.insert(id);
        }
    }

    /// True while a peer rests.
    pub(super) fn are_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Tries all again that have rested.
    pub(super) fn wake(&mut self) {
        for id in std::mem::take(&mut self.resting) {
            if let Some(peer) = self.get_mut(id) {
                peer.state = ServiceState::Served;
                self.refresh(id);
            }
        }
    }

    /// Tells the watchers of domains of a change.
    pub(super) fn tell_change(&mut self, event: DomainEvent) {
        for id in std::mem::take(&mut self.watchers) {
            let changes = self.get_mut(id).and_then(|peer| peer.changes.as_mut());
            if let Some(changes) = changes
                && !changes.contains(&event)
            {
                changes.push_back(event);
            }
            self.watchers.push(id);
        }
    }

    /// True if a watcher has not read the death of a domain with this number yet.
    pub(super) fn is_news(&self, domid: DomId) -> bool {
        let died = DomainEvent::Died(domid);
        self.watchers.iter().any(|id| {
            let changes = self.get(*id).and_then(|peer| peer.changes.as_ref());
            changes.is_some_and(|changes| changes.contains(&died))
        })
    }

    /// True if a connection has an arena of this domain.
    pub(super) fn have_arena_of(&self, granter: DomId) -> bool {
        let peers = self.places.iter().filter_map(|(_, peer)| peer.as_ref());
        peers.flat_map(|peer| &peer.mapped).any(|(of, _, _)| *of == granter)
    }

    /// Takes the changes of domains that a watcher has not read.
    pub(super) fn changes(&mut self, id: PeerId) -> AnswerResult {
        let peer = self.get_mut(id).ok_or(Error::NoEnt)?;
        let changes = peer.changes.as_mut().ok_or(Error::Perm)?;
        let now = changes.len().min(CHANGES_AT_ONCE);
        let mut words: Vec<u64> = vec![u64::from(changes.len() > now)];
        words.extend(changes.drain(..now).map(crate::domwatch::encode));
        Ok(Some((words, Vec::new())))
    }
}
