//! The event loop: one epoll, and per wake-up only the connections with something to do.
//!
//! A round has these steps: wait; queue the ready connections; serve the queues within their shares
//! ([`crate::fairness`]); send to connections that others' requests gave output; act on the core's
//! notices; accept clients. No step is proportional to the number of connections.

mod host;
mod io;
mod serve;
mod turn;

pub(crate) use io::DaemonIo;

use crate::Error;
use crate::connection::{ClientSocket, Connection, ConnectionClass, Transport};
use crate::fairness::{Demand, GUEST_SHARE, PRIVILEGED_SHARE};
use crate::sends::Sends;
use crate::socket::{AcceptOutcome, Listener};
use daemon::Level;
use daemon::SignalSockets;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use turn::{ExpectedReply, StopReason, Writable};
use xen::domwatch::DomainEvent;
use xenstore_core::server::{ConnId, DomId, Notice, Server};

/// The most bytes of one read.
const INPUT_BYTES: usize = 64 * 1024;
/// The most events that one wait returns.
const EVENTS_MAX: usize = 256;
/// The most sockets that are read before the first of them is answered.
const SERVED_MAX: usize = 32;
/// The most clients accepted in one round.
const ACCEPT_MAX: usize = 64;
/// The most event channels checked in one round.
const PORTS_MAX: usize = 1024;
/// The pause of accepting after descriptors ran out, unless one of the daemon's is closed before.
const ACCEPT_RETRY_US: u64 = 1_000_000;
/// The time until the hypervisor is asked again which domains changed, after it did not answer.
const CHANGES_RETRY_US: u64 = 100_000;

const LISTENER: u64 = u64::MAX;
const TERMINATE: u64 = u64::MAX - 1;
const HANG_UP: u64 = u64::MAX - 2;
const EVENT_CHANNELS: u64 = u64::MAX - 3;

/// The state of the listener: polled, or paused until a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListenerState {
    Polled,
    PausedUntil(u64),
}

/// A clock: returns microseconds since a fixed moment of its choice, never less than before.
pub type Clock = Box<dyn Fn() -> u64>;

/// The parts of a process that a stepped daemon does not have.
pub(crate) struct ProcessHandles {
    pub(crate) listener: Listener,
    pub(crate) signals: SignalSockets,
}

/// The daemon's loop and its state.
pub(crate) struct EventLoop {
    server: Server,
    io: DaemonIo,
    process: Option<ProcessHandles>,
    clock: Clock,
    input: Box<[u8]>,
    /// The requests of the current turn.
    unanswered: Vec<ExpectedReply>,
    events: Vec<epoll::Event>,
    /// The sends to many sockets at once; `None` if the kernel gives this process no io_uring.
    sends: Option<Sends>,
    /// The sockets queued in [`EventLoop::sends`].
    send_queue: Vec<ConnId>,
    /// The sockets served in this round.
    served: Vec<(ConnId, StopReason)>,
    accepting: ListenerState,
    /// The time at which the hypervisor is asked again which domains changed, after it did not
    /// answer.
    changes_due: Option<u64>,
    events_taken: EventsTaken,
    stop: bool,
}

/// The portion of the pending events that was taken. The descriptor reports new events only after
/// all were taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EventsTaken {
    All,
    Some,
}

/// Makes an epoll instance.
///
/// # Errors
/// The error of epoll_create(2).
pub(crate) fn new_epoll() -> rustix::io::Result<OwnedFd> {
    epoll::create(CreateFlags::CLOEXEC)
}

impl EventLoop {
    /// Watches all descriptors that exist at the start.
    ///
    /// # Errors
    /// [`Error::Start`] if epoll refuses a descriptor.
    pub(crate) fn new(
        server: Server,
        io: DaemonIo,
        process: Option<ProcessHandles>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let watch = |fd: rustix::fd::BorrowedFd<'_>, token: u64| {
            epoll::add(&io.epoll, fd, EventData::new_u64(token), EventFlags::IN)
                .map_err(|error| Error::start(format!("epoll: {error}")))
        };
        if let Some(ProcessHandles { listener, signals }) = &process {
            watch(listener.as_fd(), LISTENER)?;
            watch(signals.terminate.as_fd(), TERMINATE)?;
            watch(signals.hang_up.as_fd(), HANG_UP)?;
        }
        if let Some(domains) = &io.domains {
            watch(domains.platform.evtchn.fd(), EVENT_CHANNELS)?;
        }
        Ok(Self {
            server,
            io,
            process,
            clock,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            unanswered: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            sends: Sends::new().ok(),
            send_queue: Vec::new(),
            served: Vec::new(),
            accepting: ListenerState::Polled,
            changes_due: None,
            events_taken: EventsTaken::All,
            stop: false,
        })
    }

    pub(crate) fn io(&mut self) -> &mut DaemonIo {
        &mut self.io
    }

    /// Serves the ring of the daemon's own domain, if there is one.
    ///
    /// # Errors
    /// [`Error::Start`]: a kernel whose ring is not served waits in its first request for ever.
    pub(crate) fn introduce_own_domain(&mut self) -> Result<(), Error> {
        let now = self.now();
        let domid = self.io.store_domain;
        let Some(domains) = &mut self.io.domains else { return Ok(()) };
        let own = domains.platform.domains.own_ring().map_err(|error| {
            Error::start(format!(
                "the ring of domain {}, the own one, cannot be mapped: {error}",
                domid.0
            ))
        })?;
        let Some(own) = own else { return Ok(()) };
        let port = own.port.0;
        domains.own_ring = Some(own);
        let introduced = self.server.introduce(domid, 0, port, now, &mut self.io);
        introduced.map(drop).map_err(|error| {
            Error::start(format!("domain {}, the own one, cannot be introduced: {error}", domid.0))
        })
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// [`Error::Run`] if the machine fails.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        while !self.stop {
            self.round(self.timeout())?;
        }
        self.io.trace.close();
        Ok(())
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Runs one round. Waits at most `timeout` for something to do.
    ///
    /// # Errors
    /// [`Error::Run`] if the machine fails.
    #[inline(always)]
    pub(crate) fn round(&mut self, timeout: Option<Timespec>) -> Result<(), Error> {
        self.wait(timeout)?;
        let now = self.now();
        self.io.now = now;
        self.io.stats.rounds += 1;
        if self.events_taken == EventsTaken::Some {
            self.take_events(now)?;
        }
        if self.changes_due.is_some_and(|due| due <= now) {
            self.take_domain_changes(now);
        }
        let mut accept =
            matches!(self.accepting, ListenerState::PausedUntil(until) if now >= until);
        for at in 0..self.events.len() {
            let event = self.events[at];
            let (token, flags) = (event.data.u64(), event.flags);
            match token {
                LISTENER => accept = true,
                TERMINATE => self.stop = true,
                HANG_UP => {
                    if let Some(process) = &mut self.process {
                        process.signals.take_hang_up();
                    }
                    self.io.reopen_trace();
                }
                EVENT_CHANNELS => self.take_events(now)?,
                id => self.take_socket_event(id, flags, now),
            }
        }
        for (class, share) in
            [(ConnectionClass::Privileged, PRIVILEGED_SHARE), (ConnectionClass::Guest, GUEST_SHARE)]
        {
            self.serve_queue(class, share, now);
        }
        if self.server.deadline().is_some_and(|deadline| deadline <= now) {
            self.server.tick(now, &mut self.io);
        }
        self.take_outcomes(now);
        // Clients are accepted last, so that no index of this round's events is reused within it.
        if accept {
            self.accept(now);
        }
        self.io.trace.flush();
        Ok(())
    }

    // This is inlined like all functions on the stack in a call that may switch tasks: a return
    // after such a call is not predicted.
    #[inline(always)]
    fn wait(&mut self, timeout: Option<Timespec>) -> Result<(), Error> {
        self.events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.io.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Run(format!("epoll_wait: {error}"))),
        }
    }

    /// Returns the time at which the next round is due without any event; 0 for at once.
    pub(crate) fn deadline(&self) -> Option<u64> {
        if !self.io.ready.is_empty() || self.events_taken == EventsTaken::Some {
            return Some(0);
        }
        let accept = match self.accepting {
            ListenerState::Polled => None,
            ListenerState::PausedUntil(until) => Some(until),
        };
        [self.server.deadline(), accept, self.changes_due].into_iter().flatten().min()
    }

    /// Returns the longest time to wait for events; `None` for no limit.
    fn timeout(&self) -> Option<Timespec> {
        let deadline = self.deadline()?;
        let wait_us = if deadline == 0 { 0 } else { deadline.saturating_sub(self.now()) };
        Some(Timespec {
            tv_sec: i64::try_from(wait_us / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wait_us % 1_000_000 * 1000).unwrap_or(0),
        })
    }

    fn take_socket_event(&mut self, token: u64, flags: EventFlags, now: u64) {
        let Ok(index) = u32::try_from(token) else { return };
        let id = ConnId(index);
        let Some(connection) = self.io.connections.get(id) else { return };
        if flags.contains(EventFlags::OUT) {
            self.flush(id, now, Writable::Known);
            self.unpark(id);
        } else if connection.parked && flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            // The client no longer reads its replies.
            self.close_socket(id, now);
            return;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.io.enqueue(id, Demand::New);
        }
    }

    /// Queues the rings whose event channels have events.
    fn take_events(&mut self, now: u64) -> Result<(), Error> {
        self.events_taken = EventsTaken::Some;
        for _ in 0..PORTS_MAX {
            let Some(domains) = &mut self.io.domains else { return Ok(()) };
            let pending = domains.platform.evtchn.pending();
            let name = &domains.platform.name;
            let port = pending.map_err(|error| match error {
                xen::Error::NoDev => {
                    Error::Run(format!("{name} is gone; once it is back, start this daemon anew"))
                }
                other => Error::Run(format!("event channels of {name}: {other}")),
            })?;
            let Some(port) = port else {
                self.events_taken = EventsTaken::All;
                return Ok(());
            };
            if port == domains.virq {
                self.take_domain_changes(now);
                continue;
            }
            let Some(id) = domains.connection_of(port) else { continue };
            if let Some(Connection { transport: Transport::Ring(ring), .. }) =
                self.io.connections.get(id)
            {
                ring.masked = true;
                self.io.enqueue(id, Demand::New);
            }
        }
        Ok(())
    }

    fn take_domain_changes(&mut self, now: u64) {
        self.changes_due = None;
        loop {
            let Some(domains) = &mut self.io.domains else { return };
            match domains.platform.domains.poll_change() {
                Ok(Some(DomainEvent::Shutdown(domid, _))) => {
                    self.server.domain_shutdown(DomId(domid.0), now, &mut self.io);
                }
                Ok(Some(DomainEvent::Died(domid))) => {
                    self.server.domain_died(DomId(domid.0), now, &mut self.io);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    let text =
                        format!("the hypervisor does not say which domains changed: {error}");
                    self.io.log.limited(Level::Error, None, &text, now);
                    // The interrupt may be the last one for a long time, and a dead domain holds
                    // memory.
                    self.changes_due = Some(now.saturating_add(CHANGES_RETRY_US));
                    break;
                }
            }
        }
        if let Some(domains) = &self.io.domains {
            let _ = domains.platform.evtchn.unmask(domains.virq);
        }
    }

    #[inline(always)]
    fn serve_queue(&mut self, class: ConnectionClass, share: i64, now: u64) {
        let mut left = share;
        for _ in 0..self.io.ready.len(class) {
            let Some(id) = self.io.ready.pop(class) else { break };
            left -= self.serve(id, now);
            if self.served.len() >= SERVED_MAX {
                self.finish_turns(now);
            }
            if left <= 0 {
                break;
            }
        }
        self.finish_turns(now);
    }

    /// Sends the output that connections got from others' requests, and acts on the core's notices.
    fn take_outcomes(&mut self, now: u64) {
        // Requests that a gone client held up are answered now, which makes other connections
        // ready.
        loop {
            let mut ready = 0_u32;
            while let Some(id) = self.server.poll_ready() {
                ready = ready.saturating_add(1);
                self.flush_with_others(id, now);
                self.unpark(id);
            }
            self.finish_sends(now);
            self.take_notices(now);
            if ready == 0 {
                return;
            }
        }
    }

    fn take_notices(&mut self, now: u64) {
        while let Some(notice) = self.server.poll_notice() {
            match notice {
                Notice::Warn { domid, text } => {
                    let domid = domid.map(|domid| domid.0);
                    self.io.log.limited(Level::Warn, domid, &text, now);
                }
                Notice::Info(text) => self.io.log.line(Level::Info, "", &text),
                Notice::Ended { conn, why } => match self.io.connections.get(conn) {
                    Some(Connection { transport: Transport::Socket(_), .. }) => {
                        self.close_socket(conn, now);
                    }
                    Some(Connection { transport: Transport::Ring(_), .. }) => {
                        self.io.end_ring(conn, why);
                    }
                    None => {}
                },
                _ => {}
            }
        }
    }

    fn accept(&mut self, now: u64) {
        if self.accepting != ListenerState::Polled {
            self.watch_listener(EventFlags::IN);
            self.accepting = ListenerState::Polled;
        }
        for _ in 0..ACCEPT_MAX {
            let Some(process) = &self.process else { return };
            match process.listener.accept() {
                AcceptOutcome::Client(fd) => self.add_client(fd),
                AcceptOutcome::Nobody => return,
                AcceptOutcome::Exhausted(error) => {
                    if !self.io.exhaustion_logged {
                        self.io.exhaustion_logged = true;
                        let text = format!(
                            "no further client can be accepted: {error}; accepting goes on when one \
                             closes; raise the limit of open files"
                        );
                        self.io.log.line(Level::Warn, "", &text);
                    }
                    self.watch_listener(EventFlags::empty());
                    self.accepting =
                        ListenerState::PausedUntil(now.saturating_add(ACCEPT_RETRY_US));
                    return;
                }
            }
        }
    }

    fn watch_listener(&mut self, what: EventFlags) {
        let Some(process) = &self.process else { return };
        let data = EventData::new_u64(LISTENER);
        let _ = epoll::modify(&self.io.epoll, &process.listener, data, what);
    }

    /// Adds a new client.
    pub(crate) fn add_client(&mut self, fd: OwnedFd) {
        let peer =
            self.io.trace.wants_messages().then(|| rustix::net::sockopt::socket_peercred(&fd));
        let id = self.server.connect_socket();
        let mut socket = ClientSocket::new(fd);
        if let Err(error) = socket.watch(&self.io.epoll, id) {
            let text = format!("a client was turned away: epoll: {error}");
            self.io.log.limited(Level::Warn, None, &text, self.io.now);
            self.server.disconnect(id, self.io.now, &mut self.io);
            return;
        }
        let domid = self.io.store_domain.0;
        let connection =
            Connection::new(Transport::Socket(socket), domid, ConnectionClass::Privileged);
        self.io.connections.insert(id, connection);
        self.io.stats.accepted += 1;
        self.io.stats.sockets += 1;
        if let Some(Ok(peer)) = peer {
            let pid = peer.pid.as_raw_nonzero();
            self.io.trace_object("CONNECT", id, &format!(" pid={pid}"));
        }
    }

    /// Closes the socket of a client that is gone or has to go.
    fn close_socket(&mut self, id: ConnId, now: u64) {
        self.io.trace_object("CLOSE", id, "");
        if self.io.connections.remove(id).is_none() {
            return;
        }
        self.io.stats.sockets = self.io.stats.sockets.saturating_sub(1);
        self.server.disconnect(id, now, &mut self.io);
        if self.accepting != ListenerState::Polled {
            self.accepting = ListenerState::PausedUntil(now);
        }
    }
}
