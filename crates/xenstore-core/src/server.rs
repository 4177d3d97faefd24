//! The store as a machine: requests in, replies, events and notices out.
//!
//! The caller owns sockets, rings, the clock and the hypervisor. It hands in one complete request
//! at a time with [`Server::request`], takes the bytes to send from [`Server::output`], asks which
//! connections have some with [`Server::poll_ready`], and calls [`Server::tick`] no later than
//! [`Server::deadline`]. Time is in microseconds of any clock that never goes back.

use crate::wire::{Error, Header};
use alloc::vec::Vec;

/// A domain's number (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DomId(pub u16);

/// A connection. Indices are small and are used again once a connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

/// Why a connection is no longer served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It left more replies and events unread than the limit allows, or left one too long.
    Unread,
    /// Its ring indices are not possible (`XENSTORE_ERROR_RINGIDX`).
    RingIndex,
    /// It announced a payload over the limit (`XENSTORE_ERROR_PROTO`).
    Protocol,
    /// Its event channel or its page cannot be used (`XENSTORE_ERROR_COMM`).
    Communication,
}

/// What the store asks of the machine around it while it answers a request. Nothing here blocks.
pub trait Host {
    /// Whether the hypervisor knows a domain of this number at the moment.
    fn domain_exists(&mut self, domid: DomId) -> bool;

    /// INTRODUCE of a domain that has no connection yet: map its ring page (reserved grant 1, or
    /// `gfn`), bind `port`, write `features` into the page; its requests arrive as `conn` from now on.
    ///
    /// # Errors
    /// What the caller of INTRODUCE is told; nothing is left mapped or bound then.
    fn attach(&mut self, at: Attach) -> Result<(), Error>;

    /// INTRODUCE of a domain that has a connection: bind the new port, reset the ring's indices,
    /// forget half-read requests.
    ///
    /// # Errors
    /// What the caller of INTRODUCE is told.
    fn reattach(&mut self, at: Attach) -> Result<(), Error>;

    /// The domain's connection is gone (RELEASE, or its death): unbind and unmap.
    fn detach(&mut self, domid: DomId, conn: ConnId);

    /// A CONTROL command that is not about the store itself (`log`, `logfile`, `memreport`, `print`,
    /// `live-update`, …). `None` where the machine does not know it either.
    fn control(&mut self, command: &[u8], args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>>;
}

/// What INTRODUCE said, as [`Host::attach`] needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    /// The domain.
    pub domid: DomId,
    /// Guest frame number of its ring page.
    pub gfn: u64,
    /// Its unbound event channel port.
    pub port: u32,
    /// Feature bits for the ring page, [`crate::wire::feature`].
    pub features: u32,
    /// The name of its connection.
    pub conn: ConnId,
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain that the store itself runs in and that socket clients speak for.
    pub store_domain: DomId,
    /// The privileged domain; usually the same.
    pub priv_domain: DomId,
    /// Microseconds a guest may leave an event unread; 0 for ever.
    pub watch_event_timeout_us: u64,
    /// Nodes of a dead domain stay and become the privileged domain's (`--keep-orphans`).
    pub orphans: Orphans,
}

/// What happens to nodes of a domain that died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphans {
    /// They are removed.
    Remove,
    /// They are given to the privileged domain (a security risk, as the option says).
    Keep,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store_domain: DomId(0),
            priv_domain: DomId(0),
            watch_event_timeout_us: crate::limits::WATCH_EVENT_TIMEOUT_US,
            orphans: Orphans::Remove,
        }
    }
}

/// Something to be logged or done by the daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A line for the log at warning level: what happened, to whom, what to do.
    Warn(alloc::string::String),
    /// A line for the log at info level.
    Info(alloc::string::String),
    /// The connection is no longer served. A socket is to be closed; a ring is to show the error
    /// word and to be left alone until it is reconnected, introduced again or detached.
    Ended {
        /// Which connection.
        conn: ConnId,
        /// Why.
        why: Ended,
    },
}

/// The store.
pub struct Server {
    _config: Config,
}

impl Server {
    /// A store that holds what a fresh store holds: `/`, `/tool`, `/tool/xenstored` and the special nodes.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { _config: config }
    }

    /// A socket client, which speaks for the domain of the store and is privileged.
    pub fn connect_socket(&mut self) -> ConnId {
        ConnId(0)
    }

    /// Introduces a domain on the daemon's own account (dom0's own ring at start-up).
    ///
    /// # Errors
    /// What [`Host::attach`] answered.
    pub fn introduce(
        &mut self,
        _domid: DomId,
        _gfn: u64,
        _port: u32,
        _now: u64,
        _host: &mut dyn Host,
    ) -> Result<ConnId, Error> {
        Err(Error::NoSys)
    }

    /// The peer is gone: its watches, transactions and waiting requests go with it.
    pub fn disconnect(&mut self, _conn: ConnId, _now: u64, _host: &mut dyn Host) {}

    /// The transport found the peer in breach of the protocol; as [`Notice::Ended`] afterwards.
    pub fn end(&mut self, _conn: ConnId, _why: Ended, _now: u64, _host: &mut dyn Host) {}

    /// The guest asked for its ring to be reset (ring reconnection): watches, transactions, waiting
    /// requests and unsent output are dropped; the connection lives on.
    pub fn reset(&mut self, _conn: ConnId, _now: u64, _host: &mut dyn Host) {}

    /// Whether the next request of this connection may be handed in now. False while it leaves too
    /// much unread or too many of its requests wait.
    #[must_use]
    pub fn wants_input(&self, _conn: ConnId) -> bool {
        true
    }

    /// Takes one complete request; returns what it cost, in the unit of one simple request.
    pub fn request(
        &mut self,
        _conn: ConnId,
        _header: &Header,
        _payload: &[u8],
        _now: u64,
        _host: &mut dyn Host,
    ) -> u32 {
        1
    }

    /// The bytes waiting to be sent to this connection.
    pub fn output(&mut self, _conn: ConnId) -> &[u8] {
        &[]
    }

    /// The first `count` bytes of [`Server::output`] have been sent.
    pub fn consume_output(&mut self, _conn: ConnId, _count: usize, _now: u64) {}

    /// The next connection that has got output since it was last named here, or that may be asked
    /// for requests again.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        None
    }

    /// The next notice.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        None
    }

    /// When [`Server::tick`] must be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        None
    }

    /// Does what time has made due.
    pub fn tick(&mut self, _now: u64, _host: &mut dyn Host) {}

    /// The hypervisor reports a shut-down or crashed domain: fires `@releaseDomain` once.
    pub fn domain_shutdown(&mut self, _domid: DomId, _now: u64, _host: &mut dyn Host) {}

    /// The hypervisor reports that the domain is no more: connection, nodes, permission entries go.
    pub fn domain_died(&mut self, _domid: DomId, _now: u64, _host: &mut dyn Host) {}

    /// The domains that have a connection, as the daemon must compare them with the hypervisor's.
    pub fn domains(&self) -> impl Iterator<Item = DomId> + '_ {
        core::iter::empty()
    }
}
