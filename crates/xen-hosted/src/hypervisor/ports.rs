//! Event channels, as far as the broker is in them: numbers, bindings, ends.

use super::answer::{Answered, words};
use super::peers::Keep;
use super::{Broker, DomExc, Domain, PeerId};
use crate::counters::Counter;
use crate::errno::from_errno;
use crate::proto::Message;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use xen::evtchn::Virq;
use xen::{DomId, Error, Port};

/// What a port is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bound {
    /// Nothing yet: that domain may, the one with this identity and no later one of its number.
    Unbound {
        remote: DomId,
        identity: u64,
    },
    Interdomain {
        remote: DomId,
        port: Port,
    },
    Virq(u32),
}

/// A port in use.
struct Slot {
    /// The connection that has it.
    holder: PeerId,
    bound: Bound,
}

/// A domain's ports.
pub(super) struct PortTable {
    slots: Vec<Option<Slot>>,
    /// Of the places in `slots`, those not in use.
    free: BTreeSet<u32>,
    max: u32,
}

impl PortTable {
    pub(super) fn new(max: u32) -> Self {
        // Port 0 is never valid.
        Self { slots: vec![None], free: BTreeSet::new(), max }
    }

    fn get(&self, port: Port) -> Option<&Slot> {
        self.slots.get(port.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, port: Port) -> Option<&mut Slot> {
        self.slots.get_mut(port.0 as usize)?.as_mut()
    }

    /// Puts `slot` at the lowest free number, as Xen does.
    fn insert(&mut self, slot: Slot) -> Result<Port, Error> {
        if let Some(at) = self.free.pop_first()
            && let Some(place) = self.slots.get_mut(at as usize)
        {
            *place = Some(slot);
            return Ok(Port(at));
        }
        let at = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        if at >= self.max {
            return Err(Error::NoSpc);
        }
        self.slots.push(Some(slot));
        Ok(Port(at))
    }

    fn remove(&mut self, port: Port) -> Option<Slot> {
        let slot = self.slots.get_mut(port.0 as usize)?.take()?;
        self.free.insert(port.0);
        Some(slot)
    }

    /// Ports in use.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - 1 - self.free.len()
    }

    /// Every port bound to another domain's, with that.
    pub(super) fn channels(&self) -> impl Iterator<Item = (DomId, Port)> {
        self.slots.iter().flatten().filter_map(|slot| match slot.bound {
            Bound::Interdomain { remote, port } => Some((remote, port)),
            _ => None,
        })
    }
}

impl Domain {
    /// Console and store: the ports that a domain has from its creation, for domain 0 to bind to.
    pub(super) const FIRST_PORTS: [u32; 2] = [2, 1];
}

fn new_event(count: u32) -> Result<OwnedFd, Error> {
    eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(from_errno)
}

impl Broker {
    /// Gives `holder` a port of its domain.
    fn insert_port(&mut self, holder: PeerId, bound: Bound) -> Result<Port, Error> {
        let peer = self.peers.get_mut(holder).ok_or(Error::NoEnt)?;
        let domain = self.domains.get_mut(&peer.domid).ok_or(Error::Srch)?;
        let port = domain.ports.insert(Slot { holder, bound })?;
        peer.ports.insert(port.0);
        self.name(bound, 1);
        Ok(port)
    }

    /// Counts, at the domain that a port names, who names it.
    fn name(&mut self, bound: Bound, by: i64) {
        let remote = match bound {
            Bound::Unbound { remote, identity } => Some((remote, Some(identity))),
            Bound::Interdomain { remote, .. } => Some((remote, None)),
            Bound::Virq(_) => None,
        };
        let Some((remote, identity)) = remote else { return };
        if let Some(domain) = self.domains.get_mut(&remote)
            && identity.is_none_or(|identity| identity == domain.identity)
        {
            domain.named = domain.named.saturating_add_signed(by);
            self.forget(remote);
        }
    }

    pub(super) fn alloc_unbound(&mut self, id: PeerId, remote: DomId) -> Answered {
        let identity = self.living(remote).ok_or(Error::Srch)?.identity;
        let port = self.insert_port(id, Bound::Unbound { remote, identity })?;
        words([port.0.into()])
    }

    pub(super) fn bind_interdomain(&mut self, id: PeerId, remote: DomId, port: Port) -> Answered {
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let identity = self.domains.get(&domid).ok_or(Error::Srch)?.identity;
        let other = self.living(remote).ok_or(Error::Srch)?;
        let slot = other.ports.get(port).ok_or(Error::Inval)?;
        if slot.bound != (Bound::Unbound { remote: domid, identity }) {
            return Err(Error::Inval);
        }
        let holder = slot.holder;
        let local = self.insert_port(id, Bound::Interdomain { remote, port })?;
        // What the other end has notified before it was bound is lost, so there is an event to begin
        // with.
        let bound = new_event(1).and_then(|here| {
            let there = new_event(0)?;
            let fds = [there.as_fd(), here.as_fd()];
            match self.push(holder, &Message::Bound { port }, &fds, Keep::WithinBounds) {
                Ok(()) => Ok((here, there)),
                Err(Errno::BUSY) => Err(Error::Busy),
                // It is closing right now.
                Err(Errno::PIPE | Errno::CONNRESET) => Err(Error::Inval),
                Err(errno) => Err(from_errno(errno)),
            }
        });
        let (here, there) = match bound {
            Ok(ends) => ends,
            Err(error) => {
                self.take_port(domid, local);
                return Err(error);
            }
        };
        self.bind_slot(remote, port, Bound::Interdomain { remote: domid, port: local });
        Ok(Some((vec![local.0.into()], vec![here, there])))
    }

    /// Changes what a port is bound to.
    fn bind_slot(&mut self, domid: DomId, port: Port, bound: Bound) {
        let slot = self.domains.get_mut(&domid).and_then(|domain| domain.ports.get_mut(port));
        let Some(slot) = slot else { return };
        let before = std::mem::replace(&mut slot.bound, bound);
        self.name(bound, 1);
        self.name(before, -1);
    }

    pub(super) fn bind_virq(&mut self, id: PeerId, virq: u32) -> Answered {
        if virq != Virq::DomExc.number() {
            return Err(Error::Inval);
        }
        if self.dom_exc.is_some() {
            return Err(Error::Exist);
        }
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let event = new_event(0)?;
        let port = self.insert_port(id, Bound::Virq(virq))?;
        let given = event.try_clone()?;
        self.dom_exc = Some(DomExc { domid, port, event });
        Ok(Some((vec![port.0.into()], vec![given])))
    }

    pub(super) fn raise_dom_exc(&self) {
        if let Some(DomExc { event, .. }) = &self.dom_exc {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }

    pub(super) fn close_port(&mut self, id: PeerId, port: Port) -> Answered {
        let peer = self.peers.get_mut(id).ok_or(Error::NoEnt)?;
        if !peer.ports.remove(&port.0) {
            return Err(Error::Inval);
        }
        let domid = peer.domid;
        let counters = peer.counters.try_clone()?;
        self.free_port(domid, port, &counters);
        words([])
    }

    /// Takes a port out of the tables, with what it named.
    fn take_port(&mut self, domid: DomId, port: Port) -> Option<Slot> {
        let slot = self.domains.get_mut(&domid)?.ports.remove(port)?;
        if let Some(peer) = self.peers.get_mut(slot.holder) {
            peer.ports.remove(&port.0);
        }
        self.name(slot.bound, -1);
        Some(slot)
    }

    /// Closes a port; its other end may be bound again. `counters` are its holder's.
    pub(super) fn free_port(&mut self, domid: DomId, port: Port, counters: &OwnedFd) {
        let Some(slot) = self.take_port(domid, port) else { return };
        match slot.bound {
            Bound::Unbound { .. } => {}
            Bound::Virq(_) => {
                self.dom_exc.take_if(|virq| virq.domid == domid && virq.port == port);
            }
            Bound::Interdomain { remote, port: other } => {
                self.settle(remote, counters, port);
                let Some(identity) = self.domains.get(&domid).map(|domain| domain.identity) else {
                    return;
                };
                let far = self.domains.get(&remote).and_then(|domain| domain.ports.get(other));
                let Some(holder) = far.map(|slot| slot.holder) else { return };
                if let Some(peer) = self.peers.get(holder)
                    && let Ok(far_counters) = peer.counters.try_clone()
                {
                    self.settle(domid, &far_counters, other);
                }
                self.bind_slot(remote, other, Bound::Unbound { remote: domid, identity });
                let _ = self.push(holder, &Message::Unbound { port: other }, &[], Keep::Always);
            }
        }
    }

    /// Books what the receiver at `port` has counted to the sender, and begins anew.
    fn settle(&mut self, sender: DomId, counters: &OwnedFd, port: Port) {
        let offset = Counter::Received(port).offset() as u64;
        let count = read_counter(counters, Counter::Received(port));
        let _ = rustix::io::pwrite(counters, &0_u64.to_ne_bytes(), offset);
        if let Some(domain) = self.domains.get_mut(&sender) {
            domain.notified_before = domain.notified_before.saturating_add(count);
        }
    }

    /// Notifications that `domid` has sent, as their receivers have counted them.
    pub(super) fn notified(&self, domid: DomId) -> u64 {
        let Some(domain) = self.domains.get(&domid) else { return 0 };
        let open = domain.ports.channels().filter_map(|(remote, port)| {
            let holder = self.domains.get(&remote)?.ports.get(port)?.holder;
            Some(read_counter(&self.peers.get(holder)?.counters, Counter::Received(port)))
        });
        open.fold(domain.notified_before, u64::saturating_add)
    }

    pub(super) fn port_status(&mut self, id: PeerId, port: Port) -> Answered {
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let table = &self.domains.get(&domid).ok_or(Error::Srch)?.ports;
        if port.0 >= table.max {
            return Err(Error::Inval);
        }
        match table.get(port).map(|slot| slot.bound) {
            None => words([0, 0, 0]),
            Some(Bound::Unbound { remote, .. }) => words([1, remote.0.into(), 0]),
            Some(Bound::Interdomain { remote, port }) => words([2, remote.0.into(), port.0.into()]),
            Some(Bound::Virq(virq)) => words([3, 0, virq.into()]),
        }
    }

    /// Closes all ports of a domain that is going.
    pub(super) fn free_all_ports(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get(&domid) else { return };
        let held: Vec<(Port, PeerId)> = (0_u32..)
            .zip(&domain.ports.slots)
            .filter_map(|(at, slot)| Some((Port(at), slot.as_ref()?.holder)))
            .collect();
        for (port, holder) in held {
            let counters = self.peers.get(holder).map(|peer| peer.counters.try_clone());
            if let Some(Ok(counters)) = counters {
                self.free_port(domid, port, &counters);
            } else {
                self.take_port(domid, port);
            }
        }
    }

    /// The ports that a new domain has from the start, held by its own connection.
    pub(super) fn first_ports(&mut self, id: PeerId) -> Result<(), Error> {
        let identity = self.domains.get(&DomId::DOM0).ok_or(Error::Srch)?.identity;
        let [console, store] = Domain::FIRST_PORTS;
        for expected in [store, console] {
            let port = self.insert_port(id, Bound::Unbound { remote: DomId::DOM0, identity })?;
            debug_assert_eq!(port.0, expected, "the ports of a new domain are free");
        }
        Ok(())
    }
}

/// What a peer has counted; whatever it wrote there is a number.
pub(super) fn read_counter(counters: &OwnedFd, counter: Counter) -> u64 {
    let mut word = [0; 8];
    match rustix::io::pread(counters, &mut word, counter.offset() as u64) {
        Ok(8) => u64::from_ne_bytes(word),
        _ => 0,
    }
}
