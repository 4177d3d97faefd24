//! The log of a transaction: its requests and their answers, for a repetition.

use super::change::{Change, apply};
use super::look::{Look, LookResult};
use crate::ledger::Ledger;
use crate::path::Path;
use crate::perms::{AccessRights, Caller, Perms};
use crate::tree::{Effect, NodeWrite, Tree};
use crate::wire::Error;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A logged request of a transaction, and the answer.
pub(super) enum LoggedRequest {
    Read { what: Look, seen: LookResult },
    Write { value: Rc<[u8]>, answer: Result<(), Error> },
    Mkdir { answer: Result<(), Error> },
    Remove { answer: Result<(), Error> },
    SetPerms { perms: Rc<Perms>, answer: Result<(), Error> },
}

/// An entry of the log.
pub(super) struct LogEntry {
    pub(super) path: Rc<[u8]>,
    pub(super) request: LoggedRequest,
}

/// A transaction's effect on one path.
pub(crate) type PathChange = (Rc<[u8]>, Effect);

/// The reason why a log did not run again with the same answers.
pub(crate) struct Conflict {
    /// EAGAIN, or ENOSPC if a quota refused a change this time.
    pub(crate) error: Error,
    /// The path of the conflict.
    pub(crate) path: Rc<[u8]>,
}

/// Records a change that was made.
pub(super) fn note(changed: &mut Vec<PathChange>, path: &Rc<[u8]>, done: Result<Effect, Error>) {
    match done {
        Ok(Effect::Unchanged) | Err(_) => {}
        Ok(done) => changed.push((path.clone(), done)),
    }
}

impl LogEntry {
    /// Repeats the request on a tree that others may have changed meanwhile.
    pub(super) fn repeat(
        &self,
        tree: &mut Tree,
        caller: &Caller,
        ledger: &mut Ledger<'_>,
        changed: &mut Vec<PathChange>,
    ) -> Result<(), Conflict> {
        let path = Path::checked(&self.path);
        ledger.charge_path(path);
        let (change, before) = match &self.request {
            LoggedRequest::Read { what, seen } => {
                ledger.touch();
                let found = tree.find(caller, path, AccessRights::READ);
                let same = seen.is(*what, found, ledger.domains);
                return if same { Ok(()) } else { Err(self.conflict(Error::Again)) };
            }
            LoggedRequest::Write { value, answer } => {
                (Change::Put(NodeWrite::Value(value)), answer)
            }
            LoggedRequest::Mkdir { answer } => (Change::Put(NodeWrite::Mkdir), answer),
            LoggedRequest::Remove { answer } => (Change::Remove, answer),
            LoggedRequest::SetPerms { perms, answer } => (Change::SetPerms(perms.clone()), answer),
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
