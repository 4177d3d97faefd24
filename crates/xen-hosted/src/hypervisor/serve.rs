//! The loop: accept, read a few requests of each peer, answer.

use super::answer::Answered;
use super::peers::{Keep, Peer, State};
use super::{Broker, Domain, PeerId, Stage, Token, say};
use crate::counters::{Counter, IDENTITIES_LEN, counters_len};
use crate::errno::from_errno;
use crate::limits::{
    CREATE_MAX, DOM0_PORTS_MAX, PACKET_MAX, PEERS_MAX, REQUESTS_A_TURN, UNREAD_MAX,
};
use crate::map::memfd;
use crate::proto::{self, Message, Request};
use crate::{Rights, Role};
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_peercred};
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use xen::{DomId, Error};

/// Events that one wait returns at most.
const EVENTS_MAX: usize = 256;
/// How long a peer rests that asked too often, and whoever needs what the system has no more of.
const REST_MS: u64 = 20;

impl Broker {
    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// What epoll_wait(2) answered.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        while !self.stopping {
            events.clear();
            let rest = Timespec { tv_sec: 0, tv_nsec: (REST_MS * 1_000_000) as i64 };
            let is_done = self.resting.is_empty() && self.lingering.is_empty();
            let timeout = (!is_done).then_some(&rest);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match Token::of(event.data.u64()) {
                    Some(Token::Peer(id)) => self.serve(id, event.flags),
                    Some(Token::Process(domid)) => self.process_ended(domid),
                    Some(Token::Setup(domid)) => self.sandbox_says(domid),
                    Some(Token::Listener(role)) => self.accept(role),
                    Some(Token::Stop) => self.stopping = true,
                    None => {}
                }
            }
            self.wake_resting();
        }
        Ok(())
    }

    fn accept(&mut self, role: Role) {
        let Some((_, listener)) = self.listeners.iter().find(|(of, _)| *of == role) else { return };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(errno) => {
                say(&format!("a process of domain 0 cannot connect: {errno}"));
                // It still waits to be let in: without a rest that would be this loop's only work.
                let data = EventData::new_u64(Token::Listener(role).word());
                let _ = epoll::modify(&self.epoll, listener, data, EventFlags::empty());
                self.resting.insert(Token::Listener(role));
                return;
            }
        };
        // The folder lets in its owner alone; this says so once more.
        let same = socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root());
        if !same {
            return;
        }
        if self.peers.count >= PEERS_MAX + self.domains.len() {
            // It is told before it asks anything, and hears that as the answer.
            let busy = Message::Reply { errno: Error::Busy.errno(), words: Vec::new() };
            let _ = proto::send(socket.as_fd(), &busy.encode(), &[], SendFlags::DONTWAIT);
            return;
        }
        if let Err(error) = self.add_peer(socket, DomId::DOM0, role.rights()) {
            say(&format!("a process of domain 0 cannot connect: {error}"));
        }
    }

    /// A new connection for `domid`.
    pub(super) fn add_peer(
        &mut self,
        socket: OwnedFd,
        domid: DomId,
        rights: Rights,
    ) -> Result<PeerId, Error> {
        let len = counters_len(self.ports_max_of(domid));
        let counters = memfd("counters", len).map_err(from_errno)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&counters, seals).map_err(from_errno)?;
        // Bounded by the kernel's own limit where this is more.
        let _ = set_socket_send_buffer_size(&socket, UNREAD_MAX);
        let id = self.peers.insert(Peer::new(socket, domid, rights, counters));
        let watched = self.peers.get(id).map_or(Err(Errno::NOENT), |peer| {
            self.watch(peer.socket.as_fd(), Token::Peer(id), EventFlags::IN)
        });
        if let Err(errno) = watched {
            self.peers.remove(id);
            return Err(from_errno(errno));
        }
        if rights.has(Rights::DOMAIN_WATCH) {
            self.watchers.push(id);
        }
        Ok(id)
    }

    pub(super) fn ports_max_of(&self, domid: DomId) -> u32 {
        if domid == DomId::DOM0 { DOM0_PORTS_MAX } else { self.ports_max }
    }

    fn serve(&mut self, id: PeerId, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            // Whatever it has asked for it cannot be answered, and this is reported until it is gone.
            self.hang_up(id);
            return;
        }
        if flags.contains(EventFlags::OUT) {
            match self.peers.get_mut(id).map(Peer::flush) {
                Some(Ok(())) => self.watch_peer(id),
                Some(Err(_)) => {
                    self.hang_up(id);
                    return;
                }
                None => return,
            }
        }
        let now_ms = now_ms();
        for _ in 0..REQUESTS_A_TURN {
            let Some(peer) = self.peers.get_mut(id) else { return };
            if !peer.is_read() {
                return;
            }
            if !peer.may_ask(now_ms) {
                peer.state = State::ReadLater;
                self.watch_peer(id);
                return;
            }
            let mut fds = Vec::new();
            let len = if peer.rights.has(Rights::DOMAIN_CONTROL) { CREATE_MAX } else { PACKET_MAX };
            let into = self.input.get_mut(..len).unwrap_or_default();
            let socket = peer.socket.as_fd();
            let received = if peer.rights.has(Rights::DOMAIN_CONTROL) {
                proto::receive(socket, into, &mut fds, RecvFlags::DONTWAIT)
            } else {
                // Without room for them the kernel drops what descriptors a guest sends.
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

    /// Answers the packet of `count` bytes in the input; one that was too long has more than fits.
    fn take_request(&mut self, id: PeerId, count: usize, fds: Vec<OwnedFd>) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.has_asked();
        }
        let request = self.input.get(..count).and_then(Request::decode);
        if let Some(Request::Release { granter, slot, number }) = request {
            if !self.release(id, (granter, slot, number)) {
                self.count_refusal(id);
            }
            return;
        }
        let answered = match request {
            Some(request) => self.answer(id, request, fds),
            None => Err(Error::Inval),
        };
        match answered {
            Ok(Some((words, fds))) => self.reply(id, 0, words, &fds),
            Ok(None) => {}
            Err(error) => {
                self.count_refusal(id);
                self.reply(id, error.errno(), Vec::new(), &[]);
            }
        }
    }

    fn count_refusal(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        if let Some(domain) = self.domains.get_mut(&peer.domid) {
            domain.refused = domain.refused.saturating_add(1);
        }
    }

    pub(super) fn reply(&mut self, id: PeerId, errno: i32, words: Vec<u64>, fds: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let _ = self.push(id, &Message::Reply { errno, words }, &fds, Keep::Answer);
    }

    /// Sends a message, now or when its receiver reads.
    ///
    /// # Errors
    /// It does not get there.
    pub(super) fn push(
        &mut self,
        id: PeerId,
        message: &Message,
        fds: &[BorrowedFd<'_>],
        keep: Keep,
    ) -> Result<(), Errno> {
        let peer = self.peers.get_mut(id).ok_or(Errno::PIPE)?;
        let waits = peer.send(message.encode(), fds, keep)?;
        if keep != Keep::Answer {
            // Who notifies looks here, and not into the socket.
            peer.told += 1;
            let told = peer.told.to_ne_bytes();
            rustix::io::pwrite(&peer.counters, &told, Counter::Told.offset() as u64)?;
        }
        if waits {
            self.watch_peer(id);
        }
        Ok(())
    }

    /// Waits until a peer asks, and until its socket takes more where something waits for that; of one
    /// that rests, for no more than its rest allows.
    fn watch_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        let data = EventData::new_u64(Token::Peer(id).word());
        let _ = epoll::modify(&self.epoll, &peer.socket, data, peer.interest());
        if matches!(peer.state, State::ReadLater | State::SentLater) {
            self.resting.insert(Token::Peer(id));
        }
    }

    fn wake_resting(&mut self) {
        if self.resting.is_empty() && self.lingering.is_empty() {
            return;
        }
        let now_ms = now_ms();
        if now_ms < self.rested_until_ms {
            return;
        }
        self.rested_until_ms = now_ms + REST_MS;
        self.remove_lingering();
        for token in std::mem::take(&mut self.resting) {
            match token {
                Token::Peer(id) => {
                    if let Some(peer) = self.peers.get_mut(id) {
                        peer.state = State::Served;
                        self.watch_peer(id);
                    }
                }
                Token::Listener(role) => {
                    let listener = self.listeners.iter().find(|(of, _)| *of == role);
                    if let Some((_, listener)) = listener {
                        let data = EventData::new_u64(token.word());
                        let _ = epoll::modify(&self.epoll, listener, data, EventFlags::IN);
                    }
                }
                _ => {}
            }
        }
    }

    fn answer(&mut self, id: PeerId, request: Request, fds: Vec<OwnedFd>) -> Answered {
        let peer = self.peers.get(id).ok_or(Error::NoEnt)?;
        if !peer.rights.has(needed(&request)) {
            return Err(Error::Perm);
        }
        let domid = peer.domid;
        match request {
            Request::Hello => self.hello(id),
            Request::AllocUnbound { remote } => self.alloc_unbound(id, own(remote, domid)),
            Request::BindInterdomain { remote, port } => {
                self.bind_interdomain(id, own(remote, domid), port)
            }
            Request::BindVirq { virq } => self.bind_virq(id, virq),
            Request::Close { port } => self.close_port(id, port),
            Request::Status { port } => self.port_status(id, port),
            Request::FindArena { granter, slot } => self.find_arena(id, own(granter, domid), slot),
            Request::OfferArena { peer, writable, at } => {
                self.offer_arena(id, own(peer, domid), writable != 0, at)
            }
            Request::ArenaMapped { slot } => self.arena_mapped(id, slot),
            Request::Changes => self.changes(id),
            Request::Create(config) => self.create(id, &config, fds),
            Request::List { from } => self.list(from),
            Request::Info { domid } => self.info(domid),
            Request::Pause { domid } => self.pause(domid),
            Request::Unpause { domid } => self.unpause(domid),
            Request::Shutdown { domid, reason } => self.shut_down(domid, reason),
            Request::Destroy { domid } => self.destroy(domid),
            Request::SetMemoryMax { domid, kib } => self.set_memory_max(domid, kib),
            Request::Scheduling { domid } => self.scheduling(domid),
            Request::SetScheduling { domid, weight, cap } => {
                self.set_scheduling(domid, weight, cap)
            }
            Request::Accounts { domid } => self.accounts(domid),
            Request::Process { domid } => self.process(domid),
            Request::Holder { domid } => self.holder(domid),
            Request::HandOver { domid, holder } => self.hand_over(id, domid, holder),
            Request::Keep { domid } => self.keep(id, domid),
            // Not of a connection like this.
            Request::Release { .. }
            | Request::SandboxDone { .. }
            | Request::SandboxFailed { .. } => Err(Error::Inval),
        }
    }

    fn hello(&mut self, id: PeerId) -> Answered {
        let peer = self.peers.get(id).ok_or(Error::NoEnt)?;
        let domain = self.domains.get(&peer.domid).ok_or(Error::Srch)?;
        let [console, store] = if peer.domid == DomId::DOM0 { [0, 0] } else { Domain::FIRST_PORTS };
        let ports_max = self.ports_max_of(peer.domid);
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
            fds.push(clone(&self.identities_fd)?);
        }
        Ok(Some((words, fds)))
    }

    /// The other end of a connection is gone, or as good as gone. What a process of domain 0 held goes
    /// with it; a guest's ports and grants stay until it is destroyed, and only what it had mapped goes.
    fn hang_up(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let own = self.domains.get(&peer.domid).is_some_and(|domain| domain.peer == Some(id));
        if !own {
            self.drop_peer(id);
            return;
        }
        peer.hang_up();
        let _ = epoll::delete(&self.epoll, &peer.socket);
        self.resting.remove(&Token::Peer(id));
        for arena in std::mem::take(&mut peer.mapped) {
            self.drop_holder(id, arena);
        }
    }

    /// A connection is gone, and what it held goes with it.
    pub(super) fn drop_peer(&mut self, id: PeerId) {
        let Some(mut peer) = self.peers.remove(id) else { return };
        let _ = epoll::delete(&self.epoll, &peer.socket);
        self.watchers.retain(|watcher| *watcher != id);
        self.resting.remove(&Token::Peer(id));
        for port in std::mem::take(&mut peer.ports) {
            self.free_port(peer.domid, xen::Port(port), &peer.counters);
        }
        for arena in std::mem::take(&mut peer.mapped) {
            self.drop_holder(id, arena);
        }
        for slot in std::mem::take(&mut peer.offered) {
            self.end_arena(peer.domid, slot);
        }
        if peer.rights.has(Rights::DOMAIN_CONTROL) {
            self.destroy_held(id);
        }
        if let Some(domain) = self.domains.get_mut(&peer.domid)
            && domain.peer == Some(id)
        {
            domain.peer = None;
            if domain.stage == Stage::Dying {
                self.finish(peer.domid);
            }
        }
    }
}

/// `DOMID_SELF` is who asks.
fn own(named: DomId, domid: DomId) -> DomId {
    if named == DomId::SELF { domid } else { named }
}

/// The right that a request needs.
fn needed(request: &Request) -> Rights {
    match request {
        Request::Hello | Request::SandboxDone { .. } | Request::SandboxFailed { .. } => {
            Rights::NONE
        }
        Request::AllocUnbound { .. }
        | Request::BindInterdomain { .. }
        | Request::Close { .. }
        | Request::Status { .. } => Rights::EVENT_CHANNELS,
        Request::FindArena { .. } | Request::Release { .. } => Rights::GRANT_MAP,
        Request::OfferArena { .. } | Request::ArenaMapped { .. } => Rights::GRANT_OFFER,
        Request::BindVirq { .. } | Request::Changes => Rights::DOMAIN_WATCH,
        Request::Create(_)
        | Request::List { .. }
        | Request::Info { .. }
        | Request::Pause { .. }
        | Request::Unpause { .. }
        | Request::Shutdown { .. }
        | Request::Destroy { .. }
        | Request::SetMemoryMax { .. }
        | Request::Scheduling { .. }
        | Request::SetScheduling { .. }
        | Request::Accounts { .. }
        | Request::Process { .. }
        | Request::Holder { .. }
        | Request::HandOver { .. }
        | Request::Keep { .. } => Rights::DOMAIN_CONTROL,
    }
}

fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0)
}
