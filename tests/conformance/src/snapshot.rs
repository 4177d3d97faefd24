//! The whole store, kept before a test and put back after it, where a daemon serves more than the
//! test and cannot begin anew.

use crate::notation;
use crate::peer::Peer;
use std::collections::BTreeMap;

/// A node: its value, its permissions.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    value: String,
    perms: String,
}

/// The nodes of a store and the permissions of the special watches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, Node>,
    special: BTreeMap<&'static str, String>,
}

impl Snapshot {
    /// The store as domain 0 sees it.
    ///
    /// # Panics
    /// If the daemon does not answer.
    pub fn take(dom0: &mut Peer) -> Self {
        let mut snapshot = Self::default();
        for path in ["@introduceDomain", "@releaseDomain"] {
            // A daemon that does not tell has domain 0's alone.
            let perms = dom0.ask("GET_PERMS", format!("{path}|"));
            let perms = if perms.ends_with('|') { perms } else { "n0|".to_owned() };
            snapshot.special.insert(path, perms);
        }
        let mut left = vec!["/".to_owned()];
        while let Some(path) = left.pop() {
            left.extend(children(dom0, &path).into_iter().map(|name| below(&path, &name)));
            let node = node(dom0, &path);
            snapshot.nodes.insert(path, node);
        }
        snapshot
    }

    /// Puts the store back into this state; gives the nodes of it that were missing or changed.
    ///
    /// # Panics
    /// If the daemon refuses.
    pub fn restore(&self, dom0: &mut Peer) -> Vec<String> {
        let mut changed = Vec::new();
        for (path, perms) in &self.special {
            dom0.expect_ok("SET_PERMS", format!("{path}|{perms}"));
        }
        for (path, node_before) in &self.nodes {
            let now = node(dom0, path);
            if now.value != node_before.value {
                dom0.expect_ok("WRITE", format!("{path}|{}", node_before.value));
            }
            if now.perms != node_before.perms {
                dom0.expect_ok("SET_PERMS", format!("{path}|{}", node_before.perms));
            }
            if now != *node_before {
                changed.push(path.clone());
            }
            for name in children(dom0, path) {
                let child = below(path, &name);
                if !self.nodes.contains_key(&child) {
                    dom0.expect_ok("RM", format!("{child}|"));
                }
            }
        }
        changed
    }
}

fn node(dom0: &mut Peer, path: &str) -> Node {
    Node {
        value: dom0.ask("READ", format!("{path}|")),
        perms: dom0.ask("GET_PERMS", format!("{path}|")),
    }
}

fn below(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// The names below a node, in the notation.
fn children(dom0: &mut Peer, path: &str) -> Vec<String> {
    let list = dom0.ask("DIRECTORY", format!("{path}|"));
    let Ok(bytes) = notation::parse(&list) else { return vec![] };
    // Names are text without special characters; an error's name does not end with a NUL.
    bytes
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| name.strip_suffix(&[0]))
        .map(notation::show)
        .collect()
}
