//! The accounts during a change: the amounts to book, and the cost.

use crate::churn::Churn;
use crate::domain::Domains;
use crate::id::DomId;
use crate::limits::NODE_WEIGHT;
use crate::path::Path;
use crate::perms::{Caller, Perm};
use crate::quota::Quota;
use crate::wire::Error;
use alloc::vec::Vec;

/// One change of a domain's property: the number of nodes, and of bytes.
#[derive(Clone, Copy, Debug)]
struct Delta {
    domid: DomId,
    nodes: i64,
    bytes: i64,
}

/// The changes of domains' property that are not booked yet, one for each domain.
#[derive(Default)]
pub(crate) struct Deltas(Vec<Delta>);

impl Deltas {
    fn of(&self, domid: DomId) -> (i64, i64) {
        let delta = self.0.iter().find(|delta| delta.domid == domid);
        delta.map_or((0, 0), |delta| (delta.nodes, delta.bytes))
    }

    fn add(&mut self, domid: DomId, nodes: i64, bytes: i64) {
        match self.0.iter_mut().find(|delta| delta.domid == domid) {
            Some(delta) => {
                delta.nodes = delta.nodes.saturating_add(nodes);
                delta.bytes = delta.bytes.saturating_add(bytes);
            }
            None => self.0.push(Delta { domid, nodes, bytes }),
        }
    }

    /// Drops all changes.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Books all changes.
    pub(crate) fn book(&self, domains: &mut Domains) {
        for delta in &self.0 {
            if delta.nodes != 0 {
                domains.charge(delta.domid, Quota::Nodes, delta.nodes);
            }
            if delta.bytes != 0 {
                domains.charge(delta.domid, Quota::Memory, delta.bytes);
            }
        }
    }
}

/// The accounts during one operation. Its changes are kept apart until the operation is known to
/// succeed.
pub(crate) struct Ledger<'a> {
    pub(crate) domains: &'a mut Domains,
    pub(crate) deltas: &'a mut Deltas,
    /// A buffer for building nodes.
    pub(crate) scratch: &'a mut Vec<u8>,
    /// The number of nodes touched, for the cost of the request.
    pub(crate) touched: u32,
    /// The bytes that the operation moves.
    pub(crate) churn: Churn,
    /// True if the quotas of nodes and memory are checked at once. Otherwise [`Ledger::check_all`]
    /// checks them at the end.
    pub(crate) is_strict: bool,
}

impl<'a> Ledger<'a> {
    /// Returns the accounts before an operation that all quotas apply to. `scratch` is a buffer for
    /// building nodes.
    pub(crate) fn new(
        domains: &'a mut Domains,
        deltas: &'a mut Deltas,
        scratch: &'a mut Vec<u8>,
    ) -> Self {
        Self { domains, deltas, scratch, touched: 0, churn: Churn::default(), is_strict: true }
    }

    /// Returns the next generation of a list of children.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.domains.generation = self.domains.generation.wrapping_add(1);
        self.domains.generation
    }

    /// Records that a node was made.
    pub(crate) fn record_made(&mut self, name: &[u8]) {
        let size = NODE_WEIGHT.saturating_add(name.len() as i64);
        self.churn.made = self.churn.made.saturating_add(size);
    }

    /// Takes a removed node of this weight off its owner's account.
    pub(crate) fn disown(&mut self, owner: &Perm, weight: i64) {
        self.record_owned(owner, -1, weight.saturating_neg());
        self.churn.removed = self.churn.removed.saturating_add(weight);
    }

    /// Refuses `owner` so many more nodes and bytes if a quota forbids them.
    pub(crate) fn check_owner(
        &mut self,
        owner: DomId,
        nodes: i64,
        bytes: i64,
    ) -> Result<(), Error> {
        if !self.is_strict {
            return Ok(());
        }
        let (pending_nodes, pending_bytes) = self.deltas.of(owner);
        if nodes > 0 {
            self.domains.check_more(owner, Quota::Nodes, pending_nodes.saturating_add(nodes))?;
        }
        if bytes > 0 {
            self.domains.check_more(owner, Quota::Memory, pending_bytes.saturating_add(bytes))?;
        }
        Ok(())
    }

    /// Refuses the pending changes if an owner's quota forbids them. The first of `freed` will use
    /// so many bytes less.
    pub(crate) fn check_all(&mut self, freed: (DomId, i64)) -> Result<(), Error> {
        for Delta { domid, nodes, bytes } in self.deltas.0.iter().copied() {
            if self.domains.is_privileged(domid) {
                continue;
            }
            if nodes > 0 {
                self.domains.check_more(domid, Quota::Nodes, nodes)?;
            }
            if bytes > 0 {
                let less = if domid == freed.0 { freed.1 } else { 0 };
                self.domains.check_more(domid, Quota::Memory, bytes.saturating_sub(less))?;
            }
        }
        Ok(())
    }

    /// Refuses `caller` a node of this size if the quota forbids it.
    pub(crate) fn check_size(&mut self, caller: &Caller, size: u32) -> Result<(), Error> {
        if !caller.privileged {
            self.domains.check(caller.domid, Quota::NodeSize, i64::from(size))?;
            self.domains.record_size(caller.domid, Quota::NodeSize, i64::from(size));
        }
        Ok(())
    }

    /// Records that `owner` has so many more (or fewer) nodes and bytes.
    pub(crate) fn record_owned(&mut self, owner: &Perm, nodes: i64, bytes: i64) {
        if (nodes == 0 && bytes == 0) || self.domains.is_orphaned(owner) {
            return;
        }
        self.deltas.add(owner.domid, nodes, bytes);
    }

    pub(crate) fn touch(&mut self) {
        self.touched = self.touched.saturating_add(1);
    }

    /// Counts the nodes along a path: a long path may have a thousand.
    pub(crate) fn charge_path(&mut self, path: Path<'_>) {
        self.touched = self.touched.saturating_add(path.cost());
    }
}
