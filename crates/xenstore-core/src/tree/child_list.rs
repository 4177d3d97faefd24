//! The children of a node: a persistent B-tree, sorted by name.
//!
//! Blocks are shared between snapshots. A change copies the blocks on the path to it if a snapshot
//! shares them, and changes them in place otherwise. Therefore it costs O(log n) whatever the size,
//! and nothing is allocated if nothing is shared.

use crate::churn::{Churn, CopyOnWrite};
use crate::prefix::{is_whole, prefix_of};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Ordering;

/// The most entries of a block.
const BLOCK_MAX: usize = 32;
/// The most entries that are searched one by one; more are halved. The processor predicts the
/// branches of the linear search.
const SCAN_MAX: usize = 8;
/// The fewest entries of a block. A block with fewer is joined with a neighbour if both fit into
/// one.
const BLOCK_MIN: usize = 8;

/// An entry of a list of children.
pub trait ChildEntry: Clone {
    /// Returns its name, by which the list is sorted.
    fn name(&self) -> &[u8];

    /// Returns the first bytes of the name as a number, for searching.
    fn prefix(&self) -> u64;
}

/// The children of one node.
#[derive(Clone)]
pub struct ChildList<N> {
    generation: u64,
    /// The sum of the digests of all names.
    digest: u64,
    len: u32,
    names_len: u32,
    top: ChildBlock<N>,
}

#[derive(Clone)]
enum ChildBlock<N> {
    Leaf(Vec<N>),
    Inner(Vec<Branch<N>>),
}

/// The generation and digest that a change of a list of children leaves in it.
#[derive(Clone, Copy)]
pub(crate) struct ListChange {
    /// The list's new generation.
    pub(crate) generation: u64,
    /// The digest of the name that is added or removed.
    pub(crate) digest: u64,
}

impl<N: ChildEntry> CopyOnWrite for ChildBlock<N> {
    fn entries_size(&self) -> usize {
        match self {
            Self::Leaf(nodes) => size_of_val(nodes.as_slice()),
            Self::Inner(branches) => size_of_val(branches.as_slice()),
        }
    }
}

impl<N: ChildEntry> CopyOnWrite for ChildList<N> {
    fn entries_size(&self) -> usize {
        self.top.entries_size()
    }
}

/// A block of a list of children that is not needed any more.
pub(super) struct Pieces<N>(ChildBlock<N>);

impl<N: ChildEntry> Pieces<N> {
    /// Frees its nodes; `below` returns the children of each. Parts that others share stay. Returns
    /// the number of nodes.
    pub(super) fn take_apart(
        self,
        pieces: &mut Vec<Self>,
        below: impl Fn(N) -> Option<Self>,
    ) -> u32 {
        match self.0 {
            ChildBlock::Leaf(children) => {
                let nodes = children.len();
                pieces.extend(children.into_iter().filter_map(below));
                u32::try_from(nodes).unwrap_or(u32::MAX)
            }
            ChildBlock::Inner(branches) => {
                let own = branches.into_iter().filter_map(|branch| Rc::into_inner(branch.block));
                pieces.extend(own.map(Self));
                0
            }
        }
    }
}

/// A block below an inner one. Nothing in it sorts before `bound`. The first branch's bound counts
/// as lower than everything.
#[derive(Clone)]
struct Branch<N> {
    prefix: u64,
    bound: Rc<[u8]>,
    block: Rc<ChildBlock<N>>,
    /// The length of the list of all its names, as DIRECTORY returns it.
    names_len: u32,
}

/// A name to search, with its first bytes as a number.
#[derive(Clone, Copy)]
struct Key<'a> {
    prefix: u64,
    name: &'a [u8],
}

impl<'a> Key<'a> {
    fn new(name: &'a [u8]) -> Self {
        Self { prefix: prefix_of(name), name }
    }

    /// Returns the order of an entry with this prefix and name relative to the key. Most names are
    /// short. Their entry's name is not read then, as it is in separate memory.
    fn order<'n>(self, prefix: u64, name: impl FnOnce() -> &'n [u8]) -> Ordering {
        prefix.cmp(&self.prefix).then_with(|| match is_whole(prefix) {
            true => Ordering::Equal,
            false => name().cmp(self.name),
        })
    }
}

fn find_leaf<N: ChildEntry>(nodes: &[N], key: Key<'_>) -> Result<usize, usize> {
    if nodes.len() > SCAN_MAX {
        return nodes.binary_search_by(|node| key.order(node.prefix(), || node.name()));
    }
    for (at, node) in nodes.iter().enumerate() {
        match key.order(node.prefix(), || node.name()) {
            Ordering::Less => {}
            Ordering::Equal => return Ok(at),
            Ordering::Greater => return Err(at),
        }
    }
    Err(nodes.len())
}

/// Returns the branch that contains `key`, if any does.
fn find_branch<N>(branches: &[Branch<N>], key: Key<'_>) -> usize {
    let above = branches
        .partition_point(|branch| key.order(branch.prefix, || &branch.bound) != Ordering::Greater);
    above.saturating_sub(1)
}

/// Makes room in small steps: most directories stay small, and doubling would waste half of them.
fn make_room<T>(items: &mut Vec<T>) {
    if items.len() == items.capacity() {
        let step = match items.len() {
            0..=3 => 1,
            4..=7 => 2,
            8..=15 => 4,
            _ => 8,
        };
        items.reserve_exact(step);
    }
}

impl<N: ChildEntry> ChildBlock<N> {
    fn get(&self, key: Key<'_>) -> Option<&N> {
        let mut block = self;
        loop {
            match block {
                Self::Leaf(nodes) => return nodes.get(find_leaf(nodes, key).ok()?),
                Self::Inner(branches) => block = &branches.get(find_branch(branches, key))?.block,
            }
        }
    }

    fn get_mut(&mut self, key: Key<'_>, churn: &mut Churn) -> Option<&mut N> {
        let mut block = self;
        loop {
            match block {
                Self::Leaf(nodes) => {
                    let at = find_leaf(nodes, key).ok()?;
                    return nodes.get_mut(at);
                }
                Self::Inner(branches) => {
                    let at = find_branch(branches, key);
                    block = churn.make_owned(&mut branches.get_mut(at)?.block);
                }
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(nodes) => nodes.len(),
            Self::Inner(branches) => branches.len(),
        }
    }

    /// Returns the smallest name below.
    fn first_name(&self) -> Option<&[u8]> {
        match self {
            Self::Leaf(nodes) => nodes.first().map(ChildEntry::name),
            Self::Inner(branches) => branches.first()?.block.first_name(),
        }
    }

    /// Returns the length of the list of all names below.
    fn names_len(&self) -> u32 {
        match self {
            Self::Leaf(nodes) => nodes.iter().map(listed_len).fold(0, u32::saturating_add),
            Self::Inner(branches) => {
                branches.iter().map(|branch| branch.names_len).fold(0, u32::saturating_add)
            }
        }
    }

    /// Adds `node`, whose name must be new. Returns the upper part if the block had to be split.
    fn insert(&mut self, node: N, churn: &mut Churn) -> Option<Branch<N>> {
        match self {
            Self::Leaf(nodes) => {
                let at = find_leaf(nodes, Key::new(node.name())).unwrap_or_else(|at| at);
                split_insert(nodes, at, node).map(|upper| Branch::over(Self::Leaf(upper)))
            }
            Self::Inner(branches) => {
                let at = find_branch(branches, Key::new(node.name()));
                let branch = branches.get_mut(at)?;
                branch.names_len = branch.names_len.saturating_add(listed_len(&node));
                let upper = churn.make_owned(&mut branch.block).insert(node, churn)?;
                branch.names_len = branch.names_len.saturating_sub(upper.names_len);
                split_insert(branches, at.saturating_add(1), upper)
                    .map(|upper| Branch::over(Self::Inner(upper)))
            }
        }
    }

    fn remove(&mut self, key: Key<'_>, churn: &mut Churn) -> Option<N> {
        match self {
            Self::Leaf(nodes) => {
                let at = find_leaf(nodes, key).ok()?;
                let node = nodes.remove(at);
                if nodes.capacity() > nodes.len().saturating_mul(2).saturating_add(2) {
                    nodes.shrink_to_fit();
                }
                Some(node)
            }
            Self::Inner(branches) => {
                let at = find_branch(branches, key);
                let branch = branches.get_mut(at)?;
                let node = churn.make_owned(&mut branch.block).remove(key, churn)?;
                branch.names_len = branch.names_len.saturating_sub(listed_len(&node));
                let left = branch.block.len();
                if left < BLOCK_MIN {
                    join_with_neighbour(branches, at, churn);
                }
                Some(node)
            }
        }
    }
}

impl<N: ChildEntry> Branch<N> {
    fn over(block: ChildBlock<N>) -> Self {
        let bound: Rc<[u8]> = Rc::from(block.first_name().unwrap_or_default());
        let names_len = block.names_len();
        Self { prefix: prefix_of(&bound), bound, block: Rc::new(block), names_len }
    }
}

/// Inserts at `at`. Returns the upper part if the block was full. A block that grows at its end is
/// left full, so that names that arrive in order fill their blocks.
fn split_insert<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < BLOCK_MAX {
        make_room(items);
        items.insert(at.min(items.len()), item);
        return None;
    }
    if at >= items.len() {
        return Some(Vec::from([item]));
    }
    let half = BLOCK_MAX / 2;
    let mut upper = items.split_off(half);
    if at <= half {
        items.insert(at, item);
    } else {
        make_room(&mut upper);
        upper.insert(at.saturating_sub(half), item);
    }
    items.shrink_to_fit();
    Some(upper)
}

/// Joins the branch at `at`, which has become small, with a neighbour if both fit into one block
/// with room to spare.
fn join_with_neighbour<N: ChildEntry>(branches: &mut Vec<Branch<N>>, at: usize, churn: &mut Churn) {
    let len = |at: usize| branches.get(at).map(|branch| branch.block.len());
    let Some(own) = len(at) else { return };
    if own == 0 && branches.len() > 1 {
        branches.remove(at);
        return;
    }
    let fits = |other: usize| {
        len(other)
            .is_some_and(|other| own.saturating_add(other) <= BLOCK_MAX.saturating_sub(BLOCK_MIN))
    };
    let left = match at.checked_sub(1) {
        Some(left) if fits(left) => left,
        _ if fits(at.saturating_add(1)) => at,
        _ => return,
    };
    let upper = branches.remove(left.saturating_add(1));
    let Some(lower) = branches.get_mut(left) else { return };
    lower.names_len = lower.names_len.saturating_add(upper.names_len);
    match (churn.make_owned(&mut lower.block), churn.take(upper.block)) {
        (ChildBlock::Leaf(nodes), ChildBlock::Leaf(more)) => nodes.extend(more),
        (ChildBlock::Inner(inner), ChildBlock::Inner(more)) => inner.extend(more),
        // All blocks of one level are of one kind.
        _ => {}
    }
}

impl<N: ChildEntry> ChildList<N> {
    /// Returns an empty list of children.
    #[must_use]
    pub fn new() -> Self {
        Self { generation: 0, digest: 0, len: 0, names_len: 0, top: ChildBlock::Leaf(Vec::new()) }
    }

    /// Returns the number of children.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True if there are no children.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the length in bytes of the list of names that DIRECTORY returns, NULs included.
    #[must_use]
    pub fn names_len(&self) -> u32 {
        self.names_len
    }

    /// Returns a number that changes whenever a child is added or removed. No two states of the
    /// store share one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// True if the children of both have the same names.
    pub(super) fn same_names(&self, other: &ChildList<N>) -> bool {
        (self.len, self.digest) == (other.len, other.digest)
    }

    /// Returns the digest of the names of all children.
    pub(crate) fn names_digest(&self) -> u64 {
        self.digest
    }

    /// Returns the child of this name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&N> {
        self.top.get(Key::new(name))
    }

    /// Returns the child of this name for a change. Its name must stay.
    pub(super) fn get_mut(&mut self, name: &[u8], churn: &mut Churn) -> Option<&mut N> {
        self.top.get_mut(Key::new(name), churn)
    }

    /// Adds a child whose name must be new.
    pub(super) fn insert(&mut self, node: N, change: ListChange, churn: &mut Churn) {
        self.generation = change.generation;
        self.digest = self.digest.wrapping_add(change.digest);
        self.len = self.len.saturating_add(1);
        self.names_len = self.names_len.saturating_add(listed_len(&node));
        if let Some(upper) = self.top.insert(node, churn) {
            let lower = core::mem::replace(&mut self.top, ChildBlock::Leaf(Vec::new()));
            self.top = ChildBlock::Inner(Vec::from([Branch::over(lower), upper]));
        }
    }

    /// Removes a child.
    pub(super) fn remove(
        &mut self,
        name: &[u8],
        change: ListChange,
        churn: &mut Churn,
    ) -> Option<N> {
        let node = self.top.remove(Key::new(name), churn)?;
        self.generation = change.generation;
        self.digest = self.digest.wrapping_sub(change.digest);
        self.len = self.len.saturating_sub(1);
        self.names_len = self.names_len.saturating_sub(listed_len(&node));
        while let ChildBlock::Inner(branches) = &mut self.top
            && branches.len() == 1
            && let Some(only) = branches.pop()
        {
            self.top = churn.take(only.block);
        }
        Some(node)
    }

    /// Returns its blocks.
    pub(super) fn into_pieces(self) -> Pieces<N> {
        Pieces(self.top)
    }

    /// Returns the children in the order of their names.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, N> {
        let mut iter = Iter { stack: Vec::new() };
        iter.descend(&self.top);
        iter
    }

    /// Returns the children that sort after `name`, which need not exist.
    #[must_use]
    pub fn iter_after<'a>(&'a self, name: &[u8]) -> Iter<'a, N> {
        let mut iter = Iter { stack: Vec::new() };
        let mut block = &self.top;
        loop {
            match block {
                ChildBlock::Leaf(nodes) => {
                    let from = nodes.partition_point(|node| node.name() <= name);
                    iter.stack.push(BlockIter::Nodes(nodes.get(from..).unwrap_or_default().iter()));
                    return iter;
                }
                ChildBlock::Inner(branches) => {
                    let at =
                        branches.partition_point(|branch| *branch.bound <= *name).saturating_sub(1);
                    let Some((branch, rest)) = branches.get(at..).and_then(<[_]>::split_first)
                    else {
                        return iter;
                    };
                    iter.stack.push(BlockIter::Branches(rest.iter()));
                    block = &branch.block;
                }
            }
        }
    }

    /// Returns the children whose names begin at or after `offset` in the list of names that
    /// DIRECTORY returns.
    #[must_use]
    pub fn iter_from(&self, offset: usize) -> Iter<'_, N> {
        self.seek(offset).0
    }

    /// Returns the children of [`ChildList::iter_from`], and the number of entries that it had to read.
    fn seek(&self, offset: usize) -> (Iter<'_, N>, usize) {
        let mut iter = Iter { stack: Vec::new() };
        let (mut left, mut looked) = (offset, 0usize);
        let mut block = &self.top;
        loop {
            match block {
                ChildBlock::Leaf(nodes) => {
                    let before = |node: &&N| {
                        let before = left > 0;
                        left = left.saturating_sub(listed_len(*node) as usize);
                        before
                    };
                    let passed = nodes.iter().take_while(before).count();
                    let rest = nodes.get(passed..).unwrap_or_default();
                    iter.stack.push(BlockIter::Nodes(rest.iter()));
                    return (iter, looked.saturating_add(passed));
                }
                ChildBlock::Inner(branches) => {
                    let before = |branch: &&Branch<N>| {
                        let rest = left.checked_sub(branch.names_len as usize);
                        left = rest.unwrap_or(left);
                        rest.is_some()
                    };
                    let passed = branches.iter().take_while(before).count();
                    looked = looked.saturating_add(passed);
                    let rest = branches.get(passed..).and_then(<[_]>::split_first);
                    let Some((branch, rest)) = rest else { return (iter, looked) };
                    iter.stack.push(BlockIter::Branches(rest.iter()));
                    block = &branch.block;
                }
            }
        }
    }
}

impl<N: ChildEntry> Default for ChildList<N> {
    fn default() -> Self {
        Self::new()
    }
}

fn listed_len<N: ChildEntry>(node: &N) -> u32 {
    u32::try_from(node.name().len()).unwrap_or(u32::MAX).saturating_add(1)
}

/// An iterator over the remaining entries of one block.
enum BlockIter<'a, N> {
    Nodes(core::slice::Iter<'a, N>),
    Branches(core::slice::Iter<'a, Branch<N>>),
}

/// An iterator over children in the order of their names.
pub struct Iter<'a, N> {
    stack: Vec<BlockIter<'a, N>>,
}

impl<'a, N> Iter<'a, N> {
    fn descend(&mut self, block: &'a ChildBlock<N>) {
        self.stack.push(match block {
            ChildBlock::Leaf(nodes) => BlockIter::Nodes(nodes.iter()),
            ChildBlock::Inner(branches) => BlockIter::Branches(branches.iter()),
        });
    }
}

impl<'a, N> Iterator for Iter<'a, N> {
    type Item = &'a N;

    fn next(&mut self) -> Option<&'a N> {
        loop {
            match self.stack.last_mut()? {
                BlockIter::Nodes(nodes) => match nodes.next() {
                    Some(node) => return Some(node),
                    None => drop(self.stack.pop()),
                },
                BlockIter::Branches(branches) => match branches.next() {
                    Some(branch) => self.descend(&branch.block),
                    None => drop(self.stack.pop()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Secret;
    use crate::id::DomId;
    use crate::perms::{AccessRights, Incarnation, Perm, Perms};
    use crate::tree::Node;
    use std::collections::BTreeSet;
    use std::format;
    use std::string::String;

    fn node(name: &str) -> Node {
        let owner =
            Perm { domid: DomId(0), access: AccessRights::NONE, incarnation: Incarnation(1) };
        Node::new(name.as_bytes(), b"", Rc::new(Perms::owned(owner)), &mut Vec::new())
    }

    fn change(name: &str, generation: u64) -> ListChange {
        ListChange { generation, digest: Secret::default().bytes(name.as_bytes()) }
    }

    fn put(children: &mut ChildList<Node>, name: &str, generation: u64) {
        children.insert(node(name), change(name, generation), &mut Churn::default());
    }

    fn take(children: &mut ChildList<Node>, name: &str, generation: u64) -> Option<Node> {
        children.remove(name.as_bytes(), change(name, generation), &mut Churn::default())
    }

    fn names(children: &ChildList<Node>) -> Vec<String> {
        children.iter().map(|node| String::from_utf8(node.name().to_vec()).unwrap()).collect()
    }

    /// Returns pseudo-random numbers, the same every time.
    fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        }
    }

    #[test]
    fn behaves_as_a_sorted_set() {
        for seed in 0..20 {
            let mut random = numbers(seed);
            let (mut children, mut model) = (ChildList::new(), BTreeSet::new());
            let mut snapshots = Vec::new();
            for step in 0..3000 {
                // Some names share their first eight bytes, and some do not.
                let name = match random(3) {
                    0 => format!("{}", random(400)),
                    _ => format!("long-prefix-{}", random(400)),
                };
                let grow = (step / 1000) % 2 == 0;
                if !model.contains(&name) && (grow || random(3) == 0) {
                    put(&mut children, &name, step);
                    model.insert(name);
                } else if model.contains(&name) && (!grow || random(3) == 0) {
                    assert_eq!(take(&mut children, &name, step).unwrap().name(), name.as_bytes());
                    model.remove(&name);
                } else {
                    assert_eq!(children.get(name.as_bytes()).is_some(), model.contains(&name));
                }
                if step % 250 == 0 {
                    snapshots.push((children.clone(), model.clone()));
                }
            }
            snapshots.push((children, model));
            for (children, model) in snapshots {
                assert_eq!(names(&children), model.iter().cloned().collect::<Vec<_>>());
                assert_eq!(children.len() as usize, model.len());
                assert_eq!(
                    children.names_len() as usize,
                    model.iter().map(|name| name.len() + 1).sum()
                );
                let mut again = ChildList::new();
                model.iter().for_each(|name| put(&mut again, name, 0));
                assert!(children.same_names(&again));
                put(&mut again, "another", 0);
                assert!(!children.same_names(&again));
                for from in ["", "2", "long-prefix-2", "long-prefix-25x", "zz"] {
                    let after = model.iter().filter(|name| name.as_str() > from).count();
                    assert_eq!(children.iter_after(from.as_bytes()).count(), after);
                }
                for offset in (0..=children.names_len() as usize + 1).step_by(13) {
                    let mut start = 0;
                    let from = model.iter().skip_while(|name| {
                        let before = start < offset;
                        start += name.len() + 1;
                        before
                    });
                    let found = children.iter_from(offset).map(Node::name);
                    assert!(found.eq(from.map(String::as_bytes)), "from {offset}");
                }
            }
        }
    }

    /// A part of a long list costs no more if it is further down the list.
    #[test]
    fn a_part_of_the_list_is_found_without_passing_what_is_before_it() {
        let mut children = ChildList::new();
        for at in 0..100_000u64 {
            put(&mut children, &format!("{:05}", at * 7919 % 100_000), at);
        }
        for at in (0..100_000).step_by(997) {
            let (mut iter, looked) = children.seek(at * 6);
            assert_eq!(iter.next().unwrap().name(), format!("{at:05}").as_bytes());
            // The tree is four blocks deep.
            assert!(looked <= 4 * BLOCK_MAX, "{looked} entries looked at for the one at {at}");
        }
        assert!(children.seek(600_000).0.next().is_none());
    }

    #[test]
    fn names_in_order_fill_their_blocks() {
        let mut children = ChildList::new();
        for at in 0..3200u64 {
            put(&mut children, &format!("{at:05}"), at);
        }
        let ChildBlock::Inner(branches) = &children.top else {
            panic!("one block for 3200 children")
        };
        fn leaves(branches: &[Branch<Node>]) -> usize {
            let below = |branch: &Branch<Node>| match &*branch.block {
                ChildBlock::Leaf(_) => 1,
                ChildBlock::Inner(branches) => leaves(branches),
            };
            branches.iter().map(below).sum()
        }
        assert_eq!(leaves(branches), 100);
    }

    #[test]
    fn emptied_directories_give_their_memory_back() {
        let mut children = ChildList::new();
        for at in 0..10_000u64 {
            put(&mut children, &format!("{at:05}"), at);
        }
        for at in 0..10_000u64 {
            if at % 100 != 0 {
                take(&mut children, &format!("{at:05}"), at);
            }
        }
        fn blocks(block: &ChildBlock<Node>) -> usize {
            match block {
                ChildBlock::Leaf(_) => 1,
                ChildBlock::Inner(branches) => {
                    branches.iter().map(|branch| blocks(&branch.block)).sum()
                }
            }
        }
        assert_eq!(children.len(), 100);
        assert!(blocks(&children.top) <= 20, "{} blocks for 100 children", blocks(&children.top));
    }
}
