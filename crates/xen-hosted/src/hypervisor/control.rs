//! What the toolstack may ask of domains that exist.

use super::answer::{Answered, words};
use super::arenas::ARENA_LEN;
use super::ports::read_counter;
use super::{Broker, Domain, PeerId, Stage};
use crate::counters::Counter;
use crate::domctl::info_words;
use crate::errno::from_errno;
use crate::limits::LISTED_AT_ONCE;
use crate::proto::{self, Message};
use rustix::net::SendFlags;
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::AsFd;
use xen::domctl::{DomainInfo, Scheduling};
use xen::{DomId, Error};

impl Broker {
    /// A domain that may be acted on: not domain 0, not one that is going.
    pub(super) fn living_guest(&mut self, domid: DomId) -> Result<&mut Domain, Error> {
        if domid == DomId::DOM0 {
            // Its end is the host's, which is not to be had here.
            return Err(Error::Inval);
        }
        self.living(domid).ok_or(Error::Srch)?;
        self.domains.get_mut(&domid).ok_or(Error::Srch)
    }

    fn info_of(domid: DomId, domain: &Domain) -> DomainInfo {
        let group = domain.group.as_ref();
        // Arenas in full; what of them the group has counted already is not counted twice.
        let arenas = domain.arenas.iter().flatten();
        let untouched: u64 = arenas.map(|arena| ARENA_LEN.saturating_sub(arena.touched())).sum();
        let memory = group.and_then(crate::domain::cgroup::Group::memory).unwrap_or(0);
        DomainInfo {
            domid,
            handle: domain.config.handle,
            state: domain.run_state(),
            memory_kib: memory.saturating_add(untouched) / 1024,
            memory_max_kib: domain.config.memory_max_kib,
            vcpus_online: 1,
            cpu_time_ns: group
                .and_then(crate::domain::cgroup::Group::cpu_time_ns)
                .unwrap_or(domain.cpu_time_ns),
        }
    }

    pub(super) fn list(&mut self, from: DomId) -> Answered {
        let some = self
            .domains
            .range(from..)
            .filter(|(_, domain)| domain.stage != Stage::Dead)
            .take(LISTED_AT_ONCE);
        let all = some.flat_map(|(domid, domain)| info_words(&Self::info_of(*domid, domain)));
        Ok(Some((all.collect(), Vec::new())))
    }

    pub(super) fn info(&mut self, domid: DomId) -> Answered {
        let domain = self.domains.get(&domid).filter(|domain| domain.stage != Stage::Dead);
        words(info_words(&Self::info_of(domid, domain.ok_or(Error::Srch)?)))
    }

    pub(super) fn pause(&mut self, domid: DomId) -> Answered {
        let domain = self.living_guest(domid)?;
        if domain.stage != Stage::Running {
            return words([]);
        }
        domain.paused = true;
        Self::freeze(domain, true)?;
        words([])
    }

    /// Stops or continues all processes, or the first alone where there is no freezer.
    fn freeze(domain: &Domain, frozen: bool) -> Result<(), Error> {
        let group = domain.group.as_ref().ok_or(Error::Srch)?;
        if !group.set_frozen(frozen)?
            && let Some(process) = &domain.process
        {
            let signal = if frozen { Signal::STOP } else { Signal::CONT };
            pidfd_send_signal(&process.pidfd, signal).map_err(from_errno)?;
        }
        Ok(())
    }

    pub(super) fn unpause(&mut self, domid: DomId) -> Answered {
        let domain = self.living_guest(domid)?;
        match domain.stage {
            Stage::Built => {
                let setup = domain.process.as_ref().and_then(|process| process.setup.as_ref());
                let setup = setup.ok_or(Error::Srch)?;
                proto::send(setup.as_fd(), &Message::Run.encode(), &[], SendFlags::DONTWAIT)
                    .map_err(from_errno)?;
                domain.stage = Stage::Running;
            }
            Stage::Running if domain.paused => {
                domain.paused = false;
                Self::freeze(domain, false)?;
            }
            _ => return Err(Error::Inval),
        }
        words([])
    }

    pub(super) fn set_memory_max(&mut self, domid: DomId, kib: u64) -> Answered {
        let (charged, left) = (self.charged(domid), self.left_of(domid, kib.saturating_mul(1024)));
        let domain = self.living_guest(domid)?;
        let bytes = kib.checked_mul(1024).ok_or(Error::NoMem)?;
        bytes.checked_sub(charged).filter(|left| *left >= ARENA_LEN).ok_or(Error::Inval)?;
        if let Some(group) = &domain.group {
            group.set_memory(left)?;
        }
        domain.config.memory_max_kib = kib;
        words([])
    }

    pub(super) fn scheduling(&mut self, domid: DomId) -> Answered {
        let Scheduling { weight, cap } = self.living_guest(domid)?.scheduling;
        words([weight.into(), cap.into()])
    }

    pub(super) fn set_scheduling(&mut self, domid: DomId, weight: u16, cap: u16) -> Answered {
        let domain = self.living_guest(domid)?;
        if weight == 0 {
            return Err(Error::Inval);
        }
        let first = domain.process.as_ref().map(|process| process.pid);
        if let Some(group) = &mut domain.group {
            group.set_cpu(weight, cap, first)?;
        }
        domain.scheduling = Scheduling { weight, cap };
        words([])
    }

    pub(super) fn holder(&mut self, domid: DomId) -> Answered {
        words([self.living_guest(domid)?.holder.map_or(0, PeerId::word)])
    }

    /// A domain that this connection holds is another's from now on.
    pub(super) fn hand_over(&mut self, id: PeerId, domid: DomId, holder: u64) -> Answered {
        let to = PeerId::of(holder);
        let is_there = self.peers.get(to).is_some();
        let domain = self.living_guest(domid)?;
        if domain.holder != Some(id) {
            return Err(Error::Inval);
        }
        domain.holder = Some(to);
        if is_there { words([]) } else { self.destroy(domid) }
    }

    /// A domain that another connection holds by now stays with that one.
    pub(super) fn keep(&mut self, id: PeerId, domid: DomId) -> Answered {
        self.living_guest(domid)?.holder.take_if(|holder| *holder == id);
        words([])
    }

    pub(super) fn process(&mut self, domid: DomId) -> Answered {
        let process = self.living_guest(domid)?.process.as_ref().ok_or(Error::Srch)?;
        let pidfd = process.pidfd.try_clone().map_err(|_| Error::NoMem)?;
        Ok(Some((Vec::new(), vec![pidfd])))
    }

    pub(super) fn accounts(&mut self, domid: DomId) -> Answered {
        let domain = self.domains.get(&domid).ok_or(Error::Srch)?;
        let info = Self::info_of(domid, domain);
        let peer = domain.peer.and_then(|id| self.peers.get(id));
        let count = |counter| peer.map_or(0, |peer| read_counter(&peer.counters, counter));
        words([
            info.cpu_time_ns,
            info.memory_kib,
            domain.ports.count() as u64,
            domain.arenas.iter().flatten().count() as u64,
            count(Counter::Granted),
            count(Counter::Mapped),
            self.notified(domid),
            domain.refused.saturating_add(count(Counter::Refused)),
        ])
    }
}
