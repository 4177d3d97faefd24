//! A traversal of a tree that can be taken up again where it stopped.

use super::dir::Iter;
use super::node::Node;
use crate::limits::DISOWN_MAX;
use alloc::vec::Vec;

impl Node {
    /// True where there are more nodes, from this one down, than are taken off their owners' accounts at once.
    pub(crate) fn is_large(&self) -> bool {
        self.dir().is_some() && Traversal::whole(self).nth(DISOWN_MAX).is_some()
    }
}

/// Visits a node and all below it, parents first, children by name.
pub(crate) struct Traversal<'a> {
    root: Option<&'a Node>,
    /// The path of the node that was visited last, relative to the first; empty for that one.
    path: Vec<u8>,
    stack: Vec<(Iter<'a, Node>, usize)>,
}

impl<'a> Traversal<'a> {
    /// From `root` on.
    pub(crate) fn whole(root: &'a Node) -> Self {
        Self { root: Some(root), path: Vec::new(), stack: Vec::new() }
    }

    /// From behind the node at `last` on, whether that is still there or not.
    pub(crate) fn after(root: &'a Node, last: &[u8]) -> Self {
        let mut walk = Self { root: None, path: Vec::new(), stack: Vec::new() };
        let mut node = Some(root);
        for name in last.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(dir) = node.and_then(Node::dir) else { return walk };
            walk.stack.push((dir.iter_after(name), walk.path.len()));
            node = dir.get(name);
            walk.enter(name);
        }
        walk.descend(node);
        walk
    }

    /// The path of the node that was visited last.
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
        if let Some(dir) = node.and_then(Node::dir) {
            self.stack.push((dir.iter(), self.path.len()));
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
