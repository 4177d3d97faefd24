//! Permissions: the access of each domain to a node.
//!
//! The first entry names the owner, who has full access, and the access of all other domains.
//! Further entries name single domains. An entry is valid for the *incarnation* of the domain for
//! which it was written, so that a later domain of the same number inherits nothing. No walk over
//! the tree is needed when a domain dies (XSA-322, XSA-417).

use crate::id::DomId;
use crate::limits::DOMID_ANY;
use crate::path::push_decimal;
use crate::wire::{Error, Strings};
use alloc::vec::Vec;

/// The rights of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessRights(u8);

impl AccessRights {
    /// `n`
    pub const NONE: Self = Self(0);
    /// `r`
    pub const READ: Self = Self(1);
    /// `w`
    pub const WRITE: Self = Self(2);
    /// `b`
    pub const BOTH: Self = Self(3);

    /// True if all of `wanted` is allowed.
    #[must_use]
    pub fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    pub(crate) fn letter(self) -> u8 {
        match self {
            Self::READ => b'r',
            Self::WRITE => b'w',
            Self::BOTH => b'b',
            _ => b'n',
        }
    }

    /// Returns the rights that `letter` means in SET_PERMS.
    pub(crate) fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'r' => Some(Self::READ),
            b'w' => Some(Self::WRITE),
            b'b' => Some(Self::BOTH),
            b'n' => Some(Self::NONE),
            _ => None,
        }
    }
}

/// The incarnation of a domain number: it distinguishes the domains that have had the number, one
/// after the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Incarnation(pub u32);

impl Incarnation {
    /// No domain: the entry was written for a domain that did not exist.
    pub const NEVER: Self = Self(0);
    /// The mark of a void entry, whatever domain it names.
    pub const VOID: Self = Self(u32::MAX);
}

/// One permission entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Perm {
    /// The domain.
    pub domid: DomId,
    /// Its rights, or in the first entry those of all other domains.
    pub access: AccessRights,
    /// The incarnation of the domain.
    pub incarnation: Incarnation,
}

/// The permissions of a node: at least one entry, the owner's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Perms {
    owner: Perm,
    others: Vec<Perm>,
}

/// The domain that makes a request, with its rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The domain.
    pub domid: DomId,
    /// The incarnation of the domain.
    pub incarnation: Incarnation,
    /// The domain whose rights it has besides its own (SET_TARGET).
    pub target: Option<(DomId, Incarnation)>,
    /// True if the caller is exempt from permissions and quotas.
    pub privileged: bool,
}

impl Caller {
    /// True if the entry is for the caller, or for its target.
    fn is(&self, perm: &Perm) -> bool {
        (perm.domid == self.domid && perm.incarnation == self.incarnation)
            || self.target == Some((perm.domid, perm.incarnation))
    }

    fn matches(&self, perm: &Perm) -> bool {
        (perm.domid.0 == DOMID_ANY && perm.incarnation != Incarnation::VOID) || self.is(perm)
    }
}

impl Perms {
    /// Returns permissions with the owner's entry only.
    #[must_use]
    pub fn owned(owner: Perm) -> Self {
        Self { owner, others: Vec::new() }
    }

    /// Returns permissions with these entries.
    pub(crate) fn new(owner: Perm, others: Vec<Perm>) -> Self {
        Self { owner, others }
    }

    /// Returns the owner's entry.
    #[must_use]
    pub fn owner(&self) -> Perm {
        self.owner
    }

    /// Returns all entries, the owner's first.
    pub fn entries(&self) -> impl Iterator<Item = &Perm> {
        core::iter::once(&self.owner).chain(&self.others)
    }

    /// Returns the number of entries.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.others.len().saturating_add(1)
    }

    /// Returns a copy with another owner.
    #[must_use]
    pub fn with_owner(&self, domid: DomId, incarnation: Incarnation) -> Self {
        let mut perms = self.clone();
        perms.owner.domid = domid;
        perms.owner.incarnation = incarnation;
        perms
    }

    /// Returns the rights of `caller`.
    #[must_use]
    pub fn access(&self, caller: &Caller) -> AccessRights {
        if caller.privileged || self.is_owner(caller) {
            return AccessRights::BOTH;
        }
        let own = self.others.iter().find(|perm| caller.matches(perm));
        own.map_or(self.owner.access, |perm| perm.access)
    }

    /// True if `caller` may change these permissions.
    #[must_use]
    pub fn is_owner(&self, caller: &Caller) -> bool {
        caller.privileged || caller.is(&self.owner) || self.owner.domid.0 == DOMID_ANY
    }

    /// Parses `<letter><domid>\0…`. `incarnation` returns the incarnation of a number that is
    /// meant.
    ///
    /// # Errors
    /// EINVAL if there is no entry, for an unknown letter, or for a domid that is no number or
    /// above 65535.
    pub fn parse(
        payload: &[u8],
        mut incarnation: impl FnMut(DomId) -> Incarnation,
    ) -> Result<Self, Error> {
        let mut entries = Strings::new(payload).map(|text| {
            let (letter, digits) = text.split_first().ok_or(Error::Inval)?;
            let access = AccessRights::from_letter(*letter).ok_or(Error::Inval)?;
            let domid = DomId(u16::try_from(number(digits)?).map_err(|_| Error::Inval)?);
            Ok(Perm { domid, access, incarnation: incarnation(domid) })
        });
        let owner = entries.next().ok_or(Error::Inval)??;
        Ok(Self { owner, others: entries.collect::<Result<_, _>>()? })
    }

    /// Appends the entries as GET_PERMS returns them, each followed by `end`, except those for
    /// which `shown` is false (dead domains).
    pub fn write(&self, end: u8, mut shown: impl FnMut(&Perm) -> bool, to: &mut Vec<u8>) {
        for (at, perm) in self.entries().enumerate() {
            if at == 0 || shown(perm) {
                to.push(perm.access.letter());
                push_decimal(u64::from(perm.domid.0), to);
                to.push(end);
            }
        }
    }
}

/// Parses a non-negative number as `strtol` with base 0 does: decimal, 0x… or 0….
fn number(digits: &[u8]) -> Result<u32, Error> {
    let text = core::str::from_utf8(digits).map_err(|_| Error::Inval)?;
    let (text, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if text.starts_with('+') {
        return Err(Error::Inval);
    }
    u32::from_str_radix(text, radix).map_err(|_| Error::Inval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(domid: u16, incarnation: u32) -> Caller {
        let incarnation = Incarnation(incarnation);
        Caller { domid: DomId(domid), incarnation, target: None, privileged: false }
    }

    fn perms(text: &[u8]) -> Result<Perms, Error> {
        Perms::parse(text, |domid| Incarnation(u32::from(domid.0)))
    }

    #[test]
    fn parses_and_prints() {
        for text in [&b"n0\0"[..], b"r7\0w8\0", b"b65535\0n1\0r2\0"] {
            let mut printed = Vec::new();
            perms(text).unwrap().write(0, |_| true, &mut printed);
            assert_eq!(printed, text);
        }
        for text in [&b""[..], b"x0\0", b"r\0", b"r65536\0", b"r-1\0", b"r1x\0", b"n0"] {
            assert_eq!(perms(text), Err(Error::Inval));
        }
        assert_eq!(perms(b"r0x10\0").unwrap().owner().domid, DomId(16));
    }

    #[test]
    fn the_first_entry_is_for_everybody_else() {
        let perms = perms(b"r1\0n2\0b3\0").unwrap();
        assert_eq!(perms.access(&guest(1, 1)), AccessRights::BOTH);
        assert_eq!(perms.access(&guest(2, 2)), AccessRights::NONE);
        assert_eq!(perms.access(&guest(3, 3)), AccessRights::BOTH);
        assert_eq!(perms.access(&guest(4, 4)), AccessRights::READ);
    }

    #[test]
    fn entries_are_for_one_incarnation() {
        let perms = perms(b"n1\0b3\0").unwrap();
        assert_eq!(perms.access(&guest(3, 3)), AccessRights::BOTH);
        assert_eq!(perms.access(&guest(3, 4)), AccessRights::NONE);
    }

    /// Nodes of a dead domain may exist for a while after its death.
    #[test]
    fn a_successor_is_no_owner() {
        let perms = perms(b"n3\0").unwrap();
        assert!(perms.is_owner(&guest(3, 3)));
        assert!(!perms.is_owner(&guest(3, 4)));
        assert_eq!(perms.access(&guest(3, 4)), AccessRights::NONE);
    }

    #[test]
    fn a_target_lends_its_rights() {
        let perms = perms(b"n1\0b3\0").unwrap();
        let mut caller = guest(9, 9);
        caller.target = Some((DomId(1), Incarnation(1)));
        assert!(perms.is_owner(&caller));
        caller.target = Some((DomId(3), Incarnation(3)));
        assert_eq!(perms.access(&caller), AccessRights::BOTH);
        caller.target = Some((DomId(3), Incarnation(8)));
        assert_eq!(perms.access(&caller), AccessRights::NONE);
    }
}
