//! The counters of a host and its domains at one moment. What nobody tells is `None`, never 0.

use std::time::Duration;
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};

/// The counters of a host.
#[derive(Clone, Debug, Default)]
pub struct HostSample {
    /// The time of the moment, by CLOCK_MONOTONIC.
    pub at: Duration,
    /// The memory of the machine, in KiB.
    pub memory_kib: Option<u64>,
    /// The processors of the machine.
    pub processors: Option<u32>,
    /// The domains, by number.
    pub domains: Vec<DomainSample>,
}

/// The identity of a domain over its life: no other has both.
pub type DomainKey = (DomId, [u8; 16]);

/// The counters of a domain.
#[derive(Clone, Debug)]
pub struct DomainSample {
    /// The hypervisor's account of it.
    pub info: DomainInfo,
    /// Its name; empty where it has none.
    pub name: String,
    /// The memory that it is asked to have, in KiB.
    pub target_kib: Option<u64>,
    /// Its table of grants.
    pub grant_frames: Option<UseOfBound>,
    /// Pages that it grants now.
    pub granted_pages: Option<u64>,
    /// Pages of others that it has mapped now.
    pub mapped_pages: Option<u64>,
    /// Notifications that it has sent.
    pub events: Option<u64>,
    /// Its use of the store.
    pub store: StoreSample,
    /// Its disks, by number.
    pub disks: Vec<DiskSample>,
    /// Its network interfaces, by number.
    pub networks: Vec<NetworkSample>,
}

impl DomainSample {
    /// Returns its identity.
    #[must_use]
    pub fn key(&self) -> DomainKey {
        (self.info.domid, self.info.handle)
    }

    /// True if it can do anything.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.info.state == RunState::Running
    }
}

/// The use of something of which there is a most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UseOfBound {
    /// The use.
    pub used: u64,
    /// The most; `None` where there is none, or it is not told.
    pub most: Option<u64>,
}

/// The use of the store by a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreSample {
    /// Nodes that it owns.
    pub nodes: Option<UseOfBound>,
    /// Its watches.
    pub watches: Option<UseOfBound>,
    /// Requests that it was refused for a quota.
    pub refusals: Option<u64>,
}

/// The counters of a disk of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSample {
    /// Its number.
    pub devid: u32,
    /// Its name: `xvda`.
    pub name: String,
    /// The domain of its backend.
    pub backend: DomId,
    /// The kind of its backend.
    pub backend_kind: String,
    /// The counts of its backend.
    pub counters: Option<DiskCounters>,
}

/// The counts of one kind of request of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestSums {
    /// Requests.
    pub requests: u64,
    /// Sectors of 512 bytes in them.
    pub sectors: u64,
}

/// The counts of a disk since it was connected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiskCounters {
    /// The last time at which they are known to have been so, by CLOCK_MONOTONIC.
    pub at: Duration,
    /// Reads.
    pub read: RequestSums,
    /// Writes.
    pub write: RequestSums,
    /// Flushes, barriers and discards.
    pub others: u64,
    /// Requests that have failed or were refused.
    pub errors: Option<u64>,
    /// The number of times that the backend was out of requests of its own.
    pub out_of_requests: Option<u64>,
    /// The numbers of requests that took less than 1, 2, 4, ... us; the last has all others.
    pub latencies: Option<Vec<u64>>,
    /// Pages that the backend keeps mapped.
    pub persistent: Option<u64>,
    /// Requests that were taken off the rings and are not answered.
    pub in_flight: Option<u64>,
}

/// The counters of a network interface of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkSample {
    /// Its number.
    pub devid: u32,
    /// The counts of its backend.
    pub counters: Option<NetworkCounters>,
}

/// The counts of a network interface, as its backend's interface has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkCounters {
    /// Bytes that the backend's interface has received: the guest has sent them.
    pub received: u64,
    /// Bytes that the backend's interface has sent: the guest has received them.
    pub sent: u64,
}
