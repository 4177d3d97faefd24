//! Objects that were discarded and are not freed yet. Some are freed in each round, so that no
//! request waits for it.
//!
//! Their last holder is charged for them until they are freed.

use super::events::EventQueue;
use crate::domain::Domains;
use crate::id::DomId;
use crate::perms::Incarnation;
use crate::quota::Quota;
use crate::transaction::Leftovers;
use crate::tree::{Debris, Node};
use alloc::collections::VecDeque;

/// The cost, in simple requests, up to which an object is freed at once; no more than half a slice.
const SMALL_MAX: u32 = 512;

/// An object to be freed.
pub(super) enum Garbage {
    /// The parts of a transaction.
    Leftovers(Leftovers),
    Events(EventQueue),
}

/// The domain that is charged for an object, and the bytes of `memory`.
struct Charge {
    domid: DomId,
    incarnation: Incarnation,
    weight: i64,
}

/// All objects to be freed, the oldest first.
pub(super) struct FreeQueue {
    things: VecDeque<(Garbage, Charge)>,
    debris: Debris,
    /// The most that freeing may cost at one time.
    slice_cost: u32,
}

impl Garbage {
    /// Frees as much as `left` allows. Returns true if only debris remains.
    fn free_some(&mut self, debris: &mut Debris, left: &mut u32) -> bool {
        match self {
            Self::Leftovers(leftovers) => leftovers.free_some(debris, left),
            Self::Events(events) => events.free_some(left),
        }
    }
}

impl FreeQueue {
    pub(super) fn new(slice_cost: u32) -> Self {
        Self { things: VecDeque::new(), debris: Debris::default(), slice_cost }
    }

    /// True if nothing is to be freed.
    pub(super) fn is_empty(&self) -> bool {
        self.things.is_empty() && self.debris.is_empty()
    }

    /// Returns the charges: domain, incarnation, bytes of `memory`.
    pub(super) fn charges(&self) -> impl Iterator<Item = (DomId, Incarnation, i64)> {
        self.things.iter().map(|(_, charge)| (charge.domid, charge.incarnation, charge.weight))
    }

    /// Returns the cost up to which an object is freed at once.
    fn small(&self) -> u32 {
        SMALL_MAX.min(self.slice_cost / 2)
    }

    /// Discards an object for which `domid` is charged with `weight`.
    pub(super) fn discard(
        &mut self,
        mut thing: Garbage,
        domid: DomId,
        weight: i64,
        domains: &mut Domains,
    ) {
        let mut left = self.small();
        if thing.free_some(&mut self.debris, &mut left) {
            self.debris.free_some(&mut left);
            domains.charge(domid, Quota::Memory, weight.saturating_neg());
            return;
        }
        let charge = Charge { domid, incarnation: domains.incarnation(domid), weight };
        self.things.push_back((thing, charge));
    }

    /// Discards a removed node, with all nodes below it. It is charged to no domain any more.
    pub(super) fn discard_node(&mut self, gone: Node) {
        self.debris.push(gone);
        let mut left = self.small();
        self.debris.free_some(&mut left);
    }

    /// Frees some of the discarded objects.
    pub(super) fn free_some(&mut self, domains: &mut Domains) {
        let mut left = self.slice_cost;
        while left > 0 && !self.is_empty() {
            self.debris.free_some(&mut left);
            let Self { things, debris, .. } = self;
            let Some((thing, charge)) = things.front_mut() else { return };
            if left == 0 || !thing.free_some(debris, &mut left) {
                return;
            }
            let Charge { domid, incarnation, weight } = *charge;
            things.pop_front();
            if domains.incarnation(domid) == incarnation {
                domains.charge(domid, Quota::Memory, weight.saturating_neg());
            }
        }
    }
}
