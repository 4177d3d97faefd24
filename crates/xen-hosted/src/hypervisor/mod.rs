//! The broker: the table of domains, their ports and arenas, and who may ask for what.
//!
//! One thread, one epoll. Nothing here waits for a peer, a domain or the clock but that epoll: answers
//! that a socket does not take are kept, and its peer is not read until they are gone. Every request
//! costs as much as it touches, never as much as there are domains (except the list of them, in
//! pieces of [`LISTED_AT_ONCE`](crate::limits::LISTED_AT_ONCE)).

#![deny(clippy::unwrap_used, clippy::indexing_slicing)]

mod arenas;
mod control;
mod create;
mod life;
mod namespaces;
mod peers;
mod ports;
mod serve;

pub(crate) use peers::PeerId;

use crate::domain::cgroup::{Cgroups, Group};
use crate::domain::{Config, LACKS, Lack, filter};
use crate::limits::{
    ARENAS_MAX, DOM0_PORTS_MAX, PORT_DESCRIPTORS, PORTS_MAX, TASKS_DEFAULT, raise_descriptors,
};
use crate::map::{Map, memfd};
use crate::{HostDir, Role};
use arenas::Arena;
use namespaces::Namespaces;
use peers::Peers;
use ports::PortTable;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{FlockOperation, SealFlags, fcntl_add_seals, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use seccompiler::BpfProgram;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::sync::atomic::Ordering;
use xen::domctl::{RunState, Scheduling};
use xen::domwatch::ShutdownReason;
use xen::gnttab::Access;
use xen::{DomId, Port};

/// Bytes of the table of identities: 8 for each number that a domain can have.
pub(crate) const IDENTITIES_LEN: usize = DomId::FIRST_RESERVED.0 as usize * 8;
/// Descriptors that the broker keeps for itself.
const OWN_DESCRIPTORS: u64 = 128;
/// Descriptors that it holds for a domain besides arenas: socket, process, counters, two set-ups.
const DOMAIN_DESCRIPTORS: u64 = 5;
/// Domains for which descriptors are set aside.
const DOMAINS_PLANNED: u64 = 1024;

/// What an event is about; encoded into the word that epoll keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Token {
    Listener(Role),
    Peer(PeerId),
    Process(DomId),
    Setup(DomId),
    Stop,
}

impl Token {
    fn word(self) -> u64 {
        let (kind, rest) = match self {
            Self::Listener(role) => (0, role as u64),
            Self::Peer(id) => (1, id.word()),
            Self::Process(domid) => (2, domid.0.into()),
            Self::Setup(domid) => (3, domid.0.into()),
            Self::Stop => (4, 0),
        };
        kind << 56 | rest
    }

    fn of(word: u64) -> Option<Self> {
        let rest = word & ((1 << 56) - 1);
        Some(match word >> 56 {
            0 => Self::Listener(*Role::ALL.get(usize::try_from(rest).ok()?)?),
            1 => Self::Peer(PeerId::of(rest)),
            2 => Self::Process(DomId(u16::try_from(rest).ok()?)),
            3 => Self::Setup(DomId(u16::try_from(rest).ok()?)),
            4 => Self::Stop,
            _ => return None,
        })
    }
}

/// Where a domain is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its process puts the sandbox together; its creator waits for the answer.
    Building { creator: PeerId },
    /// It has never run.
    Built,
    /// It runs, paused or not.
    Running,
    /// It has ended by itself, or was ended.
    Shutdown(ShutdownReason),
    /// It was destroyed; its process is still to end.
    Dying,
    /// It is gone; its number is kept from others while somebody names it.
    Dead,
}

/// A domain's first process.
struct Process {
    /// Nobody else's before it was waited for.
    pid: Pid,
    pidfd: OwnedFd,
    /// Until its program runs.
    setup: Option<OwnedFd>,
}

/// One domain.
struct Domain {
    /// What tells it from others of its number; never 0.
    identity: u64,
    config: Config,
    scheduling: Scheduling,
    stage: Stage,
    paused: bool,
    process: Option<Process>,
    group: Option<Group>,
    /// Its own connection; domain 0 has many, and none here.
    peer: Option<PeerId>,
    ports: PortTable,
    arenas: Vec<Option<Arena>>,
    /// Arenas that others have made for it.
    arenas_for: Vec<(DomId, u32)>,
    /// Ports of others that name it, and mappings of its arenas: as long as there are any, its number
    /// is not given to another.
    named: u64,
    /// Requests that it was refused.
    refused: u64,
    /// Notifications that it sent over channels that are closed, as their receivers counted them.
    notified_before: u64,
    cpu_time_ns: u64,
}

/// The port that VIRQ_DOM_EXC is bound to.
struct DomExc {
    domid: DomId,
    port: Port,
    event: OwnedFd,
}

/// The broker of one host directory.
pub struct Broker {
    host: HostDir,
    /// Locked for as long as the broker lives.
    _lock: OwnedFd,
    epoll: OwnedFd,
    listeners: Vec<(Role, OwnedFd)>,
    stop: OwnedFd,
    peers: Peers,
    /// Peers that watch domains.
    watchers: Vec<PeerId>,
    domains: BTreeMap<DomId, Domain>,
    identities: Map,
    identities_fd: OwnedFd,
    next_identity: u64,
    next_domid: u16,
    dom_exc: Option<DomExc>,
    cgroups: Cgroups,
    namespaces: Namespaces,
    /// What all its domains do without, as [`Lack`]'s bits.
    lacks: u64,
    filter: BpfProgram,
    ports_max: u32,
    arenas_max: usize,
    /// First of the ids of the host that its domains run as.
    first_id: u32,
    input: Vec<u8>,
    /// Peers and listeners that are to be looked at again after a rest.
    resting: BTreeSet<Token>,
    rested_until_ms: u64,
    stopping: bool,
}

impl Broker {
    /// Takes over a host directory, which is made if it is not there; `stop` becomes readable when the
    /// broker is to end.
    ///
    /// # Errors
    /// `WouldBlock` where another broker has the directory; else what the system answered.
    pub fn start(host: HostDir, stop: OwnedFd) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(host.path())?;
        let meta = fs::metadata(host.path())?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            let why = "the directory is another user's, or open to others (chmod 700)";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let lock = fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(host.path().join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let root = rustix::process::geteuid().is_root();
        let namespaces = Namespaces::find(root.then(|| first_id(&meta)))?;
        let cgroups = || Cgroups::find(&format!("xenbus-{:x}-{:x}", meta.dev(), meta.ino()));
        let mut broker = Self::with_nothing(host, lock.into(), stop, namespaces, cgroups)?;
        broker.say_lacks(broker.lacks);
        broker.watch(broker.stop.as_fd(), Token::Stop, EventFlags::IN)?;
        for role in Role::ALL {
            broker.listen(role)?;
        }
        Ok(broker)
    }

    /// With domain 0 alone, and nobody who could connect. `cgroups` are made last of what can fail before there is a broker that
    /// takes them away again.
    fn with_nothing(
        host: HostDir,
        lock: OwnedFd,
        stop: OwnedFd,
        namespaces: Namespaces,
        cgroups: impl FnOnce() -> Cgroups,
    ) -> io::Result<Self> {
        let meta = fs::metadata(host.path())?;
        let (ports_max, arenas_max, mut lacks) = share_descriptors();
        if !rustix::process::geteuid().is_root() {
            lacks |= Lack::OwnUser.bit();
        }
        lacks |= namespaces.lacks();
        let identities_fd = memfd("identities", IDENTITIES_LEN)?;
        let identities = Map::new(&identities_fd, 0, IDENTITIES_LEN, Access::ReadWrite)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&identities_fd, seals)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let filter = filter::program(filter::Processes::OfItsOwn).map_err(io::Error::other)?;
        let cgroups = cgroups();
        let bounded =
            [Lack::MemoryLimit, Lack::CpuLimit, Lack::TaskLimit, Lack::Freezer, Lack::Accounting];
        for (lack, has) in bounded.iter().zip(cgroups.bounds()) {
            lacks |= if has { 0 } else { lack.bit() };
        }
        let mut broker = Self {
            epoll,
            _lock: lock,
            listeners: Vec::new(),
            stop,
            peers: Peers::default(),
            watchers: Vec::new(),
            domains: BTreeMap::new(),
            identities,
            identities_fd,
            next_identity: first_identity(),
            next_domid: 1,
            dom_exc: None,
            cgroups,
            namespaces,
            lacks,
            filter,
            ports_max,
            arenas_max,
            first_id: first_id(&meta),
            input: vec![0; crate::limits::CREATE_MAX],
            resting: BTreeSet::new(),
            rested_until_ms: 0,
            stopping: false,
            host,
        };
        let identity = broker.take_identity();
        broker
            .domains
            .insert(DomId::DOM0, Domain::new(identity, Config::default(), DOM0_PORTS_MAX));
        broker.set_identity(DomId::DOM0, identity);
        Ok(broker)
    }

    fn listen(&mut self, role: Role) -> io::Result<()> {
        let path = self.host.socket(role);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::UNIX;
        let socket = rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None)?;
        // The directory is the owner's alone, so this is when the socket exists for nobody else.
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&socket, 128)?;
        self.watch(socket.as_fd(), Token::Listener(role), EventFlags::IN)?;
        self.listeners.push((role, socket));
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.word()), flags)
    }

    /// Notes what domains do without, and says each once.
    fn add_lacks(&mut self, lacks: u64) {
        let new = lacks & !self.lacks;
        self.lacks |= lacks;
        self.say_lacks(new);
    }

    fn say_lacks(&self, lacks: u64) {
        for (lack, text) in LACKS {
            if lacks & lack.bit() == 0 {
                continue;
            }
            if lack == Lack::Ports {
                say(&format!("{text} (here: {} ports)", self.ports_max));
            } else {
                say(text);
            }
        }
    }

    fn take_identity(&mut self) -> u64 {
        let identity = self.next_identity;
        self.next_identity = identity.checked_add(1).unwrap_or(1);
        identity
    }

    fn set_identity(&self, domid: DomId, identity: u64) {
        self.identities.long(usize::from(domid.0) * 8).store(identity, Ordering::Release);
    }

    /// A domain that was not destroyed yet.
    fn living(&self, domid: DomId) -> Option<&Domain> {
        let domain = self.domains.get(&domid)?;
        (!matches!(domain.stage, Stage::Dying | Stage::Dead)).then_some(domain)
    }
}

impl Drop for Broker {
    /// Ends all domains and leaves nothing behind.
    fn drop(&mut self) {
        for domain in self.domains.values_mut() {
            let Some(process) = &domain.process else { continue };
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
        for domain in self.domains.values_mut() {
            if let Some(process) = domain.process.take() {
                let _ = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(process.pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
            }
            if let Some(group) = &mut domain.group {
                group.remove();
            }
        }
        self.cgroups.remove();
        for (role, _) in &self.listeners {
            let _ = fs::remove_file(self.host.socket(*role));
        }
    }
}

impl Domain {
    fn new(identity: u64, config: Config, ports_max: u32) -> Self {
        Self {
            identity,
            scheduling: Scheduling { weight: config.weight, cap: config.cap },
            config,
            stage: Stage::Running,
            paused: false,
            process: None,
            group: None,
            peer: None,
            ports: PortTable::new(ports_max),
            arenas: Vec::new(),
            arenas_for: Vec::new(),
            named: 0,
            refused: 0,
            notified_before: 0,
            cpu_time_ns: 0,
        }
    }

    fn run_state(&self) -> RunState {
        match self.stage {
            Stage::Shutdown(reason) => RunState::Shutdown(reason),
            Stage::Dying | Stage::Dead => RunState::Dying,
            Stage::Building { .. } | Stage::Built => RunState::Paused,
            Stage::Running if self.paused => RunState::Paused,
            Stage::Running => RunState::Running,
        }
    }
}

/// Identities of this broker are not those of one before it in the same directory.
fn first_identity() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let us = u64::try_from(now.tv_sec).unwrap_or(0) << 20
        | u64::try_from(now.tv_nsec / 1024).unwrap_or(0);
    us << 8 | 1
}

/// First of the ids that the domains of the host in this directory run as, where the broker is root.
fn first_id(directory: &fs::Metadata) -> u32 {
    0x6000_0000 + u32::try_from(directory.ino() & 0xfff).unwrap_or(0) * 0x8000
}

/// As many descriptors as may be, and what of them a domain gets: ports, arenas, and what is lacking.
fn share_descriptors() -> (u32, usize, u64) {
    let all = raise_descriptors();
    let others = u64::from(TASKS_DEFAULT);
    let ports = all.saturating_sub(others) / u64::from(PORT_DESCRIPTORS);
    let ports_max = u32::try_from(ports).map_or(PORTS_MAX, |ports| ports.min(PORTS_MAX));
    let each = all.saturating_sub(OWN_DESCRIPTORS) / DOMAINS_PLANNED;
    let arenas = each.saturating_sub(DOMAIN_DESCRIPTORS) / 2;
    let arenas_max = usize::try_from(arenas).unwrap_or(ARENAS_MAX).clamp(2, ARENAS_MAX);
    let lacks = if ports_max < PORTS_MAX { Lack::Ports.bit() } else { 0 };
    (ports_max, arenas_max, lacks)
}

/// One line for who runs the broker.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "xen-hosted: {text}");
}

/// The error of a system call, as the platform's.
fn failed(errno: Errno) -> xen::Error {
    crate::link::from_errno(errno)
}

/// Becomes readable at SIGTERM or SIGINT, which from now on do nothing else.
///
/// # Errors
/// What the system answered.
pub fn stop_signals() -> io::Result<OwnedFd> {
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read.into())
}
