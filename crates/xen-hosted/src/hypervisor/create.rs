//! Creating a domain: number, groups, first arena and ports, process, sandbox.

use super::answer::AnswerResult;
use super::arena::ARENA_LEN;
use super::bindings::FIRST_PORTS;
use super::broker::Broker;
use super::domain::{Domain, Process, Stage};
use super::parties::Parties;
use super::poll::{EventSubject, PeerId};
use super::process::{end_now, pair};
use super::remains::ProcessIdentity;
use super::sandboxes::ProcessFiles;
use super::say::say;
use crate::Rights;
use crate::domain::sandbox::STEPS;
use crate::domain::{DomainConfig, Lifetime};
use crate::errno::from_errno;
use crate::gnttab::MEMORY_MIN;
use crate::proto::{self, BrokerMessage, BrokerRequest};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::{AsFd, OwnedFd};
use xen::domwatch::DomainEvent;
use xen::{DomId, Error, GrantRef};

impl Broker {
    /// Begins to create a domain. The answer comes when the sandbox is complete or has failed.
    pub(super) fn create(&mut self, id: PeerId, config: &[u8], fds: Vec<OwnedFd>) -> AnswerResult {
        let config = DomainConfig::decode(config).ok_or(Error::Inval)?;
        if config.program_strings().is_none() || config.memory_max_kib * 1024 < MEMORY_MIN {
            return Err(Error::Inval);
        }
        let files: [OwnedFd; 4] = fds.try_into().map_err(|_| Error::Inval)?;
        let domid = self.enter(id, config)?;
        match self.build(domid, files) {
            Ok(()) => {
                self.parties.domains.show(domid);
                self.tell_change(DomainEvent::Came(domid));
                Ok(None)
            }
            Err(error) => {
                self.take_down(domid);
                Err(error)
            }
        }
    }

    /// Enters a domain that is being built: under the number that it succeeds to, or a free one.
    fn enter(&mut self, id: PeerId, config: DomainConfig) -> Result<DomId, Error> {
        let Parties { domains, peers } = &mut self.parties;
        let succeeds = match config.succeeds {
            Some(domid) => {
                // Whoever has not let go of the one before would take the next one for it.
                let is_known = peers.is_news(domid) || peers.have_arena_of(domid);
                Some((domid, domains.vacancy(id, domid, is_known)?))
            }
            None => None,
        };
        let identity = domains.take_identity();
        let mut domain = Domain::new(identity, config);
        domain.stage = Stage::Building { creator: id };
        domain.holder = (domain.config.lifetime == Lifetime::Held).then_some(id);
        let domid = match succeeds {
            Some((domid, before)) => {
                domains.succeed(domid, domain);
                self.bindings.readdress(domid, before, identity);
                self.arenas.readdress(domid, identity);
                domid
            }
            None => {
                let domid = domains.free_number(|domid| peers.is_news(domid))?;
                domains.insert(domid, domain);
                domid
            }
        };
        self.bindings.enter(domid);
        Ok(domid)
    }

    fn build(&mut self, domid: DomId, files: [OwnedFd; 4]) -> Result<(), Error> {
        let (broker_end, link) = pair()?;
        let (setup_end, setup) = pair()?;
        let ports_max = self.bindings.ports_max(domid);
        let peer = self.parties.peers.add(broker_end, domid, Rights::GUEST, ports_max)?;
        if let Some(domain) = self.parties.domains.get_mut(domid) {
            domain.peer = Some(peer);
        }
        self.bindings.first_ports(&mut self.parties, peer)?;
        self.arenas.first(&mut self.parties, domid, peer)?;
        let domain = self.parties.domains.get_mut(domid).ok_or(Error::Srch)?;
        let DomainConfig { tasks_max, weight, cap, .. } = domain.config;
        let group = domain.group.insert(self.sandboxes.group(domid, &domain.config)?);
        group.set_memory(domain.config.memory_max_kib * 1024 - ARENA_LEN)?;
        group.set_tasks(tasks_max)?;
        group.set_cpu(weight, cap, None)?;
        let given = ProcessFiles { link, setup, files };
        let (pid, pidfd) = self.sandboxes.start(domid, &domain.config, group, given)?;
        if let Err(errno) = self.poll.watch(&pidfd, EventSubject::Process(domid), EventFlags::IN) {
            // Nobody would notice its end.
            end_now(&pidfd);
            return Err(from_errno(errno));
        }
        let watched = self.poll.watch(&setup_end, EventSubject::Setup(domid), EventFlags::IN);
        let (setup, process_identity, connection) = (Some(setup_end), None, None);
        let process =
            domain.process.insert(Process { pid, pidfd, setup, process_identity, connection });
        watched.map_err(from_errno)?;
        let setup = process.setup.as_ref().and_then(|setup| setup.try_clone().ok());
        let setup = setup.ok_or(Error::NoMem)?;
        process.process_identity = ProcessIdentity::of(pid);
        if let Some(process_identity) = process.process_identity {
            self.record.add_process(process_identity)?;
        }
        self.sandboxes.map_ids(domid, pid)?;
        proto::send(setup.as_fd(), &BrokerMessage::Mapped.encode(), &[], SendFlags::DONTWAIT)
            .map_err(from_errno)
    }

    /// Handles a message of the process before its program runs, or the end of the socket, which
    /// closes when the program runs.
    pub(super) fn sandbox_says(&mut self, domid: DomId) {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return };
        let Some(process) = &mut domain.process else { return };
        let Some(setup) = &process.setup else { return };
        let mut packet = [0; 64];
        let mut fds = Vec::new();
        let received = proto::receive(setup.as_fd(), &mut packet, &mut fds, RecvFlags::DONTWAIT);
        let request = match received {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(count) => BrokerRequest::decode(packet.get(..count).unwrap_or_default()),
            Err(_) => None,
        };
        match request {
            Some(BrokerRequest::SandboxDone { lacks, connection }) => {
                process.connection = self.sandboxes.connection_from(connection, fds);
                self.sandboxes.add_lacks(lacks);
                self.built(domid, lacks);
            }
            Some(BrokerRequest::SandboxFailed { step, errno }) => {
                self.sandbox_failed(domid, step, errno);
            }
            _ => process.setup = None,
        }
    }

    fn built(&mut self, domid: DomId, lacks: u64) {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return };
        let Stage::Building { creator } = domain.stage else { return };
        domain.stage = Stage::Built;
        let [console, store] = FIRST_PORTS;
        let words = vec![
            domid.0.into(),
            domain.identity,
            GrantRef::XENSTORE.0.into(),
            store.into(),
            console.into(),
            lacks,
        ];
        self.parties.peers.reply(creator, 0, words, &[]);
    }

    fn sandbox_failed(&mut self, domid: DomId, step: u32, errno: i32) {
        let Some(domain) = self.parties.domains.get(domid) else { return };
        let name = STEPS.get(step as usize).copied().unwrap_or("its sandbox");
        let error = Errno::from_raw_os_error(errno);
        say(&format!("domain {domid} does not start: {name}: {error}"));
        if let Stage::Building { creator } = domain.stage {
            self.parties.peers.reply(creator, errno, Vec::new(), &[]);
            let _ = self.destroy(domid);
        }
    }
}
