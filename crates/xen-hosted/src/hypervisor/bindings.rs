//! The broker's part in event channels: the holders of ports, bindings, ends.

use super::answer::{AnswerResult, words};
use super::domains::Domains;
use super::parties::Parties;
use super::peer::DeliveryPolicy;
use super::poll::PeerId;
use super::port_table::{PortBinding, PortEntry, PortTable};
use crate::counters::{Counter, read_counter};
use crate::errno::from_errno;
use crate::limits::DOM0_PORTS_MAX;
use crate::proto::BrokerMessage;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use xen::evtchn::Virq;
use xen::{DomId, Error, Port};

/// Console and store: the ports that a domain has from its creation, for domain 0 to bind to.
pub(super) const FIRST_PORTS: [u32; 2] = [2, 1];

/// The port that VIRQ_DOM_EXC is bound to.
struct DomExc {
    domid: DomId,
    port: Port,
    event: OwnedFd,
}

/// The ports of all domains.
pub(super) struct Bindings {
    tables: BTreeMap<DomId, PortTable>,
    dom_exc: Option<DomExc>,
    /// The limit of ports of a domain other than domain 0.
    ports_max: u32,
}

fn new_event(count: u32) -> Result<OwnedFd, Error> {
    eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(from_errno)
}

/// Counts, at the domain that a port names, one more reference.
fn name(domains: &mut Domains, bound: PortBinding) {
    match bound {
        PortBinding::Unbound { remote, identity } => domains.name(remote, Some(identity)),
        PortBinding::Interdomain { remote, .. } => domains.name(remote, None),
        PortBinding::Virq(_) => {}
    }
}

/// Counts one reference less.
fn unname(domains: &mut Domains, bound: PortBinding) {
    match bound {
        PortBinding::Unbound { remote, identity } => domains.unname(remote, Some(identity)),
        PortBinding::Interdomain { remote, .. } => domains.unname(remote, None),
        PortBinding::Virq(_) => {}
    }
}

impl Bindings {
    /// Makes the tables with that of domain 0, without any port; `ports_max` is for the others.
    pub(super) fn new(ports_max: u32) -> Self {
        let mut bindings = Self { tables: BTreeMap::new(), dom_exc: None, ports_max };
        bindings.enter(DomId::DOM0);
        bindings
    }

    /// Gives a new domain a table.
    pub(super) fn enter(&mut self, domid: DomId) {
        self.tables.insert(domid, PortTable::new(self.ports_max(domid)));
    }

    /// Removes the table of a domain that has no port any more.
    pub(super) fn leave(&mut self, domid: DomId) {
        self.tables.remove(&domid);
    }

    /// Lets a successor, which has the identity `to`, bind the ports that its predecessor might.
    pub(super) fn readdress(&mut self, domid: DomId, from: u64, to: u64) {
        for table in self.tables.values_mut() {
            table.readdress(domid, from, to);
        }
    }

    /// Returns the number of ports that a domain may have.
    pub(super) fn ports_max(&self, domid: DomId) -> u32 {
        if domid == DomId::DOM0 { DOM0_PORTS_MAX } else { self.ports_max }
    }

    /// Returns the number of a domain's ports that are in use.
    pub(super) fn count(&self, domid: DomId) -> usize {
        self.tables.get(&domid).map_or(0, PortTable::count)
    }

    /// Gives `holder` a port of its domain.
    fn insert_port(
        &mut self,
        parties: &mut Parties,
        holder: PeerId,
        bound: PortBinding,
    ) -> Result<Port, Error> {
        let peer = parties.peers.get_mut(holder).ok_or(Error::NoEnt)?;
        let table = self.tables.get_mut(&peer.domid).ok_or(Error::Srch)?;
        let port = table.insert(PortEntry { holder, bound })?;
        peer.ports.insert(port.0);
        name(&mut parties.domains, bound);
        Ok(port)
    }

    pub(super) fn alloc_unbound(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        remote: DomId,
    ) -> AnswerResult {
        let identity = parties.domains.living(remote).ok_or(Error::Srch)?.identity;
        let port = self.insert_port(parties, id, PortBinding::Unbound { remote, identity })?;
        words([port.0.into()])
    }

    pub(super) fn bind_interdomain(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        remote: DomId,
        port: Port,
    ) -> AnswerResult {
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let identity = parties.domains.get(domid).ok_or(Error::Srch)?.identity;
        parties.domains.living(remote).ok_or(Error::Srch)?;
        let other = self.tables.get(&remote).ok_or(Error::Srch)?;
        let slot = other.get(port).ok_or(Error::Inval)?;
        if slot.bound != (PortBinding::Unbound { remote: domid, identity }) {
            return Err(Error::Inval);
        }
        let holder = slot.holder;
        let local = self.insert_port(parties, id, PortBinding::Interdomain { remote, port })?;
        // Notifications of the other end before it was bound are lost, so the binding begins with
        // an event.
        let bound = new_event(1).and_then(|here| {
            let there = new_event(0)?;
            let fds = [there.as_fd(), here.as_fd()];
            match parties.peers.push(
                holder,
                &BrokerMessage::Bound { port },
                &fds,
                DeliveryPolicy::WithinBounds,
            ) {
                Ok(()) => Ok((here, there)),
                Err(Errno::BUSY) => Err(Error::Busy),
                // The other end is being closed.
                Err(Errno::PIPE | Errno::CONNRESET) => Err(Error::Inval),
                Err(errno) => Err(from_errno(errno)),
            }
        });
        let (here, there) = match bound {
            Ok(ends) => ends,
            Err(error) => {
                self.take_port(parties, domid, local);
                return Err(error);
            }
        };
        let far = PortBinding::Interdomain { remote: domid, port: local };
        self.bind_slot(&mut parties.domains, remote, port, far);
        Ok(Some((vec![local.0.into()], vec![here, there])))
    }

    /// Changes the binding of a port.
    fn bind_slot(&mut self, domains: &mut Domains, domid: DomId, port: Port, bound: PortBinding) {
        let slot = self.tables.get_mut(&domid).and_then(|table| table.get_mut(port));
        let Some(slot) = slot else { return };
        let before = std::mem::replace(&mut slot.bound, bound);
        name(domains, bound);
        unname(domains, before);
    }

    pub(super) fn bind_virq(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        virq: u32,
    ) -> AnswerResult {
        if virq != Virq::DomExc.number() {
            return Err(Error::Inval);
        }
        if self.dom_exc.is_some() {
            return Err(Error::Exist);
        }
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let event = new_event(0)?;
        let port = self.insert_port(parties, id, PortBinding::Virq(virq))?;
        let given = event.try_clone()?;
        self.dom_exc = Some(DomExc { domid, port, event });
        Ok(Some((vec![port.0.into()], vec![given])))
    }

    pub(super) fn raise_dom_exc(&self) {
        if let Some(DomExc { event, .. }) = &self.dom_exc {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }

    pub(super) fn close(&mut self, parties: &mut Parties, id: PeerId, port: Port) -> AnswerResult {
        let peer = parties.peers.get_mut(id).ok_or(Error::NoEnt)?;
        if !peer.ports.remove(&port.0) {
            return Err(Error::Inval);
        }
        let domid = peer.domid;
        let counters = peer.counters.try_clone()?;
        self.free(parties, domid, port, &counters);
        words([])
    }

    /// Removes a port from the tables, and its reference to a domain.
    fn take_port(&mut self, parties: &mut Parties, domid: DomId, port: Port) -> Option<PortEntry> {
        let slot = self.tables.get_mut(&domid)?.remove(port)?;
        if let Some(peer) = parties.peers.get_mut(slot.holder) {
            peer.ports.remove(&port.0);
        }
        unname(&mut parties.domains, slot.bound);
        Some(slot)
    }

    /// Closes a port; its other end may be bound again. `counters` are its holder's.
    pub(super) fn free(
        &mut self,
        parties: &mut Parties,
        domid: DomId,
        port: Port,
        counters: &OwnedFd,
    ) {
        let Some(slot) = self.take_port(parties, domid, port) else { return };
        match slot.bound {
            PortBinding::Unbound { .. } => {}
            PortBinding::Virq(_) => {
                self.dom_exc.take_if(|virq| virq.domid == domid && virq.port == port);
            }
            PortBinding::Interdomain { remote, port: other } => {
                settle(&mut parties.domains, remote, counters, port);
                let Some(identity) = parties.domains.get(domid).map(|domain| domain.identity)
                else {
                    return;
                };
                let far = self.tables.get(&remote).and_then(|table| table.get(other));
                let Some(holder) = far.map(|slot| slot.holder) else { return };
                if let Some(peer) = parties.peers.get(holder)
                    && let Ok(far_counters) = peer.counters.try_clone()
                {
                    settle(&mut parties.domains, domid, &far_counters, other);
                }
                let unbound = PortBinding::Unbound { remote: domid, identity };
                self.bind_slot(&mut parties.domains, remote, other, unbound);
                let message = BrokerMessage::Unbound { port: other };
                let _ = parties.peers.push(holder, &message, &[], DeliveryPolicy::Always);
            }
        }
    }

    /// Returns the number of notifications that `domid` has sent, as their receivers have counted
    /// them.
    pub(super) fn notified(&self, parties: &Parties, domid: DomId) -> u64 {
        let Some(domain) = parties.domains.get(domid) else { return 0 };
        let channels = self.tables.get(&domid).into_iter().flat_map(PortTable::channels);
        let open = channels.filter_map(|(remote, port)| {
            let holder = self.tables.get(&remote)?.get(port)?.holder;
            Some(read_counter(&parties.peers.get(holder)?.counters, Counter::Received(port)))
        });
        open.fold(domain.notified_before, u64::saturating_add)
    }

    pub(super) fn status(&self, parties: &Parties, id: PeerId, port: Port) -> AnswerResult {
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let table = self.tables.get(&domid).ok_or(Error::Srch)?;
        if port.0 >= table.max() {
            return Err(Error::Inval);
        }
        match table.get(port).map(|slot| slot.bound) {
            None => words([0, 0, 0]),
            Some(PortBinding::Unbound { remote, .. }) => words([1, remote.0.into(), 0]),
            Some(PortBinding::Interdomain { remote, port }) => {
                words([2, remote.0.into(), port.0.into()])
            }
            Some(PortBinding::Virq(virq)) => words([3, 0, virq.into()]),
        }
    }

    /// Closes all ports of a domain that is being destroyed.
    pub(super) fn free_all(&mut self, parties: &mut Parties, domid: DomId) {
        let Some(table) = self.tables.get(&domid) else { return };
        let held: Vec<(Port, PeerId)> = table.held().collect();
        for (port, holder) in held {
            let counters = parties.peers.get(holder).map(|peer| peer.counters.try_clone());
            if let Some(Ok(counters)) = counters {
                self.free(parties, domid, port, &counters);
            } else {
                self.take_port(parties, domid, port);
            }
        }
    }

    /// Makes the ports that a new domain has from the start, held by its own connection.
    pub(super) fn first_ports(&mut self, parties: &mut Parties, id: PeerId) -> Result<(), Error> {
        let identity = parties.domains.get(DomId::DOM0).ok_or(Error::Srch)?.identity;
        let [console, store] = FIRST_PORTS;
        for expected in [store, console] {
            let bound = PortBinding::Unbound { remote: DomId::DOM0, identity };
            let port = self.insert_port(parties, id, bound)?;
            debug_assert_eq!(port.0, expected, "the ports of a new domain are free");
        }
        Ok(())
    }
}

/// Adds the receiver's count at `port` to the sender's account, and resets the count.
fn settle(domains: &mut Domains, sender: DomId, counters: &OwnedFd, port: Port) {
    let offset = Counter::Received(port).offset() as u64;
    let count = read_counter(counters, Counter::Received(port));
    let _ = rustix::io::pwrite(counters, &0_u64.to_ne_bytes(), offset);
    if let Some(domain) = domains.get_mut(sender) {
        domain.notified_before = domain.notified_before.saturating_add(count);
    }
}
