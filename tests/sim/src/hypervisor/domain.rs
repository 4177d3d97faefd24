//! One domain: its ports, its grants, and its state.

use super::grant::Grant;
use super::port::PortInUse;
use std::collections::BTreeMap;
use xen::DomId;
use xen::domctl::{DomainInfo, RunState, Scheduling};
use xen::domwatch::ShutdownReason;

/// One domain.
pub(crate) struct SimulatedDomain {
    pub(crate) identity: u64,
    pub(crate) ports: BTreeMap<u32, PortInUse>,
    pub(crate) grants: BTreeMap<u32, Grant>,
    /// True if it is destroyed, and kept only for the pages that others hold.
    pub(crate) dying: bool,
    pub(super) paused: bool,
    pub(super) shutdown: Option<ShutdownReason>,
    pub(super) memory_max_kib: u64,
    pub(super) scheduling: Scheduling,
}

impl SimulatedDomain {
    fn run_state(&self) -> RunState {
        match (self.dying, self.shutdown, self.paused) {
            (true, ..) => RunState::Dying,
            (_, Some(reason), _) => RunState::Shutdown(reason),
            (_, _, true) => RunState::Paused,
            _ => RunState::Running,
        }
    }

    pub(super) fn info(&self, domid: DomId) -> DomainInfo {
        let mut handle = [0; 16];
        handle[..8].copy_from_slice(&self.identity.to_le_bytes());
        DomainInfo {
            domid,
            handle,
            state: self.run_state(),
            memory_kib: 4 * self.grants.len() as u64,
            memory_max_kib: self.memory_max_kib,
            vcpus_online: 1,
            vcpus: 1,
            activity: None,
            ssid: None,
            cpu_time_ns: 0,
        }
    }
}
