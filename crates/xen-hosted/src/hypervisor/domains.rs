//! All domains: their numbers, their identities, and the references of others to them.

use super::domain::{Domain, Stage};
use super::poll::PeerId;
use crate::counters::IDENTITIES_LEN;
use crate::domain::DomainConfig;
use crate::map::{Map, memfd};
use rustix::fs::{SealFlags, fcntl_add_seals};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use xen::gnttab::PageAccess;
use xen::{DomId, Error};

/// All domains, by number.
pub(super) struct Domains {
    all: BTreeMap<DomId, Domain>,
    /// The table of identities for the watchers of domains.
    identities: Map,
    identities_fd: OwnedFd,
    next_identity: u64,
    next_number: u16,
    /// The numbers of an earlier broker's domains whose groups still exist.
    reserved: BTreeSet<DomId>,
}

impl Domains {
    /// Makes the table with domain 0 alone.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn new() -> io::Result<Self> {
        let identities_fd = memfd("identities", IDENTITIES_LEN)?;
        let identities = Map::new(&identities_fd, 0, IDENTITIES_LEN, PageAccess::ReadWrite)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&identities_fd, seals)?;
        let mut domains = Self {
            all: BTreeMap::new(),
            identities,
            identities_fd,
            next_identity: first_identity(),
            next_number: 1,
            reserved: BTreeSet::new(),
        };
        let identity = domains.take_identity();
        domains.insert(DomId::DOM0, Domain::new(identity, DomainConfig::default()));
        domains.show(DomId::DOM0);
        Ok(domains)
    }

    /// Returns the descriptor of the table of identities.
    pub(super) fn identities(&self) -> &OwnedFd {
        &self.identities_fd
    }

    /// Returns an identity that no domain has had.
    pub(super) fn take_identity(&mut self) -> u64 {
        let identity = self.next_identity;
        self.next_identity = identity.checked_add(1).unwrap_or(1);
        identity
    }

    /// Shows a domain's identity to the watchers of domains.
    pub(super) fn show(&self, domid: DomId) {
        self.set_identity(domid, self.all.get(&domid).map_or(0, |domain| domain.identity));
    }

    /// Shows that there is no domain of this number.
    pub(super) fn hide(&self, domid: DomId) {
        self.set_identity(domid, 0);
    }

    fn set_identity(&self, domid: DomId, identity: u64) {
        self.identities.long(usize::from(domid.0) * 8).store(identity, Ordering::Release);
    }

    /// Excludes these numbers from those that domains get.
    pub(super) fn leave_out(&mut self, reserved: BTreeSet<DomId>) {
        self.reserved = reserved;
    }

    /// Returns a number that nobody uses or names. `is_news` is true of a number whose domain's
    /// death was not reported to all watchers yet.
    pub(super) fn free_number(&mut self, is_news: impl Fn(DomId) -> bool) -> Result<DomId, Error> {
        // A group that was left has its old limits, and processes.
        let reserved = |domid| self.reserved.contains(&domid);
        let taken = |domid| self.all.contains_key(&domid) || is_news(domid) || reserved(domid);
        let domid = next_free(self.next_number, taken).ok_or(Error::NoSpc)?;
        self.next_number = domid.0 + 1;
        Ok(domid)
    }

    /// Makes this number the next one that is used, if it is free.
    #[cfg(test)]
    pub(super) fn set_turn(&mut self, domid: DomId) {
        self.next_number = domid.0;
    }

    pub(super) fn insert(&mut self, domid: DomId, domain: Domain) {
        self.all.insert(domid, domain);
    }

    /// Returns the identity of a domain whose successor `id` may create now.
    ///
    /// # Errors
    /// [`Error::Srch`] where none is awaited, [`Error::Perm`] where another connection is to create
    /// it, [`Error::Busy`] while the domain is not gone altogether, and while others take it for
    /// alive (`is_known`).
    pub(super) fn vacancy(&self, id: PeerId, domid: DomId, is_known: bool) -> Result<u64, Error> {
        let domain = self.all.get(&domid).ok_or(Error::Srch)?;
        match domain.awaited_by.ok_or(Error::Srch)? {
            by if by != id => Err(Error::Perm),
            _ if domain.stage != Stage::Vacant || is_known => Err(Error::Busy),
            _ => Ok(domain.identity),
        }
    }

    /// Puts a domain in the place of the one that it succeeds.
    pub(super) fn succeed(&mut self, domid: DomId, successor: Domain) {
        let (named, keepsake) = match self.all.get_mut(&domid) {
            Some(before) => (before.named, before.keepsake.take()),
            None => (0, None),
        };
        self.all.insert(domid, Domain { named, keepsake, ..successor });
    }

    /// Returns those whose successor this connection is to create.
    pub(super) fn awaited_by(&self, id: PeerId) -> Vec<DomId> {
        let awaited = self.all.iter().filter(|(_, domain)| domain.awaited_by == Some(id));
        awaited.map(|(domid, _)| *domid).collect()
    }

    /// Returns the most connections that domains may have by themselves: one each, dead ones
    /// included, and those of their further processes.
    pub(super) fn connections_max(&self) -> usize {
        self.all.values().map(|domain| 1 + domain.processes.len()).sum()
    }

    pub(super) fn get(&self, domid: DomId) -> Option<&Domain> {
        self.all.get(&domid)
    }

    pub(super) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        self.all.get_mut(&domid)
    }

    /// Returns a domain that was not destroyed yet.
    pub(super) fn living(&self, domid: DomId) -> Option<&Domain> {
        self.all
            .get(&domid)
            .filter(|domain| !matches!(domain.stage, Stage::Dying | Stage::Vacant | Stage::Dead))
    }

    /// Returns a domain that may be acted on: neither domain 0, nor one that was destroyed.
    pub(super) fn living_guest(&mut self, domid: DomId) -> Result<&mut Domain, Error> {
        if domid == DomId::DOM0 {
            // Its end is that of the host, which this connection may not cause.
            return Err(Error::Inval);
        }
        self.living(domid).ok_or(Error::Srch)?;
        self.all.get_mut(&domid).ok_or(Error::Srch)
    }

    /// Returns those that are not dead, from this number on.
    pub(super) fn from(&self, first: DomId) -> impl Iterator<Item = (DomId, &Domain)> {
        let all = self.all.range(first..).filter(|(_, domain)| domain.stage != Stage::Dead);
        all.map(|(domid, domain)| (*domid, domain))
    }

    /// Returns all, dead or not.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (DomId, &mut Domain)> {
        self.all.iter_mut().map(|(domid, domain)| (*domid, domain))
    }

    /// Returns those that end with this connection.
    pub(super) fn held_by(&self, id: PeerId) -> Vec<DomId> {
        let held = self.all.iter().filter(|(_, domain)| domain.holder == Some(id));
        held.map(|(domid, _)| *domid).collect()
    }

    /// Counts one more reference to a domain; with an `identity`, only to the domain with that
    /// identity and no later one of its number.
    pub(super) fn name(&mut self, domid: DomId, identity: Option<u64>) {
        if let Some(domain) = self.named(domid, identity) {
            domain.named = domain.named.saturating_add(1);
        }
    }

    /// Counts one reference less to a domain, after [`name`](Self::name).
    pub(super) fn unname(&mut self, domid: DomId, identity: Option<u64>) {
        if let Some(domain) = self.named(domid, identity) {
            domain.named = domain.named.saturating_sub(1);
            self.forget(domid);
        }
    }

    fn named(&mut self, domid: DomId, identity: Option<u64>) -> Option<&mut Domain> {
        let domain = self.all.get_mut(&domid)?;
        identity.is_none_or(|identity| identity == domain.identity).then_some(domain)
    }

    /// Frees the number of a dead domain when nobody names it any more.
    pub(super) fn forget(&mut self, domid: DomId) {
        if let Some(domain) = self.all.get(&domid)
            && domain.stage == Stage::Dead
            && domain.named == 0
        {
            self.all.remove(&domid);
        }
    }
}

/// Returns the first number from `next` on, and then from 1, that is not `taken`.
fn next_free(next: u16, taken: impl Fn(DomId) -> bool) -> Option<DomId> {
    let all = DomId::FIRST_RESERVED.0;
    (next..all).chain(1..next.min(all)).map(DomId).find(|domid| !taken(*domid))
}

/// Returns an identity to begin with that an earlier broker in the same directory has not used.
fn first_identity() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let us = u64::try_from(now.tv_sec).unwrap_or(0) << 20
        | u64::try_from(now.tv_nsec / 1024).unwrap_or(0);
    us << 8 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_and_past_those_that_are_taken() {
        let last = DomId::FIRST_RESERVED.0 - 1;
        let none = |_| false;
        assert_eq!(next_free(1, none), Some(DomId(1)));
        assert_eq!(next_free(last, none), Some(DomId(last)));
        assert_eq!(next_free(last + 1, none), Some(DomId(1)), "domain 0's is never given");
        let held = |domid: DomId| domid.0 == last || domid.0 <= 2;
        assert_eq!(next_free(last, held), Some(DomId(3)));
        assert_eq!(next_free(7, |domid| domid != DomId(6)), Some(DomId(6)));
        assert_eq!(next_free(7, |_| true), None);
    }
}
