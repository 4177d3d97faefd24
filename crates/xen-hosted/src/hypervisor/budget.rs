//! The descriptors that the broker may have, and each domain's part of them.

use crate::domain::MissingFeature;
use crate::limits::{ARENAS_MAX, PORT_DESCRIPTORS, PORTS_MAX, TASKS_DEFAULT, raise_descriptors};

/// Descriptors that the broker keeps for itself.
const OWN_DESCRIPTORS: u64 = 128;
/// The descriptors that it holds for a domain besides arenas: socket, process, counters, two
/// set-ups, two of its mount.
const DOMAIN_DESCRIPTORS: u64 = 7;
/// The number of domains for which descriptors are reserved.
const DOMAINS_PLANNED: u64 = 1024;

/// A domain's part of the descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Budget {
    /// Its ports.
    pub(super) ports: u32,
    /// The broker's descriptors for its arenas, and for the connections of its further processes.
    pub(super) of_arenas: usize,
}

impl Budget {
    /// Raises this process's limit of descriptors as far as possible, and divides them.
    pub(super) fn divide() -> Self {
        let all = raise_descriptors();
        let others = u64::from(TASKS_DEFAULT);
        let ports = all.saturating_sub(others) / u64::from(PORT_DESCRIPTORS);
        let ports = u32::try_from(ports).map_or(PORTS_MAX, |ports| ports.min(PORTS_MAX));
        let each = all.saturating_sub(OWN_DESCRIPTORS) / DOMAINS_PLANNED;
        let of_arenas = usize::try_from(each.saturating_sub(DOMAIN_DESCRIPTORS));
        // Two arenas at least, with either access.
        let of_arenas = of_arenas.unwrap_or(usize::MAX).clamp(4, 2 * ARENAS_MAX);
        Self { ports, of_arenas }
    }

    /// Returns the bits of the parts that domains run without.
    pub(super) fn lacks(self) -> u64 {
        if self.ports < PORTS_MAX { MissingFeature::Ports.bit() } else { 0 }
    }
}
