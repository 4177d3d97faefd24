//! The log of a transaction: its requests and their answers, for a repetition.

use super::change::{Change, apply};
use super::look::{Look, Seen};
use crate::ledger::Ledger;
use crate::path::Path;
use crate::perms::{Access, Caller, Perms};
use crate::tree::{Done, Put, Tree};
use crate::wire::Error;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A logged request of a transaction, and the answer.
pub(super) enum Asked {
    Read { what: Look, seen: Seen },
    Write { value: Rc<[u8]>, answer: Result<(), Error> },
    Mkdir { answer: Result<(), Error> },
    Remove { answer: Result<(), Error> },
    SetPerms { perms: Rc<Perms>, answer: Result<(), Error> },
}

/// An entry of the log.
pub(super) struct Entry {
    pub(super) path: Rc<[u8]>,
    pub(super) asked: Asked,
}

/// A transaction's effect on one path.
pub(crate) type Changed = (Rc<[u8]>, Done);

/// The reason why a log did not run again with the same answers.
pub(crate) struct Conflict {
    /// EAGAIN, or ENOSPC if a quota refused a change this time.
    pub(crate) error: Error,
    /// The path of the conflict.
    pub(crate) path: Rc<[u8]>,
}

/// Records a change that was made.
pub(super) fn note(changed: &mut Vec<Changed>, path: &Rc<[u8]>, done: Result<Done, Error>) {
    match done {
        Ok(Done::Unchanged) | Err(_) => {}
        Ok(done) => changed.push((path.clone(), done)),
    }
}

impl Entry {
    /// Repeats the request on a tree that others may have changed meanwhile.
    pub(super) fn repeat(
        &self,
        tree: &mut Tree,
        caller: &Caller,
        ledger: &mut Ledger<'_>,
        changed: &mut Vec<Changed>,
    ) -> Result<(), Conflict> {
        let path = Path::checked(&self.path);
        ledger.follow(path);
        let (change, before) = match &self.asked {
            Asked::Read { what, seen } => {
                ledger.touch();
                let found = tree.find(caller, path, Access::READ);
                let same = seen.is(*what, found, ledger.domains);
                return if same { Ok(()) } else { Err(self.conflict(Error::Again)) };
            }
            Asked::Write { value, answer } => (Change::Put(Put::Value(value)), answer),
            Asked::Mkdir { answer } => (Change::Put(Put::Nothing), answer),
            Asked::Remove { answer } => (Change::Remove, answer),
            Asked::SetPerms { perms, answer } => (Change::SetPerms(perms.clone()), answer),
        };
        ledger.is_strict = before.is_err();
        let done = apply(tree, caller, path, &change, ledger);
        ledger.is_strict = true;
        let answer = done.as_ref().map(|_| ()).map_err(|error| *error);
        note(changed, &self.path, done);
        match answer {
            answer if answer == *before => Ok(()),
            Err(Error::NoSpc) => Err(self.conflict(Error::NoSpc)),
            _ => Err(self.conflict(Error::Again)),
        }
    }

    fn conflict(&self, error: Error) -> Conflict {
        Conflict { error, path: self.path.clone() }
    }
}
