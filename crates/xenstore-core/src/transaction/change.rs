//! Changes of nodes, and their effects on others.

use crate::ledger::Ledger;
use crate::limits::LOGGED_WEIGHT;
use crate::path::Path;
use crate::perms::{Caller, Perm, Perms};
use crate::tree::{Effect, NodeWrite, Tree};
use crate::wire::Error;
use alloc::rc::Rc;

/// The bytes of a permission entry.
const PERM_SIZE: usize = size_of::<Perm>();

/// A change that a request asks for.
#[derive(Clone)]
pub(crate) enum Change<'a> {
    Put(NodeWrite<'a>),
    Remove,
    SetPerms(Rc<Perms>),
}

impl Change<'_> {
    /// Returns its bytes in the log of a transaction, besides its path.
    pub(crate) fn weight(&self) -> i64 {
        LOGGED_WEIGHT.saturating_add(self.size() as i64)
    }

    /// Returns the bytes of its data.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Put(NodeWrite::Value(value)) => value.len(),
            Self::SetPerms(perms) => perms.len().saturating_mul(PERM_SIZE),
            Self::Put(NodeWrite::Mkdir) | Self::Remove => 0,
        }
    }

    /// Returns the bit of a change of this kind that had no effect, if the answer would be the same
    /// again.
    pub(super) fn idle_bit(&self, done: &Result<Effect, Error>) -> Option<u8> {
        let refused = matches!(done, Err(Error::Access | Error::NoEnt));
        match self {
            Self::Remove if matches!(done, Ok(Effect::Unchanged)) => Some(1),
            Self::Put(NodeWrite::Mkdir) if matches!(done, Ok(Effect::Unchanged)) => Some(2),
            Self::Remove if refused => Some(4),
            Self::Put(NodeWrite::Mkdir) if refused => Some(8),
            Self::Put(NodeWrite::Value(_)) if refused => Some(16),
            _ => None,
        }
    }
}

/// Makes a change, in or outside a transaction.
pub(crate) fn apply(
    tree: &mut Tree,
    caller: &Caller,
    path: Path<'_>,
    change: &Change<'_>,
    ledger: &mut Ledger<'_>,
) -> Result<Effect, Error> {
    match change {
        Change::Put(what) => tree.put(caller, path, *what, ledger),
        Change::Remove => tree.remove(caller, path, ledger),
        Change::SetPerms(perms) => tree.set_perms(caller, path, perms, ledger),
    }
}

/// The effect of another caller's change on a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Touch {
    /// The node's value changes.
    Value,
    /// The node's permissions change.
    Perms,
    /// The node appears or disappears, with the nodes below it.
    Existence {
        /// The length of the path of the nearest ancestor that exists before and after.
        nearest: usize,
    },
}

impl Touch {
    /// Returns the effect of making or removing `path`.
    pub(crate) fn existence(tree: &Tree, path: Path<'_>) -> Self {
        let walk = tree.walk(path);
        // This is at least one level up: that node's list of children changes.
        let nearest = path.above().nth(walk.missing.saturating_sub(1));
        Self::Existence { nearest: nearest.map_or(1, |path| path.as_bytes().len()) }
    }
}
