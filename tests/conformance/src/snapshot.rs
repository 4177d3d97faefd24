//! The whole store, saved before a test and restored after it, if a daemon serves others than the
//! test and cannot be restarted.

use crate::notation;
use crate::peer::Peer;
use std::collections::BTreeMap;

/// A node: its value and its permissions.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    value: String,
    perms: String,
}

/// The nodes of a store and the permissions of the special watches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreSnapshot {
    nodes: BTreeMap<String, Node>,
    special: BTreeMap<&'static str, String>,
}

impl StoreSnapshot {
    /// Reads the store as domain 0 sees it.
    ///
    /// # Panics
    /// If the daemon does not answer.
    pub fn take(dom0: &mut Peer) -> Self {
        let mut snapshot = Self::default();
        for path in ["@introduceDomain", "@releaseDomain"] {
            // A daemon that does not report them has domain 0's alone.
            let perms = dom0.ask("GET_PERMS", format!("{path}|"));
            let perms = if perms.ends_with('|') { perms } else { "n0|".to_owned() };
            snapshot.special.insert(path, perms);
        }
        let mut left = vec!["/".to_owned()];
        while !left.is_empty() {
            let found = look(dom0, &left);
            let paths = std::mem::take(&mut left);
            for (path, (node, names)) in paths.into_iter().zip(found) {
                left.extend(names.iter().map(|name| below(&path, name)));
                snapshot.nodes.insert(path, node);
            }
        }
        snapshot
    }

    /// Restores this state of the store; returns its nodes that were missing or changed.
    ///
    /// # Panics
    /// If the daemon refuses.
    pub fn restore(&self, dom0: &mut Peer) -> Vec<String> {
        let mut changed = Vec::new();
        for (path, perms) in &self.special {
            dom0.expect_ok("SET_PERMS", format!("{path}|{perms}"));
        }
        let paths: Vec<String> = self.nodes.keys().cloned().collect();
        let found = look(dom0, &paths);
        for ((path, before), (now, names)) in self.nodes.iter().zip(found) {
            if now.value != before.value {
                dom0.expect_ok("WRITE", format!("{path}|{}", before.value));
            }
            if now.perms != before.perms {
                dom0.expect_ok("SET_PERMS", format!("{path}|{}", before.perms));
            }
            if now != *before {
                changed.push(path.clone());
            }
            for name in names {
                let child = below(path, &name);
                if !self.nodes.contains_key(&child) {
                    dom0.expect_ok("RM", format!("{child}|"));
                }
            }
        }
        changed
    }
}

/// Returns the node at each of these paths, and the names of its children, in the notation. The
/// requests are sent together: on an emulated machine, a change of the running domain costs more
/// than the answers.
fn look(dom0: &mut Peer, paths: &[String]) -> Vec<(Node, Vec<String>)> {
    let kinds = ["READ", "GET_PERMS", "DIRECTORY"];
    let requests: Vec<(&str, String)> =
        paths.iter().flat_map(|path| kinds.map(|kind| (kind, format!("{path}|")))).collect();
    let answers = dom0.ask_all(&requests);
    let of_paths = answers.chunks_exact(kinds.len());
    of_paths
        .map(|of| (Node { value: of[0].clone(), perms: of[1].clone() }, names(&of[2])))
        .collect()
}

fn below(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// Returns the names in the answer to a DIRECTORY; none in an error.
fn names(list: &str) -> Vec<String> {
    let Ok(bytes) = notation::parse(list) else { return vec![] };
    // Names are text without special characters; an error's name does not end with a NUL.
    bytes
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| name.strip_suffix(&[0]))
        .map(notation::show)
        .collect()
}
