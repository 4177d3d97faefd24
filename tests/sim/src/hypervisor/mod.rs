//! A hypervisor of one thread: any number of domains, each with ports and grants, and Xen's rules,
//! limits and errors.
//!
//! What Xen does is what `xen/common/event_channel.c`, `grant_table.c`, `domain.c` and `domctl.c` do; what
//! its drivers add (a port that has fired is masked, a page that is still mapped is not given away) is what
//! the traits of `xen` say. Faults come in at three places: an event that is raised, a call that binds
//! or maps, and the number of a dead domain that is free at once.
//!
//! | module | what it is |
//! |---|---|
//! | `evtchn` | ports, events, virtual interrupts |
//! | `gnttab` | grants, mappings |
//! | `domains` | domains that come and go, their watch, their control |

mod domains;
mod evtchn;
mod gnttab;

pub use domains::Built;

use crate::faults::{Counts, Faults, Rates};
use crate::page::Pin;
use crate::rng::Rng;
use domains::Domain;
use evtchn::{Holder, Late};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use xen::{DomId, Error, Port};

/// How much of everything a domain may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ports, port 0 included, which is never given out.
    pub ports: u32,
    /// Grant references.
    pub grants: u32,
    /// Memory of the whole machine, in KiB.
    pub memory_kib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ports: 4096, grants: 4096, memory_kib: 1 << 30 }
    }
}

/// When the number of a dead domain is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// When nobody holds a page of it, as on Xen.
    WhenUnmapped,
    /// At once: the news of its death may come after its successor.
    AtOnce,
}

/// Who holds a domain's traits: one process of one domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Who {
    pub(crate) domid: DomId,
    pub(crate) identity: u64,
}

pub(crate) struct State {
    pub(crate) limits: Limits,
    pub(crate) reuse: Reuse,
    pub(crate) domains: BTreeMap<DomId, Domain>,
    pub(crate) last_identity: u64,
    pub(crate) holders: Vec<Holder>,
    pub(crate) late: Vec<Late>,
    /// Steps of the run.
    pub(crate) step: u64,
    /// Ports whose last event was lost.
    pub(crate) deaf: BTreeSet<(DomId, Port)>,
    pub(crate) faults: Faults,
    /// Every grant that somebody may still hold.
    pub(crate) pins: Vec<Weak<Pin>>,
    /// Events that have arrived, and other things done: to see whether anything still happens.
    pub(crate) activity: u64,
}

impl State {
    /// The caller's domain, while it lives.
    pub(crate) fn of(&mut self, who: Who) -> Result<&mut Domain, Error> {
        let domain = self.domains.get_mut(&who.domid);
        domain.filter(|domain| domain.identity == who.identity && !domain.dying).ok_or(Error::Srch)
    }
}

/// The hypervisor; clones are the same one.
#[derive(Clone)]
pub struct Hypervisor {
    pub(crate) state: Rc<RefCell<State>>,
}

impl Hypervisor {
    /// A machine with domain 0, on which nothing goes wrong until [`Hypervisor::arm`].
    #[must_use]
    pub fn new(limits: Limits, reuse: Reuse, faults: Rng, rates: Rates) -> Self {
        let state = State {
            limits,
            reuse,
            domains: BTreeMap::new(),
            last_identity: 0,
            holders: Vec::new(),
            late: Vec::new(),
            step: 0,
            deaf: BTreeSet::new(),
            faults: Faults::new(faults, rates),
            pins: Vec::new(),
            activity: 0,
        };
        let hypervisor = Self { state: Rc::new(RefCell::new(state)) };
        hypervisor.state.borrow_mut().add_domain(DomId::DOM0);
        hypervisor
    }

    /// From now on things go wrong.
    pub fn arm(&self) {
        self.state.borrow_mut().faults.armed = true;
    }

    /// From now on nothing goes wrong.
    pub fn disarm(&self) {
        self.state.borrow_mut().faults.armed = false;
    }

    /// What has gone wrong so far.
    #[must_use]
    pub fn fault_counts(&self) -> Counts {
        self.state.borrow().faults.counts
    }

    /// Something that moves whenever anything happens here.
    #[must_use]
    pub fn activity(&self) -> u64 {
        self.state.borrow().activity
    }

    pub(crate) fn who(&self, domid: DomId) -> Option<Who> {
        let state = self.state.borrow();
        let identity = state.domains.get(&domid)?.identity;
        Some(Who { domid, identity })
    }

    /// How many mappings of other domains' pages there are.
    #[must_use]
    pub fn mappings(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        state.pins.retain(|pin| pin.strong_count() > 0);
        state.pins.iter().filter_map(Weak::upgrade).map(|pin: Arc<Pin>| pin.mappings()).sum()
    }
}
