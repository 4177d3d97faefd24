//! A platform for tests within one process: both ends of a device in one thread, or in two.
//!
//! The promise: event channels and grants answer as Xen's do, for as many domains as a test wants, and
//! what a domain has mapped or offered can be counted.
//!
//! | module | what it is |
//! |---|---|
//! | [`evtchn`] | event channels: a table, and an eventfd for each holder |
//! | [`gnttab`] | grants of pages of this process; the only module with `unsafe` |

pub mod evtchn;
pub mod gnttab;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen::{DomId, GrantRef, Port};

/// The hypervisor: hands out what domains hold.
#[derive(Clone, Debug, Default)]
pub struct Host(Arc<Mutex<Tables>>);

/// What the hypervisor knows.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    ports: BTreeMap<(DomId, Port), evtchn::Channel>,
    grants: BTreeMap<(DomId, GrantRef), gnttab::Entry>,
    last_grant: u32,
    mapped: usize,
    /// Mappings after which every further one is refused, if so.
    mapped_max: Option<usize>,
    /// Grants that [`Host::refuse`] has named.
    refused: Vec<GrantRef>,
}

impl Host {
    /// A host without any domain's things on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The event channels of one process of `domid`.
    #[must_use]
    pub fn evtchn(&self, domid: DomId) -> evtchn::Channels {
        evtchn::Channels::new(self.clone(), domid)
    }

    /// Grants to and by `domid`.
    #[must_use]
    pub fn gnttab(&self, domid: DomId) -> gnttab::Grants {
        gnttab::Grants::new(self.clone(), domid)
    }

    /// How many pages are mapped at the moment.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.tables().mapped
    }

    /// How many pages are offered at the moment.
    #[must_use]
    pub fn offered(&self) -> usize {
        self.tables().grants.len()
    }

    /// How many ports are in use at the moment.
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
