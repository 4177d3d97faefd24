//! Grants.

use super::Hypervisor;
use super::grant::Grant;
use super::process::DomainProcess;
use super::state::MachineState;
use crate::faults::RefusableCall;
use crate::page::{DomainFrame, Pin};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use xen::gnttab::{GrantMap, GrantOffer, GrantStatus, Mapping, OfferedPage, PageAccess};
use xen::shared::SharedPage;
use xen::{DomId, Error, GrantRef};

impl MachineState {
    /// Grants a fresh page of a domain under `reference`.
    pub(super) fn grant(
        &mut self,
        process: DomainProcess,
        reference: GrantRef,
        peer: DomId,
        access: PageAccess,
    ) {
        let (frame, pin) = (DomainFrame::new(), Arc::new(Pin::default()));
        self.pins.push(Arc::downgrade(&pin));
        if let Ok(domain) = self.of(process) {
            domain.grants.insert(reference.0, Grant { peer, access, frame, pin });
        }
    }

    /// Returns the lowest free references, beginning with the first that is not reserved.
    fn free_references(&mut self, process: DomainProcess, count: usize) -> Result<Vec<u32>, Error> {
        let grants_max = self.limits.grants;
        let domain = self.of(process)?;
        domain.grants.retain(|_, grant| !grant.is_over());
        let free = (GrantRef::FIRST_FREE.0..grants_max)
            .filter(|reference| !domain.grants.contains_key(reference));
        let free: Vec<u32> = free.take(count).collect();
        if free.len() < count { Err(Error::NoSpc) } else { Ok(free) }
    }

    fn map(
        &mut self,
        process: DomainProcess,
        domid: DomId,
        reference: GrantRef,
        access: PageAccess,
    ) -> MapResult {
        self.of(process)?;
        if process.domid == DomId::DOM0
            && let Some(error) = self.faults.refusal(RefusableCall::Map)
        {
            return Err(error);
        }
        let grants_max = self.limits.grants;
        let refused = |status| Err(Error::Grant(status));
        let domain = self.domains.get(&domid).filter(|domain| !domain.dying);
        let Some(domain) = domain else { return refused(GrantStatus::BadDomain) };
        if reference.0 >= grants_max {
            return refused(GrantStatus::BadGntref);
        }
        let Some(grant) = domain.grants.get(&reference.0) else {
            return refused(GrantStatus::GeneralError);
        };
        grant.check(process.domid, access).map_err(Error::Grant)?;
        self.activity += 1;
        Ok(Mapping::new(domid, reference, grant.frame.mapped(&grant.pin, access)))
    }
}

type MapResult = Result<Mapping, Error>;

/// The mappings of one process of a domain.
struct ProcessMappings {
    state: Rc<RefCell<MachineState>>,
    process: DomainProcess,
}

impl GrantMap for ProcessMappings {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> MapResult {
        self.state.borrow_mut().map(self.process, domid, grant, access)
    }
}

/// The grants of one process of a domain.
struct ProcessGrants {
    state: Rc<RefCell<MachineState>>,
    process: DomainProcess,
}

impl GrantOffer for ProcessGrants {
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error> {
        let mut one = Vec::new();
        self.offer_batch(peer, access, 1, &mut one)?;
        one.pop().ok_or(Error::NoSpc)
    }

    fn offer_batch(
        &mut self,
        peer: DomId,
        access: PageAccess,
        count: usize,
        into: &mut Vec<OfferedPage>,
    ) -> Result<(), Error> {
        let state = &mut *self.state.borrow_mut();
        for reference in state.free_references(self.process, count)? {
            state.grant(self.process, GrantRef(reference), peer, access);
            let grant = state.of(self.process)?.grants.get(&reference).ok_or(Error::NoSpc)?;
            let page = grant.frame.offered(&grant.pin);
            into.push(OfferedPage::new(peer, GrantRef(reference), page));
        }
        Ok(())
    }
}

impl Hypervisor {
    /// Returns the mappings of a new process of `domid`.
    ///
    /// # Errors
    /// [`Error::Srch`] there is no such domain.
    pub fn grant_map(&self, domid: DomId) -> Result<Box<dyn GrantMap>, Error> {
        let process = self.process(domid).ok_or(Error::Srch)?;
        Ok(Box::new(ProcessMappings { state: Rc::clone(&self.state), process }))
    }

    /// Returns the grants of a new process of `domid`.
    ///
    /// # Errors
    /// [`Error::Srch`] there is no such domain.
    pub fn grant_offer(&self, domid: DomId) -> Result<Box<dyn GrantOffer>, Error> {
        let process = self.process(domid).ok_or(Error::Srch)?;
        Ok(Box::new(ProcessGrants { state: Rc::clone(&self.state), process }))
    }

    /// Returns the domain's own view of a page that it grants.
    #[must_use]
    pub fn own_page(&self, domid: DomId, reference: GrantRef) -> Option<SharedPage> {
        let state = self.state.borrow();
        Some(state.domains.get(&domid)?.grants.get(&reference.0)?.frame.look())
    }

    /// Ends a grant that the domain builder has made.
    pub fn end_grant(&self, domid: DomId, reference: GrantRef) {
        let state = self.state.borrow();
        let domain = state.domains.get(&domid);
        if let Some(grant) = domain.and_then(|domain| domain.grants.get(&reference.0)) {
            grant.pin.end();
        }
    }
}
