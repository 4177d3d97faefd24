//! The hypervisor: one table of everything that domains hold.

use crate::frame::GrantEntry;
use crate::port::LoopbackChannel;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen::{DomId, GrantRef, Port};

/// The hypervisor, which hands out event channels and grants to domains.
#[derive(Clone, Debug, Default)]
pub struct Host(Arc<Mutex<Tables>>);

/// The state of the hypervisor.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) ports: BTreeMap<(DomId, Port), LoopbackChannel>,
    pub(crate) grants: BTreeMap<(DomId, GrantRef), GrantEntry>,
    pub(crate) last_grant: u32,
    pub(crate) mapped: usize,
    /// The number of mappings after which every further one is refused; `None` for no limit.
    pub(crate) mapped_max: Option<usize>,
    /// Grants that [`Host::refuse`] has named.
    pub(crate) refused: Vec<GrantRef>,
}

impl Host {
    /// Makes a host on which no domain holds anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of pages that are mapped at the moment.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.tables().mapped
    }

    /// Returns the number of pages that are offered at the moment.
    #[must_use]
    pub fn offered(&self) -> usize {
        self.tables().grants.len()
    }

    /// Returns the number of ports that are in use at the moment.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.tables().ports.len()
    }

    /// Refuses mappings beyond this many (`maptrack` is full).
    pub fn limit_mappings(&self, mapped_max: Option<usize>) {
        self.tables().mapped_max = mapped_max;
    }

    /// Refuses to map this grant from now on.
    pub fn refuse(&self, grant: GrantRef) {
        self.tables().refused.push(grant);
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
