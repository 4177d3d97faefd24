//! Transactions: a snapshot to work on, and a log of the requests and their answers.
//!
//! A transaction works on a snapshot. To commit, its log is run again on the store in its present
//! state. If every request gets the answer that it got before, the transaction commits, as if all
//! of it had happened at that moment. Therefore it is refused only if something that it saw has
//! truly changed. A write sees only if it is allowed, so blind writes commit, and so do two
//! transactions that make different children of one directory. If nothing has changed since the
//! start, the result is taken over unchanged.

mod access;
mod change;
mod leftovers;
mod log;
mod look;

pub(crate) use change::{Change, Touch, apply};
pub(crate) use leftovers::Leftovers;
pub(crate) use log::Conflict;
pub(crate) use look::Look;

use crate::churn::Churn;
use crate::domain::Domains;
use crate::id::ConnId;
use crate::ledger::{Deltas, Ledger};
use crate::limits::{LOGGED_WEIGHT, TRANSACTION_WEIGHT};
use crate::path::Path;
use crate::perms::{AccessRights, Caller};
use crate::tree::{Effect, Node, NodeWrite, Tree};
use crate::wire::Error;
use access::{PathAccesses, ShapeAccesses};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Bound;
use log::{LogEntry, LoggedRequest, PathChange, note};
use look::LookResult;

/// The outcome of a log on the store on which it ran.
pub(crate) struct Rerun {
    pub(crate) tree: Tree,
    pub(crate) deltas: Deltas,
    pub(crate) changed: Vec<PathChange>,
    pub(crate) churn: Churn,
}

impl Rerun {
    fn of(tree: Tree) -> Self {
        Self { tree, deltas: Deltas::default(), changed: Vec::new(), churn: Churn::default() }
    }

    /// Returns its parts, to be freed.
    pub(crate) fn into_leftovers(self) -> Leftovers {
        let (trees, changed) = ([Some(self.tree), None], self.changed);
        Leftovers { trees, changed, log: Vec::new(), accessed: BTreeMap::new() }
    }
}

/// The place of a change in the log.
enum LogPosition {
    /// The log already has an equal change, with the same answer.
    Again,
    /// The change replaces this entry.
    Replaces(u32),
    /// The change is a new entry, on this path.
    New(Rc<[u8]>),
}

/// The state of the store that a transaction works on. Snapshots sort by age, the oldest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Snapshot {
    /// The time at which it was taken.
    pub(crate) since: u64,
    /// The bytes of the store that had been replaced until then.
    pub(crate) replaced: u64,
    /// The connection whose transaction it is.
    pub(crate) conn: ConnId,
    /// The bytes of the store that its domain had replaced until then.
    pub(crate) replaced_by_owner: u64,
    /// The number of the transaction.
    pub(crate) id: u32,
}

pub(crate) struct Transaction {
    base: Tree,
    /// The number of domains that had died when the snapshot was taken.
    deaths: u64,
    pub(crate) work: Rerun,
    log: Vec<LogEntry>,
    accessed: BTreeMap<Rc<[u8]>, PathAccesses>,
    /// The bytes of the log for the quota `memory`.
    log_weight: i64,
    /// The path that it read first.
    first_read: Option<Rc<[u8]>>,
    /// The number of its tree's shape, which is the set of nodes and their permissions. As long as
    /// the transaction's own changes leave the shape unchanged, a repeated look shows nothing new,
    /// and a written value replaces the one before. For a look that is refused this holds only
    /// until the next granted change.
    shape: u32,
    /// The number of changes in its log that were granted.
    granted: u32,
    /// The cost of running the log again, in simple requests.
    pub(crate) cost: u32,
    /// The snapshot that it works on.
    pub(crate) snapshot: Snapshot,
    /// True if its snapshot was given up because it kept too much alive.
    pub(crate) lost: bool,
    /// True if it has made a request since its snapshot was given up: it can only be refused.
    pub(crate) torn: bool,
    /// True if it can only be refused because something that it saw has changed.
    pub(crate) doomed: bool,
    /// True if a change has been granted to it, even one without an effect at the time.
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
            shape: 0,
            granted: 0,
            cost: 0,
            snapshot,
            lost: false,
            torn: false,
            doomed: false,
            changes: false,
        }
    }

    /// Returns its parts, to be freed.
    pub(crate) fn into_leftovers(self) -> Leftovers {
        let Self { base, work, log, accessed, .. } = self;
        Leftovers { trees: [Some(base), Some(work.tree)], changed: work.changed, log, accessed }
    }

    /// Drops everything that it keeps alive.
    pub(crate) fn give_up(&mut self) -> Leftovers {
        let nothing = self.base.without_nodes();
        let base = core::mem::replace(&mut self.base, nothing.clone());
        let work = core::mem::replace(&mut self.work, Rerun::of(nothing));
        self.log_weight = 0;
        (self.lost, self.doomed) = (true, true);
        Leftovers {
            trees: [Some(base), Some(work.tree)],
            changed: work.changed,
            log: core::mem::take(&mut self.log),
            accessed: core::mem::take(&mut self.accessed),
        }
    }

    /// Returns its bytes for the quota `memory`: its log, and its own parts of the tree.
    pub(crate) fn weight(&self) -> i64 {
        let own = self.work.churn.own_size().saturating_add(self.log_weight);
        own.saturating_add(TRANSACTION_WEIGHT)
    }

    /// Returns the number of nodes that it has accessed, for the quota `transaction-nodes`, and
    /// true if `path` is among them.
    pub(crate) fn accessed(&self, path: Path<'_>) -> (usize, bool) {
        (self.accessed.len(), self.accessed.contains_key(path.as_bytes()))
    }

    /// True if such a look at `path` shows nothing new, so that it is not logged.
    pub(crate) fn has_seen(&self, path: Path<'_>, what: Look) -> bool {
        let seen = self.accessed.get(path.as_bytes()).map(|seen| seen.lately);
        seen.filter(|seen| seen.shape == self.shape).is_some_and(|seen| {
            let what = if seen.value.is_some() { what.of_own_value() } else { what };
            seen.has_look(what.bit(), self.granted)
        })
    }

    /// Returns the number of entries of its log.
    pub(crate) fn log_len(&self) -> usize {
        self.log.len()
    }

    /// Returns the path that it read first.
    pub(crate) fn first_read(&self) -> Option<&Rc<[u8]>> {
        self.first_read.as_ref()
    }

    /// True if it could get another answer than it got, if another caller made this change of
    /// `path`. In doubt it returns true.
    pub(crate) fn may_be_affected(&self, path: Path<'_>, touch: Touch) -> bool {
        let ever = |path: Path<'_>| self.accessed.get(path.as_bytes()).map_or(0, |seen| seen.ever);
        let mut above = path.above();
        let subtree = Look::Subtree.bit();
        match touch {
            Touch::Value => {
                ever(path) & (Look::Value.bit() | subtree) != 0
                    || above.any(|path| ever(path) & subtree != 0)
            }
            Touch::Perms => self.reaches_below(path) || above.any(|path| ever(path) & subtree != 0),
            Touch::Existence { nearest } => {
                self.reaches_below(path)
                    || above.any(|path| {
                        let kinds = match path.as_bytes().len() {
                            // The list of children changes.
                            len if len == nearest => Look::Children.bit() | subtree,
                            len if len < nearest => subtree,
                            // The node was absent, or will be.
                            _ => u8::MAX,
                        };
                        ever(path) & kinds != 0
                    })
            }
        }
    }

    /// True if it has accessed `path` or a node below it.
    fn reaches_below(&self, path: Path<'_>) -> bool {
        let from = (Bound::Included(path.as_bytes()), Bound::Unbounded);
        let mut from = self.accessed.range::<[u8], _>(from).map(|(known, _)| known);
        if path.is_root() {
            return from.next().is_some();
        }
        // A path such as `/a-c` may sort between `/a` and `/a/b`.
        let from = from.take_while(|known| known.starts_with(path.as_bytes()));
        from.into_iter().any(|known| path.overlaps(Path::checked(known)))
    }

    /// True if a look at `path` in its snapshot may differ from one in `tree`.
    pub(crate) fn is_stale_at(
        &self,
        tree: &Tree,
        caller: &Caller,
        path: Path<'_>,
        what: Look,
    ) -> bool {
        if self.changes {
            // Nodes that it made may depend on the nodes that have changed.
            return true;
        }
        let (base, now) = (&self.base, tree);
        match (
            base.find(caller, path, AccessRights::READ),
            now.find(caller, path, AccessRights::READ),
        ) {
            (Ok(one), Ok(two)) => !what.same(one, two),
            (one, two) => one.err() != two.err(),
        }
    }

    /// True if the snapshot is still the store's state.
    pub(crate) fn is_current(&self, tree: &Tree, deaths: u64) -> bool {
        self.deaths == deaths && self.base.same(tree)
    }

    /// Records a look, which may have been refused. Returns the part of the store that it shows, and
    /// the path as the log's entries share it; `None` if it shows nothing new.
    fn record_look(
        &mut self,
        path: Path<'_>,
        what: Look,
        is_refused: bool,
    ) -> Option<(Look, Rc<[u8]>)> {
        let granted = self.granted;
        if let Some(seen) = self.accessed.get_mut(path.as_bytes()) {
            let lately = seen.in_shape(self.shape);
            let what = if lately.value.is_some() { what.of_own_value() } else { what };
            if !lately.add_look(what.bit(), is_refused, granted) {
                return None;
            }
            seen.ever |= what.bit();
            return self.log.get(seen.first as usize).map(|entry| (what, entry.path.clone()));
        }
        let mut lately = ShapeAccesses::of(self.shape);
        lately.add_look(what.bit(), is_refused, granted);
        Some((what, self.first_access(path, what.bit(), lately)))
    }

    /// Records a change. It had no effect if it has an `idle` bit; `is_of_value` is true if it only
    /// sets the value.
    fn record_change(
        &mut self,
        path: Path<'_>,
        idle: Option<u8>,
        is_of_value: bool,
    ) -> LogPosition {
        let next = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        let value = is_of_value.then_some(next);
        if let Some(seen) = self.accessed.get_mut(path.as_bytes()) {
            let first = seen.first;
            let lately = seen.in_shape(self.shape);
            let bit = idle.unwrap_or(0);
            if lately.idle & bit != 0 {
                return LogPosition::Again;
            }
            lately.idle |= bit;
            match (value, lately.value) {
                (Some(_), Some(before)) => return LogPosition::Replaces(before),
                (Some(_), None) => lately.value = value,
                (None, _) => {}
            }
            let entry = self.log.get(first as usize);
            return entry.map_or(LogPosition::Again, |entry| LogPosition::New(entry.path.clone()));
        }
        let lately =
            ShapeAccesses { idle: idle.unwrap_or(0), value, ..ShapeAccesses::of(self.shape) };
        LogPosition::New(self.first_access(path, 0, lately))
    }

    /// Records the first access to a path, by the next entry of the log.
    fn first_access(&mut self, path: Path<'_>, ever: u8, lately: ShapeAccesses) -> Rc<[u8]> {
        let first = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        let path: Rc<[u8]> = Rc::from(path.as_bytes());
        self.accessed.insert(path.clone(), PathAccesses { first, ever, lately });
        path
    }

    /// Appends to the log. `cost` is the cost of repeating the request, besides following the path.
    fn append(&mut self, path: Rc<[u8]>, request: LoggedRequest, weight: i64, cost: u32) {
        let cost = cost.saturating_add(Path::checked(&path).cost());
        self.cost = self.cost.saturating_add(cost);
        let weight = weight.saturating_add(path.len() as i64);
        self.log_weight = self.log_weight.saturating_add(weight);
        self.log.push(LogEntry { path, request });
    }

    /// Looks at a node, in the transaction's own state.
    pub(crate) fn see(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        what: Look,
        domains: &Domains,
    ) -> Result<Node, Error> {
        let seen = self.work.tree.find(caller, path, AccessRights::READ).cloned();
        if what == Look::Subtree && !self.has_seen(path, what) {
            // A value that is written later must not replace one that was written earlier, which
            // this look has seen.
            self.shape = self.shape.saturating_add(1);
        }
        if let Some((what, path)) = self.record_look(path, what, seen.is_err()) {
            let (shown, size) = match &seen {
                Ok(node) => (what.of(node, domains), node.value().len()),
                Err(error) => (LookResult::Error(*error), 0),
            };
            if self.first_read.is_none() {
                self.first_read = Some(path.clone());
            }
            // The node is read, and not copied.
            let cost = (cost_of(size) / 4).saturating_add(1);
            self.append(path, LoggedRequest::Read { what, seen: shown }, LOGGED_WEIGHT, cost);
        }
        seen
    }

    /// Makes a change, in the transaction's own state.
    pub(crate) fn change(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        change: &Change<'_>,
        ledger: &mut Ledger<'_>,
    ) -> Result<(), Error> {
        let (made, touched) = (ledger.churn.made, ledger.touched);
        let done = apply(&mut self.work.tree, caller, path, change, ledger);
        let answer = done.as_ref().map(|_| ()).map_err(|error| *error);
        self.changes |= answer.is_ok();
        let is_new_shape = ledger.churn.made != made
            || matches!(done, Ok(Effect::Removed(_) | Effect::Permitted(_)));
        self.shape = self.shape.saturating_add(u32::from(is_new_shape));
        let is_of_value = matches!((change, &done), (Change::Put(NodeWrite::Value(_)), Ok(_)));
        let path = match self.record_change(path, change.idle_bit(&done), is_of_value) {
            LogPosition::Again => return answer,
            LogPosition::Replaces(entry) => {
                self.rewrite(entry, change);
                return answer;
            }
            LogPosition::New(path) => path,
        };
        self.granted = self.granted.saturating_add(u32::from(answer.is_ok()));
        let request = match change {
            Change::Put(NodeWrite::Value(value)) => {
                LoggedRequest::Write { value: Rc::from(*value), answer }
            }
            Change::Put(NodeWrite::Mkdir) => LoggedRequest::Mkdir { answer },
            Change::Remove => LoggedRequest::Remove { answer },
            Change::SetPerms(perms) => LoggedRequest::SetPerms { perms: perms.clone(), answer },
        };
        note(&mut self.work.changed, &path, done);
        let cost = ledger.touched.saturating_sub(touched).saturating_add(cost_of(change.size()));
        self.append(path, request, change.weight(), cost);
        answer
    }

    /// Makes an entry of the log write another value.
    fn rewrite(&mut self, entry: u32, change: &Change<'_>) {
        let entry = self.log.get_mut(entry as usize).map(|entry| &mut entry.request);
        if let (Some(LoggedRequest::Write { value, .. }), Change::Put(NodeWrite::Value(new))) =
            (entry, change)
        {
            let more = (new.len() as i64).saturating_sub(value.len() as i64);
            self.log_weight = self.log_weight.saturating_add(more);
            let cost = self.cost.saturating_add(cost_of(new.len()));
            self.cost = cost.saturating_sub(cost_of(value.len()));
            *value = Rc::from(*new);
        }
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
        let repeated = self
            .log
            .iter()
            .try_for_each(|entry| entry.repeat(&mut tree, caller, ledger, &mut changed));
        let result = repeated.and_then(|()| self.check_quotas(caller, ledger, &changed));
        let deltas = core::mem::replace(ledger.deltas, kept.0);
        let churn = core::mem::replace(&mut ledger.churn, kept.1);
        result.map(|()| Rerun { tree, deltas, changed, churn })
    }

    /// Refuses the result of the whole log if its owners may not have it. Single requests cannot be
    /// checked: a value that was written later may have come before others.
    fn check_quotas(
        &self,
        caller: &Caller,
        ledger: &mut Ledger<'_>,
        changed: &[PathChange],
    ) -> Result<(), Conflict> {
        let freed = (caller.domid, self.weight());
        ledger.check_all(freed).map_err(|error| {
            let path = changed.last().map_or_else(|| Rc::from(&b"/"[..]), |(path, _)| path.clone());
            Conflict { error, path }
        })
    }

    /// Moves to a later state of the store, on which the log has run.
    pub(crate) fn rebase(&mut self, base: Tree, deaths: u64, work: Rerun) -> Leftovers {
        self.deaths = deaths;
        let base = core::mem::replace(&mut self.base, base);
        let work = core::mem::replace(&mut self.work, work);
        let (trees, changed) = ([Some(base), Some(work.tree)], work.changed);
        Leftovers { trees, changed, log: Vec::new(), accessed: BTreeMap::new() }
    }
}

/// Returns the cost of copying so many bytes into new memory, in simple requests.
fn cost_of(bytes: usize) -> u32 {
    u32::try_from(bytes / 128).unwrap_or(u32::MAX)
}
