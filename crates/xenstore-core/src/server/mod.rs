//! The store as a machine: requests in, replies, events and notices out.
//!
//! The caller owns sockets, rings, the clock and the hypervisor. It hands in one complete request
//! at a time with [`Server::request`], takes the bytes to send from [`Server::output`], asks which
//! connections have some with [`Server::poll_ready`], and calls [`Server::tick`] no later than
//! [`Server::deadline`]. Time is in microseconds of any clock that never goes back.

mod burial;
mod check;
mod config;
mod connection;
mod connections;
mod content;
mod control;
mod dump;
mod event;
mod lifecycle;
mod manage;
mod removal;
mod request;
mod restore;
mod rubbish;
mod session;
mod snapshots;
mod transactions;
mod turn;
mod waiting;

use crate::limits::{UNREAD_SOFT_BYTES, WEIGHT_DEFAULT};
use crate::quota::{Kind, Quota, Usage};
use crate::tree::Tree;
use crate::watch::{WatchId, Watches};
use crate::wire::{Error, Header};
use alloc::boxed::Box;
use alloc::vec::Vec;
use burial::Burials;
use check::Check;
use connection::{Connection, Transport};
use connections::Connections;
use content::Content;
use removal::Removals;
use rubbish::Rubbish;
use snapshots::Snapshots;
use turn::{Class, Turns};
use waiting::{Attempt, WaitsFor};

pub use crate::host::{Attach, Host};
pub use crate::id::{ConnId, DomId};
pub use crate::notice::{Ended, Notice};
pub use config::{Config, Orphans};
pub use restore::{Restored, RestoredConnection};

/// Totals since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests answered or queued.
    pub requests: u64,
    /// Watch events queued.
    pub events: u64,
    /// Watch events that were not queued as the same one waited already.
    pub events_merged: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions refused with EAGAIN.
    pub conflicts: u64,
    /// Requests that had to wait for a turn.
    pub delayed: u64,
    /// How long they waited, in microseconds.
    pub waited_us: u64,
}

/// The store.
pub struct Server {
    config: Config,
    content: Content,
    watches: Watches,
    conns: Connections,
    turns: Turns,
    snapshots: Snapshots,
    rubbish: Rubbish,
    burials: Burials,
    removals: Removals,
    /// A CONTROL `check` that is not done yet.
    check: Option<Box<Check>>,
    counters: Counters,
    // Kept between requests, so that they need not be allocated for each.
    path_scratch: Vec<u8>,
    matching: Vec<WatchId>,
    audience: Vec<DomId>,
}

impl Server {
    /// A store that holds what a fresh store holds: `/`, `/tool`, `/tool/xenstored` and the special nodes.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let content = Content::new(&config);
        Self {
            content,
            watches: Watches::default(),
            conns: Connections::default(),
            turns: Turns::default(),
            snapshots: Snapshots::default(),
            rubbish: Rubbish::new(config.slice_cost),
            burials: Burials::new(),
            removals: Removals::new(),
            check: None,
            counters: Counters::default(),
            config,
            path_scratch: Vec::new(),
            matching: Vec::new(),
            audience: Vec::new(),
        }
    }

    /// Sets a quota for domains to come.
    ///
    /// # Errors
    /// EINVAL for an unknown name, or a soft quota where there is none.
    pub fn set_quota(&mut self, name: &str, kind: Kind, value: u32) -> Result<(), Error> {
        let quota = Quota::from_name(name).ok_or(Error::Inval)?;
        self.content.domains.limits.set(quota, kind, value)
    }

    /// The store's content at this moment, for looking at.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.content.tree
    }

    /// Totals since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { delayed: self.turns.delayed_total, ..self.counters }
    }

    /// The use and the refusals of a domain; `None` for one that the store does not know.
    #[must_use]
    pub fn usage(&self, domid: DomId) -> Option<&Usage> {
        self.content.domains.get(domid).map(|domain| &domain.usage)
    }

    /// Bytes of replies and events that wait to be sent to this connection, what it takes to keep them included.
    #[must_use]
    pub fn unread(&self, conn: ConnId) -> usize {
        self.conns.get(conn).map_or(0, Connection::unread)
    }

    /// A socket client, which speaks for the domain of the store and is privileged.
    pub fn connect_socket(&mut self) -> ConnId {
        self.conns.add(self.config.store_domain, Transport::Socket)
    }

    /// Whether the next request of this connection may be handed in now. False while it leaves too
    /// much unread or too many of its requests wait.
    #[must_use]
    pub fn wants_input(&self, conn: ConnId) -> bool {
        let Some(connection) = self.conns.get(conn) else { return false };
        if connection.ended.is_some()
            || connection.unread() >= UNREAD_SOFT_BYTES
            || !self.may_delay_more(conn, connection.delayed.len())
        {
            return false;
        }
        if connection.transport == Transport::Socket
            || self.content.domains.is_privileged(connection.domid)
        {
            return true;
        }
        let limit =
            self.content.domains.limit(connection.domid, Quota::Outstanding, Kind::Hard) as usize;
        limit == 0
            || connection.outstanding() < limit
            || (connection.unread_replies() < limit && self.has_turn(conn))
    }

    /// Takes one complete request; returns what it cost, in the unit of one simple request.
    pub fn request(
        &mut self,
        conn: ConnId,
        header: &Header,
        payload: &[u8],
        now: u64,
        host: &mut dyn Host,
    ) -> u32 {
        self.content.domains.now = now;
        self.content.cost = 1;
        self.counters.requests = self.counters.requests.wrapping_add(1);
        let Some(connection) = self.conns.get(conn).filter(|conn| conn.ended.is_none()) else {
            return 1;
        };
        if !connection.delayed.is_empty() && self.must_follow(conn, header, payload) {
            self.delay(conn, header, payload, WaitsFor::AnEnd);
        } else if let Attempt::Wait(why) = self.attempt(conn, header, payload, host) {
            self.delay(conn, header, payload, why);
        }
        self.run_waiting(self.class(conn), host);
        let Some(connection) = self.conns.get_mut(conn) else { return self.content.cost };
        let owed = core::mem::take(&mut connection.owed);
        let (domid, outstanding) = (connection.domid, connection.outstanding());
        if outstanding > 0 {
            self.content.domains.saw(domid, Quota::Outstanding, outstanding as i64);
        }
        self.content.cost.saturating_add(owed)
    }

    /// The weight of the connection's domain: its share of the daemon's time where several want it, as
    /// against [`WEIGHT_DEFAULT`] of a domain that was given none. Set by CONTROL `weight`.
    #[must_use]
    pub fn weight(&self, conn: ConnId) -> u32 {
        let domain = self.conns.get(conn).and_then(|conn| self.content.domains.get(conn.domid));
        domain.map_or(WEIGHT_DEFAULT, |domain| domain.weight)
    }

    /// The bytes waiting to be sent to this connection.
    pub fn output(&mut self, conn: ConnId) -> &[u8] {
        let Self { conns, watches, .. } = self;
        conns.get_mut(conn).map_or(&[], |connection| connection.output(watches))
    }

    /// The first `count` bytes of [`Server::output`] have been sent.
    pub fn consume_output(&mut self, conn: ConnId, count: usize, now: u64) {
        self.content.domains.now = now;
        let Some(connection) = self.conns.get_mut(conn) else { return };
        connection.consume(count);
        match (connection.unread(), connection.unread_since) {
            (0, None) => {}
            (0, Some(_)) => self.conns.note_unread(conn, None, &self.content.domains),
            (_, since) if count > 0 || since.is_none() => {
                self.conns.note_unread(conn, Some(now), &self.content.domains);
            }
            _ => {}
        }
    }

    /// The next connection that has got output since it was last named here, or that may be asked
    /// for requests again.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        self.conns.pop_ready()
    }

    /// The next notice.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.content.domains.notices.pop()
    }

    /// When [`Server::tick`] must be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let busy =
            self.content.domains.has_orphans || !self.rubbish.is_empty() || self.check.is_some();
        if busy || self.stale_snapshot().is_some() {
            return Some(0);
        }
        self.turns.deadline().into_iter().chain(self.unread_deadline()).min()
    }

    /// Does what time has made due.
    pub fn tick(&mut self, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        self.expire_turns();
        self.expire_unread();
        self.refresh_old_snapshots();
        self.bury_some();
        self.disown_some();
        self.rubbish.free_some(&mut self.content.domains);
        self.check_some();
        self.run_waiting(Class::Guest, host);
    }
}
