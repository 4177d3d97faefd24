//! CONTROL `check`: what is accounted for, compared with what is there.
//!
//! The nodes of a large store are looked at in slices, in a snapshot, and compared with the accounts of that moment.

use super::announcer::{Announcer, INTRODUCE, RELEASE};
use super::sessions::Sessions;
use crate::id::DomId;
use crate::quota::{Quota, Values};
use crate::tree::{Node, Traversal, Tree};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The quotas that are accounted for as things come and go.
const ACCOUNTS: [Quota; 4] = [Quota::Nodes, Quota::Memory, Quota::Watches, Quota::Transactions];

/// Of each domain, how much of each quota.
#[derive(Default)]
struct Accounts(BTreeMap<DomId, Values<i64>>);

impl Accounts {
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

/// A check that is not done yet.
pub(super) struct Check {
    tree: Tree,
    /// Charged to the domains when the check began.
    charged: Accounts,
    /// Found, so far.
    found: Accounts,
    wrong: Vec<String>,
    /// The path of the node that was looked at last; `None` before the first.
    last: Option<Vec<u8>>,
    /// The lists of children from the root to where the walk is.
    lists: Vec<List>,
}

/// A list of children, as far as it was walked.
struct List {
    /// Of the node whose children they are, relative to the root.
    path: Vec<u8>,
    /// The number of children that the node says it has, and the length of their names.
    said: (usize, usize),
    seen: (usize, usize),
    /// The name of the last.
    last: Vec<u8>,
    is_sorted: bool,
}

impl Check {
    /// A check of the store as it is now: what is not in its tree is looked at at once.
    pub(super) fn new(sessions: &Sessions, announcer: &Announcer) -> Self {
        let Sessions { content, conns, rubbish, .. } = sessions;
        let watches = &announcer.watches;
        let (mut charged, mut found, mut wrong) =
            (Accounts::default(), Accounts::default(), Vec::new());
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
        for (domid, incarnation, weight) in rubbish.charges() {
            if content.domains.incarnation(domid) == incarnation {
                found.add(domid, Quota::Memory, weight);
            }
        }
        if set != watches.len() {
            wrong.push(format!("{} watches are indexed and {set} are set", watches.len()));
        }
        Self { tree: content.tree.clone(), charged, found, wrong, last: None, lists: Vec::new() }
    }

    /// Looks at a node whose path is `path`.
    fn node(&mut self, path: &[u8], node: &Node) {
        let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let parent = path.get(..parent).unwrap_or_default();
        while self.lists.last().is_some_and(|list| list.path != parent) {
            self.close_list();
        }
        if let Some(list) = self.lists.last_mut().filter(|_| !path.is_empty()) {
            list.is_sorted &= list.seen.0 == 0 || list.last.as_slice() < node.name();
            list.seen.0 = list.seen.0.saturating_add(1);
            list.seen.1 = list.seen.1.saturating_add(node.name().len()).saturating_add(1);
            list.last.clear();
            list.last.extend_from_slice(node.name());
        }
        if let Some(dir) = node.dir() {
            self.lists.push(List {
                path: Vec::from(path),
                said: (dir.len() as usize, dir.names_len() as usize),
                seen: (0, 0),
                last: Vec::new(),
                is_sorted: true,
            });
        }
    }

    /// A list of children ends.
    fn close_list(&mut self) {
        if let Some(list) = self.lists.pop()
            && !(list.is_sorted && list.said == list.seen)
        {
            let path = String::from_utf8_lossy(&list.path);
            self.wrong.push(format!("the list of children of /{path} is not in order"));
        }
    }

    /// Looks at so many nodes; whether those were all.
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

    /// The faults, one in a line.
    pub(super) fn into_wrong(self) -> Vec<String> {
        let Self { charged, mut found, mut wrong, .. } = self;
        for (domid, charged) in &charged.0 {
            let values = found.0.remove(domid).unwrap_or_default();
            for quota in ACCOUNTS {
                let (known, found) = (charged.get(quota), values.get(quota));
                if known != found {
                    let (domid, name) = (domid.0, quota.about().name);
                    wrong.push(format!(
                        "domain {domid} has {found} of {name} and is charged for {known}"
                    ));
                }
            }
        }
        wrong.extend(found.0.keys().map(|domid| {
            format!("nodes belong to domain {}, which the store does not know", domid.0)
        }));
        wrong
    }
}
