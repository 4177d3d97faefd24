//! CONTROL `check`: what is accounted for, compared with what is there.

use super::event::{INTRODUCE, RELEASE};
use super::{DomId, Notice, Server};
use crate::path::Path;
use crate::quota::{Quota, Values};
use crate::tree::{Go, Node};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What is accounted for as it comes and goes.
const ACCOUNTS: [Quota; 4] = [Quota::Nodes, Quota::Memory, Quota::Watches, Quota::Transactions];

/// What each domain was found to have.
#[derive(Default)]
struct Found(BTreeMap<DomId, Values<i64>>);

impl Found {
    fn add(&mut self, domid: DomId, quota: Quota, more: i64) {
        let values = self.0.entry(domid).or_default();
        values.set(quota, values.get(quota).saturating_add(more));
    }

    fn node(&mut self, node: &Node) {
        let owner = node.perms().owner().domid;
        self.add(owner, Quota::Nodes, 1);
        self.add(owner, Quota::Memory, node.weight());
    }
}

impl Server {
    /// Compares what is accounted for with what is there. Differences are logged.
    pub(super) fn check_store(&mut self) {
        let (mut found, mut wrong) = (Found::default(), Vec::new());
        self.tree.visit(Path::ROOT, |path, node| {
            found.node(node);
            if !is_in_order(node) {
                let path = String::from_utf8_lossy(path);
                wrong.push(format!("the list of children of {path} is not in order"));
            }
            Go::On
        });
        for special in [INTRODUCE, RELEASE] {
            self.tree.special(special).into_iter().for_each(|node| found.node(node));
        }
        let mut set = 0usize;
        for conn in self.conns.iter().flatten() {
            set = set.saturating_add(conn.watches.len());
            for watch in conn.watches.values().filter_map(|id| self.watches.get(*id)) {
                found.add(conn.domid, Quota::Watches, 1);
                found.add(conn.domid, Quota::Memory, watch.weight());
            }
            found.add(conn.domid, Quota::Memory, conn.held());
            for (_, transaction) in conn.transactions.iter() {
                found.add(conn.domid, Quota::Transactions, 1);
                found.add(conn.domid, Quota::Memory, transaction.weight());
            }
        }
        if set != self.watches.len() {
            wrong.push(format!("{} watches are indexed and {set} are set", self.watches.len()));
        }
        for (domid, domain) in self.domains.iter() {
            let values = found.0.remove(&domid).unwrap_or_default();
            for quota in ACCOUNTS {
                let (known, found) = (domain.usage.now(quota), values.get(quota));
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
        if wrong.is_empty() {
            self.domains.notice(Notice::Info(String::from("check: the store is in order")));
        }
        for what in wrong {
            let text = format!("check: {what}; please report this");
            self.domains.notice(Notice::Warn { domid: None, text });
        }
    }
}

/// Whether the children of a node are sorted, and as many and as long as the node has noted.
fn is_in_order(node: &Node) -> bool {
    let names: Vec<&[u8]> = node.children().map(Node::name).collect();
    let len = names.iter().map(|name| name.len().saturating_add(1)).fold(0, usize::saturating_add);
    let known = node.dir().map_or((0, 0), |dir| (dir.len() as usize, dir.names_len() as usize));
    names.is_sorted_by(|one, two| one < two) && known == (names.len(), len)
}
