//! The end of domains: by themselves, by the toolstack, of their processes.

use super::answer::{Answered, words};
use super::connections::Connections;
use super::{Broker, Domain, PeerId, Stage, say};
use crate::domain::reason;
use crate::limits::CHANGES_AT_ONCE;
use rustix::event::epoll;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use std::os::fd::AsFd;
use xen::domwatch::{DomainEvent, ShutdownReason};
use xen::{DomId, Error};

impl Broker {
    /// Tells who watches domains.
    pub(super) fn tell_change(&mut self, event: DomainEvent) {
        for id in &self.watchers {
            let changes = self.peers.get_mut(*id).and_then(|peer| peer.changes.as_mut());
            if let Some(changes) = changes
                && !changes.contains(&event)
            {
                changes.push_back(event);
            }
        }
        self.raise_dom_exc();
    }

    /// Whether somebody is still to hear of the death of a domain with this number.
    pub(super) fn is_news(&self, domid: DomId) -> bool {
        let died = DomainEvent::Died(domid);
        self.watchers.iter().any(|id| {
            let changes = self.peers.get(*id).and_then(|peer| peer.changes.as_ref());
            changes.is_some_and(|changes| changes.contains(&died))
        })
    }

    pub(super) fn changes(&mut self, id: PeerId) -> Answered {
        let peer = self.peers.get_mut(id).ok_or(Error::NoEnt)?;
        let changes = peer.changes.as_mut().ok_or(Error::Perm)?;
        let now = changes.len().min(CHANGES_AT_ONCE);
        let mut words: Vec<u64> = vec![u64::from(changes.len() > now)];
        words.extend(changes.drain(..now).map(crate::domwatch::encode));
        Ok(Some((words, Vec::new())))
    }

    /// The first process of a domain has ended, and with it all others.
    pub(super) fn process_ended(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
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
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        if let Some(born) = process.born {
            self.holdings.processes.remove(&born);
        }
        domain.process = None;
        if let Some(group) = &domain.group {
            domain.cpu_time_ns = group.cpu_time_ns().unwrap_or(domain.cpu_time_ns);
        }
        match domain.stage {
            Stage::Building { creator } => {
                self.reply(creator, Error::NoEnt.errno(), Vec::new(), &[]);
                let _ = self.destroy(domid);
            }
            Stage::Built | Stage::Running => {
                let reason = reason(status.exit_status());
                domain.stage = Stage::Shutdown(reason);
                self.tell_change(DomainEvent::Shutdown(domid, reason));
            }
            Stage::Dying => self.finish(domid),
            Stage::Shutdown(_) | Stage::Dead => {}
        }
    }

    pub(super) fn shut_down(&mut self, domid: DomId, code: u8) -> Answered {
        let domain = self.living_guest(domid)?;
        if matches!(domain.stage, Stage::Shutdown(_) | Stage::Building { .. }) {
            return Err(Error::Inval);
        }
        let reason = ShutdownReason::from_code(code);
        domain.stage = Stage::Shutdown(reason);
        self.kill(domid);
        self.tell_change(DomainEvent::Shutdown(domid, reason));
        words([])
    }

    pub(super) fn destroy(&mut self, domid: DomId) -> Answered {
        let domain = self.living_guest(domid)?;
        domain.stage = Stage::Dying;
        self.set_identity(domid, 0);
        self.take_down(domid);
        words([])
    }

    /// The domains that a connection holds go with it.
    pub(super) fn destroy_held(&mut self, id: PeerId) {
        let held = self.domains.iter().filter(|(_, domain)| domain.holder == Some(id));
        let held: Vec<DomId> = held.map(|(domid, _)| *domid).collect();
        for domid in held {
            // One that is going already is no error.
            let _ = self.destroy(domid);
        }
    }

    /// Ends all processes of a domain.
    fn kill(&self, domid: DomId) {
        if let Some(domain) = self.domains.get(&domid) {
            domain.kill(domid, &self.means.connections);
        }
    }

    /// A domain that was destroyed is gone once its process is.
    pub(super) fn finish(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        if domain.stage != Stage::Dying || domain.process.is_some() {
            return;
        }
        domain.stage = Stage::Dead;
        if let Some(mut group) = domain.group.take()
            && !group.remove().is_empty()
        {
            self.lingering.push(group);
        }
        self.tell_change(DomainEvent::Died(domid));
        self.forget(domid);
    }

    /// Gives the number of a dead domain back when nobody names it any more.
    pub(super) fn forget(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get(&domid)
            && domain.stage == Stage::Dead
            && domain.named == 0
        {
            self.domains.remove(&domid);
        }
    }

    /// Takes from a domain all that it has; it is gone once its process is.
    pub(super) fn take_down(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        domain.stage = Stage::Dying;
        self.kill(domid);
        self.free_all_ports(domid);
        self.end_all_arenas(domid);
        if let Some(id) = self.domains.get(&domid).and_then(|domain| domain.peer) {
            self.drop_peer(id);
        }
        self.finish(domid);
    }
}

impl Domain {
    /// Ends all its processes: its first is the init of their namespace.
    pub(super) fn kill(&self, domid: DomId, connections: &Connections) {
        let Some(process) = &self.process else { return };
        if let Some(connection) = &process.connection
            && let Err(errno) = connections.end(connection)
        {
            say(&format!("domain {domid}: its connection to FUSE does not end: {errno}"));
        }
        let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        if self.paused
            && let Some(group) = &self.group
        {
            // A frozen process of version 1 does not die.
            let _ = group.set_frozen(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::namespaces::Namespaces;
    use super::super::process::pair;
    use super::super::{Cgroups, Config, Means};
    use super::*;
    use crate::{Rights, Role};
    use rustix::event::{EventfdFlags, eventfd};
    use xen::Port;

    const DOMID: DomId = DomId(5);

    /// A broker with one domain that has no process.
    fn broker() -> Broker {
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let means = Means {
            name: "xenbus-test".to_owned(),
            namespaces: Namespaces::None,
            connections: Connections::None,
            users: None,
        };
        let mut broker = Broker::with_nothing(event(), means, Cgroups::default).unwrap();
        let identity = broker.take_identity();
        broker.domains.insert(DOMID, Domain::new(identity, Config::default(), 16));
        broker
    }

    fn peer(broker: &mut Broker, rights: Rights) -> PeerId {
        let (end, _) = pair().unwrap();
        broker.add_peer(end, DomId::DOM0, rights).unwrap()
    }

    /// The number that a domain gets whose turn it is to get this one.
    fn next(broker: &mut Broker) -> DomId {
        broker.next_domid = DOMID.0;
        broker.free_domid().unwrap()
    }

    #[test]
    fn a_number_is_nobody_elses_while_a_port_names_it() {
        let mut broker = broker();
        let id = peer(&mut broker, Role::Backend.rights());
        let (words, _) = broker.alloc_unbound(id, DOMID).unwrap().unwrap();
        assert_eq!(broker.domains[&DOMID].named, 1);
        broker.destroy(DOMID).unwrap();
        assert!(broker.domains[&DOMID].stage == Stage::Dead, "it is gone, its number is not");
        assert_eq!(next(&mut broker), DomId(6));
        broker.close_port(id, Port(u32::try_from(words[0]).unwrap())).unwrap();
        assert!(!broker.domains.contains_key(&DOMID));
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn a_number_is_nobody_elses_while_its_pages_are_mapped() {
        let mut broker = broker();
        let (end, _guest) = pair().unwrap();
        let guest = broker.add_peer(end, DOMID, Rights::GUEST).unwrap();
        let (slot, _) = broker.offer_arena(guest, DomId::DOM0, true, 0).unwrap().unwrap();
        let backend = peer(&mut broker, Role::Backend.rights());
        let slot = u32::try_from(slot[0]).unwrap();
        let (words, _) = broker.find_arena(backend, DOMID, slot).unwrap().unwrap();
        broker.destroy(DOMID).unwrap();
        assert_eq!(next(&mut broker), DomId(6));
        assert!(broker.release(backend, (DOMID, slot, words[1])));
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn a_number_is_nobody_elses_until_who_watches_has_heard_of_its_death() {
        let mut broker = broker();
        let watcher = peer(&mut broker, Role::Store.rights());
        broker.destroy(DOMID).unwrap();
        assert!(!broker.domains.contains_key(&DOMID));
        assert!(broker.is_news(DOMID) && !broker.is_news(DomId(6)));
        assert_eq!(next(&mut broker), DomId(6));
        broker.changes(watcher).unwrap();
        assert_eq!(next(&mut broker), DOMID);
    }

    #[test]
    fn who_goes_names_nobody_and_waits_for_no_news() {
        let mut broker = broker();
        let watcher = peer(&mut broker, Role::Store.rights());
        let backend = peer(&mut broker, Role::Backend.rights());
        broker.alloc_unbound(backend, DOMID).unwrap();
        broker.destroy(DOMID).unwrap();
        broker.drop_peer(backend);
        assert_eq!(next(&mut broker), DomId(6));
        broker.drop_peer(watcher);
        assert_eq!(next(&mut broker), DOMID);
    }
}
