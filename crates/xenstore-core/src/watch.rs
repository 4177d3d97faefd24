//! Watches, in an index by path.
//!
//! The index is a tree of names like the store's own. A change of `/a/b` finds the watches of `/`, `/a`
//! and `/a/b` on one way down, whatever else is watched; a removal also finds those below.

use crate::path::Path;
use crate::server::ConnId;
use crate::tree::{is_whole, prefix_of};
use alloc::boxed::Box;
use alloc::collections::btree_map::Entry;
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

/// The places below one, by name. Found by the first bytes of the name as a number, as nodes are: a change looks
/// here whether anybody watches or not.
#[derive(Default)]
struct Below {
    places: BTreeMap<u64, Alike>,
    /// The [`mark`] of every name that is or was there: most changes are where nobody watches.
    marks: u64,
    /// How many names there are.
    len: u32,
}

/// The places whose names begin alike: one, where the name has fewer than eight bytes.
enum Alike {
    One(Box<[u8]>, Place),
    Many(BTreeMap<Box<[u8]>, Place>),
}

/// One bit of 64 for a name that begins so.
fn mark(prefix: u64) -> u64 {
    1 << (prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

impl Alike {
    /// The place of a name that begins alike.
    #[inline]
    fn get(&self, name: &[u8]) -> Option<&Place> {
        match self {
            Self::One(known, place) => {
                (is_whole(prefix_of(name)) || **known == *name).then_some(place)
            }
            Self::Many(places) => places.get(name),
        }
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut Place> {
        match self {
            Self::One(known, place) => (**known == *name).then_some(place),
            Self::Many(places) => places.get_mut(name),
        }
    }

    /// Adds a place that is not there yet.
    fn add(&mut self, name: &[u8]) {
        if let Self::One(known, place) = self {
            let first = (core::mem::take(known), core::mem::take(place));
            *self = Self::Many(BTreeMap::from([first]));
        }
        if let Self::Many(places) = self {
            places.insert(Box::from(name), Place::default());
        }
    }

    /// Takes a place out; whether there was one.
    fn remove(&mut self, name: &[u8]) -> bool {
        match self {
            Self::One(known, _) if **known == *name => {
                *self = Self::Many(BTreeMap::new());
                true
            }
            Self::One(..) => false,
            Self::Many(places) => places.remove(name).is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Many(places) if places.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &Place)> {
        let (one, many) = match self {
            Self::One(name, place) => (Some((&**name, place)), None),
            Self::Many(places) => (None, Some(places)),
        };
        one.into_iter().chain(many.into_iter().flatten().map(|(name, place)| (&**name, place)))
    }
}

impl Below {
    #[inline]
    fn get(&self, name: &[u8]) -> Option<&Place> {
        let prefix = prefix_of(name);
        if self.marks & mark(prefix) == 0 {
            return None;
        }
        self.places.get(&prefix)?.get(name)
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut Place> {
        self.places.get_mut(&prefix_of(name))?.get_mut(name)
    }

    /// The place of this name, made if there is none.
    fn make(&mut self, name: &[u8]) -> Option<&mut Place> {
        let Self { places, marks, len } = self;
        let prefix = prefix_of(name);
        *marks |= mark(prefix);
        match places.entry(prefix) {
            Entry::Vacant(free) => {
                *len = len.saturating_add(1);
                free.insert(Alike::One(Box::from(name), Place::default())).get_mut(name)
            }
            Entry::Occupied(taken) => {
                let alike = taken.into_mut();
                if alike.get(name).is_none() {
                    *len = len.saturating_add(1);
                    alike.add(name);
                }
                alike.get_mut(name)
            }
        }
    }

    fn remove(&mut self, name: &[u8]) {
        let prefix = prefix_of(name);
        let Some(alike) = self.places.get_mut(&prefix) else { return };
        if alike.remove(name) {
            self.len = self.len.saturating_sub(1);
        }
        if alike.is_empty() {
            self.places.remove(&prefix);
        }
        if self.places.is_empty() {
            self.marks = 0;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &Place)> {
        self.places.values().flat_map(Alike::iter)
    }
}

/// A place that is watched, or something below it.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'w>(&'w Place);

impl<'w> Spot<'w> {
    /// The place of this name below it.
    pub(crate) fn get(self, name: &[u8]) -> Option<Self> {
        self.0.below.get(name).map(Self)
    }

    /// All places below it, one name down.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'w [u8], Self)> {
        self.0.below.iter().map(|(name, place)| (name, Self(place)))
    }

    /// How many these are.
    pub(crate) fn len(self) -> u32 {
        self.0.below.len
    }

    /// The watches of the place itself.
    pub(crate) fn watches(self) -> impl Iterator<Item = WatchId> {
        self.0.watches.iter().copied()
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

    /// Whether there are watches of the path or of anything above it: for most changes, none.
    pub(crate) fn may_match(&self, path: Path<'_>) -> bool {
        let mut place = if path.is_special() { &self.special } else { &self.tree };
        let mut names = path.names();
        while place.watches.is_empty() {
            let Some(next) = names.next().and_then(|name| place.below.get(name)) else {
                return false;
            };
            place = next;
        }
        true
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

    /// The place `path`, if something is watched there or below.
    pub(crate) fn spot(&self, path: Path<'_>) -> Option<Spot<'_>> {
        path.names().try_fold(Spot(&self.tree), Spot::get)
    }
}

/// Takes `id` out of the place that `names` leads to, and the places that are empty then. Not by
/// recursion: a path can have 1536 names.
fn prune(top: &mut Place, names: &[&[u8]], id: WatchId) {
    let mut place = &mut *top;
    // The last place on the way that stays whatever happens, as it holds something else.
    let mut keep = 0usize;
    for (at, name) in names.iter().enumerate() {
        if !place.watches.is_empty() || place.below.len > 1 {
            keep = at;
        }
        let Some(next) = place.below.get_mut(name) else { return };
        place = next;
    }
    place.watches.remove(&id);
    if !place.watches.is_empty() || place.below.len > 0 {
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
        assert!(watches.tree.below.len == 0);
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
        assert!(watches.tree.below.get(&b"a"[..]).unwrap().below.len == 0);
        assert_eq!(matching(&watches, b"/a/b/x"), [top]);
    }

    #[test]
    fn names_that_begin_alike_are_told_apart() {
        let names: Vec<Vec<u8>> =
            (0..50).map(|at| alloc::format!("12345678-{at:02}-12345678").into_bytes()).collect();
        let mut below = Below::default();
        for (slot, name) in (0..).zip(&names) {
            assert_eq!(prefix_of(name), prefix_of(&names[0]));
            below.make(name).unwrap().watches.insert(WatchId { number: 0, slot });
            assert_eq!(below.make(name).unwrap().watches.len(), 1);
        }
        assert_eq!((below.places.len(), below.len, below.iter().count()), (1, 50, 50));
        for (slot, name) in (0..).zip(&names) {
            let place = below.get(name).unwrap();
            assert_eq!(place.watches.first(), Some(&WatchId { number: 0, slot }));
            below.remove(name);
            below.remove(name);
            assert!(below.get(name).is_none());
        }
        assert_eq!((below.places.len(), below.len, below.marks), (0, 0, 0));
    }

    #[test]
    fn spots_are_what_is_watched_or_leads_there() {
        let mut watches = Watches::default();
        add(&mut watches, b"/a", None);
        let b = add(&mut watches, b"/a/b", None);
        add(&mut watches, b"/a/x/y", None);
        let a = watches.spot(Path::checked(b"/a")).unwrap();
        assert_eq!(a.len(), 2);
        assert_eq!(a.iter().map(|(name, _)| name).collect::<Vec<_>>(), [b"b", b"x"]);
        assert_eq!(a.get(b"b").unwrap().watches().collect::<Vec<_>>(), [b]);
        assert_eq!(a.get(b"x").unwrap().watches().count(), 0);
        assert!(a.get(b"z").is_none() && watches.spot(Path::checked(b"/b")).is_none());
    }
}
