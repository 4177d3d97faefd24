//! A traversal of a tree that can be continued from the point where it stopped.

use super::child_list::Iter;
use super::node::Node;
use crate::limits::DISOWN_MAX;
use alloc::vec::Vec;

impl Node {
    /// True if the subtree has more nodes than are taken off their owners' accounts at once.
    pub(crate) fn is_large(&self) -> bool {
        self.child_list().is_some() && Traversal::whole(self).nth(DISOWN_MAX).is_some()
    }
}

/// A traversal of a node and all nodes below it, parents first, children by name.
pub(crate) struct Traversal<'a> {
    root: Option<&'a Node>,
    /// The path of the last visited node, relative to the first; empty for that one.
    path: Vec<u8>,
    stack: Vec<(Iter<'a, Node>, usize)>,
}

impl<'a> Traversal<'a> {
    /// Returns a traversal from `root` on.
    pub(crate) fn whole(root: &'a Node) -> Self {
        Self { root: Some(root), path: Vec::new(), stack: Vec::new() }
    }

    /// Returns a traversal that continues after the node at `last`, which need not exist any more.
    pub(crate) fn after(root: &'a Node, last: &[u8]) -> Self {
        let mut walk = Self { root: None, path: Vec::new(), stack: Vec::new() };
        let mut node = Some(root);
        for name in last.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(children) = node.and_then(Node::child_list) else { return walk };
            walk.stack.push((children.iter_after(name), walk.path.len()));
            node = children.get(name);
            walk.enter(name);
        }
        walk.descend(node);
        walk
    }

    /// Returns the path of the last visited node.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    fn enter(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    fn descend(&mut self, node: Option<&'a Node>) {
        if let Some(children) = node.and_then(Node::child_list) {
            self.stack.push((children.iter(), self.path.len()));
        }
    }
}

impl<'a> Iterator for Traversal<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<&'a Node> {
        if let Some(root) = self.root.take() {
            self.descend(Some(root));
            return Some(root);
        }
        loop {
            let (children, len) = self.stack.last_mut()?;
            self.path.truncate(*len);
            let Some(child) = children.next() else {
                self.stack.pop();
                continue;
            };
            self.enter(child.name());
            self.descend(Some(child));
            return Some(child);
        }
    }
}
