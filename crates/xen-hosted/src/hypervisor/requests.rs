//! Requests: a few of each peer in turn are read and answered.

use super::answer::AnswerResult;
use super::arenas::PROCESS_DESCRIPTORS;
use super::bindings::FIRST_PORTS;
use super::broker::{Broker, now_ms};
use super::peer::{PeerConnection, ServiceState};
use super::poll::PeerId;
use super::process::pair;
use crate::Rights;
use crate::counters::IDENTITIES_LEN;
use crate::errno::from_errno;
use crate::limits::{
    CREATE_MAX, KEEPSAKE_PAGES, PACKET_MAX, PROCESS_CONNECTIONS_MAX, REQUESTS_A_TURN,
};
use crate::map::memfd;
use crate::proto::{self, BrokerRequest};
use rustix::event::epoll::EventFlags;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::os::fd::{AsFd, OwnedFd};
use xen::shared::PAGE_SIZE;
use xen::{DomId, Error};

impl Broker {
    pub(super) fn serve(&mut self, id: PeerId, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            // No request can be answered now, and the event is reported until the peer is removed.
            self.hang_up(id);
            return;
        }
        if flags.contains(EventFlags::OUT) {
            match self.parties.peers.get_mut(id).map(PeerConnection::flush) {
                Some(Ok(())) => self.parties.peers.refresh(id),
                Some(Err(_)) => {
                    self.hang_up(id);
                    return;
                }
                None => return,
            }
        }
        let now_ms = now_ms();
        for _ in 0..REQUESTS_A_TURN {
            let Some(peer) = self.parties.peers.get_mut(id) else { return };
            if !peer.is_read() {
                return;
            }
            if !peer.may_ask(now_ms) {
                peer.state = ServiceState::ReadLater;
                self.parties.peers.refresh(id);
                return;
            }
            let mut fds = Vec::new();
            let len = if peer.rights.has(Rights::DOMAIN_CONTROL) { CREATE_MAX } else { PACKET_MAX };
            let into = self.input.get_mut(..len).unwrap_or_default();
            let socket = peer.socket.as_fd();
            let received = if peer.rights.has(Rights::DOMAIN_CONTROL) {
                proto::receive(socket, into, &mut fds, RecvFlags::DONTWAIT)
            } else {
                // Without room for them the kernel drops the descriptors that a guest sends.
                rustix::net::recv(socket, into, RecvFlags::DONTWAIT | RecvFlags::TRUNC)
                    .map(|(_, count)| if count > len { usize::MAX } else { count })
            };
            match received {
                Ok(count) if count > 0 => self.take_request(id, count, fds),
                Err(Errno::MSGSIZE) => self.take_request(id, usize::MAX, fds),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => {
                    self.hang_up(id);
                    return;
                }
            }
        }
    }

    /// Answers the packet of `count` bytes in the input; `count` exceeds the input's length for a
    /// packet that was too long.
    fn take_request(&mut self, id: PeerId, count: usize, fds: Vec<OwnedFd>) {
        if let Some(peer) = self.parties.peers.get_mut(id) {
            peer.has_asked();
        }
        let request = self.input.get(..count).and_then(BrokerRequest::decode);
        if let Some(BrokerRequest::Release { granter, slot, number }) = request {
            if !self.arenas.release(&mut self.parties, id, (granter, slot, number)) {
                self.count_refusal(id);
            }
            return;
        }
        let answered = match request {
            Some(request) => self.answer(id, request, fds),
            None => Err(Error::Inval),
        };
        match answered {
            Ok(Some((words, fds))) => self.parties.peers.reply(id, 0, words, &fds),
            Ok(None) => {}
            Err(error) => {
                self.count_refusal(id);
                self.parties.peers.reply(id, error.errno(), Vec::new(), &[]);
            }
        }
    }

    fn count_refusal(&mut self, id: PeerId) {
        let Some(peer) = self.parties.peers.get(id) else { return };
        if let Some(domain) = self.parties.domains.get_mut(peer.domid) {
            domain.refused = domain.refused.saturating_add(1);
        }
    }

    fn answer(&mut self, id: PeerId, request: BrokerRequest, fds: Vec<OwnedFd>) -> AnswerResult {
        let peer = self.parties.peers.get(id).ok_or(Error::NoEnt)?;
        if !peer.rights.has(needed(&request)) {
            return Err(Error::Perm);
        }
        let domid = peer.domid;
        let Self { parties, bindings, arenas, .. } = self;
        match request {
            BrokerRequest::Hello => self.hello(id),
            BrokerRequest::AllocUnbound { remote } => {
                bindings.alloc_unbound(parties, id, resolve_self(remote, domid))
            }
            BrokerRequest::BindInterdomain { remote, port } => {
                bindings.bind_interdomain(parties, id, resolve_self(remote, domid), port)
            }
            BrokerRequest::BindVirq { virq } => bindings.bind_virq(parties, id, virq),
            BrokerRequest::Close { port } => bindings.close(parties, id, port),
            BrokerRequest::Status { port } => bindings.status(parties, id, port),
            BrokerRequest::FindArena { granter, slot } => {
                arenas.find(parties, id, resolve_self(granter, domid), slot)
            }
            BrokerRequest::OfferArena { peer, writable, at } => {
                arenas.offer(parties, id, resolve_self(peer, domid), writable != 0, at)
            }
            BrokerRequest::ArenaMapped { slot } => arenas.set_mapped(parties, id, slot),
            BrokerRequest::Changes => parties.peers.changes(id),
            BrokerRequest::Connect => self.connect_process(domid),
            BrokerRequest::Keepsake => self.keepsake(domid),
            BrokerRequest::Create(config) => self.create(id, &config, fds),
            // These are not requests of such a connection.
            BrokerRequest::Release { .. }
            | BrokerRequest::SandboxDone { .. }
            | BrokerRequest::SandboxFailed { .. } => Err(Error::Inval),
            of_control => self.control(id, &of_control),
        }
    }

    /// Makes a connection for a process of a guest. It ends as one of a process of domain 0 does: its
    /// ports close, and its mappings are removed.
    fn connect_process(&mut self, domid: DomId) -> AnswerResult {
        let domain = self.parties.domains.living_guest(domid).map_err(|_| Error::Perm)?;
        let is_full = domain.processes.len() >= PROCESS_CONNECTIONS_MAX;
        if is_full || !self.arenas.has_descriptors(&self.parties, domid, PROCESS_DESCRIPTORS) {
            return Err(Error::NoSpc);
        }
        let (broker_end, link) = pair()?;
        let ports_max = self.bindings.ports_max(domid);
        let peer = self.parties.peers.add(broker_end, domid, Rights::GUEST_PROCESS, ports_max)?;
        if let Some(domain) = self.parties.domains.get_mut(domid) {
            domain.processes.push(peer);
        }
        Ok(Some((Vec::new(), vec![link])))
    }

    /// Returns the memory that a guest's successor gets after it, which is made where it does not
    /// exist. The guest alone has it, and pays for the pages that it touches.
    fn keepsake(&mut self, domid: DomId) -> AnswerResult {
        let has_room = self.arenas.has_descriptors(&self.parties, domid, 1);
        let domain = self.parties.domains.living_guest(domid).map_err(|_| Error::Perm)?;
        let keepsake = match &domain.keepsake {
            Some(keepsake) => keepsake,
            None if !has_room => return Err(Error::NoSpc),
            None => domain.keepsake.insert(new_keepsake().map_err(from_errno)?),
        };
        Ok(Some((Vec::new(), vec![keepsake.try_clone()?])))
    }

    fn hello(&self, id: PeerId) -> AnswerResult {
        let peer = self.parties.peers.get(id).ok_or(Error::NoEnt)?;
        let domain = self.parties.domains.get(peer.domid).ok_or(Error::Srch)?;
        let [console, store] = if peer.domid == DomId::DOM0 { [0, 0] } else { FIRST_PORTS };
        let ports_max = self.bindings.ports_max(peer.domid);
        let words = vec![
            peer.domid.0.into(),
            domain.identity,
            console.into(),
            store.into(),
            ports_max.into(),
            IDENTITIES_LEN as u64,
        ];
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(Error::from);
        let mut fds = vec![clone(&peer.counters)?];
        if peer.rights.has(Rights::DOMAIN_WATCH) {
            fds.push(clone(self.parties.domains.identities())?);
        }
        Ok(Some((words, fds)))
    }
}

fn new_keepsake() -> Result<OwnedFd, Errno> {
    let keepsake = memfd("keepsake", KEEPSAKE_PAGES as usize * PAGE_SIZE)?;
    fcntl_add_seals(&keepsake, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(keepsake)
}

/// Replaces `DOMID_SELF` by the requesting domain.
fn resolve_self(named: DomId, domid: DomId) -> DomId {
    if named == DomId::SELF { domid } else { named }
}

/// Returns the right that a request needs.
fn needed(request: &BrokerRequest) -> Rights {
    match request {
        BrokerRequest::Hello
        | BrokerRequest::SandboxDone { .. }
        | BrokerRequest::SandboxFailed { .. } => Rights::NONE,
        BrokerRequest::AllocUnbound { .. }
        | BrokerRequest::BindInterdomain { .. }
        | BrokerRequest::Close { .. }
        | BrokerRequest::Status { .. } => Rights::EVENT_CHANNELS,
        BrokerRequest::FindArena { .. }
        | BrokerRequest::Release { .. }
        | BrokerRequest::Keepsake => Rights::GRANT_MAP,
        // A process that a guest has connected connects no others.
        BrokerRequest::OfferArena { .. }
        | BrokerRequest::ArenaMapped { .. }
        | BrokerRequest::Connect => Rights::GRANT_OFFER,
        BrokerRequest::BindVirq { .. } | BrokerRequest::Changes => Rights::DOMAIN_WATCH,
        BrokerRequest::Create(_)
        | BrokerRequest::List { .. }
        | BrokerRequest::Info { .. }
        | BrokerRequest::Pause { .. }
        | BrokerRequest::Unpause { .. }
        | BrokerRequest::Shutdown { .. }
        | BrokerRequest::Destroy { .. }
        | BrokerRequest::Vacate { .. }
        | BrokerRequest::SetMemoryMax { .. }
        | BrokerRequest::Scheduling { .. }
        | BrokerRequest::SetScheduling { .. }
        | BrokerRequest::Accounts { .. }
        | BrokerRequest::Process { .. }
        | BrokerRequest::Holder { .. }
        | BrokerRequest::HandOver { .. }
        | BrokerRequest::Keep { .. } => Rights::DOMAIN_CONTROL,
    }
}
