//! The parts of a transaction that are not needed any more.

use super::access::PathAccesses;
use super::log::{LogEntry, PathChange};
use crate::tree::{Debris, Effect, Tree};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The parts of a transaction that are to be freed.
pub(crate) struct Leftovers {
    pub(super) trees: [Option<Tree>; 2],
    pub(super) changed: Vec<PathChange>,
    pub(super) log: Vec<LogEntry>,
    pub(super) accessed: BTreeMap<Rc<[u8]>, PathAccesses>,
}

impl Leftovers {
    /// Frees as many of its parts as `left` allows. Returns true if only debris remains.
    pub(crate) fn free_some(&mut self, debris: &mut Debris, left: &mut u32) -> bool {
        let most = self.log.len().max(self.accessed.len());
        if most <= *left as usize {
            // They are freed in one go, which is faster than one by one.
            *left = left.saturating_sub(u32::try_from(most).unwrap_or(u32::MAX));
            (self.log, self.accessed) = (Vec::new(), BTreeMap::new());
        }
        while *left > 0 {
            if self.log.pop().is_none() && self.accessed.pop_first().is_none() {
                match self.changed.pop() {
                    Some((_, Effect::Removed(node))) => debris.push(node),
                    Some(_) => {}
                    None => {
                        let trees = self.trees.iter_mut().filter_map(Option::take);
                        trees.for_each(|tree| debris.push(tree.into_root()));
                        return true;
                    }
                }
            }
            *left = left.saturating_sub(1);
        }
        false
    }
}
