//! The nodes, the accounts of the domains that own them, and the cost of a request.

use super::config::Config;
use crate::churn::Churn;
use crate::digest::Secret;
use crate::domain::Domains;
use crate::ledger::{Deltas, Ledger};
use crate::limits::COST_PER_NODE;
use crate::path::{Path, SpecialPaths, resolve};
use crate::perms::Caller;
use crate::quota::{LimitKind, Quota};
use crate::transaction::{Change, Conflict, Rerun, Transaction, apply};
use crate::tree::{Effect, Node, Tree};
use crate::wire::Error;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The entries of a queue searched, or watches removed, for the cost of one simple request.
const THINGS_A_UNIT: usize = 4;

/// The tree and its accounts. A change of the one is recorded in the others.
pub(super) struct Content {
    pub(super) tree: Tree,
    pub(super) domains: Domains,
    /// The cost so far of the request at hand.
    pub(super) cost: u32,
    /// The changes of the tree that are not booked yet.
    deltas: Deltas,
    /// The bytes that these changes have moved.
    churn: Churn,
    /// A buffer that is kept between requests, so that it need not be allocated for each.
    scratch: Vec<u8>,
}

impl Content {
    /// Returns the content of a fresh store: `/`, `/tool`, `/tool/xenstored` and the special nodes.
    pub(super) fn new(config: &Config) -> Self {
        let secret = Secret(config.secret);
        let mut domains = Domains::new(config.store_domain, config.priv_domain, secret);
        let (mut scratch, mut deltas) = (Vec::new(), Deltas::default());
        let owner = config.priv_domain;
        let incarnation = domains.incarnation(owner);
        let mut ledger = Ledger::new(&mut domains, &mut deltas, &mut scratch);
        let tree = Tree::new(owner, incarnation, &mut ledger);
        deltas.book(&mut domains);
        deltas.clear();
        Self { tree, domains, cost: 0, deltas, churn: Churn::default(), scratch }
    }

    /// Runs `body` with the accounts. Changes of ownership are not booked.
    pub(super) fn with_ledger<R>(
        &mut self,
        body: impl FnOnce(&mut Tree, &mut Ledger<'_>) -> R,
    ) -> R {
        let Self { domains, deltas, scratch, tree, cost, churn } = self;
        let mut ledger = Ledger::new(domains, deltas, scratch);
        let result = body(tree, &mut ledger);
        *cost = cost.saturating_add(ledger.touched);
        churn.add(ledger.churn);
        result
    }

    /// Books the changes of the tree, and returns the bytes that they have moved.
    pub(super) fn book(&mut self) -> Churn {
        self.deltas.book(&mut self.domains);
        self.deltas.clear();
        core::mem::take(&mut self.churn)
    }

    /// Changes the tree for a caller that may do so.
    pub(super) fn change(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> Result<Effect, Error> {
        self.with_ledger(|tree, ledger| apply(tree, caller, path, change, ledger))
    }

    /// Returns the answer of a change without making it.
    pub(super) fn dry_run(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> Result<(), Error> {
        let mut trial = self.tree.clone();
        self.with_ledger(|_, ledger| {
            let done = apply(&mut trial, caller, path, change, ledger);
            ledger.deltas.clear();
            ledger.churn = Churn::default();
            done.map(drop)
        })
    }

    /// Makes a change in the tree of a transaction.
    pub(super) fn change_in(
        &mut self,
        transaction: &mut Transaction,
        caller: &Caller,
        path: Path<'_>,
        change: &Change<'_>,
    ) -> Result<(), Error> {
        let Self { domains, scratch, cost, .. } = self;
        let mut deltas = core::mem::take(&mut transaction.work.deltas);
        let mut ledger = Ledger::new(domains, &mut deltas, scratch);
        ledger.churn = core::mem::take(&mut transaction.work.churn);
        let answer = transaction.change(caller, path, change, &mut ledger);
        *cost = cost.saturating_add(ledger.touched);
        transaction.work.churn = ledger.churn;
        transaction.work.deltas = deltas;
        answer
    }

    /// Refuses an access to `path` that would make the log `more` bytes and the path longer, if a
    /// quota forbids it.
    pub(super) fn check_access(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        path: Path<'_>,
        more: i64,
    ) -> Result<(), Error> {
        if caller.privileged {
            return Ok(());
        }
        self.check_cost(caller, transaction, path)?;
        let domains = &mut self.domains;
        let (accessed, known) = transaction.accessed(path);
        if !known {
            let nodes = (accessed as i64).saturating_add(1);
            domains.check(caller.domid, Quota::TransactionNodes, nodes)?;
            domains.record_size(caller.domid, Quota::TransactionNodes, nodes);
        }
        let more = (path.as_bytes().len() as i64).saturating_add(more);
        domains.check_more(caller.domid, Quota::Memory, more)
    }

    /// Refuses a further request in a transaction whose log would take too long to run again.
    fn check_cost(
        &mut self,
        caller: &Caller,
        transaction: &Transaction,
        path: Path<'_>,
    ) -> Result<(), Error> {
        let domains = &mut self.domains;
        let nodes = domains.limit(caller.domid, Quota::TransactionNodes, LimitKind::Hard);
        let most = nodes.saturating_mul(COST_PER_NODE);
        let wanted = transaction.cost.saturating_add(path.cost()).saturating_add(1);
        if nodes == 0 || wanted <= most {
            return Ok(());
        }
        let accessed =
            (transaction.accessed(path).0 as i64).max(i64::from(nodes)).saturating_add(1);
        domains.check(caller.domid, Quota::TransactionNodes, accessed)
    }

    /// Runs the log of a transaction on the tree in its present state.
    pub(super) fn rerun(
        &mut self,
        transaction: &Transaction,
        caller: &Caller,
    ) -> Result<Rerun, Conflict> {
        let tree = self.tree.clone();
        self.with_ledger(|_, ledger| transaction.rerun(tree, caller, ledger))
    }

    /// Makes the outcome of a transaction the store's state, and books it. Returns the root of the
    /// former tree, to be freed.
    pub(super) fn replace(&mut self, work: &Rerun) -> Node {
        let old = core::mem::replace(&mut self.tree, work.tree.clone());
        work.deltas.book(&mut self.domains);
        old.into_root()
    }

    /// Returns the caller of the store's own operations.
    pub(super) fn own_caller(&self) -> Caller {
        self.domains.caller(self.domains.priv_domain)
    }

    /// Gives a node to the privileged domain. Returns the bytes that this has moved.
    pub(super) fn inherit(&mut self, path: Path<'_>) -> Churn {
        let (own, heir) = (self.own_caller(), self.domains.priv_domain);
        let incarnation = self.domains.incarnation(heir);
        let Some(perms) =
            self.tree.get(path).map(|node| node.perms().with_owner(heir, incarnation))
        else {
            return Churn::default();
        };
        // The privileged domain is never refused, and it is alive.
        let _ = self.change(&own, path, &Change::SetPerms(Rc::new(perms)));
        self.book()
    }

    /// Checks a path given by a caller.
    pub(super) fn path<'p>(
        &mut self,
        caller: &Caller,
        given: &'p [u8],
        special: SpecialPaths,
        scratch: &'p mut Vec<u8>,
    ) -> Result<Path<'p>, Error> {
        let path = resolve(given, caller.domid.0, special, scratch)?;
        self.add_cost(path.cost());
        if !caller.privileged {
            let len = path.counted_len() as i64;
            self.domains.check(caller.domid, Quota::PathMax, len).map_err(|_| Error::Inval)?;
            self.domains.record_size(caller.domid, Quota::PathMax, len);
        }
        Ok(path)
    }

    /// Adds to the cost of the request at hand.
    pub(super) fn add_cost(&mut self, more: u32) {
        self.cost = self.cost.saturating_add(more);
    }

    /// Charges for the bytes of a request: a request that moves many costs more than one that moves
    /// few.
    pub(super) fn charge_bytes(&mut self, bytes: usize) {
        self.add_cost(u32::try_from(bytes / 512).unwrap_or(u32::MAX));
    }

    /// Charges for background work by the number of small items touched: a fraction of a simple
    /// request for each. Returns the cost.
    pub(super) fn charge_work(&mut self, things: usize) -> u32 {
        let units = u32::try_from(things / THINGS_A_UNIT).unwrap_or(u32::MAX);
        self.add_cost(units);
        units
    }
}
