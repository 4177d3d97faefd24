//! Transactions: a snapshot to work on, and a log of what was asked and seen.
//!
//! A transaction works on a snapshot. To commit, its log is run again on the store as it is then. If
//! every request gets the answer that it got before, the transaction stands, as if all of it had
//! happened at that moment; so it is refused only where something that it saw has truly changed. A
//! write sees nothing but whether it is allowed; so blind writes commit, and so do two transactions that
//! make different children of one directory. Where nothing has changed since the start, the work is
//! taken over as it is.

use crate::limits::{LOGGED_WEIGHT, TRANSACTION_WEIGHT};
use crate::path::Path;
use crate::perms::{Access, Caller, Perm, Perms};
use crate::server::ConnId;
use crate::server::domain::{Delta, Domains, Ledger};
use crate::tree::{Churn, Done, Node, Put, Tree};
use crate::wire::Error;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Bound;

/// What a request looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Value,
    Perms,
    Children,
    Subtree,
}

impl What {
    fn bit(self) -> u8 {
        match self {
            Self::Value => 1,
            Self::Perms => 2,
            Self::Children => 4,
            Self::Subtree => 8,
        }
    }

    /// What one who looks at `node` sees.
    fn of(self, node: &Node, domains: &Domains) -> Seen {
        Seen::Digest(match self {
            Self::Value => domains.secret.bytes(node.value()),
            Self::Perms => domains.secret.perms(node.perms(), domains.alive_entries(node.perms())),
            Self::Children => node.dir().map_or(0, |dir| dir.names_digest()),
            Self::Subtree => {
                return Seen::Subtree(node.clone(), domains.alive_entries(node.perms()));
            }
        })
    }

    /// Whether one who looked would see the same.
    fn same(self, one: &Node, two: &Node) -> bool {
        match self {
            Self::Value => one.same_value(two),
            Self::Perms => one.same_perms(two),
            Self::Children => one.same_children(two),
            Self::Subtree => one.same_subtree(two),
        }
    }
}

/// A change that a request asks for.
#[derive(Clone)]
pub(crate) enum Change<'a> {
    Put(Put<'a>),
    Remove,
    SetPerms(Rc<Perms>),
}

impl Change<'_> {
    /// What it counts in the log of a transaction, beside its path.
    pub(crate) fn weight(&self) -> i64 {
        let own = match self {
            Self::Put(Put::Value(value)) => value.len(),
            Self::SetPerms(perms) => perms.len().saturating_mul(PERM_SIZE),
            Self::Put(Put::Nothing) | Self::Remove => 0,
        };
        LOGGED_WEIGHT.saturating_add(own as i64)
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

/// What a look has seen. No node is kept for it: that would keep an old state of the store.
enum Seen {
    Error(Error),
    /// Of the value, the permissions or the names of the children.
    Digest(u64),
    /// A subtree as a whole, which only domain 0 can look at; and how many permission entries of its top were for
    /// domains that lived.
    Subtree(Node, usize),
}

impl Seen {
    /// Whether the same look at what was found now sees the same.
    fn is(&self, what: What, found: Result<&Node, Error>, domains: &Domains) -> bool {
        match (self, found) {
            (Self::Error(known), Err(error)) => *known == error,
            (Self::Subtree(known, alive), Ok(node)) => {
                what.same(known, node) && domains.alive_entries(node.perms()) == *alive
            }
            (Self::Digest(known), Ok(node)) => {
                matches!(what.of(node, domains), Self::Digest(now) if now == *known)
            }
            (Self::Error(_), Ok(_)) | (Self::Digest(_) | Self::Subtree(..), Err(_)) => false,
        }
    }
}

enum Asked {
    Read { what: What, seen: Seen },
    Write { value: Rc<[u8]>, answer: Result<(), Error> },
    Mkdir { answer: Result<(), Error> },
    Remove { answer: Result<(), Error> },
    SetPerms { perms: Rc<Perms>, answer: Result<(), Error> },
}

struct Entry {
    path: Rc<[u8]>,
    asked: Asked,
}

/// What a transaction did to one path.
pub(crate) type Changed = (Rc<[u8]>, Done);

/// Why a log did not run again as it had run before.
pub(crate) struct Conflict {
    /// EAGAIN, or ENOSPC where a quota stood in the way this time.
    pub(crate) error: Error,
    /// On which path.
    pub(crate) path: Rc<[u8]>,
}

/// What a log made of the store it ran on.
pub(crate) struct Rerun {
    pub(crate) tree: Tree,
    pub(crate) deltas: Vec<Delta>,
    pub(crate) changed: Vec<Changed>,
    pub(crate) churn: Churn,
}

impl Rerun {
    fn of(tree: Tree) -> Self {
        Self { tree, deltas: Vec::new(), changed: Vec::new(), churn: Churn::default() }
    }
}

/// Bytes that a permission entry takes.
const PERM_SIZE: usize = size_of::<Perm>();

/// What a transaction did on one path: kinds of looks as [`What::bit`], and [`WROTE`].
struct Accessed {
    /// The first entry of the log about the path.
    first: u32,
    /// Since the change of its own with this number.
    since: u32,
    /// Looks since then.
    lately: u8,
    /// All of its time.
    ever: u8,
}

/// It changed something there, or tried to.
const WROTE: u8 = 16;

/// What a change by somebody else does to a path.
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

/// The state of the store that a transaction works on, the oldest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Snapshot {
    /// When it was taken.
    pub(crate) since: u64,
    /// How many bytes of the store had been replaced.
    pub(crate) replaced: u64,
    /// Whose transaction it is.
    pub(crate) conn: ConnId,
    /// How many bytes of the store its domain had replaced.
    pub(crate) replaced_by_owner: u64,
    /// Which one.
    pub(crate) id: u32,
}

pub(crate) struct Transaction {
    base: Tree,
    /// How many domains had died when the snapshot was taken.
    deaths: u64,
    pub(crate) work: Rerun,
    log: Vec<Entry>,
    accessed: BTreeMap<Rc<[u8]>, Accessed>,
    /// What the log counts for the quota `memory`.
    log_weight: i64,
    /// The path that it looked at first.
    first_read: Option<Rc<[u8]>>,
    /// How many changes it has logged.
    written: u32,
    /// Which snapshot it works on.
    pub(crate) snapshot: Snapshot,
    /// Its snapshot was given up, as it kept too much alive.
    pub(crate) lost: bool,
    /// It has asked for something since: it can only be refused.
    pub(crate) torn: bool,
    /// It can only be refused, as something that it saw has changed.
    pub(crate) doomed: bool,
    /// It has been granted a change, even if nothing had to be done for it at the time.
    pub(crate) changes: bool,
}

impl Transaction {
    pub(crate) fn new(tree: &Tree, deaths: u64, snapshot: Snapshot) -> Self {
        Self {
            base: tree.clone(),
            deaths,
            work: Rerun::of(tree.clone()),
            log: Vec::new(),
            accessed: BTreeMap::new(),
            log_weight: 0,
            first_read: None,
            written: 0,
            snapshot,
            lost: false,
            torn: false,
            doomed: false,
            changes: false,
        }
    }

    /// Lets go of all that it keeps alive.
    pub(crate) fn give_up(&mut self) {
        let nothing = self.base.emptied();
        self.work = Rerun::of(nothing.clone());
        self.base = nothing;
        self.log = Vec::new();
        self.accessed = BTreeMap::new();
        self.log_weight = 0;
        (self.lost, self.doomed) = (true, true);
    }

    /// What it counts for the quota `memory`: its log, and what it has of its own of the tree.
    pub(crate) fn weight(&self) -> i64 {
        let own = self.work.churn.own_size().saturating_add(self.log_weight);
        own.saturating_add(TRANSACTION_WEIGHT)
    }

    /// How many nodes it has accessed, for the quota `transaction-nodes`; and whether `path` is among them.
    pub(crate) fn accessed(&self, path: Path<'_>) -> (usize, bool) {
        (self.accessed.len(), self.accessed.contains_key(path.as_bytes()))
    }

    /// Whether such a look at `path` tells nothing new, so that it is not logged.
    pub(crate) fn has_seen(&self, path: Path<'_>, what: What) -> bool {
        let seen = self.accessed.get(path.as_bytes());
        seen.is_some_and(|seen| seen.since == self.written && seen.lately & what.bit() != 0)
    }

    /// Entries of its log.
    pub(crate) fn log_len(&self) -> usize {
        self.log.len()
    }

    /// The path that it looked at first.
    pub(crate) fn first_read(&self) -> Option<&Rc<[u8]>> {
        self.first_read.as_ref()
    }

    /// Whether it could get another answer than it got, if somebody did this to `path`. Errs on the side
    /// of yes.
    pub(crate) fn would_notice(&self, path: Path<'_>, touch: Touch) -> bool {
        let ever = |path: Path<'_>| self.accessed.get(path.as_bytes()).map_or(0, |seen| seen.ever);
        let mut above = path.above();
        let subtree = What::Subtree.bit();
        match touch {
            Touch::Value => {
                ever(path) & (What::Value.bit() | subtree) != 0
                    || above.any(|path| ever(path) & subtree != 0)
            }
            Touch::Perms => self.reaches_below(path) || above.any(|path| ever(path) & subtree != 0),
            Touch::Existence { nearest } => {
                self.reaches_below(path)
                    || above.any(|path| {
                        let kinds = match path.as_bytes().len() {
                            // Its list of children changes.
                            len if len == nearest => What::Children.bit() | subtree,
                            len if len < nearest => subtree,
                            // It was absent, or will be.
                            _ => u8::MAX,
                        };
                        ever(path) & kinds != 0
                    })
            }
        }
    }

    /// Whether it has accessed `path` or something below it.
    fn reaches_below(&self, path: Path<'_>) -> bool {
        let from = (Bound::Included(path.as_bytes()), Bound::Unbounded);
        let mut from = self.accessed.range::<[u8], _>(from).map(|(known, _)| known);
        if path.is_root() {
            return from.next().is_some();
        }
        // Between `/a` and `/a/b` there may be `/a-c`.
        let from = from.take_while(|known| known.starts_with(path.as_bytes()));
        from.into_iter().any(|known| path.related(Path::checked(known)))
    }

    /// Whether looking at `path` in its snapshot is not as good as looking at it in `tree`.
    pub(crate) fn is_stale_at(
        &self,
        tree: &Tree,
        caller: &Caller,
        path: Path<'_>,
        what: What,
    ) -> bool {
        if self.changes {
            // What it made may depend on what has changed.
            return true;
        }
        let (base, now) = (&self.base, tree);
        match (base.find(caller, path, Access::READ), now.find(caller, path, Access::READ)) {
            (Ok(one), Ok(two)) => !what.same(one, two),
            (one, two) => one.err() != two.err(),
        }
    }

    /// Whether the snapshot is still the store's state.
    pub(crate) fn is_current(&self, tree: &Tree, deaths: u64) -> bool {
        self.deaths == deaths && self.base.same(tree)
    }

    /// Notes an access. Returns the path as the log's entries share it; `None` for one more look at what it
    /// has looked at since its last change.
    fn access(&mut self, path: Path<'_>, bit: u8) -> Option<Rc<[u8]>> {
        let (first, since) = (u32::try_from(self.log.len()).unwrap_or(u32::MAX), self.written);
        let known = self.accessed.get_mut(path.as_bytes());
        if let Some((entry, seen)) =
            known.and_then(|seen| Some((self.log.get(seen.first as usize)?, seen)))
        {
            let lately = if seen.since == since { seen.lately } else { 0 };
            if lately & bit != 0 && bit != WROTE {
                return None;
            }
            (seen.since, seen.lately, seen.ever) = (since, lately | bit, seen.ever | bit);
            return Some(entry.path.clone());
        }
        let path: Rc<[u8]> = Rc::from(path.as_bytes());
        self.accessed.insert(path.clone(), Accessed { first, since, lately: bit, ever: bit });
        Some(path)
    }

    fn append(&mut self, path: Rc<[u8]>, asked: Asked, weight: i64) {
        let weight = weight.saturating_add(path.len() as i64);
        self.log_weight = self.log_weight.saturating_add(weight);
        self.log.push(Entry { path, asked });
    }

    /// Looks at a node, in the transaction's own state.
    pub(crate) fn see(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        what: What,
        domains: &Domains,
    ) -> Result<Node, Error> {
        let seen = self.work.tree.find(caller, path, Access::READ).cloned();
        // Seeing the same again tells nothing new. After a change of its own it may: what it made has
        // permissions that nobody has looked at before.
        if let Some(path) = self.access(path, what.bit()) {
            let shown = seen
                .as_ref()
                .map_or_else(|error| Seen::Error(*error), |node| what.of(node, domains));
            self.first_read.get_or_insert_with(|| path.clone());
            self.append(path, Asked::Read { what, seen: shown }, LOGGED_WEIGHT);
        }
        seen
    }

    /// Changes something, in the transaction's own state.
    pub(crate) fn change(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        change: &Change<'_>,
        ledger: &mut Ledger<'_>,
    ) -> Result<(), Error> {
        let done = apply(&mut self.work.tree, caller, path, change, ledger);
        let answer = done.as_ref().map(|_| ()).map_err(|error| *error);
        let asked = match change {
            Change::Put(Put::Value(value)) => Asked::Write { value: Rc::from(*value), answer },
            Change::Put(Put::Nothing) => Asked::Mkdir { answer },
            Change::Remove => Asked::Remove { answer },
            Change::SetPerms(perms) => Asked::SetPerms { perms: perms.clone(), answer },
        };
        self.written = self.written.saturating_add(u32::from(answer.is_ok()));
        self.changes |= answer.is_ok();
        if let Some(path) = self.access(path, WROTE) {
            note(&mut self.work.changed, &path, done);
            self.append(path, asked, change.weight());
        }
        answer
    }

    /// Runs the log again on `tree`.
    pub(crate) fn rerun(
        &self,
        mut tree: Tree,
        caller: &Caller,
        ledger: &mut Ledger<'_>,
    ) -> Result<Rerun, Conflict> {
        let mut changed = Vec::new();
        let kept = (core::mem::take(ledger.deltas), core::mem::take(&mut ledger.churn));
        let result = self
            .log
            .iter()
            .try_for_each(|entry| entry.repeat(&mut tree, caller, ledger, &mut changed));
        let deltas = core::mem::replace(ledger.deltas, kept.0);
        let churn = core::mem::replace(&mut ledger.churn, kept.1);
        result.map(|()| Rerun { tree, deltas, changed, churn })
    }

    /// Goes on from a later state of the store, on which the log has run.
    pub(crate) fn rebase(&mut self, base: Tree, deaths: u64, work: Rerun) {
        self.base = base;
        self.deaths = deaths;
        self.work = work;
    }
}

fn note(changed: &mut Vec<Changed>, path: &Rc<[u8]>, done: Result<Done, Error>) {
    match done {
        Ok(Done::Unchanged) | Err(_) => {}
        Ok(done) => changed.push((path.clone(), done)),
    }
}

impl Entry {
    fn repeat(
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
        let done = apply(tree, caller, path, &change, ledger);
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
