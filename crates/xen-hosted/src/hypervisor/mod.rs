//! The broker: the table of domains, their ports and arenas, and who may ask for what.
//!
//! One thread, one epoll. Nothing here waits for a peer, a domain or the clock but that epoll: answers
//! that a socket does not take are kept, and its peer is not read until they are gone. Every request
//! costs as much as it touches, never as much as there are domains (except the list of them, in
//! pieces of [`LISTED_AT_ONCE`](crate::limits::LISTED_AT_ONCE)).

#![deny(clippy::unwrap_used, clippy::indexing_slicing)]

mod answer;
mod arenas;
mod connections;
mod control;
mod create;
mod directory;
mod life;
mod namespaces;
mod peers;
mod ports;
mod process;
mod remains;
mod serve;
mod users;

pub(crate) use peers::PeerId;
pub use remains::{Remainder, clear};

use crate::counters::IDENTITIES_LEN;
use crate::domain::cgroup::{Cgroups, Group};
use crate::domain::filter::{self, Processes, Sandbox};
use crate::domain::{Config, LACKS, Lack};
use crate::limits::{
    ARENAS_MAX, DOM0_PORTS_MAX, PORT_DESCRIPTORS, PORTS_MAX, TASKS_DEFAULT, raise_descriptors,
};
use crate::map::{Map, memfd};
use crate::{HostDir, Role};
use arenas::Arena;
use confine::Filter;
use connections::{Connection, Connections};
use directory::Directory;
use namespaces::Namespaces;
use peers::Peers;
use ports::PortTable;
use process::ends_until;
use remains::{Born, Holdings};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use users::Users;
use xen::domctl::{RunState, Scheduling};
use xen::domwatch::ShutdownReason;
use xen::gnttab::Access;
use xen::{DomId, Port};

/// Descriptors that the broker keeps for itself.
const OWN_DESCRIPTORS: u64 = 128;
/// Descriptors that it holds for a domain besides arenas: socket, process, counters, two set-ups, two of its mount.
const DOMAIN_DESCRIPTORS: u64 = 7;
/// The time that all domains together may take to end with their broker. Who ends the broker waits longer.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
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
    /// By which it is noted, once it is.
    born: Option<Born>,
    /// Its connection to FUSE, if it serves files.
    connection: Option<Connection>,
}

/// One domain.
struct Domain {
    /// What tells it from others of its number; never 0.
    identity: u64,
    config: Config,
    scheduling: Scheduling,
    stage: Stage,
    paused: bool,
    /// The connection that it ends with.
    holder: Option<PeerId>,
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
    /// Locked for as long as the broker lives; tests have none.
    directory: Option<Directory>,
    /// The note in it.
    holdings: Holdings,
    /// The things of a broker before that did not end when this one started.
    inherited: Holdings,
    /// The numbers of its domains whose groups are there still.
    numbers_left: BTreeSet<DomId>,
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
    means: Means,
    /// What all its domains do without, as [`Lack`]'s bits.
    lacks: u64,
    filter: Filter,
    ports_max: u32,
    /// Descriptors for arenas of one domain.
    arena_descriptors_max: usize,
    input: Vec<u8>,
    /// Peers and listeners that are to be looked at again after a rest.
    resting: BTreeSet<Token>,
    rested_until_ms: u64,
    /// Groups of domains that are gone, which the kernel does not let be removed yet: a process may leave its group
    /// after it was waited for.
    lingering: Vec<Group>,
    stopping: bool,
}

impl Broker {
    /// Takes over a host directory, which is made if it is not there, and ends what the broker before has left;
    /// `stop` becomes readable when the broker is to end.
    ///
    /// # Errors
    /// `WouldBlock` where another broker has the directory; else what the system answered.
    pub fn start(host: &HostDir, stop: OwnedFd) -> io::Result<Self> {
        let directory = Directory::make(host)?;
        let before = Holdings::read(&directory)?;
        let means = Means::find(&directory, &before)?;
        let left = remains::end(&means.name, &before, means.users.as_ref(), &means.connections);
        for remainder in &left {
            say(&format!("left of the broker before, and does not end: {remainder}"));
        }
        // What is left is still to be found by the next.
        let inherited = if left.is_empty() { Holdings::default() } else { before };
        let mut holdings = inherited.clone();
        holdings.first_id = means.first_id();
        holdings.write(&directory)?;
        let mut noted = Ok(());
        let note = |group: &Path| {
            let written = holdings.add_group(group, &directory);
            noted = std::mem::replace(&mut noted, Ok(())).and(written);
        };
        let name = means.name.clone();
        let mut broker = Self::with_nothing(stop, means, || Cgroups::find(&name, note))?;
        noted?;
        broker.say_lacks(broker.lacks);
        broker.watch(broker.stop.as_fd(), Token::Stop, EventFlags::IN)?;
        for role in Role::ALL {
            let socket = directory.listen(role)?;
            broker.watch(socket.as_fd(), Token::Listener(role), EventFlags::IN)?;
            broker.listeners.push((role, socket));
        }
        broker.directory = Some(directory);
        (broker.holdings, broker.inherited) = (holdings, inherited);
        broker.numbers_left = left.iter().filter_map(Remainder::domid).collect();
        Ok(broker)
    }

    /// With domain 0 alone, and nobody who could connect. `cgroups` are made last of what can fail before there is a
    /// broker that takes them away again.
    fn with_nothing(
        stop: OwnedFd,
        means: Means,
        cgroups: impl FnOnce() -> Cgroups,
    ) -> io::Result<Self> {
        let (ports_max, arena_descriptors_max, mut lacks) = share_descriptors();
        lacks |= means.lacks();
        let identities_fd = memfd("identities", IDENTITIES_LEN)?;
        let identities = Map::new(&identities_fd, 0, IDENTITIES_LEN, Access::ReadWrite)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&identities_fd, seals)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let own_user = lacks & Lack::OwnUser.bit() == 0;
        let sandbox = Sandbox { processes: Processes::OfItsOwn, own_user };
        let filter = filter::filter(sandbox).map_err(io::Error::other)?;
        let cgroups = cgroups();
        let bounded =
            [Lack::MemoryLimit, Lack::CpuLimit, Lack::TaskLimit, Lack::Freezer, Lack::Accounting];
        for (lack, has) in bounded.iter().zip(cgroups.bounds()) {
            lacks |= if has { 0 } else { lack.bit() };
        }
        let mut broker = Self {
            directory: None,
            holdings: Holdings::default(),
            inherited: Holdings::default(),
            numbers_left: BTreeSet::new(),
            epoll,
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
            means,
            lacks,
            filter,
            ports_max,
            arena_descriptors_max,
            input: vec![0; crate::limits::CREATE_MAX],
            resting: BTreeSet::new(),
            rested_until_ms: 0,
            lingering: Vec::new(),
            stopping: false,
        };
        let identity = broker.take_identity();
        broker
            .domains
            .insert(DomId::DOM0, Domain::new(identity, Config::default(), DOM0_PORTS_MAX));
        broker.set_identity(DomId::DOM0, identity);
        Ok(broker)
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

impl Broker {
    /// Removes the groups of domains that are gone; whether all are.
    fn remove_lingering(&mut self) -> bool {
        self.lingering.retain_mut(|group| !group.remove().is_empty());
        self.lingering.is_empty()
    }

    /// Notes a domain's first process, for who comes after a broker that was killed.
    fn note_process(&mut self, domid: DomId) -> io::Result<()> {
        let process = self.domains.get_mut(&domid).and_then(|domain| domain.process.as_mut());
        let Some(process) = process else { return Ok(()) };
        process.born = Born::of(process.pid);
        match (&self.directory, process.born) {
            (Some(directory), Some(born)) => self.holdings.add_process(born, directory),
            _ => Ok(()),
        }
    }

    /// Ends all domains, and leaves nothing behind but what does not end within five seconds. Done once.
    pub fn end(&mut self) -> Vec<Remainder> {
        for (domid, domain) in &self.domains {
            domain.kill(*domid, &self.means.connections);
        }
        let end = Instant::now() + ENDS_WITHIN;
        let mut left = Vec::new();
        for domain in self.domains.values_mut() {
            if let Some(process) = domain.process.take() {
                if ends_until(&process.pidfd, end) {
                    let id = WaitId::PidFd(process.pidfd.as_fd());
                    let _ = waitid(id, WaitIdOptions::EXITED);
                } else {
                    left.push(Remainder::Process(process.pid.as_raw_nonzero().get()));
                }
            }
            self.lingering.extend(domain.group.take());
        }
        while !self.remove_lingering() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let groups = self.lingering.drain(..).flat_map(|mut group| group.remove());
        left.extend(groups.map(Remainder::Group));
        std::mem::take(&mut self.cgroups).remove();
        let (inherited, means) = (std::mem::take(&mut self.inherited), &self.means);
        left.extend(remains::end(&means.name, &inherited, None, &means.connections));
        if let Some(directory) = self.directory.take() {
            for (role, _) in self.listeners.drain(..) {
                let _ = directory.remove_socket(role);
            }
            if left.is_empty() {
                let _ = Holdings::forget(&directory);
            }
        }
        left
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The means that this machine gives the broker, found out once.
struct Means {
    /// The name of the host's control groups and mounts.
    name: String,
    namespaces: Namespaces,
    connections: Connections,
    /// The users that its domains run as, where the broker can give them any.
    users: Option<Users>,
}

impl Means {
    fn find(directory: &Directory, before: &Holdings) -> io::Result<Self> {
        let take = || Users::take(before.first_id, directory.inode);
        let users = Users::are_there().then(take).transpose()?;
        let first = users.as_ref().map(|users| users.first);
        let namespaces = Namespaces::find(first)?;
        let connections = Connections::find(namespaces, first);
        Ok(Self { name: directory.name.clone(), namespaces, connections, users })
    }

    fn first_id(&self) -> Option<u32> {
        self.users.as_ref().map(|users| users.first)
    }

    /// The id of the host that a domain runs as, where it is not the broker's.
    fn id_of(&self, domid: DomId) -> Option<u32> {
        Some(self.first_id()? + u32::from(domid.0))
    }

    /// The bits of what domains do without.
    fn lacks(&self) -> u64 {
        let bit = |lacks: bool, lack: Lack| if lacks { lack.bit() } else { 0 };
        let no_devices = self.namespaces != Namespaces::None && self.connections.end_none();
        self.namespaces.lacks()
            | bit(no_devices, Lack::Devices)
            | bit(self.users.is_none(), Lack::OwnUser)
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
            holder: None,
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

/// As many descriptors as may be, and what of them a domain gets: ports, descriptors for arenas, and what is lacking.
fn share_descriptors() -> (u32, usize, u64) {
    let all = raise_descriptors();
    let others = u64::from(TASKS_DEFAULT);
    let ports = all.saturating_sub(others) / u64::from(PORT_DESCRIPTORS);
    let ports_max = u32::try_from(ports).map_or(PORTS_MAX, |ports| ports.min(PORTS_MAX));
    let each = all.saturating_sub(OWN_DESCRIPTORS) / DOMAINS_PLANNED;
    let of_arenas = usize::try_from(each.saturating_sub(DOMAIN_DESCRIPTORS)).unwrap_or(usize::MAX);
    // Two arenas at least, whatever they are for.
    let of_arenas = of_arenas.clamp(4, 2 * ARENAS_MAX);
    let lacks = if ports_max < PORTS_MAX { Lack::Ports.bit() } else { 0 };
    (ports_max, of_arenas, lacks)
}

/// One line for who runs the broker.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "xen-hosted: {text}");
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
