//! Creating a domain: number, groups, first arena and ports, process, sandbox.

use super::answer::Answered;
use super::arenas::ARENA_LEN;
use super::process::{end_now, map_ids, pair};
use super::{Broker, Domain, PeerId, Process, Stage, Token, say};
use crate::domain::cgroup::Share;
use crate::domain::devices::DeviceMount;
use crate::domain::sandbox::{self, Plan, STEPS};
use crate::domain::{Config, Devices, Lack, Lifetime};
use crate::errno::from_errno;
use crate::limits::{PORT_DESCRIPTORS, TASKS_DEFAULT};
use crate::proto::{self, Message, Request};
use crate::{Rights, sys};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::{AsFd, OwnedFd};
use xen::domwatch::DomainEvent;
use xen::{DomId, Error, GrantRef};

impl Broker {
    /// A number that nobody uses or names.
    pub(super) fn free_domid(&mut self) -> Result<DomId, Error> {
        // A group that was left has its old bounds, and processes.
        let left = |domid| self.numbers_left.contains(&domid);
        let taken = |domid| self.domains.contains_key(&domid) || self.is_news(domid) || left(domid);
        let domid = next_free(self.next_domid, taken).ok_or(Error::NoSpc)?;
        self.next_domid = domid.0 + 1;
        Ok(domid)
    }

    /// The answer comes when the sandbox stands or fails.
    pub(super) fn create(&mut self, id: PeerId, config: &[u8], fds: Vec<OwnedFd>) -> Answered {
        let config = Config::decode(config).ok_or(Error::Inval)?;
        if config.program_strings().is_none() || config.memory_max_kib * 1024 < 2 * ARENA_LEN {
            return Err(Error::Inval);
        }
        let files: [OwnedFd; 4] = fds.try_into().map_err(|_| Error::Inval)?;
        let domid = self.free_domid()?;
        let identity = self.take_identity();
        let mut domain = Domain::new(identity, config, self.ports_max);
        domain.stage = Stage::Building { creator: id };
        domain.holder = (domain.config.lifetime == Lifetime::Held).then_some(id);
        self.domains.insert(domid, domain);
        match self.build(domid, files) {
            Ok(()) => {
                self.set_identity(domid, identity);
                self.tell_change(DomainEvent::Came(domid));
                Ok(None)
            }
            Err(error) => {
                self.take_down(domid);
                Err(error)
            }
        }
    }

    fn build(&mut self, domid: DomId, files: [OwnedFd; 4]) -> Result<(), Error> {
        let (broker_end, link) = pair()?;
        let (setup_end, setup) = pair()?;
        let peer = self.add_peer(broker_end, domid, Rights::GUEST)?;
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.peer = Some(peer);
        }
        self.first_ports(peer)?;
        self.first_arena(domid, peer)?;
        let domain = self.domains.get_mut(&domid).ok_or(Error::Srch)?;
        let Config { tasks_max, weight, cap, .. } = domain.config;
        let share = Share::of(tasks_max, weight, cap);
        let group = domain.group.insert(self.cgroups.create(&domid.to_string(), share)?);
        group.set_memory(domain.config.memory_max_kib * 1024 - ARENA_LEN)?;
        group.set_tasks(tasks_max)?;
        group.set_cpu(weight, cap, None)?;
        let (join, into) = group.entrances();
        let descriptors_max = u64::from(self.ports_max) * u64::from(PORT_DESCRIPTORS);
        let outer = self.means.id_of(domid);
        let (user, flags) = self.means.namespaces.birth(outer);
        let mut plan = Plan {
            config: &domain.config,
            user,
            lacks: self.lacks,
            host: &self.means.name,
            join,
            link,
            devices: None,
            setup,
            files,
            filter: &self.filter,
            descriptors_max: descriptors_max + u64::from(TASKS_DEFAULT),
            hostname: format!("dom{domid}"),
        };
        if let Some(id) = outer
            && domain.config.devices == Devices::KernelFiles
            && self.lacks & Lack::Devices.bit() == 0
        {
            plan.devices = DeviceMount::of_the_host(id, &self.means.name).ok();
        }
        // A process with one thread: see `Broker`.
        let into = into.as_ref().map(AsFd::as_fd);
        let born = sys::clone_process(flags, into, || sandbox::become_domain(plan));
        let (pid, pidfd) = born.map_err(from_errno)?;
        if let Err(errno) = self.watch(pidfd.as_fd(), Token::Process(domid), EventFlags::IN) {
            // Nobody would hear of its end.
            end_now(&pidfd);
            return Err(from_errno(errno));
        }
        let watched = self.watch(setup_end.as_fd(), Token::Setup(domid), EventFlags::IN);
        let domain = self.domains.get_mut(&domid).ok_or(Error::Srch)?;
        let process = domain.process.insert(Process {
            pid,
            pidfd,
            setup: Some(setup_end),
            born: None,
            connection: None,
        });
        watched.map_err(from_errno)?;
        let setup = process.setup.as_ref().and_then(|setup| setup.try_clone().ok());
        let setup = setup.ok_or(Error::NoMem)?;
        self.note_process(domid)?;
        if flags & libc::CLONE_NEWUSER != 0 {
            map_ids(pid, outer)?;
        }
        proto::send(setup.as_fd(), &Message::Mapped.encode(), &[], SendFlags::DONTWAIT)
            .map_err(from_errno)
    }

    /// The process has something to say before its program runs, or runs it: then this end closes.
    pub(super) fn sandbox_says(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        let Some(process) = &mut domain.process else { return };
        let Some(setup) = &process.setup else { return };
        let mut packet = [0; 64];
        let mut fds = Vec::new();
        let received = proto::receive(setup.as_fd(), &mut packet, &mut fds, RecvFlags::DONTWAIT);
        let request = match received {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(count) => Request::decode(packet.get(..count).unwrap_or_default()),
            Err(_) => None,
        };
        match request {
            Some(Request::SandboxDone { lacks, connection }) => {
                process.connection = self.means.connections.told(connection, fds);
                self.add_lacks(lacks);
                self.built(domid, lacks);
            }
            Some(Request::SandboxFailed { step, errno }) => self.sandbox_failed(domid, step, errno),
            _ => process.setup = None,
        }
    }

    fn built(&mut self, domid: DomId, lacks: u64) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        let Stage::Building { creator } = domain.stage else { return };
        domain.stage = Stage::Built;
        let [console, store] = Domain::FIRST_PORTS;
        let words = vec![
            domid.0.into(),
            domain.identity,
            GrantRef::XENSTORE.0.into(),
            store.into(),
            console.into(),
            lacks,
        ];
        self.reply(creator, 0, words, &[]);
    }

    fn sandbox_failed(&mut self, domid: DomId, step: u32, errno: i32) {
        let Some(domain) = self.domains.get(&domid) else { return };
        let name = STEPS.get(step as usize).copied().unwrap_or("its sandbox");
        let error = Errno::from_raw_os_error(errno);
        say(&format!("domain {domid} does not start: {name}: {error}"));
        if let Stage::Building { creator } = domain.stage {
            self.reply(creator, errno, Vec::new(), &[]);
            let _ = self.destroy(domid);
        }
    }
}

/// The first number from `next` on, and then from 1, that is not `taken`.
fn next_free(next: u16, taken: impl Fn(DomId) -> bool) -> Option<DomId> {
    let all = DomId::FIRST_RESERVED.0;
    (next..all).chain(1..next.min(all)).map(DomId).find(|domid| !taken(*domid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_and_past_those_that_are_taken() {
        let last = DomId::FIRST_RESERVED.0 - 1;
        let none = |_| false;
        assert_eq!(next_free(1, none), Some(DomId(1)));
        assert_eq!(next_free(last, none), Some(DomId(last)));
        assert_eq!(next_free(last + 1, none), Some(DomId(1)), "domain 0's is never given");
        let held = |domid: DomId| domid.0 == last || domid.0 <= 2;
        assert_eq!(next_free(last, held), Some(DomId(3)));
        assert_eq!(next_free(7, |domid| domid != DomId(6)), Some(DomId(6)));
        assert_eq!(next_free(7, |_| true), None);
    }
}
