//! One node: its name, value, permissions and children.

use super::dir::{Dir, Entry, Pieces};
use crate::churn::Churn;
use crate::limits::NODE_WEIGHT;
use crate::perms::Perms;
use crate::prefix::prefix_of;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The bytes before the name, which hold its length.
const LEN_BYTES: usize = 2;

/// A node. A clone shares everything that it contains, so a clone is a snapshot.
///
/// Name and value are in one allocation, and the first bytes of the name are kept besides the
/// pointer, so that a search in a directory seldom has to follow it. A node costs 40 bytes in its
/// directory and one allocation of 18 bytes + name + value.
#[derive(Clone)]
pub struct Node {
    prefix: u64,
    /// The length of the name (2 bytes), the name, the value.
    data: Rc<[u8]>,
    perms: Rc<Perms>,
    dir: Option<Rc<Dir<Self>>>,
}

/// Builds a node's data in one go. The `Vec` is reused, so that only the shared copy is allocated.
fn join(name: &[u8], value: &[u8], scratch: &mut Vec<u8>) -> Rc<[u8]> {
    let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
    scratch.clear();
    scratch.extend_from_slice(&len.to_ne_bytes());
    scratch.extend_from_slice(name);
    scratch.extend_from_slice(value);
    Rc::from(scratch.as_slice())
}

impl Entry for Node {
    fn name(&self) -> &[u8] {
        self.name()
    }

    fn prefix(&self) -> u64 {
        self.prefix
    }
}

impl Node {
    /// Returns a node without children.
    #[must_use]
    pub fn new(name: &[u8], value: &[u8], perms: Rc<Perms>, scratch: &mut Vec<u8>) -> Self {
        Self { prefix: prefix_of(name), data: join(name, value, scratch), perms, dir: None }
    }

    fn value_at(&self) -> usize {
        let len = self.data.first_chunk().map_or(0, |len| usize::from(u16::from_ne_bytes(*len)));
        len.saturating_add(LEN_BYTES)
    }

    /// Returns the last component of the node's path; the root's is empty.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.data.get(LEN_BYTES..self.value_at()).unwrap_or_default()
    }

    /// Returns the value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.data.get(self.value_at()..).unwrap_or_default()
    }

    /// Returns the permissions.
    #[must_use]
    pub fn perms(&self) -> &Rc<Perms> {
        &self.perms
    }

    /// Returns the children; `None` for a node that never had any.
    #[must_use]
    pub fn dir(&self) -> Option<&Rc<Dir<Self>>> {
        self.dir.as_ref()
    }

    /// Returns the children in the order of their names.
    pub fn children(&self) -> impl Iterator<Item = &Node> {
        self.dir.iter().flat_map(|dir| dir.iter())
    }

    /// Returns the node's size for the quota `node-size`: as in the C daemon, a header, the
    /// permissions, the value and the list of the children's names.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size_with(self.value().len())
    }

    /// Returns [`Node::size`] with a value of `value_len` bytes.
    #[must_use]
    pub fn size_with(&self, value_len: usize) -> u32 {
        let names = self.dir.as_ref().map_or(0, |dir| dir.names_len());
        let own = self.perms.len().saturating_mul(8).saturating_add(value_len).saturating_add(16);
        u32::try_from(own).unwrap_or(u32::MAX).saturating_add(names)
    }

    /// Returns the node's bytes for the quota `memory`: its size, its name, and the overhead.
    #[must_use]
    pub fn weight(&self) -> i64 {
        i64::from(self.size()).saturating_add(self.name().len() as i64).saturating_add(NODE_WEIGHT)
    }

    /// True if both share one value: the same bytes.
    #[must_use]
    pub fn same_value(&self, other: &Node) -> bool {
        Rc::ptr_eq(&self.data, &other.data) || self.value() == other.value()
    }

    /// True if both have the same permissions.
    #[must_use]
    pub fn same_perms(&self, other: &Node) -> bool {
        Rc::ptr_eq(&self.perms, &other.perms) || self.perms == other.perms
    }

    /// True if both have children of the same names.
    #[must_use]
    pub fn same_children(&self, other: &Node) -> bool {
        match (&self.dir, &other.dir) {
            (Some(one), Some(two)) => one.same_names(two),
            (Some(dir), None) | (None, Some(dir)) => dir.is_empty(),
            (None, None) => true,
        }
    }

    /// True if both are one snapshot, including the children.
    #[must_use]
    pub fn same(&self, other: &Node) -> bool {
        let dirs = match (&self.dir, &other.dir) {
            (Some(one), Some(two)) => Rc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        dirs && Rc::ptr_eq(&self.data, &other.data) && Rc::ptr_eq(&self.perms, &other.perms)
    }

    /// True if both subtrees have the same contents. Shared parts are not compared.
    #[must_use]
    pub fn same_subtree(&self, other: &Node) -> bool {
        let alike = |one: &Node, two: &Node| {
            one.same_value(two) && one.same_perms(two) && one.name() == two.name()
        };
        if !alike(self, other) {
            return false;
        }
        let mut stack = Vec::from([(self.dir.clone(), other.dir.clone())]);
        while let Some((one, two)) = stack.pop() {
            let (one, two) = match (one, two) {
                (Some(one), Some(two)) if Rc::ptr_eq(&one, &two) => continue,
                (Some(one), Some(two)) => (one, two),
                (None, None) => continue,
                (Some(dir), None) | (None, Some(dir)) if dir.is_empty() => continue,
                _ => return false,
            };
            if one.len() != two.len()
                || !one.iter().zip(two.iter()).all(|(one, two)| alike(one, two))
            {
                return false;
            }
            stack.extend(
                one.iter().zip(two.iter()).map(|(one, two)| (one.dir.clone(), two.dir.clone())),
            );
        }
        true
    }

    /// Replaces the value, in place if it is not shared and its length stays.
    pub(super) fn set_value(&mut self, value: &[u8], scratch: &mut Vec<u8>, churn: &mut Churn) {
        let at = self.value_at();
        match Rc::get_mut(&mut self.data).and_then(|data| data.get_mut(at..)) {
            Some(own) if own.len() == value.len() => {
                own.copy_from_slice(value);
                return;
            }
            Some(_) => {}
            None => churn.keep_value(self.data.len()),
        }
        self.data = join(self.name(), value, scratch);
    }

    /// Returns the list of children if no other node shares it.
    pub(super) fn into_pieces(self) -> Option<Pieces<Self>> {
        Rc::into_inner(self.dir?).map(Dir::into_pieces)
    }

    /// Replaces the permissions.
    pub fn set_perms(&mut self, perms: Rc<Perms>) {
        self.perms = perms;
    }

    /// Returns the children for a change. They are copied first if a snapshot shares them.
    pub(super) fn dir_mut(&mut self, churn: &mut Churn) -> Option<&mut Dir<Self>> {
        self.dir.as_mut().map(|dir| churn.own(dir))
    }

    /// Does the same as [`Node::dir_mut`], for a node that may have no children yet.
    pub(super) fn dir_or_new(&mut self, churn: &mut Churn) -> &mut Dir<Self> {
        churn.own(self.dir.get_or_insert_with(|| Rc::new(Dir::new())))
    }
}
