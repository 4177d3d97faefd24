//! A hypervisor of one thread: any number of domains, each with ports and grants, and Xen's rules,
//! limits and errors.
//!
//! Hypercalls behave as those of Xen's `xen/common/event_channel.c`, `grant_table.c`, `domain.c`
//! and `domctl.c`. The additions of its drivers (a port that has fired is masked, a page that is
//! still mapped is not given away) are those that the traits of `xen` require. Faults come in at
//! three places: an event that is raised, a call that binds or maps, and the number of a dead
//! domain that is free at once.
//!
//! | module | what it is |
//! |---|---|
//! | `evtchn` | ports, events, virtual interrupts |
//! | `gnttab` | grants, mappings |
//! | `domains` | domains that come and go, their watch, their control |
//! | `state` | the state of the hypervisor |
//! | `domain`, `port`, `grant`, `process` | a domain, its ports and grants, and the process that holds
//! them |

mod domain;
mod domains;
mod evtchn;
mod gnttab;
mod grant;
mod port;
mod process;
mod state;

pub use domains::NewDomain;
pub use state::{Limits, Reuse};

use crate::faults::{FaultCounts, Faults, Rates};
use crate::page::Pin;
use crate::rng::Rng;
use process::DomainProcess;
use state::MachineState;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use xen::DomId;

/// The hypervisor; clones share its state.
#[derive(Clone)]
pub struct Hypervisor {
    pub(crate) state: Rc<RefCell<MachineState>>,
}

impl Hypervisor {
    /// Makes a machine with domain 0, without faults until [`Hypervisor::arm`].
    #[must_use]
    pub fn new(limits: Limits, reuse: Reuse, faults: Rng, rates: Rates) -> Self {
        let state = MachineState {
            limits,
            reuse,
            domains: BTreeMap::new(),
            last_identity: 0,
            holders: Vec::new(),
            late: Vec::new(),
            step: 0,
            lost_events: BTreeSet::new(),
            faults: Faults::new(faults, rates),
            pins: Vec::new(),
            activity: 0,
        };
        let hypervisor = Self { state: Rc::new(RefCell::new(state)) };
        hypervisor.state.borrow_mut().add_domain(DomId::DOM0);
        hypervisor
    }

    /// Turns faults on.
    pub fn arm(&self) {
        self.state.borrow_mut().faults.armed = true;
    }

    /// Turns faults off.
    pub fn disarm(&self) {
        self.state.borrow_mut().faults.armed = false;
    }

    /// Returns the counts of the faults so far.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.state.borrow().faults.counts
    }

    /// Returns a count that grows with every event and every other change here.
    #[must_use]
    pub fn activity(&self) -> u64 {
        self.state.borrow().activity
    }

    pub(crate) fn process(&self, domid: DomId) -> Option<DomainProcess> {
        let state = self.state.borrow();
        let identity = state.domains.get(&domid)?.identity;
        Some(DomainProcess { domid, identity })
    }

    /// Returns the number of mappings of other domains' pages.
    #[must_use]
    pub fn mappings(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        state.pins.retain(|pin| pin.strong_count() > 0);
        state.pins.iter().filter_map(Weak::upgrade).map(|pin: Arc<Pin>| pin.mappings()).sum()
    }
}
