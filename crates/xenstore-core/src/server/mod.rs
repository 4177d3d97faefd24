//! The store as a state machine: requests in; replies, events and notices out.
//!
//! The caller owns sockets, rings, the clock and the hypervisor interface. It passes one complete
//! request at a time to [`Server::request`], takes the bytes to send from [`Server::output`], gets
//! the connections with output from [`Server::poll_ready`], and calls [`Server::tick`] no later
//! than [`Server::deadline`]. Time is in microseconds of any clock that never goes back.

mod announcer;
mod check;
mod class;
mod config;
mod connection;
mod connections;
mod content;
mod counters;
mod dump;
mod events;
mod free_queue;
mod orphan_search;
mod removal;
mod request;
mod requests;
mod restore;
mod retained_state;
mod sessions;
mod snapshots;
mod store;
mod transactions;
mod turn;
mod waiting;

pub use crate::host::{AttachRequest, StoreHost};
pub use crate::id::{ConnId, DomId};
pub use crate::notice::{EndReason, Notice};
pub use config::{Config, Orphans};
pub use counters::Counters;
pub use restore::RestoredConnection;

use crate::limits::{UNREAD_SOFT_BYTES, WEIGHT_DEFAULT};
use crate::quota::{LimitKind, Quota, Usage};
use crate::stream::{self, DaemonHandles, TransportState};
use crate::tree::Tree;
use crate::wire::{Error, Header, MsgType};
use alloc::format;
use alloc::vec::Vec;
use announcer::RELEASE;
use class::CallerClass;
use connection::{Connection, Transport};
use request::{Request, RequestError};
use restore::Restorer;
use sessions::Sessions;
use store::StoreState;
use waiting::{Attempt, WaitCause, WaitingRequest};

/// A store restored from a stream, and the data that its daemon needs to continue.
pub struct RestoredStore {
    /// The store.
    pub server: Server,
    /// The daemon's own descriptors, if the stream had them.
    pub global: Option<DaemonHandles>,
    /// All connections.
    pub connections: Vec<RestoredConnection>,
}

/// The store, and the requests that wait for their turn there.
pub struct Server {
    store: StoreState,
    /// A buffer that is kept between requests, so that it need not be allocated for each.
    path_scratch: Vec<u8>,
}

impl Server {
    /// Returns a store with the contents of a fresh one: `/`, `/tool`, `/tool/xenstored` and the
    /// special nodes.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { store: StoreState::new(config), path_scratch: Vec::new() }
    }

    /// Makes a store from the stream that [`Server::dump`], or the C daemon, has written. The
    /// caller restores rings and sockets, and calls [`Server::end`] for those that it cannot
    /// restore. Then it compares [`Server::domains`] with the hypervisor's domains, as some may
    /// have died meanwhile.
    ///
    /// # Errors
    /// The record, the position and the reason, if the stream is malformed or contains an
    /// impossible state.
    pub fn restore(
        config: Config,
        stream: &[u8],
        now: u64,
    ) -> Result<RestoredStore, stream::Error> {
        let (store, global, connections) = Restorer::run(config, stream, now)?;
        let server = Self { store, path_scratch: Vec::new() };
        Ok(RestoredStore { server, global, connections })
    }

    /// Writes the state to `sink`, piece by piece, in the format of [`crate::stream`]. `transport`
    /// returns the daemon's part of a connection.
    ///
    /// Of open transactions only their numbers are written: they will get EAGAIN. Waiting requests
    /// become input that has not been processed. Notices should have been taken before.
    ///
    /// # Errors
    /// The first error of `sink`. Nothing is written after it.
    pub fn dump<'a, E>(
        &self,
        global: DaemonHandles,
        transport: impl Fn(ConnId) -> TransportState<'a>,
        sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        dump::dump(&self.store, global, transport, sink)
    }

    /// Sets a quota for new domains.
    ///
    /// # Errors
    /// EINVAL for an unknown name, or a soft quota that does not exist.
    pub fn set_quota(&mut self, name: &str, kind: LimitKind, value: u32) -> Result<(), Error> {
        let quota = Quota::from_name(name).ok_or(Error::Inval)?;
        self.store.sessions.content.domains.limits.set(quota, kind, value)
    }

    /// Returns the store's present content, for reading.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.store.sessions.content.tree
    }

    /// Returns the totals since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.store.counters
    }

    /// Returns the usage and the refusals of a domain; `None` for one that the store does not know.
    #[must_use]
    pub fn usage(&self, domid: DomId) -> Option<&Usage> {
        self.store.sessions.content.domains.get(domid).map(|domain| &domain.usage)
    }

    /// Returns the domains that the store knows, for the daemon to compare with the hypervisor's.
    pub fn domains(&self) -> impl Iterator<Item = DomId> + '_ {
        self.store.sessions.content.domains.iter().map(|(domid, _)| domid)
    }

    /// Returns the bytes of replies and events that wait to be sent to this connection, overhead
    /// included.
    #[must_use]
    pub fn unread(&self, conn: ConnId) -> usize {
        self.store.sessions.conns.get(conn).map_or(0, Connection::unread)
    }

    /// Adds a socket client, which belongs to the domain of the store and is privileged.
    pub fn connect_socket(&mut self) -> ConnId {
        let domid = self.store.config.store_domain;
        self.store.sessions.conns.add(domid, Transport::Socket)
    }

    /// True if the next request of this connection may be passed in now. False while it leaves too
    /// much unread or too many of its requests wait.
    #[must_use]
    pub fn wants_input(&self, conn: ConnId) -> bool {
        let Sessions { content, conns, turns, .. } = &self.store.sessions;
        let domains = &content.domains;
        let Some(connection) = conns.get(conn) else { return false };
        if connection.ended.is_some()
            || connection.unread() >= UNREAD_SOFT_BYTES
            || !turns.may_delay_more(conn, connection.delayed.len())
        {
            return false;
        }
        if connection.transport == Transport::Socket || domains.is_privileged(connection.domid) {
            return true;
        }
        let limit = domains.limit(connection.domid, Quota::Outstanding, LimitKind::Hard) as usize;
        limit == 0
            || connection.outstanding() < limit
            || (connection.unread_replies() < limit && turns.has_turn(conn))
    }

    /// Processes one complete request. Returns its cost, in simple requests.
    pub fn request(
        &mut self,
        conn: ConnId,
        header: &Header,
        payload: &[u8],
        now: u64,
        host: &mut dyn StoreHost,
    ) -> u32 {
        let StoreState { sessions, counters, .. } = &mut self.store;
        sessions.content.domains.now = now;
        sessions.content.cost = 1;
        counters.requests = counters.requests.wrapping_add(1);
        let Some(connection) = sessions.conns.get(conn).filter(|conn| conn.ended.is_none()) else {
            return 1;
        };
        if !connection.delayed.is_empty() && sessions.must_follow(conn, header, payload) {
            self.delay(conn, header, payload, WaitCause::AnEnd);
        } else if let Attempt::Wait(why) = self.attempt(conn, header, payload, host) {
            self.delay(conn, header, payload, why);
        }
        self.run_waiting(self.store.sessions.class(conn), host);
        let Sessions { content, conns, .. } = &mut self.store.sessions;
        let Some(connection) = conns.get_mut(conn) else { return content.cost };
        let owed = core::mem::take(&mut connection.owed);
        let (domid, outstanding) = (connection.domid, connection.outstanding());
        if outstanding > 0 {
            content.domains.record_size(domid, Quota::Outstanding, outstanding as i64);
        }
        content.cost.saturating_add(owed)
    }

    /// Runs a request, and answers it unless it must wait.
    fn attempt(
        &mut self,
        conn: ConnId,
        header: &Header,
        payload: &[u8],
        host: &mut dyn StoreHost,
    ) -> Attempt {
        let Self { store, path_scratch } = self;
        let Some(connection) = store.sessions.conns.get(conn) else { return Attempt::Done };
        let caller = store.sessions.content.domains.caller(connection.domid);
        let outcome = match MsgType::from_code(header.kind) {
            None | Some(MsgType::WatchEvent | MsgType::Error) => {
                Err(RequestError::Error(Error::NoSys))
            }
            Some(kind) => {
                let request = Request { conn, header, kind, payload, caller };
                requests::run(store, request, path_scratch, host)
            }
        };
        match outcome {
            Ok(()) => Attempt::Done,
            Err(RequestError::Wait(why)) => Attempt::Wait(why),
            Err(RequestError::Error(error)) => {
                if let Some(connection) = store.sessions.conns.get_mut(conn) {
                    connection.reply_error(header, error);
                }
                Attempt::Done
            }
        }
    }

    /// Makes a request wait.
    fn delay(&mut self, conn: ConnId, header: &Header, payload: &[u8], why: WaitCause) {
        let StoreState { sessions, counters, .. } = &mut self.store;
        counters.delayed = counters.delayed.saturating_add(1);
        sessions.delay(conn, header, payload, why);
    }

    /// Runs the waiting requests of domain 0 if a turn is over, and in a guest's time also those of
    /// guests, as much as a slice may cost. The rest are run in the next round. Requests that
    /// waited for the end of a turn come first, then those that want a turn themselves. A request
    /// never comes before another that it depends on.
    fn run_waiting(&mut self, time_of: CallerClass, host: &mut dyn StoreHost) {
        let mut left = self.store.config.slice_cost;
        loop {
            let turns = &self.store.sessions.turns;
            if turns.lane(CallerClass::Privileged).queue.is_due() {
                self.try_next(CallerClass::Privileged, host);
            } else if time_of == CallerClass::Guest
                && left > 0
                && turns.lane(CallerClass::Guest).queue.is_due()
            {
                let cost = self.try_next(CallerClass::Guest, host);
                left = left.saturating_sub(cost);
            } else {
                return;
            }
        }
    }

    /// Tries the next request that is to be tried, and returns the cost.
    fn try_next(&mut self, class: CallerClass, host: &mut dyn StoreHost) -> u32 {
        let sessions = &mut self.store.sessions;
        if sessions.turns.lane_mut(class).queue.take_end() {
            return sessions.plan_tries(class);
        }
        let Some(number) = sessions.turns.lane_mut(class).queue.next_to_try() else { return 0 };
        if !sessions.may_try(class, number) {
            return 0;
        }
        let queue = &mut sessions.turns.lane_mut(class).queue;
        let Some(waiting) = queue.begin_try(number) else { return 0 };
        let cost = self.retry(number, waiting, class, host);
        self.store.sessions.turns.lane_mut(class).queue.end_try();
        cost
    }

    /// Tries a request again. The cost is charged to its connection, not to the one whose turn has
    /// ended.
    fn retry(
        &mut self,
        number: u64,
        mut waiting: WaitingRequest,
        class: CallerClass,
        host: &mut dyn StoreHost,
    ) -> u32 {
        let spent = core::mem::take(&mut self.store.sessions.content.cost);
        let conn = waiting.conn;
        let attempt = self.attempt(conn, &waiting.header, &waiting.payload, host);
        let StoreState { sessions, counters, .. } = &mut self.store;
        let Sessions { content, conns, turns, .. } = sessions;
        let cost = core::mem::replace(&mut content.cost, spent).saturating_add(1);
        let Some(connection) = conns.get_mut(conn) else { return cost };
        connection.owed = connection.owed.saturating_add(cost);
        // If the connection has ended meanwhile, its waiting requests are already dropped.
        let Ok(at) = connection.delayed.binary_search(&number) else { return cost };
        let queue = &mut turns.lane_mut(class).queue;
        match attempt {
            Attempt::Wait(why) => {
                waiting.why = why;
                queue.put_back(number, waiting);
            }
            Attempt::Done => {
                connection.delayed.remove(at);
                let waited = content.domains.now.saturating_sub(waiting.since);
                counters.waited_us = counters.waited_us.saturating_add(waited);
                connection.charge_delayed(waiting.weight().saturating_neg(), &mut content.domains);
                if waiting.why == WaitCause::ATurn {
                    queue.try_followers(connection, number);
                }
                conns.mark_ready(conn);
            }
        }
        cost
    }

    /// Returns the weight of the connection's domain: its share of the daemon's time if several
    /// domains want it, relative to [`WEIGHT_DEFAULT`] of a domain without a configured weight.
    /// CONTROL `weight` sets it.
    #[must_use]
    pub fn weight(&self, conn: ConnId) -> u32 {
        let Sessions { content, conns, .. } = &self.store.sessions;
        let domain = conns.get(conn).and_then(|conn| content.domains.get(conn.domid));
        domain.map_or(WEIGHT_DEFAULT, |domain| domain.weight)
    }

    /// Returns the bytes waiting to be sent to this connection.
    pub fn output(&mut self, conn: ConnId) -> &[u8] {
        let StoreState { sessions, announcer, .. } = &mut self.store;
        let connection = sessions.conns.get_mut(conn);
        connection.map_or(&[], |connection| connection.output(&announcer.watches))
    }

    /// Records that the first `count` bytes of [`Server::output`] have been sent.
    pub fn consume_output(&mut self, conn: ConnId, count: usize, now: u64) {
        let Sessions { content, conns, .. } = &mut self.store.sessions;
        let domains = &mut content.domains;
        domains.now = now;
        let Some(connection) = conns.get_mut(conn) else { return };
        connection.consume(count);
        match (connection.unread(), connection.unread_since) {
            (0, None) => {}
            (0, Some(_)) => conns.record_unread(conn, None, domains),
            (_, since) if count > 0 || since.is_none() => {
                conns.record_unread(conn, Some(now), domains);
            }
            _ => {}
        }
    }

    /// Returns the next connection that has got output since this method last returned it, or whose
    /// requests may be read again.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        self.store.sessions.conns.pop_ready()
    }

    /// Returns the next notice.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.store.sessions.content.domains.notices.pop()
    }

    /// Returns the latest time at which [`Server::tick`] must be called.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.store.deadline()
    }

    /// Does the work that is due at this time.
    pub fn tick(&mut self, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        self.store.work();
        self.run_waiting(CallerClass::Guest, host);
    }

    fn set_time(&mut self, now: u64) {
        self.store.sessions.content.domains.now = now;
    }

    /// Introduces a domain on the daemon's own behalf (dom0's own ring at start-up).
    ///
    /// # Errors
    /// The error of [`StoreHost::attach`].
    pub fn introduce(
        &mut self,
        domid: DomId,
        gfn: u64,
        port: u32,
        now: u64,
        host: &mut dyn StoreHost,
    ) -> Result<ConnId, Error> {
        self.set_time(now);
        self.store.introduce(domid, gfn, port, host)
    }

    /// Removes a connection whose peer is gone, with its watches, transactions and waiting
    /// requests.
    pub fn disconnect(&mut self, conn: ConnId, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        let Some(connection) = self.store.sessions.conns.get(conn) else { return };
        let domid = connection.domid;
        self.store.clear_connection(conn);
        let Sessions { content, conns, .. } = &mut self.store.sessions;
        conns.remove(conn);
        if let Some(domain) = content.domains.get_mut(domid)
            && domain.conn == Some(conn)
        {
            domain.conn = None;
        }
        self.run_waiting(CallerClass::Privileged, host);
    }

    /// Ends a connection whose peer broke the protocol, as the transport found. The state is then
    /// the one of [`Notice::Ended`].
    pub fn end(&mut self, conn: ConnId, why: EndReason, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        let Some(connection) = self.store.sessions.conns.get(conn) else { return };
        let domid = connection.domid;
        let what = match why {
            EndReason::Unread => "it left too much unread",
            EndReason::RingIndex => "its ring's indices are not possible",
            EndReason::Protocol => "it announced a message longer than the protocol allows",
            EndReason::Communication => "its event channel or ring page cannot be used",
        };
        let text = format!(
            "connection {} of domain {} is no longer served: {what}; nobody else is affected",
            conn.0, domid.0
        );
        self.store.sessions.content.domains.notice(Notice::Warn { domid: Some(domid), text });
        self.store.end_connection(conn, why);
        self.run_waiting(CallerClass::Privileged, host);
    }

    /// Resets a connection at the guest's request (ring reconnection): watches, transactions,
    /// waiting requests and unsent output are dropped; the connection stays.
    pub fn reset(&mut self, conn: ConnId, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        self.store.clear_connection(conn);
        self.run_waiting(CallerClass::Privileged, host);
    }

    /// Handles the hypervisor's report of a shut-down or crashed domain: fires `@releaseDomain`
    /// once.
    pub fn domain_shutdown(&mut self, domid: DomId, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        let Some(domain) = self.store.sessions.content.domains.get_mut(domid) else { return };
        if domain.conn.is_some() && !core::mem::replace(&mut domain.shutdown, true) {
            self.store.fire_special(RELEASE, domid);
        }
        self.run_waiting(CallerClass::Privileged, host);
    }

    /// Handles the hypervisor's report that the domain no longer exists: removes its connection,
    /// nodes and permission entries. Another domain that has its number by now, and that the store
    /// knows, is not affected.
    pub fn domain_died(&mut self, domid: DomId, now: u64, host: &mut dyn StoreHost) {
        self.set_time(now);
        let known = self.store.sessions.content.domains.get(domid);
        let known = known.and_then(|domain| domain.identity);
        if known.is_none() || host.domain_identity(domid) != known {
            self.store.release(domid, host);
            self.run_waiting(CallerClass::Privileged, host);
        }
    }
}
