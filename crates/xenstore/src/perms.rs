//! Permission entries of a node, as GET_PERMS and SET_PERMS carry them.

use std::fmt;

/// The access that a permission entry allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeAccess {
    /// `n`: nothing.
    None,
    /// `r`: reading.
    Read,
    /// `w`: writing.
    Write,
    /// `b`: both.
    Both,
}

impl NodeAccess {
    /// Returns the letter on the wire.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }

    /// Returns the access with this letter.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'n' => Some(Self::None),
            b'r' => Some(Self::Read),
            b'w' => Some(Self::Write),
            b'b' => Some(Self::Both),
            _ => None,
        }
    }
}

/// One permission entry. The first entry of a node names its owner, and the access of every domain
/// that has no entry of its own. Each further entry is for one domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Perm {
    /// The access that is allowed.
    pub access: NodeAccess,
    /// The domain of the entry. It is signed, as libxenstore prints it; real domids are 0 to 32751.
    pub domid: i32,
}

impl Perm {
    /// Parses the text form, such as `r5`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (letter, number) = text.split_first()?;
        let domid = std::str::from_utf8(number).ok()?.parse().ok()?;
        Some(Self { access: NodeAccess::from_letter(*letter)?, domid })
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        for text in ["n0", "r5", "w32751", "b-1"] {
            assert_eq!(Perm::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        for text in ["", "r", "x5", "r5x", "5"] {
            assert_eq!(Perm::parse(text.as_bytes()), None, "{text}");
        }
    }
}
