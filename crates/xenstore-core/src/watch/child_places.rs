//! The places of the index below one: none, one, or many that are found by their first names.

use super::names::{first_name, strip};
use crate::prefix::prefix_of;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;

/// A place with a label.
pub(super) trait LabelledPlace: Default {
    /// Returns the names from the place above to this one, separated by slashes.
    fn label(&self) -> &[u8];
}

/// The places below one: mostly none or one.
#[derive(Default)]
pub(super) enum ChildPlaces<P> {
    #[default]
    None,
    One(Box<P>),
    Many(Box<Branching<P>>),
}

/// A branching point: the places by their first name. They are found by its first bytes as a
/// number, as nodes are. Every change searches here, even if no watch is near.
#[derive(Default)]
pub(super) struct Branching<P> {
    places: BTreeMap<u64, PrefixGroup<P>>,
    /// The [`mark`]s of all names that are or were here: most changes are at places without
    /// watches.
    marks: u64,
    /// The number of places.
    len: u32,
}

/// The places whose first names share their first bytes.
enum PrefixGroup<P> {
    One(Box<P>),
    /// The places sorted by their first names. They are boxed, so that an insertion moves only
    /// pointers.
    Many(Vec<Box<P>>),
}

/// True if the first name of the place's label is `name`.
#[inline]
fn is_first(place: &impl LabelledPlace, name: &[u8]) -> bool {
    strip(place.label(), name).is_some()
}

/// Returns one bit of 64 for a name with this prefix.
fn mark(prefix: u64) -> u64 {
    1 << (prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

impl<P: LabelledPlace> PrefixGroup<P> {
    /// Returns the place whose first name is `name`.
    #[inline]
    fn get(&self, name: &[u8]) -> Option<&P> {
        match self {
            Self::One(place) => is_first(&**place, name).then_some(place),
            Self::Many(places) => {
                let at =
                    places.binary_search_by(|place| first_name(place.label()).cmp(name)).ok()?;
                places.get(at).map(|place| &**place)
            }
        }
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut P> {
        match self {
            Self::One(place) => is_first(&**place, name).then_some(place),
            Self::Many(places) => {
                let at =
                    places.binary_search_by(|place| first_name(place.label()).cmp(name)).ok()?;
                places.get_mut(at).map(|place| &mut **place)
            }
        }
    }

    /// Adds a place whose first name must be new.
    fn add(&mut self, place: Box<P>) {
        if let Self::One(first) = self {
            *self = Self::Many(Vec::from([core::mem::take(first)]));
        }
        if let Self::Many(places) = self {
            let name = first_name(place.label());
            let at = places.partition_point(|known| first_name(known.label()) < name);
            places.insert(at, place);
        }
    }

    /// Removes the place whose first name is `name`. Returns true if there was one.
    fn remove(&mut self, name: &[u8]) -> bool {
        match self {
            Self::One(place) if is_first(&**place, name) => {
                *self = Self::Many(Vec::new());
                true
            }
            Self::One(_) => false,
            Self::Many(places) => {
                let found = places.binary_search_by(|place| first_name(place.label()).cmp(name));
                if let Ok(at) = found {
                    places.remove(at);
                    if places.capacity() > places.len().saturating_mul(2).saturating_add(4) {
                        places.shrink_to_fit();
                    }
                }
                found.is_ok()
            }
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Many(places) if places.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = &P> {
        let (one, many) = match self {
            Self::One(place) => (Some(place), None),
            Self::Many(places) => (None, Some(places)),
        };
        one.into_iter().chain(many.into_iter().flatten()).map(|place| &**place)
    }

    /// Returns the only place, if there is exactly one.
    fn into_only(self) -> Option<Box<P>> {
        match self {
            Self::One(place) => Some(place),
            Self::Many(places) => places.into_iter().next(),
        }
    }
}

impl<P: LabelledPlace> Branching<P> {
    #[inline]
    fn get(&self, name: &[u8]) -> Option<&P> {
        let prefix = prefix_of(name);
        if self.marks & mark(prefix) == 0 {
            return None;
        }
        self.places.get(&prefix)?.get(name)
    }

    fn get_mut(&mut self, name: &[u8]) -> Option<&mut P> {
        self.places.get_mut(&prefix_of(name))?.get_mut(name)
    }

    /// Adds a place whose first name must be new.
    fn add(&mut self, place: Box<P>) {
        let prefix = prefix_of(first_name(place.label()));
        self.marks |= mark(prefix);
        self.len = self.len.saturating_add(1);
        match self.places.entry(prefix) {
            Entry::Vacant(free) => drop(free.insert(PrefixGroup::One(place))),
            Entry::Occupied(mut taken) => taken.get_mut().add(place),
        }
    }

    fn remove(&mut self, name: &[u8]) {
        let Entry::Occupied(mut taken) = self.places.entry(prefix_of(name)) else { return };
        if taken.get_mut().remove(name) {
            self.len = self.len.saturating_sub(1);
        }
        if taken.get().is_empty() {
            taken.remove();
        }
    }

    /// Returns the only place, if there is exactly one.
    fn only(&mut self) -> Option<Box<P>> {
        let (_, alike) = (self.len == 1).then(|| self.places.pop_first())??;
        alike.into_only()
    }
}

impl<P: LabelledPlace> ChildPlaces<P> {
    /// Returns the place that may be on the path along `names`. Its label is still to be compared.
    #[inline]
    pub(super) fn toward(&self, names: &[u8]) -> Option<&P> {
        match self {
            Self::None => None,
            Self::One(place) => Some(place),
            Self::Many(parting) => parting.get(first_name(names)),
        }
    }

    /// Returns the place whose first name is that of `names`.
    #[inline]
    pub(super) fn get(&self, names: &[u8]) -> Option<&P> {
        match self {
            Self::None => None,
            Self::One(place) => is_first(&**place, first_name(names)).then_some(place),
            Self::Many(parting) => parting.get(first_name(names)),
        }
    }

    pub(super) fn get_mut(&mut self, names: &[u8]) -> Option<&mut P> {
        let name = first_name(names);
        match self {
            Self::None => None,
            Self::One(place) => is_first(&**place, name).then_some(place),
            Self::Many(parting) => parting.get_mut(name),
        }
    }

    /// Adds a place whose first name must be new.
    pub(super) fn add(&mut self, place: Box<P>) {
        match core::mem::take(self) {
            Self::None => *self = Self::One(place),
            Self::One(first) => {
                let mut parting = Box::<Branching<P>>::default();
                parting.add(first);
                parting.add(place);
                *self = Self::Many(parting);
            }
            Self::Many(mut parting) => {
                parting.add(place);
                *self = Self::Many(parting);
            }
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        match self {
            Self::None => {}
            Self::One(place) if is_first(&**place, name) => *self = Self::None,
            Self::One(_) => {}
            Self::Many(parting) => {
                parting.remove(name);
                if let Some(only) = parting.only() {
                    *self = Self::One(only);
                }
            }
        }
    }

    pub(super) fn len(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(parting) => parting.len,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(place) => (Some(&**place), None),
            Self::Many(parting) => {
                (None, Some(parting.places.values().flat_map(PrefixGroup::iter)))
            }
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
