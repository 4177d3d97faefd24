//! CONTROL `check`: compares the accounts with the contents of the store.
//!
//! The nodes of a large store are counted in slices, in a snapshot, and compared with the accounts
//! of the time of that snapshot.

use super::announcer::{Announcer, INTRODUCE, RELEASE};
use super::sessions::Sessions;
use crate::id::DomId;
use crate::quota::{Quota, Values};
use crate::tree::{Node, Traversal, Tree};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The quotas that are accounted for as resources come and go.
const ACCOUNTS: [Quota; 4] = [Quota::Nodes, Quota::Memory, Quota::Watches, Quota::Transactions];

/// The usage of each quota by each domain.
#[derive(Default)]
struct QuotaUsage(BTreeMap<DomId, Values<i64>>);

impl QuotaUsage {
    fn add(&mut self, domid: DomId, quota: Quota, more: i64) {
        let values = self.0.entry(domid).or_default();
        values.set(quota, values.get(quota).saturating_add(more));
    }

    fn add_node(&mut self, node: &Node) {
        let owner = node.perms().owner().domid;
        self.add(owner, Quota::Nodes, 1);
        self.add(owner, Quota::Memory, node.weight());
    }
}

/// A check in progress.
pub(super) struct Check {
    tree: Tree,
    /// The amounts charged to the domains when the check began.
    charged: QuotaUsage,
    /// The amounts counted so far.
    found: QuotaUsage,
    faults: Vec<String>,
    /// The path of the node that was counted last; `None` before the first.
    last: Option<Vec<u8>>,
    /// The lists of children from the root to the current node.
    lists: Vec<List>,
}

/// A list of children, as far as it was counted.
struct List {
    /// The path of the parent, relative to the root.
    path: Vec<u8>,
    /// The number of children according to the parent, and the length of their names.
    declared: (usize, usize),
    counted: (usize, usize),
    /// The name of the last child.
    last: Vec<u8>,
    is_sorted: bool,
}

impl Check {
    /// Returns a check of the store in its present state. Everything outside the tree is counted at
    /// once.
    pub(super) fn new(sessions: &Sessions, announcer: &Announcer) -> Self {
        let Sessions { content, conns, free_queue, .. } = sessions;
        let watches = &announcer.watches;
        let (mut charged, mut found, mut faults) =
            (QuotaUsage::default(), QuotaUsage::default(), Vec::new());
        for (domid, domain) in content.domains.iter() {
            for quota in ACCOUNTS {
                charged.add(domid, quota, domain.usage.now(quota));
            }
        }
        for special in [INTRODUCE, RELEASE] {
            content.tree.special(special).into_iter().for_each(|node| found.add_node(node));
        }
        let mut set = 0usize;
        for (_, conn) in conns.iter() {
            set = set.saturating_add(conn.watches.len());
            for watch in conn.watches.values().filter_map(|id| watches.get(*id)) {
                found.add(conn.domid, Quota::Watches, 1);
                found.add(conn.domid, Quota::Memory, watch.weight());
            }
            found.add(conn.domid, Quota::Memory, conn.held());
            for (_, transaction) in conn.transactions.iter() {
                found.add(conn.domid, Quota::Transactions, 1);
                found.add(conn.domid, Quota::Memory, transaction.weight());
            }
        }
        for (domid, incarnation, weight) in free_queue.charges() {
            if content.domains.incarnation(domid) == incarnation {
                found.add(domid, Quota::Memory, weight);
            }
        }
        if set != watches.len() {
            faults.push(format!("{} watches are indexed and {set} are set", watches.len()));
        }
        Self { tree: content.tree.clone(), charged, found, faults, last: None, lists: Vec::new() }
    }

    /// Counts a node whose path is `path`.
    fn node(&mut self, path: &[u8], node: &Node) {
        let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let parent = path.get(..parent).unwrap_or_default();
        while self.lists.last().is_some_and(|list| list.path != parent) {
            self.close_list();
        }
        if let Some(list) = self.lists.last_mut().filter(|_| !path.is_empty()) {
            list.is_sorted &= list.counted.0 == 0 || list.last.as_slice() < node.name();
            list.counted.0 = list.counted.0.saturating_add(1);
            list.counted.1 = list.counted.1.saturating_add(node.name().len()).saturating_add(1);
            list.last.clear();
            list.last.extend_from_slice(node.name());
        }
        if let Some(children) = node.child_list() {
            self.lists.push(List {
                path: Vec::from(path),
                declared: (children.len() as usize, children.names_len() as usize),
                counted: (0, 0),
                last: Vec::new(),
                is_sorted: true,
            });
        }
    }

    /// Checks a list of children at its end.
    fn close_list(&mut self) {
        if let Some(list) = self.lists.pop()
            && !(list.is_sorted && list.declared == list.counted)
        {
            let path = String::from_utf8_lossy(&list.path);
            self.faults.push(format!("the list of children of /{path} is not in order"));
        }
    }

    /// Counts so many nodes, and returns true if those were all.
    pub(super) fn look(&mut self, nodes: u32) -> bool {
        let tree = self.tree.clone();
        let mut walk = match &self.last {
            None => Traversal::whole(tree.root()),
            Some(last) => Traversal::after(tree.root(), last),
        };
        for _ in 0..nodes {
            let Some(node) = walk.next() else {
                while !self.lists.is_empty() {
                    self.close_list();
                }
                return true;
            };
            self.node(walk.path(), node);
            self.found.add_node(node);
        }
        self.last = Some(Vec::from(walk.path()));
        false
    }

    /// Returns the faults, one in each line.
    pub(super) fn into_faults(self) -> Vec<String> {
        let Self { charged, mut found, mut faults, .. } = self;
        for (domid, charged) in &charged.0 {
            let values = found.0.remove(domid).unwrap_or_default();
            for quota in ACCOUNTS {
                let (known, found) = (charged.get(quota), values.get(quota));
                if known != found {
                    let (domid, name) = (domid.0, quota.info().name);
                    faults.push(format!(
                        "domain {domid} has {found} of {name} and is charged for {known}"
                    ));
                }
            }
        }
        faults.extend(found.0.keys().map(|domid| {
            format!("nodes belong to domain {}, which the store does not know", domid.0)
        }));
        faults
    }
}
