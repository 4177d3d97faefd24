//! Names separated by slashes, as the index compares them.

use crate::bytes::find;

/// Returns the first of these names.
#[inline]
pub(super) fn first_name(names: &[u8]) -> &[u8] {
    names.get(..find::<b'/'>(names).unwrap_or(names.len())).unwrap_or_default()
}

/// Returns the names after `first` in `names`, if they begin with it.
#[inline]
pub(super) fn strip<'n>(names: &'n [u8], first: &[u8]) -> Option<&'n [u8]> {
    let rest = names.strip_prefix(first)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

/// Returns the length of the names with which both begin.
pub(super) fn common_len(one: &[u8], two: &[u8]) -> usize {
    let same = one.iter().zip(two).take_while(|(one, two)| one == two).count();
    let ends = |names: &[u8]| names.get(same).is_none_or(|byte| *byte == b'/');
    if ends(one) && ends(two) {
        return same;
    }
    let shared = one.get(..same).unwrap_or_default();
    shared.iter().rposition(|byte| *byte == b'/').unwrap_or(0)
}

/// Returns the number of names.
pub(super) fn count(names: &[u8]) -> usize {
    names.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count()
}
