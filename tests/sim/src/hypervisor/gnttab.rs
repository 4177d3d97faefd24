//! Grants.

use super::Hypervisor;
use super::grant::Grant;
use super::state::State;
use super::who::Who;
use crate::faults::Call;
use crate::page::{Frame, Pin};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use xen::gnttab::{Access, GrantMap, GrantOffer, Mapping, Offered, Status};
use xen::shared::SharedPage;
use xen::{DomId, Error, GrantRef};

impl State {
    /// Grants a fresh page of a domain under `reference`.
    pub(super) fn grant(&mut self, who: Who, reference: GrantRef, peer: DomId, access: Access) {
        let (frame, pin) = (Frame::new(), Arc::new(Pin::default()));
        self.pins.push(Arc::downgrade(&pin));
        if let Ok(domain) = self.of(who) {
            domain.grants.insert(reference.0, Grant { peer, access, frame, pin });
        }
    }

    /// Returns the lowest free references, beginning with the first that is not reserved.
    fn free_references(&mut self, who: Who, count: usize) -> Result<Vec<u32>, Error> {
        let grants_max = self.limits.grants;
        let domain = self.of(who)?;
        domain.grants.retain(|_, grant| !grant.is_over());
        let free = (GrantRef::FIRST_FREE.0..grants_max)
            .filter(|reference| !domain.grants.contains_key(reference));
        let free: Vec<u32> = free.take(count).collect();
        if free.len() < count { Err(Error::NoSpc) } else { Ok(free) }
    }

    fn map(&mut self, who: Who, domid: DomId, reference: GrantRef, access: Access) -> Mapped {
        self.of(who)?;
        if who.domid == DomId::DOM0
            && let Some(error) = self.faults.refusal(Call::Map)
        {
            return Err(error);
        }
        let grants_max = self.limits.grants;
        let refused = |status| Err(Error::Grant(status));
        let domain = self.domains.get(&domid).filter(|domain| !domain.dying);
        let Some(domain) = domain else { return refused(Status::BadDomain) };
        if reference.0 >= grants_max {
            return refused(Status::BadGntref);
        }
        let Some(grant) = domain.grants.get(&reference.0) else {
            return refused(Status::GeneralError);
        };
        grant.check(who.domid, access).map_err(Error::Grant)?;
        self.activity += 1;
        Ok(Mapping::new(domid, reference, grant.frame.mapped(&grant.pin, access)))
    }
}

type Mapped = Result<Mapping, Error>;

/// The mappings of one process of a domain.
struct Maps {
    state: Rc<RefCell<State>>,
    who: Who,
}

impl GrantMap for Maps {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: Access) -> Mapped {
        self.state.borrow_mut().map(self.who, domid, grant, access)
    }
}

/// The grants of one process of a domain.
struct Offers {
    state: Rc<RefCell<State>>,
    who: Who,
}

impl GrantOffer for Offers {
    fn offer(&mut self, peer: DomId, access: Access) -> Result<Offered, Error> {
        let mut one = Vec::new();
        self.offer_batch(peer, access, 1, &mut one)?;
        one.pop().ok_or(Error::NoSpc)
    }

    fn offer_batch(
        &mut self,
        peer: DomId,
        access: Access,
        count: usize,
        into: &mut Vec<Offered>,
    ) -> Result<(), Error> {
        let state = &mut *self.state.borrow_mut();
        for reference in state.free_references(self.who, count)? {
            state.grant(self.who, GrantRef(reference), peer, access);
            let grant = state.of(self.who)?.grants.get(&reference).ok_or(Error::NoSpc)?;
            let page = grant.frame.offered(&grant.pin);
            into.push(Offered::new(peer, GrantRef(reference), page));
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
        let who = self.who(domid).ok_or(Error::Srch)?;
        Ok(Box::new(Maps { state: Rc::clone(&self.state), who }))
    }

    /// Returns the grants of a new process of `domid`.
    ///
    /// # Errors
    /// [`Error::Srch`] there is no such domain.
    pub fn grant_offer(&self, domid: DomId) -> Result<Box<dyn GrantOffer>, Error> {
        let who = self.who(domid).ok_or(Error::Srch)?;
        Ok(Box::new(Offers { state: Rc::clone(&self.state), who }))
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
