//! The ports of one domain: their numbers and bindings.

use super::poll::PeerId;
use std::collections::BTreeSet;
use xen::{DomId, Error, Port};

/// The binding of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PortBinding {
    /// Unbound: the domain `remote` may bind to it, only the one with this identity and no later
    /// one of its number.
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
pub(super) struct PortEntry {
    /// The connection that holds it.
    pub(super) holder: PeerId,
    pub(super) bound: PortBinding,
}

/// A domain's ports.
pub(super) struct PortTable {
    slots: Vec<Option<PortEntry>>,
    /// The indices in `slots` that are not in use.
    free: BTreeSet<u32>,
    max: u32,
}

impl PortTable {
    pub(super) fn new(max: u32) -> Self {
        // Port 0 is never valid.
        Self { slots: vec![None], free: BTreeSet::new(), max }
    }

    pub(super) fn get(&self, port: Port) -> Option<&PortEntry> {
        self.slots.get(port.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, port: Port) -> Option<&mut PortEntry> {
        self.slots.get_mut(port.0 as usize)?.as_mut()
    }

    /// Puts `slot` at the lowest free number, as Xen does.
    pub(super) fn insert(&mut self, slot: PortEntry) -> Result<Port, Error> {
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

    pub(super) fn remove(&mut self, port: Port) -> Option<PortEntry> {
        let slot = self.slots.get_mut(port.0 as usize)?.take()?;
        self.free.insert(port.0);
        Some(slot)
    }

    /// Returns the number of ports in use.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - 1 - self.free.len()
    }

    /// Returns the other end of every port that is bound to another domain's.
    pub(super) fn channels(&self) -> impl Iterator<Item = (DomId, Port)> {
        self.slots.iter().flatten().filter_map(|slot| match slot.bound {
            PortBinding::Interdomain { remote, port } => Some((remote, port)),
            _ => None,
        })
    }

    /// Lets `domid` bind its unbound ports with the identity `to` where it might with `from`.
    pub(super) fn readdress(&mut self, domid: DomId, from: u64, to: u64) {
        let before = PortBinding::Unbound { remote: domid, identity: from };
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.bound == before) {
            slot.bound = PortBinding::Unbound { remote: domid, identity: to };
        }
    }

    /// Returns the limit of ports.
    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// Returns all ports in use, with the connections that hold them.
    pub(super) fn held(&self) -> impl Iterator<Item = (Port, PeerId)> {
        let slots = (0_u32..).zip(&self.slots);
        slots.filter_map(|(at, slot)| Some((Port(at), slot.as_ref()?.holder)))
    }
}
