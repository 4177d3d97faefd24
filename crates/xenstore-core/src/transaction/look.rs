//! Looks at nodes: the part that a request sees, and the part that a transaction remembers.

use crate::domain::Domains;
use crate::tree::Node;
use crate::wire::Error;
use alloc::boxed::Box;

/// The part of a node that a request looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    Value,
    Perms,
    Children,
    Subtree,
    /// The right to read the value. The value itself is the transaction's own.
    Readable,
}

impl Look {
    pub(super) fn bit(self) -> u8 {
        match self {
            Self::Value => 1,
            Self::Perms => 2,
            Self::Children => 4,
            Self::Subtree => 8,
            Self::Readable => 32,
        }
    }

    /// Returns this look at a node whose value the transaction has written itself.
    pub(super) fn of_own_value(self) -> Self {
        if self == Self::Value { Self::Readable } else { self }
    }

    /// Returns the part of `node` that such a look sees.
    pub(super) fn of(self, node: &Node, domains: &Domains) -> LookResult {
        let alive = || domains.alive_entries(node.perms());
        match self {
            Self::Value => ShortValue::new(node.value()).map_or_else(
                || LookResult::Digest(domains.secret.bytes(node.value())),
                LookResult::Short,
            ),
            Self::Perms => LookResult::Digest(domains.secret.perms(node.perms(), alive())),
            Self::Children => {
                LookResult::Digest(node.child_list().map_or(0, |children| children.names_digest()))
            }
            Self::Readable => LookResult::Digest(0),
            Self::Subtree => LookResult::Subtree(Box::new((node.clone(), alive()))),
        }
    }

    /// True if such a look at both nodes sees the same.
    pub(super) fn same(self, one: &Node, two: &Node) -> bool {
        match self {
            Self::Value => one.same_value(two),
            Self::Perms => one.same_perms(two),
            Self::Children => one.same_children(two),
            Self::Subtree => one.same_subtree(two),
            Self::Readable => true,
        }
    }
}

/// A value that is no longer than its digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ShortValue {
    len: u8,
    bytes: [u8; 15],
}

impl ShortValue {
    fn new(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 15];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self { len: u8::try_from(value.len()).ok()?, bytes })
    }
}

/// The result of a look. It does not keep the node, which would keep an old state of the store
/// alive.
pub(super) enum LookResult {
    Error(Error),
    Short(ShortValue),
    /// The digest of the value, the permissions or the names of the children.
    Digest(u64),
    /// A subtree as a whole, which only domain 0 can look at, and the number of permission entries
    /// of its top that were for living domains.
    Subtree(Box<(Node, usize)>),
}

impl LookResult {
    /// True if the same look at the node found now sees the same.
    pub(super) fn is(&self, what: Look, found: Result<&Node, Error>, domains: &Domains) -> bool {
        match (self, found) {
            (Self::Error(known), Err(error)) => *known == error,
            (Self::Subtree(known), Ok(node)) => {
                what.same(&known.0, node) && domains.alive_entries(node.perms()) == known.1
            }
            (Self::Short(known), Ok(node)) => ShortValue::new(node.value()) == Some(*known),
            (Self::Digest(known), Ok(node)) => {
                matches!(what.of(node, domains), Self::Digest(now) if now == *known)
            }
            _ => false,
        }
    }
}
