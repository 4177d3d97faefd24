//! The end of domains: by themselves, by the toolstack, of their processes and connections.

use super::broker::Broker;
use super::domain::Stage;
use super::parties::Parties;
use super::poll::PeerId;
use super::say::say;
use crate::Rights;
use crate::domain::reason;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::os::fd::AsFd;
use xen::domwatch::{DomainEvent, ShutdownReason};
use xen::{DomId, Error, Port};

impl Broker {
    /// Tells the watchers of domains of a change.
    pub(super) fn tell_change(&mut self, event: DomainEvent) {
        self.parties.peers.tell_change(event);
        self.bindings.raise_dom_exc();
    }

    /// Handles the end of a domain's first process, and with it of all others.
    pub(super) fn process_ended(&mut self, domid: DomId) {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return };
        let Some(process) = &domain.process else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(process.pidfd.as_fd()), options) {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(error) => {
                say(&format!("domain {domid}: its end is not known: {error}"));
                return;
            }
        };
        self.poll.forget(&process.pidfd);
        if let Some(process_identity) = process.process_identity {
            self.record.remove_process(process_identity);
        }
        domain.process = None;
        if let Some(group) = &domain.group {
            domain.cpu_time_ns = group.cpu_time_ns().unwrap_or(domain.cpu_time_ns);
        }
        match domain.stage {
            Stage::Building { creator } => {
                self.parties.peers.reply(creator, Error::NoEnt.errno(), Vec::new(), &[]);
                let _ = self.destroy(domid);
            }
            Stage::Built | Stage::Running => {
                let reason = reason(status.exit_status());
                domain.stage = Stage::Shutdown(reason);
                self.tell_change(DomainEvent::Shutdown(domid, reason));
            }
            Stage::Dying => self.finish(domid),
            Stage::Shutdown(_) | Stage::Vacant | Stage::Dead => {}
        }
    }

    pub(super) fn shut_down(&mut self, domid: DomId, code: u8) -> Result<(), Error> {
        let domain = self.parties.domains.living_guest(domid)?;
        if matches!(domain.stage, Stage::Shutdown(_) | Stage::Building { .. }) {
            return Err(Error::Inval);
        }
        let reason = ShutdownReason::from_code(code);
        domain.stage = Stage::Shutdown(reason);
        domain.kill(domid, self.sandboxes.connections());
        self.tell_change(DomainEvent::Shutdown(domid, reason));
        Ok(())
    }

    pub(super) fn destroy(&mut self, domid: DomId) -> Result<(), Error> {
        if self.end_vacancy(domid) {
            return Ok(());
        }
        self.parties.domains.living_guest(domid)?;
        self.hide_and_take_down(domid);
        Ok(())
    }

    /// Destroys a domain as [`destroy`](Self::destroy) does. Its number, and what others have
    /// granted to it, wait for the successor that `id` creates.
    pub(super) fn vacate(&mut self, id: PeerId, domid: DomId) -> Result<(), Error> {
        self.parties.domains.living_guest(domid)?.awaited_by = Some(id);
        self.hide_and_take_down(domid);
        Ok(())
    }

    fn hide_and_take_down(&mut self, domid: DomId) {
        self.parties.domains.hide(domid);
        self.take_down(domid);
    }

    /// Waits no longer for a domain's successor: what others have granted to it ends. Returns false
    /// where none was awaited.
    fn end_vacancy(&mut self, domid: DomId) -> bool {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return false };
        if domain.awaited_by.take().is_none() {
            return false;
        }
        domain.keepsake = None;
        if domain.stage == Stage::Vacant {
            domain.stage = Stage::Dead;
        }
        self.arenas.end_received(&mut self.parties, domid);
        self.parties.domains.forget(domid);
        true
    }

    /// Takes from a domain all that it has; it is gone once its process has ended.
    pub(super) fn take_down(&mut self, domid: DomId) {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return };
        domain.stage = Stage::Dying;
        domain.kill(domid, self.sandboxes.connections());
        let connections: Vec<PeerId> = domain.connections().collect();
        let is_awaited = domain.awaited_by.is_some();
        self.bindings.free_all(&mut self.parties, domid);
        self.bindings.leave(domid);
        self.arenas.end_own(&mut self.parties, domid);
        if !is_awaited {
            self.arenas.end_received(&mut self.parties, domid);
        }
        for id in connections {
            self.drop_peer(id);
        }
        self.finish(domid);
    }

    /// Removes a destroyed domain once its process has ended.
    fn finish(&mut self, domid: DomId) {
        let Some(domain) = self.parties.domains.get_mut(domid) else { return };
        if domain.stage != Stage::Dying || domain.process.is_some() {
            return;
        }
        domain.stage = if domain.awaited_by.is_some() { Stage::Vacant } else { Stage::Dead };
        if let Some(group) = domain.group.take() {
            self.sandboxes.retire(group);
        }
        self.tell_change(DomainEvent::Died(domid));
        self.parties.domains.forget(domid);
    }

    /// Handles the end of a connection. The resources of a process of domain 0 are released; a
    /// guest's ports and grants stay until it is destroyed, and only its mappings go.
    pub(super) fn hang_up(&mut self, id: PeerId) {
        let Parties { domains, peers } = &mut self.parties;
        let Some(peer) = peers.get(id) else { return };
        if domains.get(peer.domid).is_none_or(|domain| domain.peer != Some(id)) {
            self.drop_peer(id);
            return;
        }
        for arena in peers.hang_up(id) {
            self.arenas.drop_holder(&mut self.parties, id, arena);
        }
    }

    /// Removes a connection, and all that it held.
    fn drop_peer(&mut self, id: PeerId) {
        let Some(peer) = self.parties.peers.remove(id) else { return };
        for port in peer.ports {
            self.bindings.free(&mut self.parties, peer.domid, Port(port), &peer.counters);
        }
        for arena in peer.mapped {
            self.arenas.drop_holder(&mut self.parties, id, arena);
        }
        for slot in peer.offered {
            self.arenas.end(&mut self.parties, peer.domid, slot);
        }
        if peer.rights.has(Rights::DOMAIN_CONTROL) {
            // The domains that it holds end with it. One that is being destroyed already is no
            // error.
            for domid in self.parties.domains.held_by(id) {
                let _ = self.destroy(domid);
            }
            // Nobody else may create the successors that it was to create.
            for domid in self.parties.domains.awaited_by(id) {
                self.end_vacancy(domid);
            }
        }
        if peer.domid != DomId::DOM0 {
            self.arenas.apply_memory(&self.parties, peer.domid);
        }
        if let Some(domain) = self.parties.domains.get_mut(peer.domid) {
            domain.processes.retain(|process| *process != id);
            if domain.peer == Some(id) {
                domain.peer = None;
                self.finish(peer.domid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::FuseConnections;
    use super::super::domain::Domain;
    use super::super::facilities::HostFacilities;
    use super::super::namespaces::Namespaces;
    use super::super::process::pair;
    use super::*;
    use crate::Role;
    use crate::domain::DomainConfig;
    use crate::domain::cgroup::Cgroups;
    use rustix::event::{EventfdFlags, eventfd};

    const DOMID: DomId = DomId(5);

    /// Makes a broker with one domain that has no process.
    fn broker() -> Broker {
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let facilities = HostFacilities {
            name: "xenbus-test".to_owned(),
            namespaces: Namespaces::None,
            connections: FuseConnections::None,
            users: None,
        };
        let mut broker = Broker::with_nothing(event(), facilities, Cgroups::default).unwrap();
        let identity = broker.parties.domains.take_identity();
        broker.parties.domains.insert(DOMID, Domain::new(identity, DomainConfig::default()));
        broker.bindings.enter(DOMID);
        broker
    }

    fn peer(broker: &mut Broker, rights: Rights) -> PeerId {
        let (end, _) = pair().unwrap();
        broker.parties.peers.add(end, DomId::DOM0, rights, 16).unwrap()
    }

    /// Returns the number that a new domain gets when this one is the next.
    fn next(broker: &mut Broker) -> DomId {
        let Parties { domains, peers } = &mut broker.parties;
        domains.set_turn(DOMID);
        domains.free_number(|domid| peers.is_news(domid)).unwrap()
    }

    #[test]
    fn a_number_is_nobody_elses_while_a_port_names_it() {
        let mut broker = broker();
        let id = peer(&mut broker, Role::Backend.rights());
        let (words, _) =
            broker.bindings.alloc_unbound(&mut broker.parties, id, DOMID).unwrap().unwrap();
        assert_eq!(broker.parties.domains.get(DOMID).unwrap().named, 1);
        broker.destroy(DOMID).unwrap();
        let domain = broker.parties.domains.get(DOMID).unwrap();
        assert!(domain.stage == Stage::Dead, "it is gone, its number is not");
        assert_eq!(next(&mut broker), DomId(6));
        let port = Port(u32::try_from(words[0]).unwrap());
        broker.bindings.close(&mut broker.parties, id, port).unwrap();
        assert!(broker.parties.domains.get(DOMID).is_none());
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn a_number_is_nobody_elses_while_its_pages_are_mapped() {
        let mut broker = broker();
        let (end, _guest) = pair().unwrap();
        let Broker { parties, arenas, .. } = &mut broker;
        let guest = parties.peers.add(end, DOMID, Rights::GUEST, 16).unwrap();
        let (slot, _) = arenas.offer(parties, guest, DomId::DOM0, true, 0).unwrap().unwrap();
        let backend = peer(&mut broker, Role::Backend.rights());
        let slot = u32::try_from(slot[0]).unwrap();
        let (words, _) =
            broker.arenas.find(&mut broker.parties, backend, DOMID, slot).unwrap().unwrap();
        broker.destroy(DOMID).unwrap();
        assert_eq!(next(&mut broker), DomId(6));
        assert!(broker.arenas.release(&mut broker.parties, backend, (DOMID, slot, words[1])));
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn a_number_is_nobody_elses_until_who_watches_has_heard_of_its_death() {
        let mut broker = broker();
        let watcher = peer(&mut broker, Role::Store.rights());
        broker.destroy(DOMID).unwrap();
        assert!(broker.parties.domains.get(DOMID).is_none());
        assert!(broker.parties.peers.is_news(DOMID) && !broker.parties.peers.is_news(DomId(6)));
        assert_eq!(next(&mut broker), DomId(6));
        broker.parties.peers.changes(watcher).unwrap();
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn who_goes_names_nobody_and_waits_for_no_news() {
        let mut broker = broker();
        let watcher = peer(&mut broker, Role::Store.rights());
        let backend = peer(&mut broker, Role::Backend.rights());
        broker.bindings.alloc_unbound(&mut broker.parties, backend, DOMID).unwrap();
        broker.destroy(DOMID).unwrap();
        broker.drop_peer(backend);
        assert_eq!(next(&mut broker), DomId(6));
        broker.drop_peer(watcher);
        assert_eq!(next(&mut broker), DOMID);
    }
}
