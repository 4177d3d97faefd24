//! The tree of nodes, and the operations of requests on it.
//!
//! A [`Tree`] is a value: cloning it costs O(1) and gives a snapshot that later changes do not
//! affect. A change costs O(depth). This module checks permissions. The ledger checks quotas, and
//! keeps the changes of an operation apart until it succeeds.

mod child_list;
mod debris;
mod node;
mod traversal;

pub use child_list::{ChildEntry, ChildList, Iter};
pub(crate) use debris::Debris;
pub use node::Node;
pub(crate) use traversal::Traversal;

use crate::churn::Churn;
use crate::id::DomId;
use crate::ledger::Ledger;
use crate::limits::{DOMID_ANY, NODE_WEIGHT};
use crate::path::Path;
use crate::perms::{AccessRights, Caller, Incarnation, Perm, Perms};
use crate::wire::Error;
use alloc::rc::Rc;
use alloc::vec::Vec;
use child_list::ListChange;

/// The special nodes, which have only permissions.
const SPECIALS: [&[u8]; 2] = [b"@introduceDomain", b"@releaseDomain"];

/// The store's content.
#[derive(Clone)]
pub struct Tree {
    root: Node,
    specials: Rc<[Node; 2]>,
}

/// The result of following a path as far as its nodes exist.
pub struct Walk<'t> {
    /// The last node on the path that exists.
    pub node: &'t Node,
    /// The parent of that node.
    pub parent: Option<&'t Node>,
    /// The number of the path's names that have no node.
    pub missing: usize,
}

/// The operation that makes nodes: WRITE changes an existing one, MKDIR leaves it alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeWrite<'a> {
    /// WRITE of this value.
    Value(&'a [u8]),
    /// MKDIR.
    Mkdir,
}

/// The effect of an operation on the tree.
#[derive(Clone)]
pub enum Effect {
    /// The tree is unchanged: it was in this state already.
    Unchanged,
    /// The node was made or changed.
    Changed,
    /// The node was removed, with all nodes below it.
    Removed(Node),
    /// The permissions changed. These are the old ones.
    Permitted(Rc<Perms>),
}

impl Tree {
    /// Returns a fresh store: `/`, `/tool`, `/tool/xenstored` and the special nodes, all owned by
    /// the privileged domain. Every domain may watch `@releaseDomain`.
    pub(crate) fn new(owner: DomId, incarnation: Incarnation, ledger: &mut Ledger<'_>) -> Self {
        let owner = Perm { domid: owner, access: AccessRights::NONE, incarnation };
        let closed = Rc::new(Perms::owned(owner));
        let open = Perms::parse(b"n0\0r32757\0", |_| Incarnation::NEVER)
            .map(|perms| perms.with_owner(owner.domid, owner.incarnation));
        let open = open.map_or_else(|_| closed.clone(), Rc::new);
        let root = Node::new(b"", b"", closed.clone(), ledger.scratch);
        let [introduce, release] = SPECIALS;
        let specials = [
            Node::new(introduce, b"", closed, ledger.scratch),
            Node::new(release, b"", open, ledger.scratch),
        ];
        for node in specials.iter().chain([&root]) {
            ledger.record_owned(&owner, 1, node.weight());
        }
        let mut tree = Self { root, specials: Rc::new(specials) };
        let own = Caller { domid: owner.domid, incarnation, target: None, privileged: true };
        // A privileged caller is never refused.
        let _ = tree.put(&own, Path::checked(b"/tool/xenstored"), NodeWrite::Mkdir, ledger);
        tree
    }

    /// Returns a tree without any node but the root, as a replacement for this one.
    pub(crate) fn without_nodes(&self) -> Self {
        let root = Node::new(b"", b"", self.root.perms().clone(), &mut Vec::new());
        Self { root, specials: self.specials.clone() }
    }

    /// Returns the root node.
    #[must_use]
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Returns the root node alone, to be freed with all nodes below it.
    pub(crate) fn into_root(self) -> Node {
        self.root
    }

    /// True if the two are the same version of the tree.
    #[must_use]
    pub fn same(&self, other: &Tree) -> bool {
        self.root.same(&other.root) && Rc::ptr_eq(&self.specials, &other.specials)
    }

    /// Returns the special node of this name (`@introduceDomain` or `@releaseDomain`).
    #[must_use]
    pub fn special(&self, name: &[u8]) -> Option<&Node> {
        self.specials.iter().find(|node| node.name() == name)
    }

    /// Follows a path as far as its nodes exist. A special path has at most one name that exists.
    #[must_use]
    pub fn walk(&self, path: Path<'_>) -> Walk<'_> {
        let mut walk = Walk { node: &self.root, parent: None, missing: 0 };
        if path.is_special() {
            let Some(node) = self.special(path.as_bytes()) else {
                return Walk { missing: path.names().count(), ..walk };
            };
            return Walk { node, ..walk };
        }
        let mut names = path.names();
        while let Some(name) = names.next() {
            let Some(child) = walk.node.child_list().and_then(|children| children.get(name)) else {
                walk.missing = names.count().saturating_add(1);
                break;
            };
            walk.parent = Some(core::mem::replace(&mut walk.node, child));
        }
        walk
    }

    /// Returns the node at `path`, without a check of permissions.
    #[must_use]
    pub fn get(&self, path: Path<'_>) -> Option<&Node> {
        let walk = self.walk(path);
        (walk.missing == 0).then_some(walk.node)
    }

    /// Returns the node at `path` for a caller that needs the access `wanted`.
    ///
    /// # Errors
    /// EACCES, also for a missing node if the caller may not see that; otherwise ENOENT.
    pub fn find(
        &self,
        caller: &Caller,
        path: Path<'_>,
        wanted: AccessRights,
    ) -> Result<&Node, Error> {
        let walk = self.walk(path);
        if !walk.node.perms().access(caller).has(wanted) {
            return Err(Error::Access);
        }
        if walk.missing == 0 { Ok(walk.node) } else { Err(Error::NoEnt) }
    }

    fn get_mut<'n>(
        &mut self,
        names: impl Iterator<Item = &'n [u8]>,
        churn: &mut Churn,
    ) -> Option<&mut Node> {
        let mut node = &mut self.root;
        for name in names {
            node = node.children_mut(churn)?.get_mut(name, churn)?;
        }
        Some(node)
    }

    /// Runs WRITE and MKDIR: makes the missing nodes of the path, and sets the value.
    pub(crate) fn put(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        what: NodeWrite<'_>,
        ledger: &mut Ledger<'_>,
    ) -> Result<Effect, Error> {
        ledger.touch();
        // The usual case needs one descent only: nothing has to be checked for a privileged caller.
        if caller.privileged
            && let NodeWrite::Value(value) = what
            && let Some(node) = self.get_mut(path.names(), &mut ledger.churn)
        {
            let more = (value.len() as i64).saturating_sub(node.value().len() as i64);
            ledger.record_owned(&node.perms().owner(), 0, more);
            node.set_value(value, ledger.scratch, &mut ledger.churn);
            return Ok(Effect::Changed);
        }
        let walk = self.walk(path);
        let (node, missing) = (walk.node, walk.missing);
        if !node.perms().access(caller).has(AccessRights::WRITE) {
            return Err(Error::Access);
        }
        if missing > 0 {
            return self.create(caller, path, what, ledger).map(|()| Effect::Changed);
        }
        let NodeWrite::Value(value) = what else { return Ok(Effect::Unchanged) };
        ledger.check_size(caller, node.size_with(value.len()))?;
        let owner = node.perms().owner();
        let more = (value.len() as i64).saturating_sub(node.value().len() as i64);
        if !caller.privileged {
            ledger.check_owner(owner.domid, 0, more)?;
        }
        ledger.record_owned(&owner, 0, more);
        if let Some(node) = self.get_mut(path.names(), &mut ledger.churn) {
            node.set_value(value, ledger.scratch, &mut ledger.churn);
        }
        Ok(Effect::Changed)
    }

    /// Makes the missing nodes of `path`. They get their nearest ancestor's permissions, and an
    /// unprivileged caller owns the nodes that it makes.
    fn create(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        what: NodeWrite<'_>,
        ledger: &mut Ledger<'_>,
    ) -> Result<(), Error> {
        let walk = self.walk(path);
        let depth = path.names().count().saturating_sub(walk.missing);
        let value = if let NodeWrite::Value(value) = what { value } else { &[] };
        let above = walk.node.perms();
        let perms = if caller.privileged || above.owner().domid == caller.domid {
            above.clone()
        } else {
            Rc::new(above.with_owner(caller.domid, caller.incarnation))
        };
        let (owner, above) = (perms.owner(), above.owner());
        let first_len = path.names().nth(depth).map_or(0, <[u8]>::len).saturating_add(1);
        if !caller.privileged {
            let parent_size = u32::try_from(first_len).unwrap_or(u32::MAX);
            ledger.check_size(caller, walk.node.size().saturating_add(parent_size))?;
            let own_size = perms.len().saturating_mul(8).saturating_add(value.len());
            ledger.check_size(
                caller,
                u32::try_from(own_size).unwrap_or(u32::MAX).saturating_add(16),
            )?;
            let nodes = walk.missing as i64;
            let bytes = (path.as_bytes().len() as i64)
                .saturating_add(value.len() as i64)
                .saturating_add(nodes.saturating_mul(NODE_WEIGHT));
            ledger.check_owner(owner.domid, nodes, bytes)?;
        }
        ledger.record_owned(&above, 0, first_len as i64);
        let mut names = path.names().skip(depth).peekable();
        let above = self.get_mut(path.names().take(depth), &mut ledger.churn);
        let Some(mut node) = above else { return Err(Error::Io) };
        while let Some(name) = names.next() {
            ledger.touch();
            let last = names.peek().is_none();
            let child =
                Node::new(name, if last { value } else { &[] }, perms.clone(), ledger.scratch);
            let listed = names.peek().map_or(0, |next| next.len().saturating_add(1));
            ledger.record_owned(&owner, 1, child.weight().saturating_add(listed as i64));
            ledger.record_made(name);
            let change = list_change(name, ledger);
            let children = node.children_or_new(&mut ledger.churn);
            children.insert(child, change, &mut ledger.churn);
            node = children.get_mut(name, &mut ledger.churn).ok_or(Error::Io)?;
        }
        Ok(())
    }

    /// Runs RM: removes the node, with all nodes below it. The nodes of a large subtree stay on
    /// their owners' accounts; see [`Node::is_large`].
    pub(crate) fn remove(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        ledger: &mut Ledger<'_>,
    ) -> Result<Effect, Error> {
        ledger.touch();
        let walk = self.walk(path);
        if !walk.node.perms().access(caller).has(AccessRights::WRITE) {
            return Err(Error::Access);
        }
        match walk.missing {
            0 => {}
            1 => return Ok(Effect::Unchanged),
            _ => return Err(Error::NoEnt),
        }
        let (parent, name) = path.split_last().ok_or(Error::Inval)?;
        let change = list_change(name, ledger);
        let churn = &mut ledger.churn;
        let above = self.get_mut(parent.names(), churn).ok_or(Error::Io)?;
        let owner = above.perms().owner();
        let children = above.children_mut(churn).ok_or(Error::Io)?;
        let gone = children.remove(name, change, churn).ok_or(Error::Io)?;
        ledger.record_owned(&owner, 0, (name.len() as i64).saturating_add(1).saturating_neg());
        if !gone.is_large() {
            disown(&gone, ledger);
        }
        Ok(Effect::Removed(gone))
    }

    /// Restores a node from another store, and books it. It replaces `/` and the special nodes,
    /// which always exist.
    ///
    /// # Errors
    /// An error if its parent is missing, or the node exists.
    pub(crate) fn restore(
        &mut self,
        path: Path<'_>,
        value: &[u8],
        perms: Perms,
        ledger: &mut Ledger<'_>,
    ) -> Result<(), &'static str> {
        let Some((parent, name)) = path.split_last().filter(|_| !path.is_special()) else {
            let known = match path.is_root() {
                true => Some(&mut self.root),
                false => Rc::make_mut(&mut self.specials)
                    .iter_mut()
                    .find(|node| node.name() == path.as_bytes()),
            };
            let node = known.ok_or("there is no such special node")?;
            ledger.record_owned(&node.perms().owner(), -1, node.weight().saturating_neg());
            node.set_perms(Rc::new(perms));
            node.set_value(value, ledger.scratch, &mut ledger.churn);
            ledger.record_owned(&node.perms().owner(), 1, node.weight());
            return Ok(());
        };
        let above = self.get_mut(parent.names(), &mut ledger.churn);
        let above = above.ok_or("its parent is not there")?;
        // Most nodes have their parent's permissions, and share them.
        let perms = if **above.perms() == perms { above.perms().clone() } else { Rc::new(perms) };
        let owner = above.perms().owner();
        let children = above.children_or_new(&mut ledger.churn);
        if children.get(name).is_some() {
            return Err("it is there already");
        }
        let node = Node::new(name, value, perms, ledger.scratch);
        ledger.record_owned(&owner, 0, (name.len() as i64).saturating_add(1));
        ledger.record_owned(&node.perms().owner(), 1, node.weight());
        let change = list_change(name, ledger);
        children.insert(node, change, &mut ledger.churn);
        Ok(())
    }

    /// Runs SET_PERMS.
    pub(crate) fn set_perms(
        &mut self,
        caller: &Caller,
        path: Path<'_>,
        perms: &Rc<Perms>,
        ledger: &mut Ledger<'_>,
    ) -> Result<Effect, Error> {
        ledger.touch();
        // A transaction may set permissions for a domain that is dead when it commits. The node
        // would then belong to that domain's successor.
        let owner = perms.owner();
        if owner.domid.0 != DOMID_ANY
            && ledger.domains.incarnation(owner.domid) != owner.incarnation
        {
            return Err(Error::NoEnt);
        }
        let node = self.find(caller, path, AccessRights::WRITE)?;
        if !node.perms().is_owner(caller) {
            return Err(Error::Access);
        }
        let old = node.perms().clone();
        if !caller.privileged && old.owner().domid != perms.owner().domid {
            return Err(Error::Perm);
        }
        let more = (perms.len() as i64).saturating_sub(old.len() as i64).saturating_mul(8);
        ledger.check_size(
            caller,
            node.size().saturating_add_signed(i32::try_from(more).unwrap_or(0)),
        )?;
        let weight = node.weight();
        ledger.record_owned(&old.owner(), -1, weight.saturating_neg());
        ledger.record_owned(&perms.owner(), 1, weight.saturating_add(more));
        if path.is_special() {
            let special = Rc::make_mut(&mut self.specials).iter_mut();
            for node in special.filter(|node| node.name() == path.as_bytes()) {
                node.set_perms(perms.clone());
            }
        } else if let Some(node) = self.get_mut(path.names(), &mut ledger.churn) {
            node.set_perms(perms.clone());
        }
        Ok(Effect::Permitted(old))
    }

    /// Visits every node from `start` down, parents first, with its path. `visit` returns the next
    /// step.
    pub fn visit(&self, start: Path<'_>, mut visit: impl FnMut(&[u8], &Node) -> VisitStep) {
        let Some(node) = self.get(start) else { return };
        let mut path = Vec::from(if start.is_root() { &b""[..] } else { start.as_bytes() });
        if visit(start.as_bytes(), node) != VisitStep::On {
            return;
        }
        let mut stack =
            Vec::from([(node.child_list().map(|children| children.iter()), path.len())]);
        while let Some((children, len)) = stack.last_mut() {
            path.truncate(*len);
            let Some(child) = children.as_mut().and_then(Iterator::next) else {
                stack.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(child.name());
            match visit(&path, child) {
                VisitStep::On => {
                    stack.push((child.child_list().map(|children| children.iter()), path.len()));
                }
                VisitStep::Past => {}
                VisitStep::Stop => return,
            }
        }
    }
}

/// The next step of a visit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VisitStep {
    /// Continue with the children.
    On,
    /// Continue after the children.
    Past,
    /// Stop the visit.
    Stop,
}

/// Returns the new generation and digest of a list of children when a child of this name is added
/// or removed.
fn list_change(name: &[u8], ledger: &mut Ledger<'_>) -> ListChange {
    let digest = ledger.domains.secret.bytes(name);
    ListChange { generation: ledger.next_generation(), digest }
}

/// Takes a removed node and all nodes below it off their owners' accounts.
fn disown(gone: &Node, ledger: &mut Ledger<'_>) {
    let mut stack = Vec::from([gone.child_list().map(|children| children.iter())]);
    ledger.disown(&gone.perms().owner(), gone.weight());
    while let Some(children) = stack.last_mut() {
        let Some(child) = children.as_mut().and_then(Iterator::next) else {
            stack.pop();
            continue;
        };
        ledger.touch();
        ledger.disown(&child.perms().owner(), child.weight());
        if child.child_list().is_some() {
            stack.push(child.child_list().map(|children| children.iter()));
        }
    }
}
