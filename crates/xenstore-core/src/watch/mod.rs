//! Watches, in an index by path.

mod child_places;
mod id;
mod index;
mod names;

pub(crate) use id::WatchId;
pub(crate) use index::{Audience, Spot};

use crate::id::{ConnId, DomId};
use crate::limits::WATCH_WEIGHT;
use crate::path::Path;
use alloc::rc::Rc;
use alloc::vec::Vec;
use index::{IndexPlace, Watcher};
use names::count;

/// One watch.
pub(crate) struct Watch {
    /// The number in its [`WatchId`].
    number: u64,
    pub(crate) conn: ConnId,
    domid: DomId,
    /// The absolute path, NUL, and the token. They identify a watch among those of its connection.
    key: Rc<[u8]>,
    path_len: usize,
    /// The bytes of an event's path that are left out, because the watch was set on a relative
    /// path.
    pub(crate) hidden: usize,
    /// The number of names below the path that are watched; `None` for all.
    pub(crate) depth: Option<u32>,
}

impl Watch {
    pub(crate) fn path(&self) -> &[u8] {
        self.key.get(..self.path_len).unwrap_or_default()
    }

    pub(crate) fn token(&self) -> &[u8] {
        self.key.get(self.path_len.saturating_add(1)..).unwrap_or_default()
    }

    /// Returns the watch's bytes for the quota `memory`.
    pub(crate) fn weight(&self) -> i64 {
        weight(&self.key)
    }
}

/// Returns the bytes of a watch with this key for the quota `memory`: path, token, and its part of
/// the index.
pub(crate) fn weight(key: &[u8]) -> i64 {
    (key.len() as i64).saturating_sub(1).saturating_add(WATCH_WEIGHT)
}

/// Writes the key by which two watches of a connection are equal.
pub(crate) fn key(path: Path<'_>, token: &[u8], to: &mut Vec<u8>) {
    to.clear();
    to.extend_from_slice(path.as_bytes());
    to.push(0);
    to.extend_from_slice(token);
}

/// All watches of all connections.
#[derive(Default)]
pub(crate) struct Watches {
    all: Vec<Option<Watch>>,
    /// The empty slots of `all`.
    free: Vec<u32>,
    /// The number of watches that were ever set.
    count: u64,
    /// The places of absolute paths.
    tree: IndexPlace,
    /// The places of special paths.
    special: IndexPlace,
}

/// Returns the names of a path in the form of the index.
fn names(path: Path<'_>) -> &[u8] {
    let path = path.as_bytes();
    path.strip_prefix(b"/").unwrap_or(path)
}

impl Watches {
    pub(crate) fn get(&self, id: WatchId) -> Option<&Watch> {
        self.all.get(id.slot as usize)?.as_ref().filter(|watch| watch.number == id.number)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len().saturating_sub(self.free.len())
    }

    fn top(&self, path: Path<'_>) -> &IndexPlace {
        if path.is_special() { &self.special } else { &self.tree }
    }

    fn top_mut(&mut self, path: Path<'_>) -> &mut IndexPlace {
        if path.is_special() { &mut self.special } else { &mut self.tree }
    }

    /// Adds a watch of the domain of `conn`. `key` is [`key`] of its path and token.
    pub(crate) fn add(
        &mut self,
        (conn, domid): (ConnId, DomId),
        path: Path<'_>,
        key: Rc<[u8]>,
        hidden: usize,
        depth: Option<u32>,
    ) -> WatchId {
        let number = self.count;
        let watch =
            Watch { number, conn, domid, key, path_len: path.as_bytes().len(), hidden, depth };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len()).unwrap_or(u32::MAX).saturating_sub(1)
        });
        let id = WatchId { number, slot };
        self.count = self.count.saturating_add(1);
        if let Some(place) = self.all.get_mut(slot as usize) {
            *place = Some(watch);
        }
        if let Some(place) = self.top_mut(path).make(names(path)) {
            place.watchers.insert(Watcher { domid, id });
        }
        id
    }

    /// Removes a watch.
    pub(crate) fn remove(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.all.get_mut(id.slot as usize)?.take()?;
        self.free.push(id.slot);
        let (path, domid) = (Path::checked(watch.path()), watch.domid);
        self.top_mut(path).remove(names(path), Watcher { domid, id });
        Some(watch)
    }

    /// True if there are watches of the path or of a node above it. For most changes there are
    /// none.
    pub(crate) fn may_match(&self, path: Path<'_>) -> bool {
        let (mut place, mut behind) = (self.top(path), names(path));
        while place.watchers.is_empty() {
            let Some(next) = place.enter(behind) else { return false };
            (place, behind) = next;
        }
        true
    }

    /// Collects the watches of an audience that a change of `path` concerns: those of the path and
    /// of the nodes above it, as far as their depth reaches. Those of one connection and place are
    /// in the order in which they were set.
    pub(crate) fn matching(&self, path: Path<'_>, audience: Audience<'_>, to: &mut Vec<WatchId>) {
        let (mut place, mut behind) = (self.top(path), names(path));
        loop {
            if !place.watchers.is_empty() {
                let reaches = |id: &WatchId| {
                    let depth = self.get(*id).and_then(|watch| watch.depth);
                    depth.is_none_or(|depth| count(behind) <= depth as usize)
                };
                to.extend(place.watchers.of(audience).filter(reaches));
            }
            let Some(next) = place.enter(behind) else { return };
            (place, behind) = next;
        }
    }

    /// Returns the spot of `path`, if there is a watch on it or below it.
    pub(crate) fn spot(&self, path: Path<'_>) -> Option<Spot<'_>> {
        path.names().try_fold(Spot::top(&self.tree), Spot::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(watches: &mut Watches, path: &'static [u8], depth: Option<u32>) -> WatchId {
        let path = Path::checked(path);
        let mut bytes = Vec::new();
        key(path, b"t", &mut bytes);
        watches.add((ConnId(0), DomId(0)), path, Rc::from(bytes), 0, depth)
    }

    fn matching(watches: &Watches, path: &'static [u8]) -> Vec<WatchId> {
        let mut found = Vec::new();
        watches.matching(Path::checked(path), Audience::Everybody, &mut found);
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
        assert!(Spot::top(&watches.tree).len() == 0);
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
        assert_eq!(watches.spot(Path::checked(b"/a")).map(Spot::len), Some(0));
        assert_eq!(matching(&watches, b"/a/b/x"), [top]);
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
        assert_eq!(a.get(b"b").unwrap().watches(Audience::Everybody).collect::<Vec<_>>(), [b]);
        assert!(!a.get(b"x").unwrap().is_watched());
        assert!(a.get(b"z").is_none() && watches.spot(Path::checked(b"/b")).is_none());
    }
}
