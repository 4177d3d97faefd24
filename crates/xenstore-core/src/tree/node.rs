//! One node: its name, value, permissions and children.

use super::child_list::{ChildEntry, ChildList, Pieces};
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
    children: Option<Rc<ChildList<Self>>>,
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

impl ChildEntry for Node {
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
        Self { prefix: prefix_of(name), data: join(name, value, scratch), perms, children: None }
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
    pub fn child_list(&self) -> Option<&Rc<ChildList<Self>>> {
        self.children.as_ref()
    }

    /// Returns the children in the order of their names.
    pub fn children(&self) -> impl Iterator<Item = &Node> {
        self.children.iter().flat_map(|children| children.iter())
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
        let names = self.children.as_ref().map_or(0, |children| children.names_len());
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
        match (&self.children, &other.children) {
            (Some(one), Some(two)) => one.same_names(two),
            (Some(children), None) | (None, Some(children)) => children.is_empty(),
            (None, None) => true,
        }
    }

    /// True if both are one snapshot, including the children.
    #[must_use]
    pub fn same(&self, other: &Node) -> bool {
        let dirs = match (&self.children, &other.children) {
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
        let mut stack = Vec::from([(self.children.clone(), other.children.clone())]);
        while let Some((one, two)) = stack.pop() {
            let (one, two) = match (one, two) {
                (Some(one), Some(two)) if Rc::ptr_eq(&one, &two) => continue,
                (Some(one), Some(two)) => (one, two),
                (None, None) => continue,
                (Some(children), None) | (None, Some(children)) if children.is_empty() => continue,
                _ => return false,
            };
            if one.len() != two.len()
                || !one.iter().zip(two.iter()).all(|(one, two)| alike(one, two))
            {
                return false;
            }
            stack.extend(
                one.iter()
                    .zip(two.iter())
                    .map(|(one, two)| (one.children.clone(), two.children.clone())),
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
        Rc::into_inner(self.children?).map(ChildList::into_pieces)
    }

    /// Replaces the permissions.
    pub fn set_perms(&mut self, perms: Rc<Perms>) {
        self.perms = perms;
    }

    /// Returns the children for a change. They are copied first if a snapshot shares them.
    pub(super) fn children_mut(&mut self, churn: &mut Churn) -> Option<&mut ChildList<Self>> {
        self.children.as_mut().map(|children| churn.make_owned(children))
    }

    /// Does the same as [`Node::children_mut`], for a node that may have no children yet.
    pub(super) fn children_or_new(&mut self, churn: &mut Churn) -> &mut ChildList<Self> {
        churn.make_owned(self.children.get_or_insert_with(|| Rc::new(ChildList::new())))
    }
}
