//! Watches, in an index by path.
//!
//! The index is a tree of names like the store's own. A change of `/a/b` finds the watches of `/`, `/a`
//! and `/a/b` on one way down, whatever else is watched; a removal also finds those below.

use crate::path::Path;
use crate::server::ConnId;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A watch; they are in the order in which they were set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WatchId {
    /// How many were set before; never used again.
    number: u64,
    /// Where it is in [`Watches::all`]; used again once the watch is gone.
    slot: u32,
}

/// One watch.
pub(crate) struct Watch {
    pub(crate) conn: ConnId,
    /// Absolute path, NUL, token: what tells the watches of one connection apart.
    key: Rc<[u8]>,
    path_len: usize,
    /// How many bytes of an event's path are not told, as the watch was set on a relative path.
    pub(crate) hidden: usize,
    /// How many names below the path are watched; `None` for all.
    pub(crate) depth: Option<u32>,
}

impl Watch {
    pub(crate) fn path(&self) -> &[u8] {
        self.key.get(..self.path_len).unwrap_or_default()
    }

    pub(crate) fn token(&self) -> &[u8] {
        self.key.get(self.path_len.saturating_add(1)..).unwrap_or_default()
    }

    /// What the watch counts for the quota `memory`: path and token.
    pub(crate) fn weight(&self) -> i64 {
        (self.key.len() as i64).saturating_sub(1)
    }
}

/// What makes two watches of a connection the same.
pub(crate) fn key(path: Path<'_>, token: &[u8], to: &mut Vec<u8>) {
    to.clear();
    to.extend_from_slice(path.as_bytes());
    to.push(0);
    to.extend_from_slice(token);
}

#[derive(Default)]
struct Place {
    watches: BTreeSet<WatchId>,
    below: Below,
}

/// The places below one, by name. Found by a number made of the name, as a change looks here whether
/// anybody watches or not; names with the same number are few, and lie side by side.
#[derive(Default)]
struct Below(BTreeMap<u64, Vec<Named>>);

type Named = (Box<[u8]>, Place);

/// A number for a name, of its first and last bytes and its length: made in a few instructions.
fn number(name: &[u8]) -> u64 {
    let ends = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(first), Some(last)) => {
            u64::from_ne_bytes(*first).rotate_left(29) ^ u64::from_ne_bytes(*last)
        }
        _ => name.iter().fold(0, |ends, byte| (ends << 8) | u64::from(*byte)),
    };
    ends ^ (name.len() as u64).rotate_left(56)
}

impl Below {
    fn get(&self, name: &[u8]) -> Option<&Place> {
        let alike = self.0.get(&number(name))?;
        alike.iter().find(|(known, _)| **known == *name).map(|(_, place)| place)
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut Place> {
        let alike = self.0.get_mut(&number(name))?;
        alike.iter_mut().find(|(known, _)| **known == *name).map(|(_, place)| place)
    }

    /// The place of this name, made if there is none.
    fn make(&mut self, name: &[u8]) -> Option<&mut Place> {
        let alike = self.0.entry(number(name)).or_default();
        if !alike.iter().any(|(known, _)| **known == *name) {
            alike.push((Box::from(name), Place::default()));
        }
        alike.iter_mut().find(|(known, _)| **known == *name).map(|(_, place)| place)
    }

    fn remove(&mut self, name: &[u8]) {
        let number = number(name);
        let Some(alike) = self.0.get_mut(&number) else { return };
        alike.retain(|(known, _)| **known != *name);
        if alike.is_empty() {
            self.0.remove(&number);
        }
    }

    /// Whether there is more than one.
    fn are_many(&self) -> bool {
        self.iter().nth(1).is_some()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &Place)> {
        self.0.values().flatten().map(|(name, place)| (&**name, place))
    }
}

/// All watches of all connections.
#[derive(Default)]
pub(crate) struct Watches {
    all: Vec<Option<Watch>>,
    /// The empty slots of `all`.
    free: Vec<u32>,
    /// How many were ever set.
    count: u64,
    /// Under the names of absolute paths.
    tree: Place,
    /// Under the names of special ones.
    special: Place,
}

impl Watches {
    pub(crate) fn get(&self, id: WatchId) -> Option<&Watch> {
        self.all.get(id.slot as usize)?.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len().saturating_sub(self.free.len())
    }

    fn top(&mut self, path: Path<'_>) -> &mut Place {
        if path.is_special() { &mut self.special } else { &mut self.tree }
    }

    /// Adds a watch; `key` is [`key`] of its path and token.
    pub(crate) fn add(
        &mut self,
        conn: ConnId,
        path: Path<'_>,
        key: Rc<[u8]>,
        hidden: usize,
        depth: Option<u32>,
    ) -> WatchId {
        let watch = Watch { conn, key, path_len: path.as_bytes().len(), hidden, depth };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len()).unwrap_or(u32::MAX).saturating_sub(1)
        });
        let id = WatchId { number: self.count, slot };
        self.count = self.count.saturating_add(1);
        if let Some(place) = self.all.get_mut(slot as usize) {
            *place = Some(watch);
        }
        let mut place = self.top(path);
        for name in path.names() {
            let Some(next) = place.below.make(name) else { return id };
            place = next;
        }
        place.watches.insert(id);
        id
    }

    /// Takes a watch out.
    pub(crate) fn remove(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.all.get_mut(id.slot as usize)?.take()?;
        self.free.push(id.slot);
        let path = Path::checked(watch.path());
        let names: Vec<&[u8]> = path.names().collect();
        prune(self.top(path), &names, id);
        Some(watch)
    }

    /// The watches that a change of `path` concerns: those of the path and of everything above it, as
    /// far as their depth goes.
    pub(crate) fn matching(&self, path: Path<'_>, to: &mut Vec<WatchId>) {
        let mut place = if path.is_special() { &self.special } else { &self.tree };
        let mut names = path.names();
        loop {
            if !place.watches.is_empty() {
                let reaches = |id: &&WatchId| {
                    let depth = self.get(**id).and_then(|watch| watch.depth);
                    depth.is_none_or(|depth| names.clone().count() <= depth as usize)
                };
                to.extend(place.watches.iter().filter(reaches));
            }
            let Some(next) = names.next().and_then(|name| place.below.get(name)) else { return };
            place = next;
        }
    }

    /// The watches set below `path`, not on it, with the names that lead to them from there.
    /// `go` says whether a place is worth going to.
    pub(crate) fn below<'w, S>(
        &'w self,
        path: Path<'_>,
        start: S,
        mut go: impl FnMut(&S, &'w [u8]) -> Option<S>,
        mut found: impl FnMut(&S, &'w BTreeSet<WatchId>),
    ) {
        let mut place = &self.tree;
        for name in path.names() {
            let Some(next) = place.below.get(name) else { return };
            place = next;
        }
        let mut stack = Vec::from([(start, place.below.iter())]);
        while let Some((state, rest)) = stack.last_mut() {
            let Some((name, next)) = rest.next() else {
                stack.pop();
                continue;
            };
            let Some(state) = go(state, name) else { continue };
            found(&state, &next.watches);
            stack.push((state, next.below.iter()));
        }
    }
}

/// Takes `id` out of the place that `names` leads to, and the places that are empty then. Not by
/// recursion: a path can have 1536 names.
fn prune(top: &mut Place, names: &[&[u8]], id: WatchId) {
    let mut place = &mut *top;
    // The last place on the way that stays whatever happens, as it holds something else.
    let mut keep = 0usize;
    for (at, name) in names.iter().enumerate() {
        if !place.watches.is_empty() || place.below.are_many() {
            keep = at;
        }
        let Some(next) = place.below.get_mut(name) else { return };
        place = next;
    }
    place.watches.remove(&id);
    if !place.watches.is_empty() || !place.below.is_empty() {
        return;
    }
    let mut place = top;
    for name in names.iter().take(keep) {
        let Some(next) = place.below.get_mut(name) else { return };
        place = next;
    }
    if let Some(name) = names.get(keep) {
        place.below.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(watches: &mut Watches, path: &'static [u8], depth: Option<u32>) -> WatchId {
        let path = Path::checked(path);
        let mut bytes = Vec::new();
        key(path, b"t", &mut bytes);
        watches.add(ConnId(0), path, Rc::from(bytes), 0, depth)
    }

    fn matching(watches: &Watches, path: &'static [u8]) -> Vec<WatchId> {
        let mut found = Vec::new();
        watches.matching(Path::checked(path), &mut found);
        found
    }

    #[test]
    fn a_change_concerns_the_path_and_all_above() {
        let mut watches = Watches::default();
        let root = add(&mut watches, b"/", None);
        let a = add(&mut watches, b"/a", None);
        let ab = add(&mut watches, b"/a/b", None);
        let near = add(&mut watches, b"/a", Some(1));
        let exact = add(&mut watches, b"/a", Some(0));
        assert_eq!(matching(&watches, b"/"), [root]);
        assert_eq!(matching(&watches, b"/a"), [root, a, near, exact]);
        assert_eq!(matching(&watches, b"/a/b"), [root, a, near, ab]);
        assert_eq!(matching(&watches, b"/a/b/c"), [root, a, ab]);
        assert_eq!(matching(&watches, b"/ab"), [root]);
        assert!(matching(&watches, b"@releaseDomain").is_empty());
        for id in [root, a, ab, near, exact] {
            assert!(watches.remove(id).is_some());
        }
        assert_eq!(watches.len(), 0);
        assert!(watches.tree.below.is_empty());
    }

    #[test]
    fn watches_are_in_the_order_in_which_they_were_set() {
        let mut watches = Watches::default();
        let old: Vec<WatchId> = (0..4).map(|_| add(&mut watches, b"/old", None)).collect();
        for id in old {
            watches.remove(id);
        }
        let set: Vec<WatchId> = (0..6).map(|_| add(&mut watches, b"/a", None)).collect();
        assert_eq!(matching(&watches, b"/a"), set);
    }

    #[test]
    fn removal_keeps_what_is_watched_above_and_beside() {
        let mut watches = Watches::default();
        let top = add(&mut watches, b"/a", None);
        let deep = add(&mut watches, b"/a/b/c/d", None);
        let side = add(&mut watches, b"/a/b/x", None);
        watches.remove(deep);
        assert_eq!(matching(&watches, b"/a/b/x"), [top, side]);
        watches.remove(side);
        assert!(watches.tree.below.get(&b"a"[..]).unwrap().below.is_empty());
        assert_eq!(matching(&watches, b"/a/b/x"), [top]);
    }

    #[test]
    fn names_with_the_same_number_are_told_apart() {
        let mut below = Below::default();
        for name in [&b"a"[..], b"b"] {
            below
                .make(name)
                .unwrap()
                .watches
                .insert(WatchId { number: 0, slot: u32::from(name[0]) });
        }
        // As if both had the number of the first.
        let moved = below.0.remove(&number(b"b")).unwrap();
        below.0.get_mut(&number(b"a")).unwrap().extend(moved);
        assert!(below.are_many());
        assert_eq!(
            below.get(b"a").unwrap().watches.first(),
            Some(&WatchId { number: 0, slot: 97 })
        );
        assert_eq!(below.iter().count(), 2);
        below.remove(b"a");
        assert!(below.get(b"a").is_none() && !below.is_empty() && !below.are_many());
    }

    #[test]
    fn below_visits_where_it_is_told() {
        let mut watches = Watches::default();
        add(&mut watches, b"/a", None);
        let b = add(&mut watches, b"/a/b", None);
        let c = add(&mut watches, b"/a/b/c", None);
        add(&mut watches, b"/a/x/y", None);
        let mut found: Vec<WatchId> = Vec::new();
        let go = |depth: &u32, name: &[u8]| (name != b"x").then_some(depth + 1);
        watches.below(Path::checked(b"/a"), 0, go, |_, ids| found.extend(ids));
        assert_eq!(found, [b, c]);
    }
}
