//! Changes of nodes: what a request asks for, and what that does to others.

use crate::ledger::Ledger;
use crate::limits::LOGGED_WEIGHT;
use crate::path::Path;
use crate::perms::{Caller, Perm, Perms};
use crate::tree::{Done, Put, Tree};
use crate::wire::Error;
use alloc::rc::Rc;

/// Bytes that a permission entry takes.
const PERM_SIZE: usize = size_of::<Perm>();

/// A change that a request asks for.
#[derive(Clone)]
pub(crate) enum Change<'a> {
    Put(Put<'a>),
    Remove,
    SetPerms(Rc<Perms>),
}

impl Change<'_> {
    /// Its count in the log of a transaction, beside its path.
    pub(crate) fn weight(&self) -> i64 {
        LOGGED_WEIGHT.saturating_add(self.size() as i64)
    }

    /// Bytes that it carries.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Put(Put::Value(value)) => value.len(),
            Self::SetPerms(perms) => perms.len().saturating_mul(PERM_SIZE),
            Self::Put(Put::Nothing) | Self::Remove => 0,
        }
    }

    /// The bit that stands for a change of this kind that changed nothing, where the answer would be the same again.
    pub(super) fn idle_bit(&self, done: &Result<Done, Error>) -> Option<u8> {
        let refused = matches!(done, Err(Error::Access | Error::NoEnt));
        match self {
            Self::Remove if matches!(done, Ok(Done::Unchanged)) => Some(1),
            Self::Put(Put::Nothing) if matches!(done, Ok(Done::Unchanged)) => Some(2),
            Self::Remove if refused => Some(4),
            Self::Put(Put::Nothing) if refused => Some(8),
            Self::Put(Put::Value(_)) if refused => Some(16),
            _ => None,
        }
    }
}

/// Does a change, in or outside a transaction.
pub(crate) fn apply(
    tree: &mut Tree,
    caller: &Caller,
    path: Path<'_>,
    change: &Change<'_>,
    ledger: &mut Ledger<'_>,
) -> Result<Done, Error> {
    match change {
        Change::Put(what) => tree.put(caller, path, *what, ledger),
        Change::Remove => tree.remove(caller, path, ledger),
        Change::SetPerms(perms) => tree.set_perms(caller, path, perms, ledger),
    }
}

/// The effect of a change by somebody else on a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Touch {
    /// The node's value becomes another.
    Value,
    /// The node's permissions become others.
    Perms,
    /// The node appears or goes, with what is below it. The nearest node above that exists before and
    /// after has a name of so many bytes in its path.
    Existence {
        /// Length of that node's path.
        nearest: usize,
    },
}

impl Touch {
    /// The effect of making or removing `path`.
    pub(crate) fn existence(tree: &Tree, path: Path<'_>) -> Self {
        let walk = tree.walk(path);
        // One level up at least: that one's list of children changes.
        let nearest = path.above().nth(walk.missing.saturating_sub(1));
        Self::Existence { nearest: nearest.map_or(1, |path| path.as_bytes().len()) }
    }
}
