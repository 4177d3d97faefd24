//! The broker: the state of a host, and the loop that serves it.

use super::arenas::Arenas;
use super::bindings::Bindings;
use super::budget::Budget;
use super::directory::Directory;
use super::domains::Domains;
use super::facilities::HostFacilities;
use super::listeners::Listeners;
use super::parties::Parties;
use super::peers::PeerConnections;
use super::poll::{EventSubject, Poll};
use super::process::ends_until;
use super::record::Record;
use super::remains::{self, Holdings, Remainder};
use super::sandboxes::Sandboxes;
use super::say::say;
use crate::domain::cgroup::Cgroups;
use crate::limits::{CREATE_MAX, PEERS_MAX};
use crate::proto::{self, BrokerMessage};
use crate::{HostDir, Role};
use rustix::event::Timespec;
use rustix::event::epoll::{Event, EventFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen::{DomId, Error};

/// The time that all domains together may take to end with their broker. The process that ends the
/// broker waits longer.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// The number of events that one wait returns at most.
const EVENTS_MAX: usize = 256;
/// The time for which a peer is not served that sent requests too often, or for which the system
/// had no room.
const REST_MS: u64 = 20;

/// The broker of one host directory.
pub struct Broker {
    pub(super) record: Record,
    pub(super) poll: Arc<Poll>,
    listeners: Listeners,
    stop: OwnedFd,
    stopping: bool,
    pub(super) parties: Parties,
    pub(super) bindings: Bindings,
    pub(super) arenas: Arenas,
    pub(super) sandboxes: Sandboxes,
    /// The last packet that was received.
    pub(super) input: Vec<u8>,
    rested_until_ms: u64,
}

impl Broker {
    /// Takes over a host directory, which is made where it does not exist, and ends what the
    /// previous broker has left. `stop` becomes readable when the broker is to end.
    ///
    /// # Errors
    /// `WouldBlock` where another broker has the directory; else the system's error.
    pub fn start(host: &HostDir, stop: OwnedFd) -> io::Result<Self> {
        let directory = Directory::make(host)?;
        let before = Holdings::read(&directory)?;
        let facilities = HostFacilities::find(&directory, &before)?;
        let left = remains::end(
            &facilities.name,
            &before,
            facilities.users.as_ref(),
            &facilities.connections,
        );
        for remainder in &left {
            say(&format!("left of the broker before, and does not end: {remainder}"));
        }
        let mut record = Record::begin(directory, before, &left, facilities.first_id())?;
        let mut noted = Ok(());
        let note = |group: &Path| {
            let written = record.add_group(group);
            noted = std::mem::replace(&mut noted, Ok(())).and(written);
        };
        let name = facilities.name.clone();
        let mut broker = Self::with_nothing(stop, facilities, || Cgroups::find(&name, note))?;
        noted?;
        broker.sandboxes.say_lacks();
        broker.poll.watch(&broker.stop, EventSubject::Stop, EventFlags::IN)?;
        if let Some(directory) = record.directory() {
            broker.listeners.open(directory)?;
        }
        broker.record = record;
        let left = left.iter().filter_map(Remainder::domid).collect();
        broker.parties.domains.leave_out(left);
        Ok(broker)
    }

    /// Makes a broker with domain 0 alone, and without sockets. `cgroups` are made last of all that
    /// can fail, as nobody removes them while there is no broker.
    pub(super) fn with_nothing(
        stop: OwnedFd,
        facilities: HostFacilities,
        cgroups: impl FnOnce() -> Cgroups,
    ) -> io::Result<Self> {
        let budget = Budget::divide();
        let domains = Domains::new()?;
        let poll = Arc::new(Poll::new()?);
        let sandboxes = Sandboxes::new(facilities, budget, cgroups)?;
        Ok(Self {
            record: Record::default(),
            listeners: Listeners::new(Arc::clone(&poll)),
            stop,
            stopping: false,
            parties: Parties { domains, peers: PeerConnections::new(Arc::clone(&poll)) },
            poll,
            bindings: Bindings::new(budget.ports),
            arenas: Arenas::new(budget.of_arenas),
            sandboxes,
            input: vec![0; CREATE_MAX],
            rested_until_ms: 0,
        })
    }

    /// Serves until `stop` is readable.
    ///
    /// # Errors
    /// The error of epoll_wait(2).
    pub fn run(&mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        while !self.stopping {
            events.clear();
            let rest = Timespec { tv_sec: 0, tv_nsec: (REST_MS * 1_000_000) as i64 };
            let timeout = self.has_resting().then_some(&rest);
            match self.poll.wait(&mut events, timeout) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match EventSubject::of(event.data.u64()) {
                    Some(EventSubject::Peer(id)) => self.serve(id, event.flags),
                    Some(EventSubject::Process(domid)) => self.process_ended(domid),
                    Some(EventSubject::Setup(domid)) => self.sandbox_says(domid),
                    Some(EventSubject::Listener(role)) => self.accept(role),
                    Some(EventSubject::Stop) => self.stopping = true,
                    None => {}
                }
            }
            self.wake_resting();
        }
        Ok(())
    }

    fn accept(&mut self, role: Role) {
        let Some(socket) = self.listeners.accept(role) else { return };
        let Parties { domains, peers } = &mut self.parties;
        if peers.count() >= PEERS_MAX + domains.connections_max() {
            // The peer reads it as the answer to its first request.
            let busy = BrokerMessage::Reply { errno: Error::Busy.errno(), words: Vec::new() };
            let _ = proto::send(socket.as_fd(), &busy.encode(), &[], SendFlags::DONTWAIT);
            return;
        }
        let ports_max = self.bindings.ports_max(DomId::DOM0);
        if let Err(error) = peers.add(socket, DomId::DOM0, role.rights(), ports_max) {
            say(&format!("a process of domain 0 cannot connect: {error}"));
        }
    }

    /// True while something is to be tried again after a rest.
    fn has_resting(&self) -> bool {
        self.parties.peers.are_resting()
            || self.listeners.are_resting()
            || self.sandboxes.are_lingering()
    }

    fn wake_resting(&mut self) {
        if !self.has_resting() {
            return;
        }
        let now_ms = now_ms();
        if now_ms < self.rested_until_ms {
            return;
        }
        self.rested_until_ms = now_ms + REST_MS;
        self.sandboxes.remove_lingering();
        self.listeners.wake();
        self.parties.peers.wake();
    }

    /// Ends all domains. Returns what does not end within five seconds. Done once.
    pub fn end(&mut self) -> Vec<Remainder> {
        for (domid, domain) in self.parties.domains.iter_mut() {
            domain.kill(domid, self.sandboxes.connections());
        }
        let end = Instant::now() + ENDS_WITHIN;
        let mut left = Vec::new();
        for (_, domain) in self.parties.domains.iter_mut() {
            if let Some(process) = domain.process.take() {
                if ends_until(&process.pidfd, end) {
                    let id = WaitId::PidFd(process.pidfd.as_fd());
                    let _ = waitid(id, WaitIdOptions::EXITED);
                } else {
                    left.push(Remainder::Process(process.pid.as_raw_nonzero().get()));
                }
            }
            if let Some(group) = domain.group.take() {
                self.sandboxes.retire(group);
            }
        }
        left.extend(self.sandboxes.end(&self.record.take_inherited(), end));
        if let Some(directory) = self.record.take_directory() {
            self.listeners.close(&directory);
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

/// Returns the milliseconds of a clock that is never set.
pub(super) fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0)
}
