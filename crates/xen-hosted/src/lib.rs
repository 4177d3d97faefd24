//! Xen's platform without Xen: each domain is a sandboxed process, and a small broker plays the
//! hypervisor.
//!
//! The guarantee: a domain has one capability, its socket to the broker, and through it what Xen
//! would give it: event channels, grants, and nothing of other domains. Its use of them can harm
//! itself and its peers in that channel or arena, and nobody else.
//!
//! | module | what it is |
//! |---|---|
//! | [`hypervisor`] | the broker: domains, ports, arenas, rights, accounts |
//! | [`domain`] | what a domain is to be; its sandbox: control groups, namespaces, system-call filter |
//! | [`descriptors`] | what a domain's program is started with, by name |
//! | [`evtchn`], [`gnttab`], [`domwatch`], [`domctl`] | the traits of `xen`, as the broker's peers have them |
//! | `link`, `proto` | a peer's socket; the messages on it |
//! | `counters` | memory that broker and peers share: what each counts, identities |
//! | `errno` | errors of system calls as the platform's |
//! | [`mount`] | loop devices and mounts of the host's kernel, for guests that are trusted with it |
//! | [`limits`] | every bound, by name |
//! | `map`, `sys` | mapped memory; system calls that no crate has. With `mount` the only modules with `unsafe` |
//!
//! # The state of each party
//!
//! | | broker | a peer |
//! |---|---|---|
//! | a connection | one end; domid and rights, given to it at its creation | the other end; nothing in its messages says who it is |
//! | an event channel | numbers: who holds which port, what it is bound to. No descriptor | two eventfds, from the moment it is bound |
//! | an arena | the memfds, until granter or peer is gone; who has looked it up | a mapping each |
//! | a grant | nothing | granter: the entry; peer: its bit beside it |
//! | a domain | pidfd, control groups, configuration | |
//!
//! Without the broker in the path: notifying (a write), waiting (an epoll), masking, granting, mapping,
//! unmapping, ending a grant, counting, and asking for a domain's identity. With it: binding and
//! closing ports, the first use of each arena, the life of domains.
//!
//! # Failures
//!
//! - A process of domain 0 dies: the broker sees the end of its socket. Its ports close, so the
//!   other ends are unbound; its bits in all tables are cleared, so all its mappings are removed.
//! - A domain's first process ends: the domain has shut down ([`domain::SHUTDOWN_STATUS`]), and
//!   VIRQ_DOM_EXC reports it. As on Xen its ports and grants stay until the toolstack destroys it;
//!   its mappings are removed. A domain that lives and closes its socket is treated in the same
//!   way.
//! - A domain is destroyed: ports, arenas and socket go at once, its number when nobody names it
//!   any more. A peer that has its pages mapped keeps them until it unmaps them.
//! - A peer does not read: the broker's messages to it wait. While 16 answers wait, no further
//!   request of it is read, and a bind to a guest with 64 unread bindings fails with `EBUSY`.
//! - A peer sends requests without end: a guest's are read 500 times a second once its burst is
//!   spent.
//! - **The broker dies: its domains die with it** (`PR_SET_PDEATHSIG`), and the store and the
//!   backends find their event channels at an end. The same holds on Xen: without the hypervisor
//!   there is no host. Sparing them was the alternative: event channels and mapped grants would go
//!   on, but nobody could end a grant's peer, tell a death, bound memory or reuse a number, and a
//!   new broker would have to believe what guests told it of the state that was lost. A new broker
//!   on the same directory begins with no domains, and ends what is left of those before: a domain
//!   can put off that signal, and not what its processes, groups and users are known by.
//!
//! # How a guest starts
//!
//! Its program finds its socket to the broker by the name `xen-broker` ([`descriptors`], [`Platform::guest`]). The broker answers with domid, store port and console port. The pages of store
//! and console are the first two of the domain's first arena, granted to domain 0 under the reserved
//! references 1 and 0 ([`gnttab::Offers::reserved`]). It has no other descriptor but standard input,
//! output and error, no network, no other process, and no file that may be written; with
//! [`domain::Devices::Files`] it has its end of a FUSE mount at `/dev` ([`guest_devices`]) and a `/tmp` besides, and with
//! [`domain::ConsoleTerminal::Private`] the master of a terminal that is in no folder ([`guest_terminal`]). System calls that
//! it may not make are refused ([`domain::system_calls`]), and of ioctl(2) all requests but a few of terminals; with those it
//! may make, it cannot make a descriptor blocking again.
//!
//! # Trust
//!
//! A granter and its peer share an arena and its table, so each can corrupt their content, for the
//! other and itself: entries, bits, pages. Everything that is read there is a number that is
//! checked or a page that is copied. A guest's own counters ([`domctl::Accounts`]) have the values
//! that it writes. The broker trusts nothing that a guest writes.
//!
//! The system calls of domain 0's processes after their start: sendto, recvmsg, write, epoll_wait,
//! epoll_ctl, mmap, munmap, close ([`SYSTEM_CALLS`]).

mod counters;
pub mod descriptors;
pub mod domain;
pub mod domctl;
pub mod domwatch;
mod errno;
pub mod evtchn;
pub mod gnttab;
pub mod hypervisor;
pub mod limits;
mod link;
mod map;
pub mod mount;
mod proto;
mod sys;

use crate::descriptors::MissingDescriptor;
use crate::link::Link;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use xen::shared::SharedPage;
use xen::{DomId, Error, GrantRef, Port};

pub use sys::lead_session;

/// The requests that a connection may send to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights(u8);

impl Rights {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const EVENT_CHANNELS: Self = Self(1);
    pub(crate) const GRANT_MAP: Self = Self(2);
    pub(crate) const GRANT_OFFER: Self = Self(4);
    pub(crate) const DOMAIN_WATCH: Self = Self(8);
    pub(crate) const DOMAIN_CONTROL: Self = Self(16);
    /// The rights of a guest: it may be a frontend, a backend, or both.
    pub(crate) const GUEST: Self =
        Self(Self::EVENT_CHANNELS.0 | Self::GRANT_MAP.0 | Self::GRANT_OFFER.0);

    /// The rights of a process that a guest has connected: it may be a backend.
    pub(crate) const GUEST_PROCESS: Self = Self(Self::EVENT_CHANNELS.0 | Self::GRANT_MAP.0);

    /// True if `other` is among them.
    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The purpose of a process of domain 0. Each has a socket of its own, with the rights that it
/// needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum Role {
    /// `xenstored`: event channels, mapping grants, watching domains.
    Store,
    /// A backend: event channels, mapping grants.
    Backend,
    /// A frontend in domain 0: event channels, granting pages.
    Frontend,
    /// The toolstack: control of domains.
    Control,
}

impl Role {
    pub(crate) const ALL: [Self; 4] = [Self::Store, Self::Backend, Self::Frontend, Self::Control];

    fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Backend => "backend",
            Self::Frontend => "frontend",
            Self::Control => "control",
        }
    }

    pub(crate) fn rights(self) -> Rights {
        let (channels, map) = (Rights::EVENT_CHANNELS.0, Rights::GRANT_MAP.0);
        match self {
            Self::Store => Rights(channels | map | Rights::DOMAIN_WATCH.0),
            Self::Backend => Rights(channels | map),
            Self::Frontend => Rights(channels | Rights::GRANT_OFFER.0),
            Self::Control => Rights::DOMAIN_CONTROL,
        }
    }
}

/// The directory of one host: the broker's lock, and its sockets for domain 0, one for each [`Role`].
/// Only its owner can look into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostDir(PathBuf);

impl HostDir {
    /// Names the host in this directory, which its broker makes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the socket for processes of domain 0 with this role.
    #[must_use]
    pub fn socket(&self, role: Role) -> PathBuf {
        self.0.join(role.name())
    }
}

/// The platform of one process.
#[derive(Clone, Debug)]
pub struct Platform {
    pub(crate) link: Arc<Link>,
}

impl Platform {
    /// Connects a process of domain 0 to the broker of `host`.
    ///
    /// # Errors
    /// [`Error::NoDev`] where none runs.
    pub fn connect(host: &HostDir, role: Role) -> Result<Self, Error> {
        Ok(Self { link: Link::connect(&host.socket(role))? })
    }

    /// Returns the platform of the domain whose program this is. To be called once.
    ///
    /// # Errors
    /// [`GuestError::Missing`] where this is no domain's program, [`GuestError::Broker`] where the broker is gone.
    pub fn guest() -> Result<Self, GuestError> {
        let socket = descriptors::take(descriptors::BROKER).map_err(GuestError::Missing)?;
        Self::over(socket).map_err(GuestError::Broker)
    }

    /// Returns the platform of a process that a guest has connected
    /// ([`Platform::connect_process`]): [`PROCESS_VARIABLE`] says that standard input is its
    /// connection. `None` where it does not.
    ///
    /// # Errors
    /// [`Error::NoDev`] where the broker is gone.
    pub fn process() -> Result<Option<Self>, Error> {
        if std::env::var_os(PROCESS_VARIABLE).is_none_or(|value| value != PROCESS_BY_INPUT) {
            return Ok(None);
        }
        let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(Error::from)?;
        Self::over(socket).map(Some)
    }

    /// Makes the platform of the domain that has handed on its `socket` to the broker. For the
    /// broker, the process that holds the socket is that domain: a domain of several processes may
    /// pass it to one of them.
    ///
    /// # Errors
    /// [`Error::NoDev`] where the broker is gone.
    pub fn over(socket: OwnedFd) -> Result<Self, Error> {
        Ok(Self { link: Link::over(socket)? })
    }

    /// Returns the number of this process's domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.link.domid
    }

    /// Takes the event channels, once.
    ///
    /// # Errors
    /// [`Error::Busy`] where they are in use, or the system's error.
    pub fn channels(&self) -> Result<evtchn::Channels, Error> {
        if self.link.ports_taken.swap(true, Ordering::Relaxed) {
            return Err(Error::Busy);
        }
        evtchn::Channels::new(Arc::clone(&self.link))
    }

    /// Returns the mapping of others' grants.
    #[must_use]
    pub fn grants(&self) -> gnttab::Grants {
        gnttab::Grants::new(Arc::clone(&self.link))
    }

    /// Returns the granting of own pages. To be called once in a process: a second one would grant
    /// from the same arenas.
    #[must_use]
    pub fn offers(&self) -> gnttab::Offers {
        gnttab::Offers::new(Arc::clone(&self.link))
    }

    /// Makes a further connection of this guest, for one of its processes: a backend, which can end
    /// and be started again while the guest goes on.
    ///
    /// # Errors
    /// [`Error::Perm`] in domain 0, [`Error::NoSpc`] where the guest has as many as it may have.
    pub fn connect_process(&self) -> Result<OwnedFd, Error> {
        self.link.call(&proto::BrokerRequest::Connect)?.fd()
    }

    /// Returns the memory that this guest's successor gets after it
    /// ([`Control::vacate`](domctl::Control::vacate)): [`KEEPSAKE_PAGES`](limits::KEEPSAKE_PAGES)
    /// pages, zero at first. Its size cannot be changed.
    ///
    /// # Errors
    /// [`Error::Perm`] in domain 0, [`Error::NoSpc`] where the broker has no descriptor for it.
    pub fn keepsake(&self) -> Result<OwnedFd, Error> {
        self.link.call(&proto::BrokerRequest::Keepsake)?.fd()
    }

    /// Returns the watch on domains.
    #[must_use]
    pub fn watch(&self) -> domwatch::BrokerWatch {
        domwatch::BrokerWatch::new(Arc::clone(&self.link))
    }

    /// Returns a guest's console ring: its page, and the port at which it waits.
    ///
    /// # Errors
    /// [`Error::NoDev`] in domain 0, which has none.
    pub fn console_ring(&self, offers: &mut gnttab::Offers) -> Result<(SharedPage, Port), Error> {
        self.reserved(offers, GrantRef::CONSOLE, self.link.first_ports[0])
    }

    /// Returns a guest's ring to the store: its page, and the port at which it waits.
    ///
    /// # Errors
    /// [`Error::NoDev`] in domain 0, which has none.
    pub fn store_ring(&self, offers: &mut gnttab::Offers) -> Result<(SharedPage, Port), Error> {
        self.reserved(offers, GrantRef::XENSTORE, self.link.first_ports[1])
    }

    fn reserved(
        &self,
        offers: &mut gnttab::Offers,
        grant: GrantRef,
        port: Port,
    ) -> Result<(SharedPage, Port), Error> {
        if self.domid() == DomId::DOM0 {
            return Err(Error::NoDev);
        }
        Ok((offers.reserved(grant)?, port))
    }
}

/// The error of a program that cannot use its domain's platform.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GuestError {
    /// It was not started with the domain's socket to the broker.
    Missing(MissingDescriptor),
    /// The broker's answer; [`Error::NoDev`] where it is gone.
    Broker(Error),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::Broker(error) => write!(f, "the broker: {error}"),
        }
    }
}

impl std::error::Error for GuestError {}

/// Takes the connection to FUSE of the domain whose program this is, which serves the files at its
/// `/dev` ([`domain::Devices::Files`]). To be called once. The descriptor never blocks.
///
/// # Errors
/// There is none, or it was taken before.
pub fn guest_devices() -> Result<OwnedFd, MissingDescriptor> {
    descriptors::take(descriptors::DEVICES)
}

/// Takes the master of the terminal of the domain whose program this is
/// ([`domain::ConsoleTerminal::Private`]). To be called once. The descriptor never blocks.
///
/// `rustix::pty::ioctl_tiocgptpeer` opens the other end. Without `O_NOCTTY` it becomes the controlling
/// terminal of the domain's first process, which leads a session. Once the last copy of the other end
/// is closed, the master is always ready, and reading from it fails with `EIO`.
///
/// # Errors
/// There is none, or it was taken before.
pub fn guest_terminal() -> Result<OwnedFd, MissingDescriptor> {
    descriptors::take(descriptors::TERMINAL)
}

/// The parts of a platform that `xenstored` needs.
#[derive(Debug)]
pub struct StorePlatform {
    /// The event channels to the domains.
    pub evtchn: evtchn::Channels,
    /// The mapping of their ring pages.
    pub grants: gnttab::Grants,
    /// The watch on their creation and end.
    pub domains: domwatch::BrokerWatch,
}

/// The variable that tells a guest's process that it was given a connection of its own.
pub const PROCESS_VARIABLE: &str = "XEN_HOSTED_PROCESS";
/// Its value: the connection is standard input.
pub const PROCESS_BY_INPUT: &str = "stdin";

/// The variable that names the host's directory to a process of domain 0 that is started for the
/// host.
pub const HOST_VARIABLE: &str = "XEN_HOSTED_HOST";

/// Connects to the platform of the store of `host`.
///
/// # Errors
/// [`Error::NoDev`] where no broker runs there.
pub fn store_platform(host: &HostDir) -> Result<StorePlatform, Error> {
    let platform = Platform::connect(host, Role::Store)?;
    Ok(StorePlatform {
        evtchn: platform.channels()?,
        grants: platform.grants(),
        domains: platform.watch(),
    })
}

/// The system calls, by number, that a process makes on this platform once it has connected. Its
/// own filter has to allow them.
pub const SYSTEM_CALLS: [libc::c_long; 9] = [
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_read,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_close,
];
