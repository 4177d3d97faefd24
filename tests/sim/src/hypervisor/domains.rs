//! Domains: creation, watch, control, destruction.

use super::Hypervisor;
use super::domain::SimulatedDomain;
use super::grant::Grant;
use super::process::DomainProcess;
use super::state::{MachineState, Reuse};
use crate::faults::RefusableCall;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use xen::domctl::{DomainControl, DomainInfo, Scheduling};
use xen::domwatch::{DomainEvent, DomainWatch, OwnRing, ShutdownReason};
use xen::gnttab::PageAccess;
use xen::shared::SharedPage;
use xen::{DomId, Error, GrantRef, Port};

impl MachineState {
    pub(super) fn add_domain(&mut self, domid: DomId) -> DomainProcess {
        self.last_identity += 1;
        let identity = self.last_identity;
        let domain = SimulatedDomain {
            identity,
            ports: BTreeMap::new(),
            grants: BTreeMap::new(),
            dying: false,
            paused: false,
            shutdown: None,
            memory_max_kib: 16 * 1024,
            scheduling: Scheduling { weight: 256, cap: 0 },
        };
        self.domains.insert(domid, domain);
        DomainProcess { domid, identity }
    }

    /// Removes destroyed domains of which nothing is held any more.
    fn remove_dying(&mut self) {
        let before = self.domains.len();
        self.domains
            .retain(|_, domain| !domain.dying || domain.grants.values().any(Grant::is_mapped));
        if self.domains.len() < before {
            self.raise_dom_exc();
        }
    }

    fn destroy(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid).filter(|domain| !domain.dying) else {
            return;
        };
        let process = DomainProcess { domid, identity: domain.identity };
        let ports: Vec<u32> = domain.ports.keys().copied().collect();
        domain.dying = true;
        for port in ports {
            self.close_port(domid, Port(port));
        }
        Hypervisor::forget_holder(self, process);
        self.activity += 1;
        if self.reuse == Reuse::AtOnce {
            self.domains.remove(&domid);
        }
        self.raise_dom_exc();
    }
}

/// A domain, as its builder has made it.
pub struct NewDomain {
    /// The domain's number.
    pub domid: DomId,
    /// The identity, which no earlier domain of its number had.
    pub identity: u64,
    /// Its own view of its XenStore page.
    pub ring: SharedPage,
}

impl Hypervisor {
    /// Builds a domain that has a XenStore page, granted to domain 0.
    ///
    /// # Errors
    /// [`Error::Exist`] the number is not free yet.
    pub fn create(&self, domid: DomId) -> Result<NewDomain, Error> {
        let identity = {
            let state = &mut *self.state.borrow_mut();
            state.remove_dying();
            if state.domains.contains_key(&domid) {
                return Err(Error::Exist);
            }
            let process = state.add_domain(domid);
            state.grant(process, GrantRef::XENSTORE, DomId::DOM0, PageAccess::ReadWrite);
            state.raise_dom_exc();
            process.identity
        };
        let ring = self.own_page(domid, GrantRef::XENSTORE).ok_or(Error::NoMem)?;
        Ok(NewDomain { domid, identity, ring })
    }

    /// True if the domain of this number that has this identity is alive.
    #[must_use]
    pub fn lives(&self, domid: DomId, identity: u64) -> bool {
        self.state.borrow_mut().of(DomainProcess { domid, identity }).is_ok()
    }

    /// Destroys a domain.
    pub fn destroy(&self, domid: DomId) {
        self.state.borrow_mut().destroy(domid);
    }

    /// Resumes a domain that was suspended.
    pub fn resume(&self, domid: DomId) {
        if let Some(domain) = self.state.borrow_mut().domains.get_mut(&domid) {
            domain.shutdown = None;
        }
    }

    /// Returns the number of domains that were destroyed and are still held.
    #[must_use]
    pub fn dying(&self) -> usize {
        let state = &mut *self.state.borrow_mut();
        state.remove_dying();
        state.domains.values().filter(|domain| domain.dying).count()
    }

    /// Returns the watch of one process over all domains; `own` is the ring of its kernel, where
    /// that has one.
    #[must_use]
    pub fn domain_watch(&self, own: Option<OwnRing>) -> Box<dyn DomainWatch> {
        let state = Rc::clone(&self.state);
        let (alive, changes) = (BTreeMap::new(), VecDeque::new());
        Box::new(ProcessDomainWatch { state, own, alive, changes, looked: false })
    }

    /// Returns the control over domains that `caller` has.
    #[must_use]
    pub fn domain_control(&self, caller: DomId) -> Box<dyn DomainControl> {
        Box::new(ProcessDomainControl { state: Rc::clone(&self.state), caller })
    }
}

struct ProcessDomainWatch {
    state: Rc<RefCell<MachineState>>,
    own: Option<OwnRing>,
    /// The domains that were alive at the last look.
    alive: BTreeMap<DomId, u64>,
    changes: VecDeque<DomainEvent>,
    looked: bool,
}

impl ProcessDomainWatch {
    fn look(&mut self, state: &MachineState) {
        let mut before = std::mem::take(&mut self.alive);
        for (domid, domain) in state.domains.iter().filter(|(_, domain)| !domain.dying) {
            let known = before.remove(domid);
            if known.is_some_and(|known| known != domain.identity) {
                self.changes.push_back(DomainEvent::Died(*domid));
            }
            if known != Some(domain.identity) {
                self.changes.push_back(DomainEvent::Came(*domid));
            }
            if let Some(reason) = domain.shutdown {
                self.changes.push_back(DomainEvent::Shutdown(*domid, reason));
            }
            self.alive.insert(*domid, domain.identity);
        }
        self.changes.extend(before.into_keys().map(DomainEvent::Died));
    }
}

impl DomainWatch for ProcessDomainWatch {
    fn identity(&mut self, domid: DomId) -> Option<u64> {
        let state = self.state.borrow();
        let domain = state.domains.get(&domid).filter(|domain| !domain.dying)?;
        // Remembered from now on, so that its death is noticed.
        self.alive.entry(domid).or_insert(domain.identity);
        Some(domain.identity)
    }

    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error> {
        let state = Rc::clone(&self.state);
        let state = &mut *state.borrow_mut();
        if !self.looked {
            if let Some(error) = state.faults.refusal(RefusableCall::Changes) {
                return Err(error);
            }
            self.look(state);
        }
        let change = self.changes.pop_front();
        self.looked = change.is_some();
        Ok(change)
    }

    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error> {
        Ok(self.own.take())
    }
}

struct ProcessDomainControl {
    state: Rc<RefCell<MachineState>>,
    caller: DomId,
}

impl ProcessDomainControl {
    /// Runs a function on a domain that may be dying.
    fn with<R>(
        &self,
        domid: DomId,
        body: impl FnOnce(&mut SimulatedDomain) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let state = &mut *self.state.borrow_mut();
        if self.caller != DomId::DOM0 {
            return Err(Error::Perm);
        }
        state.remove_dying();
        body(state.domains.get_mut(&domid).ok_or(Error::Srch)?)
    }
}

impl DomainControl for ProcessDomainControl {
    fn list(&mut self) -> Result<Vec<DomainInfo>, Error> {
        self.with(DomId::DOM0, |_| Ok(()))?;
        let state = self.state.borrow();
        Ok(state.domains.iter().map(|(domid, domain)| domain.info(*domid)).collect())
    }

    fn info(&mut self, domid: DomId) -> Result<DomainInfo, Error> {
        self.with(domid, |domain| Ok(domain.info(domid)))
    }

    fn pause(&mut self, domid: DomId) -> Result<(), Error> {
        let own = domid == self.caller;
        self.with(domid, |domain| {
            if own {
                return Err(Error::Inval);
            }
            domain.paused = true;
            Ok(())
        })
    }

    fn unpause(&mut self, domid: DomId) -> Result<(), Error> {
        self.with(domid, |domain| {
            std::mem::take(&mut domain.paused).then_some(()).ok_or(Error::Inval)
        })
    }

    fn shutdown(&mut self, domid: DomId, reason: ShutdownReason) -> Result<(), Error> {
        self.with(domid, |domain| {
            // The first reason is kept.
            domain.shutdown.get_or_insert(reason);
            Ok(())
        })?;
        self.state.borrow_mut().raise_dom_exc();
        Ok(())
    }

    fn destroy(&mut self, domid: DomId) -> Result<(), Error> {
        let own = domid == self.caller;
        self.with(domid, |_| if own { Err(Error::Inval) } else { Ok(()) })?;
        self.state.borrow_mut().destroy(domid);
        Ok(())
    }

    fn set_memory_max(&mut self, domid: DomId, memory_max_kib: u64) -> Result<(), Error> {
        let memory_kib = self.state.borrow().limits.memory_kib;
        self.with(domid, |domain| {
            if memory_max_kib > memory_kib {
                return Err(Error::NoMem);
            }
            domain.memory_max_kib = memory_max_kib;
            Ok(())
        })
    }

    fn scheduling(&mut self, domid: DomId) -> Result<Scheduling, Error> {
        self.with(domid, |domain| Ok(domain.scheduling))
    }

    fn set_scheduling(&mut self, domid: DomId, scheduling: Scheduling) -> Result<(), Error> {
        self.with(domid, |domain| {
            if scheduling.weight == 0 {
                return Err(Error::Inval);
            }
            domain.scheduling = scheduling;
            Ok(())
        })
    }
}
