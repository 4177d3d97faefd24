//! The index of watches: a tree of paths in which every place has a watch or a branch.
//!
//! Names without a watch or a branch share one place with their successor, so a watch makes at most
//! two places, however long its path is. A change of `/a/b` finds the watches of `/`, `/a` and
//! `/a/b` in one descent; a removal also finds those below.

use super::child_places::{ChildPlaces, LabelledPlace};
use super::id::WatchId;
use super::names::{common_len, first_name, strip};
use crate::id::DomId;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// A place of the index.
#[derive(Default)]
pub(super) struct IndexPlace {
    /// The names from the place above to this one, separated by slashes.
    label: Box<[u8]>,
    pub(super) watchers: WatcherSet,
    below: ChildPlaces<Self>,
}

/// One watch of a place. A domain's watches are adjacent, in the order in which they were set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Watcher {
    pub(super) domid: DomId,
    pub(super) id: WatchId,
}

/// The domains whose watches may fire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audience<'d> {
    /// All domains.
    Everybody,
    /// These domains, each once.
    Domains(&'d [DomId]),
}

impl Audience<'_> {
    fn has(self, domid: DomId) -> bool {
        match self {
            Self::Everybody => true,
            Self::Domains(domains) => domains.contains(&domid),
        }
    }
}

/// The watches of one place: mostly one.
#[derive(Default)]
pub(super) enum WatcherSet {
    #[default]
    None,
    One(Watcher),
    Many(BTreeSet<Watcher>),
}

impl WatcherSet {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn insert(&mut self, watcher: Watcher) {
        match self {
            Self::None => *self = Self::One(watcher),
            Self::One(first) => *self = Self::Many(BTreeSet::from([*first, watcher])),
            Self::Many(all) => drop(all.insert(watcher)),
        }
    }

    pub(super) fn remove(&mut self, watcher: Watcher) {
        match self {
            Self::One(known) if *known == watcher => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(all) => {
                all.remove(&watcher);
                if all.len() < 2 {
                    *self = all.pop_first().map_or(Self::None, Self::One);
                }
            }
        }
    }

    /// Returns the watches of an audience, those of one domain adjacent.
    pub(super) fn of(&self, audience: Audience<'_>) -> impl Iterator<Item = WatchId> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(watcher) => (Some(*watcher).filter(|one| audience.has(one.domid)), None),
            Self::Many(all) => (None, Some(all)),
        };
        let (everybody, domains) = match audience {
            Audience::Everybody => (many, &[][..]),
            Audience::Domains(domains) => (None, domains),
        };
        let some = domains.iter().flat_map(move |domid| {
            let all_of = Watcher { domid: *domid, id: WatchId::FIRST }..=Watcher {
                domid: *domid,
                id: WatchId::LAST,
            };
            many.into_iter().flat_map(move |many| many.range(all_of.clone()))
        });
        let many = everybody.into_iter().flatten().chain(some).copied();
        one.into_iter().chain(many).map(|watcher| watcher.id)
    }
}

impl LabelledPlace for IndexPlace {
    fn label(&self) -> &[u8] {
        &self.label
    }
}

impl IndexPlace {
    /// Returns the next place on the path along `names`, and the names after it.
    #[inline]
    pub(super) fn enter<'n>(&self, names: &'n [u8]) -> Option<(&Self, &'n [u8])> {
        let next = self.below.toward(names)?;
        Some((next, strip(names, &next.label)?))
    }

    fn enter_mut<'n>(&mut self, names: &'n [u8]) -> Option<(&mut Self, &'n [u8])> {
        let next = self.below.get_mut(names)?;
        let behind = strip(names, &next.label)?;
        Some((next, behind))
    }

    /// Returns the place of `names`, and makes it if there is none.
    pub(super) fn make(&mut self, mut names: &[u8]) -> Option<&mut Self> {
        let mut place = self;
        while !names.is_empty() {
            if place.below.get(names).is_none() {
                place.below.add(Box::new(Self { label: Box::from(names), ..Self::default() }));
            }
            let next = place.below.get_mut(names)?;
            let common = common_len(&next.label, names);
            next.split(common);
            names = names.get(common.saturating_add(1)..).unwrap_or_default();
            place = next;
        }
        Some(place)
    }

    /// Splits the label after its first `len` bytes: this becomes the place there, and its former
    /// content a place below it.
    fn split(&mut self, len: usize) {
        let Some((upper, lower)) = self.label.split_at_checked(len) else { return };
        let Some(lower) = lower.strip_prefix(b"/") else { return };
        let (upper, lower) = (Box::from(upper), Box::from(lower));
        let (watchers, below) =
            (core::mem::take(&mut self.watchers), core::mem::take(&mut self.below));
        self.label = upper;
        self.below = ChildPlaces::One(Box::new(Self { label: lower, watchers, below }));
    }

    /// Merges this place with the one below it, if it has neither a watch nor a branch.
    fn join(&mut self) {
        if !self.watchers.is_empty() {
            return;
        }
        match core::mem::take(&mut self.below) {
            ChildPlaces::One(lower) => {
                let mut label = Vec::with_capacity(
                    self.label.len().saturating_add(lower.label.len()).saturating_add(1),
                );
                label.extend_from_slice(&self.label);
                label.push(b'/');
                label.extend_from_slice(&lower.label);
                let Self { watchers, below, .. } = *lower;
                *self = Self { label: label.into_boxed_slice(), watchers, below };
            }
            other => self.below = other,
        }
    }

    /// Removes a watch from the place of `names`, and the places that are not needed any more.
    pub(super) fn remove(&mut self, names: &[u8], watcher: Watcher) {
        let (mut place, mut behind, mut steps) = (&mut *self, names, 0usize);
        while !behind.is_empty() {
            let Some((next, rest)) = place.enter_mut(behind) else { return };
            (place, behind, steps) = (next, rest, steps.saturating_add(1));
        }
        place.watchers.remove(watcher);
        let Some(above) = steps.checked_sub(1) else { return };
        if !place.watchers.is_empty() || place.below.len() > 0 {
            place.join();
            return;
        }
        let (mut place, mut behind) = (self, names);
        for _ in 0..above {
            let Some((next, rest)) = place.enter_mut(behind) else { return };
            (place, behind) = (next, rest);
        }
        place.below.remove(first_name(behind));
        // The top stays unchanged.
        if above > 0 {
            place.join();
        }
    }
}

/// A point of the index: a place, or a point within a place's label.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'w> {
    place: &'w IndexPlace,
    /// The names of the place's label after this point.
    ahead: &'w [u8],
}

impl<'w> Spot<'w> {
    pub(super) fn top(place: &'w IndexPlace) -> Self {
        Self { place, ahead: &[] }
    }

    /// Returns the spot of this name below it.
    pub(crate) fn get(self, name: &[u8]) -> Option<Self> {
        if !self.ahead.is_empty() {
            return strip(self.ahead, name).map(|ahead| Self { ahead, ..self });
        }
        let place = self.place.below.get(name)?;
        strip(&place.label, name).map(|ahead| Self { place, ahead })
    }

    /// Returns all spots one name below it.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'w [u8], Self)> {
        let (ahead, place) = (self.ahead, self.place);
        let below = ahead.is_empty().then(|| place.below.iter());
        let below = below.into_iter().flatten().map(|place| (place, &*place.label));
        let next = (!ahead.is_empty()).then_some((place, ahead));
        next.into_iter().chain(below).map(|(place, names)| {
            let name = first_name(names);
            (name, Self { place, ahead: strip(names, name).unwrap_or_default() })
        })
    }

    /// Returns the number of spots one name below it.
    pub(crate) fn len(self) -> u32 {
        if self.ahead.is_empty() { self.place.below.len() } else { 1 }
    }

    /// True if the spot itself has a watch.
    pub(crate) fn is_watched(self) -> bool {
        self.ahead.is_empty() && !self.place.watchers.is_empty()
    }

    /// Returns the watches of the spot itself that belong to the audience.
    pub(crate) fn watches(self, audience: Audience<'_>) -> impl Iterator<Item = WatchId> {
        let watchers = self.ahead.is_empty().then(|| self.place.watchers.of(audience));
        watchers.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    fn watcher(number: u64) -> Watcher {
        Watcher { domid: DomId(0), id: WatchId::for_test(number) }
    }

    fn all(place: &IndexPlace) -> impl Iterator<Item = WatchId> {
        place.watchers.of(Audience::Everybody)
    }

    #[test]
    fn an_audience_has_its_own_watches_only() {
        let mut watchers = WatcherSet::default();
        let mut ids = Vec::new();
        for number in 0..40 {
            let id = WatchId::for_test(number);
            watchers.insert(Watcher { domid: DomId((number % 5) as u16), id });
            ids.push(id);
            let of = |domains: &[u16]| {
                let domains: Vec<DomId> = domains.iter().map(|domid| DomId(*domid)).collect();
                let mut found: Vec<WatchId> = watchers.of(Audience::Domains(&domains)).collect();
                found.sort_unstable();
                found
            };
            let expected = |domains: &[u16]| {
                let mut some = ids.clone();
                let mut number = 0;
                some.retain(|_| {
                    number += 1;
                    domains.contains(&((number - 1) % 5))
                });
                some
            };
            for domains in [&[][..], &[0], &[4], &[3, 1], &[7]] {
                assert_eq!(of(domains), expected(domains), "{number} {domains:?}");
            }
            assert_eq!(watchers.of(Audience::Everybody).count(), ids.len());
        }
    }

    /// Returns the places below `place` as text: label, number of watches, those below.
    fn shape(place: &IndexPlace) -> String {
        let below: Vec<String> = place.below.iter().map(shape).collect();
        let label = String::from_utf8_lossy(&place.label).into_owned();
        let below = if below.is_empty() { String::new() } else { format!("({})", below.join(" ")) };
        format!("{label}:{}{below}", all(place).count())
    }

    #[test]
    fn places_are_where_something_is_watched_or_ways_part() {
        let mut top = IndexPlace::default();
        let mut set = |path: &str, number| {
            top.make(path.as_bytes()).unwrap().watchers.insert(watcher(number));
            shape(&top)
        };
        assert_eq!(set("a/b/c/d", 0), ":0(a/b/c/d:1)");
        assert_eq!(set("a/b", 1), ":0(a/b:1(c/d:1))");
        assert_eq!(set("a/bx", 2), ":0(a:0(b:1(c/d:1) bx:1))");
        assert_eq!(set("a/b/c/e", 3), ":0(a:0(b:1(c:0(d:1 e:1)) bx:1))");
        assert_eq!(set("a/b/c/e", 4), ":0(a:0(b:1(c:0(d:1 e:2)) bx:1))");
        assert_eq!(set("", 5), ":1(a:0(b:1(c:0(d:1 e:2)) bx:1))");
        let mut unset = |path: &str, number| {
            top.remove(path.as_bytes(), watcher(number));
            shape(&top)
        };
        // This watch does not exist, or is another domain's.
        assert_eq!(unset("a/x", 0), ":1(a:0(b:1(c:0(d:1 e:2)) bx:1))");
        assert_eq!(unset("a/b/c", 0), ":1(a:0(b:1(c:0(d:1 e:2)) bx:1))");
        assert_eq!(unset("a/bx", 0), ":1(a:0(b:1(c:0(d:1 e:2)) bx:1))");
        assert_eq!(unset("a/b/c/e", 3), ":1(a:0(b:1(c:0(d:1 e:1)) bx:1))");
        assert_eq!(unset("a/b", 1), ":1(a:0(b/c:0(d:1 e:1) bx:1))");
        assert_eq!(unset("a/bx", 2), ":1(a/b/c:0(d:1 e:1))");
        assert_eq!(unset("a/b/c/e", 4), ":1(a/b/c/d:1)");
        assert_eq!(unset("", 5), ":0(a/b/c/d:1)");
        assert_eq!(unset("a/b/c/d", 0), ":0");
    }

    #[test]
    fn names_that_begin_alike_are_told_apart() {
        let names: Vec<Vec<u8>> =
            (0..50).map(|at| format!("12345678-{at:02}-12345678").into_bytes()).collect();
        let mut top = IndexPlace::default();
        for (at, name) in (0..).zip(&names) {
            top.make(name).unwrap().watchers.insert(watcher(at));
            assert_eq!(all(top.make(name).unwrap()).count(), 1);
        }
        assert_eq!((top.below.len(), top.below.iter().count()), (50, 50));
        for (at, name) in (0..).zip(&names) {
            let (place, behind) = top.enter(name).unwrap();
            assert_eq!((all(place).next(), behind), (Some(watcher(at).id), &b""[..]));
            top.remove(name, watcher(at));
            top.remove(name, watcher(at));
            assert!(top.enter(name).is_none());
        }
        assert_eq!(top.below.len(), 0);
    }

    /// Any set of watches, set and removed in any order, is found as a list of paths finds them.
    #[test]
    fn what_is_found_is_what_was_set() {
        let mut seed = 1u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        let names = ["a", "b", "ab", "12345678", "12345678x", "12345678y"];
        let mut path = || {
            let names: Vec<&str> = (0..random(5)).map(|_| names[random(names.len())]).collect();
            (names.join("/"), random(3))
        };
        let mut top = IndexPlace::default();
        let mut set: Vec<(String, Watcher)> = Vec::new();
        for number in 0..5000 {
            let (path, what) = path();
            if what == 0 || set.len() > 200 {
                if !set.is_empty() {
                    let (path, watcher) = set.swap_remove(number as usize % set.len());
                    top.remove(path.as_bytes(), watcher);
                }
            } else {
                top.make(path.as_bytes()).unwrap().watchers.insert(watcher(number));
                set.push((path.clone(), watcher(number)));
            }
            let (mut found, mut place, mut behind) = (Vec::new(), &top, path.as_bytes());
            loop {
                found.extend(all(place));
                let Some((next, rest)) = place.enter(behind).filter(|_| !behind.is_empty()) else {
                    break;
                };
                (place, behind) = (next, rest);
            }
            let above = |known: &str| {
                known.is_empty() || strip(path.as_bytes(), known.as_bytes()).is_some()
            };
            let mut expected: Vec<WatchId> = set
                .iter()
                .filter(|(known, _)| above(known))
                .map(|(_, watcher)| watcher.id)
                .collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{path}");
            let places = path.split('/').filter(|name| !name.is_empty());
            let mut names = places.map(str::as_bytes);
            let spot = names.try_fold(Spot::top(&top), Spot::get);
            let at = set.iter().filter(|(known, _)| *known == path).count();
            assert_eq!(
                spot.map_or(0, |spot| spot.watches(Audience::Everybody).count()),
                at,
                "{path}"
            );
        }
        for (path, watcher) in set {
            top.remove(path.as_bytes(), watcher);
        }
        assert_eq!(shape(&top), ":0");
    }
}
