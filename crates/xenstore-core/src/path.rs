//! Checks the path in a request before any access to the tree.
//!
//! Source: `docs/misc/xenstore.txt`, "Paths are /-separated …". Cases that the document leaves open
//! follow the C daemon (`canonicalize`).

use crate::bytes::{find, has_pair};
use crate::limits::{ABS_PATH_MAX, REL_PATH_MAX};
use crate::wire::Error;
use alloc::vec::Vec;

/// A checked path: absolute, or special (`@…`). Every component is non-empty and of legal bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Path<'a>(&'a [u8]);

/// The right of a request to name a special path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecialPaths {
    /// Special paths such as `@introduceDomain` are allowed.
    Allowed,
    /// Only nodes of the tree are allowed.
    Refused,
}

/// The bytes that a path may contain: ASCII letters and digits and `-/_@`.
const LEGAL: [bool; 256] = {
    let mut legal = [false; 256];
    let set = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@";
    let mut at = 0;
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "at compile time")]
    while at < set.len() {
        legal[set[at] as usize] = true;
        at += 1;
    }
    legal
};

/// The parent directory of every domain's home.
const HOMES: &[u8] = b"/local/domain/";

impl<'a> Path<'a> {
    /// The root of the tree.
    pub const ROOT: Path<'static> = Path(b"/");

    /// Wraps bytes that [`resolve`] has checked before (a stored path).
    #[must_use]
    pub(crate) fn checked(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, starting with `/` or `@`.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// True if this is `/`.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.0 == b"/"
    }

    /// True if this starts with `@`.
    #[must_use]
    pub fn is_special(self) -> bool {
        self.0.first() == Some(&b'@')
    }

    /// Returns the names along the path. The root has none; a special path's first name keeps its
    /// `@`.
    #[must_use]
    pub fn names(self) -> PathNames<'a> {
        PathNames(self.0.strip_prefix(b"/").unwrap_or(self.0))
    }

    /// Returns the parent and the last name; `None` for the root.
    #[must_use]
    pub fn split_last(self) -> Option<(Path<'a>, &'a [u8])> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        let (parent, name) = self.0.split_at_checked(slash)?;
        let name = name.get(1..).filter(|name| !name.is_empty())?;
        Some((if parent.is_empty() { Path(b"/") } else { Path(parent) }, name))
    }

    /// Returns the paths above this one, nearest first, the root last.
    pub(crate) fn above(self) -> impl Iterator<Item = Path<'a>> {
        let parent = |path: Path<'a>| path.split_last().map(|(parent, _)| parent);
        core::iter::successors(parent(self), move |path| parent(*path))
    }

    /// Returns the length that the quota `path-max` limits. Like the C daemon's, it excludes a
    /// leading `/local/domain/<domid>/`.
    #[must_use]
    pub fn counted_len(self) -> usize {
        self.0.len().saturating_sub(home_prefix_len(self.0))
    }

    /// Returns the cost of following the path, in simple requests, in addition to the request
    /// itself.
    #[must_use]
    pub fn cost(self) -> u32 {
        // A path has at most 3072 bytes.
        u32::try_from(self.0.len() / 64).unwrap_or(u32::MAX)
    }

    /// True if the two are equal or one of them is an ancestor of the other.
    #[must_use]
    pub fn overlaps(self, other: Path<'_>) -> bool {
        let (short, long) =
            if self.0.len() <= other.0.len() { (self.0, other.0) } else { (other.0, self.0) };
        short == b"/"
            || long
                .strip_prefix(short)
                .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    }
}

/// The remaining names along a path, separated by slashes.
#[derive(Clone, Debug)]
pub struct PathNames<'a>(&'a [u8]);

impl<'a> Iterator for PathNames<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let (name, rest) = self.0.split_at_checked(find::<b'/'>(self.0).unwrap_or(self.0.len()))?;
        self.0 = rest.get(1..).unwrap_or_default();
        Some(name)
    }
}

/// True if the given path is relative to the caller's home.
#[must_use]
pub fn is_relative(given: &[u8]) -> bool {
    !matches!(given.first(), Some(b'/' | b'@'))
}

/// Checks a path given by a caller whose home is `/local/domain/<home>`.
///
/// A relative path is made absolute in `scratch`. The quota `path-max` is not checked here; see
/// [`Path::counted_len`].
///
/// # Errors
/// EINVAL for an empty path, an illegal byte, a doubled or trailing slash, an unwanted special
/// name, or too long a path.
pub fn resolve<'a>(
    given: &'a [u8],
    home: u16,
    special: SpecialPaths,
    scratch: &'a mut Vec<u8>,
) -> Result<Path<'a>, Error> {
    let legal = given.iter().all(|byte| LEGAL.get(usize::from(*byte)).is_some_and(|legal| *legal));
    let full: &[u8] = match given.first() {
        None => return Err(Error::Inval),
        _ if !legal => return Err(Error::Inval),
        Some(b'@') if special == SpecialPaths::Refused => return Err(Error::Inval),
        Some(b'/' | b'@') => given,
        Some(_) if given.len() > REL_PATH_MAX => return Err(Error::Inval),
        Some(_) => {
            scratch.clear();
            home_of(home, scratch);
            scratch.push(b'/');
            scratch.extend_from_slice(given);
            scratch
        }
    };
    let trailing = full.len() > 1 && full.last() == Some(&b'/');
    if has_pair::<b'/'>(full) || trailing || full.len() > ABS_PATH_MAX {
        return Err(Error::Inval);
    }
    Ok(Path(full))
}

/// Appends `/local/domain/<domid>`.
pub fn home_of(domid: u16, to: &mut Vec<u8>) {
    to.extend_from_slice(HOMES);
    push_decimal(u64::from(domid), to);
}

/// Returns the length of a leading `/local/domain/<1 to 5 digits>/`, or 0.
fn home_prefix_len(path: &[u8]) -> usize {
    let Some(rest) = path.strip_prefix(HOMES) else { return 0 };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        Some(b'/') if (1..=5).contains(&digits) => {
            HOMES.len().saturating_add(digits).saturating_add(1)
        }
        _ => 0,
    }
}

/// Appends a number in decimal.
pub(crate) fn push_decimal(number: u64, to: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut rest = number;
    let mut used = 0usize;
    for digit in digits.iter_mut().rev() {
        *digit = b'0'.wrapping_add((rest % 10) as u8);
        rest /= 10;
        used = used.wrapping_add(1);
        if rest == 0 {
            break;
        }
    }
    to.extend_from_slice(digits.get(digits.len().wrapping_sub(used)..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::{String, ToString};

    fn check(given: &[u8], special: SpecialPaths) -> Result<String, Error> {
        resolve(given, 7, special, &mut Vec::new())
            .map(|path| String::from_utf8_lossy(path.as_bytes()).to_string())
    }

    #[test]
    fn accepts_what_the_document_allows() {
        for path in ["/", "/a", "/a/b-c_d@e/0Z"] {
            assert_eq!(check(path.as_bytes(), SpecialPaths::Refused).as_deref(), Ok(path));
        }
        assert_eq!(check(b"x/y", SpecialPaths::Refused).as_deref(), Ok("/local/domain/7/x/y"));
        assert_eq!(
            check(b"@releaseDomain/3", SpecialPaths::Allowed).as_deref(),
            Ok("@releaseDomain/3")
        );
    }

    #[test]
    fn refuses_the_rest() {
        for path in ["", "//", "/a/", "/a//b", "a/", "/a b", "/a.b", "/\u{e9}", "@x"] {
            assert_eq!(
                check(path.as_bytes(), SpecialPaths::Refused),
                Err(Error::Inval),
                "{path:?}"
            );
        }
        for byte in 0..=255u8 {
            let legal = byte.is_ascii_alphanumeric() || b"-_@".contains(&byte);
            assert_eq!(
                check(&[b'/', b'a', byte, b'c'], SpecialPaths::Refused).is_ok(),
                legal || byte == b'/'
            );
        }
    }

    #[test]
    fn lengths_are_counted_as_the_c_daemon_counts_them() {
        let path = |len: usize| format!("/{}", "a".repeat(len - 1));
        assert!(check(path(3072).as_bytes(), SpecialPaths::Refused).is_ok());
        assert!(check(path(3073).as_bytes(), SpecialPaths::Refused).is_err());
        assert!(check("a".repeat(2048).as_bytes(), SpecialPaths::Refused).is_ok());
        assert!(check("a".repeat(2049).as_bytes(), SpecialPaths::Refused).is_err());
        for (path, counted) in [("/local/domain/7/abc", 3), ("/local/domain/7", 15), ("/abc", 4)] {
            assert_eq!(Path::checked(path.as_bytes()).counted_len(), counted);
        }
    }

    #[test]
    fn names_are_found_wherever_the_slashes_stand() {
        for path in ["/", "/a", "/1234567", "/12345678", "/123456789", "/a/b/c/d/e/f/g/h/i", "@x/7"]
        {
            let names: Vec<&[u8]> = Path::checked(path.as_bytes()).names().collect();
            let expected = path.strip_prefix('/').unwrap_or(path).split('/');
            let expected: Vec<&str> = expected.filter(|name| !name.is_empty()).collect();
            assert_eq!(names, expected.iter().map(|name| name.as_bytes()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn relations() {
        let path = Path::checked;
        assert!(path(b"/a").overlaps(path(b"/a/b")) && path(b"/a/b").overlaps(path(b"/a")));
        assert!(path(b"/").overlaps(path(b"/x")) && path(b"/x").overlaps(path(b"/x")));
        assert!(!path(b"/a").overlaps(path(b"/ab")) && !path(b"/a/b").overlaps(path(b"/a/c")));
        assert_eq!(path(b"/a/b").split_last(), Some((path(b"/a"), &b"b"[..])));
        assert_eq!(path(b"/a").split_last(), Some((Path::ROOT, &b"a"[..])));
        assert_eq!(Path::ROOT.split_last(), None);
    }
}
