//! The state of the hypervisor: its domains, and the events that are on their way.

use super::domain::SimulatedDomain;
use super::port::{DelayedEvent, PortHolder};
use super::process::DomainProcess;
use crate::faults::Faults;
use crate::page::Pin;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use xen::{DomId, Error, Port};

/// The limits of a domain.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The number of ports, including port 0, which is never given out.
    pub ports: u32,
    /// The number of grant references.
    pub grants: u32,
    /// The memory of the whole machine, in KiB.
    pub memory_kib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ports: 4096, grants: 4096, memory_kib: 1 << 30 }
    }
}

/// The time at which the number of a dead domain becomes free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// When no domain holds a page of it, as on Xen.
    WhenUnmapped,
    /// At its death, so that the news of the death may come after the successor's creation.
    AtOnce,
}

/// The state of the whole machine.
pub(crate) struct MachineState {
    pub(crate) limits: Limits,
    pub(crate) reuse: Reuse,
    pub(crate) domains: BTreeMap<DomId, SimulatedDomain>,
    pub(crate) last_identity: u64,
    pub(crate) holders: Vec<PortHolder>,
    pub(crate) late: Vec<DelayedEvent>,
    /// The number of steps of the run.
    pub(crate) step: u64,
    /// Ports whose last event was lost.
    pub(crate) lost_events: BTreeSet<(DomId, Port)>,
    pub(crate) faults: Faults,
    /// Every grant that a domain may still hold.
    pub(crate) pins: Vec<Weak<Pin>>,
    /// The number of events that have arrived and of other changes. A check sees by it if anything
    /// still happens.
    pub(crate) activity: u64,
}

impl MachineState {
    /// Returns the caller's domain, while it lives.
    pub(crate) fn of(&mut self, process: DomainProcess) -> Result<&mut SimulatedDomain, Error> {
        let domain = self.domains.get_mut(&process.domid);
        domain
            .filter(|domain| domain.identity == process.identity && !domain.dying)
            .ok_or(Error::Srch)
    }
}
