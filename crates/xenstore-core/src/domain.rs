//! The domains that the store knows: their connection, features, rights, limits and usage.

use crate::digest::Secret;
use crate::host::StoreHost;
use crate::id::{ConnId, DomId};
use crate::limits::{DOMID_ANY, WEIGHT_DEFAULT};
use crate::notice::{Notice, Notices};
use crate::perms::{Caller, Incarnation, Perm, Perms};
use crate::quota::{LimitKind, Quota, QuotaLimits, Usage};
use crate::wire::{Error, feature};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A living domain that the store knows.
pub(crate) struct Domain {
    pub(crate) incarnation: Incarnation,
    /// The hypervisor's identity of the domain, once it has been queried.
    pub(crate) identity: Option<u64>,
    /// Its ring connection, once it is introduced.
    pub(crate) conn: Option<ConnId>,
    /// True if `@releaseDomain` has been fired for its shutdown.
    pub(crate) shutdown: bool,
    pub(crate) features: u32,
    pub(crate) target: Option<(DomId, Incarnation)>,
    pub(crate) usage: Usage,
    pub(crate) limits: QuotaLimits,
    /// The domain's share of the daemon's time, relative to other domains'.
    pub(crate) weight: u32,
    /// The time at which its last turn ended, and the time until which it may not take another.
    pub(crate) last_turn: u64,
    pub(crate) no_turn_until: u64,
}

/// All domains by number, and their common data.
pub(crate) struct Domains {
    table: BTreeMap<DomId, Box<Domain>>,
    last_incarnation: u32,
    /// The number of domains that have died. A transaction's view of them may be void after a
    /// death.
    pub(crate) deaths: u64,
    /// True if nodes may exist whose owner is gone.
    pub(crate) has_orphans: bool,
    /// The pairs of a domain and its target.
    targets: BTreeSet<(DomId, DomId)>,
    pub(crate) store_domain: DomId,
    pub(crate) priv_domain: DomId,
    /// The limits of new domains.
    pub(crate) limits: QuotaLimits,
    /// The last generation given to a list of children. It increases with every change of such a
    /// list.
    pub(crate) generation: u64,
    /// The secret of all digests.
    pub(crate) secret: Secret,
    pub(crate) notices: Notices,
    pub(crate) now: u64,
}

impl Domains {
    pub(crate) fn new(store_domain: DomId, priv_domain: DomId, secret: Secret) -> Self {
        let mut domains = Self {
            table: BTreeMap::new(),
            last_incarnation: Incarnation::NEVER.0,
            deaths: 0,
            has_orphans: false,
            targets: BTreeSet::new(),
            store_domain,
            priv_domain,
            limits: QuotaLimits::default(),
            generation: 0,
            secret,
            notices: Notices::default(),
            now: 0,
        };
        domains.get_or_insert(store_domain);
        domains.get_or_insert(priv_domain);
        domains
    }

    pub(crate) fn is_privileged(&self, domid: DomId) -> bool {
        domid == self.store_domain || domid == self.priv_domain
    }

    pub(crate) fn get(&self, domid: DomId) -> Option<&Domain> {
        self.table.get(&domid).map(|domain| &**domain)
    }

    pub(crate) fn get_mut(&mut self, domid: DomId) -> Option<&mut Domain> {
        self.table.get_mut(&domid).map(|domain| &mut **domain)
    }

    /// True if the domain has a ring connection.
    pub(crate) fn is_introduced(&self, domid: DomId) -> bool {
        self.get(domid).is_some_and(|domain| domain.conn.is_some())
    }

    /// Returns the domain's record, and makes it if there is none.
    pub(crate) fn get_or_insert(&mut self, domid: DomId) -> &mut Domain {
        let (last, limits) = (&mut self.last_incarnation, self.limits);
        self.table.entry(domid).or_insert_with(|| {
            *last = last.wrapping_add(1).max(1);
            Box::new(Domain {
                incarnation: Incarnation(*last),
                identity: None,
                conn: None,
                shutdown: false,
                features: feature::ALL,
                target: None,
                usage: Usage::default(),
                weight: WEIGHT_DEFAULT,
                last_turn: 0,
                no_turn_until: 0,
                limits,
            })
        })
    }

    /// Returns the domain's record, and makes it if there is none and the hypervisor knows the
    /// domain.
    pub(crate) fn get_or_insert_existing(
        &mut self,
        domid: DomId,
        host: &mut dyn StoreHost,
    ) -> Option<&mut Domain> {
        if self.get(domid).is_none() {
            let identity = host.domain_identity(domid)?;
            self.get_or_insert(domid).identity = Some(identity);
        }
        self.get_mut(domid)
    }

    pub(crate) fn forget(&mut self, domid: DomId) {
        self.deaths = self.deaths.wrapping_add(1);
        let target = self.table.remove(&domid).and_then(|domain| domain.target);
        if let Some((target, _)) = target {
            self.targets.remove(&(target, domid));
        }
    }

    /// Gives a known domain the rights of another besides its own.
    pub(crate) fn set_target(&mut self, domid: DomId, target: DomId) {
        let incarnation = self.incarnation(target);
        let Some(domain) = self.get_mut(domid) else { return };
        let old = domain.target.replace((target, incarnation));
        if let Some((old, _)) = old {
            self.targets.remove(&(old, domid));
        }
        self.targets.insert((target, domid));
    }

    /// Adds to `domains` those domains whose target is among them.
    pub(crate) fn add_targeting(&self, domains: &mut Vec<DomId>) {
        if self.targets.is_empty() {
            return;
        }
        for at in 0..domains.len() {
            let Some(target) = domains.get(at).copied() else { return };
            let of_it = self.targets.range((target, DomId(0))..=(target, DomId(u16::MAX)));
            domains.extend(of_it.map(|(_, domid)| *domid));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DomId, &Domain)> {
        self.table.iter().map(|(domid, domain)| (*domid, &**domain))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        self.table.values_mut().map(|domain| &mut **domain)
    }

    /// Returns the incarnation of this number that lives now.
    pub(crate) fn incarnation(&self, domid: DomId) -> Incarnation {
        self.get(domid).map_or(Incarnation::NEVER, |domain| domain.incarnation)
    }

    /// True if a node of this owner is charged to no domain, because the owner is gone.
    pub(crate) fn is_orphaned(&self, owner: &Perm) -> bool {
        self.has_orphans
            && owner.domid.0 != DOMID_ANY
            && self.incarnation(owner.domid) != owner.incarnation
    }

    /// Returns the number of entries for living domains.
    pub(crate) fn alive_entries(&self, perms: &Perms) -> usize {
        let lives = |perm: &&Perm| {
            perm.incarnation != Incarnation::NEVER
                && self.incarnation(perm.domid) == perm.incarnation
        };
        perms.entries().filter(lives).count()
    }

    /// Writes permissions as GET_PERMS returns them, without the entries of dead domains.
    pub(crate) fn write_perms(&self, perms: &Perms, end: u8, to: &mut Vec<u8>) {
        let shown = |perm: &Perm| {
            perm.incarnation == Incarnation::NEVER
                || self.incarnation(perm.domid) == perm.incarnation
        };
        perms.write(end, shown, to);
    }

    /// Returns the rights of a domain. A dead target gives it no rights (XSA-233).
    pub(crate) fn caller(&self, domid: DomId) -> Caller {
        if self.is_privileged(domid) {
            // A privileged caller needs no look-up.
            let incarnation = Incarnation::NEVER;
            return Caller { domid, incarnation, target: None, privileged: true };
        }
        let domain = self.get(domid);
        Caller {
            domid,
            incarnation: domain.map_or(Incarnation::NEVER, |domain| domain.incarnation),
            target: domain
                .and_then(|domain| domain.target)
                .filter(|(target, incarnation)| self.incarnation(*target) == *incarnation),
            privileged: false,
        }
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    pub(crate) fn limit(&self, domid: DomId, quota: Quota, kind: LimitKind) -> u32 {
        self.get(domid).map_or(&self.limits, |domain| &domain.limits).get(quota, kind)
    }

    /// Refuses the domain's request if `wanted`, the new total of `quota`, is over its limit. A
    /// refusal is counted and logged.
    pub(crate) fn check(&mut self, domid: DomId, quota: Quota, wanted: i64) -> Result<(), Error> {
        let limit = self.limit(domid, quota, LimitKind::Hard);
        if limit == 0 || wanted <= i64::from(limit) || self.is_privileged(domid) {
            return Ok(());
        }
        let now = self.now;
        let line = self
            .get_mut(domid)
            .and_then(|domain| domain.usage.refuse(domid, quota, wanted, limit, now));
        if let Some(line) = line {
            self.notice(Notice::Warn { domid: Some(domid), text: line });
        }
        Err(Error::NoSpc)
    }

    /// Checks the limit as [`Domains::check`] does, for one more of something that is counted.
    pub(crate) fn check_more(
        &mut self,
        domid: DomId,
        quota: Quota,
        more: i64,
    ) -> Result<(), Error> {
        let in_use = self.get(domid).map_or(0, |domain| domain.usage.now(quota));
        self.check(domid, quota, in_use.saturating_add(more))
    }

    /// Adds to the domain's usage of `quota`, and warns above a soft limit.
    pub(crate) fn charge(&mut self, domid: DomId, quota: Quota, more: i64) {
        let soft =
            if quota == Quota::Memory { self.limit(domid, quota, LimitKind::Soft) } else { 0 };
        let (now, exempt) = (self.now, self.is_privileged(domid));
        let domain = self.get_or_insert(domid);
        domain.usage.add(quota, more);
        if soft != 0
            && more > 0
            && !exempt
            && let Some(line) = domain.usage.warn_soft(domid, quota, soft, now)
        {
            self.notice(Notice::Warn { domid: Some(domid), text: line });
        }
    }

    /// Records the size of something that has just been allowed.
    pub(crate) fn record_size(&mut self, domid: DomId, quota: Quota, value: i64) {
        if let Some(domain) = self.get_mut(domid) {
            domain.usage.record_size(quota, value);
        }
    }
}
