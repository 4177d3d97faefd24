//! A node that a walk has come to.

use crate::error::Error;
use crate::perms::Perm;

/// A node that a walk has come to.
#[derive(Debug)]
pub struct Node {
    /// Its whole path.
    pub path: Vec<u8>,
    /// The number of levels that it lies below the children of the root of the walk.
    pub depth: usize,
    /// Its value, or why it could not be read.
    pub value: Result<Vec<u8>, Error>,
    /// Its permissions, or why they could not be read; `None` where not asked for.
    pub perms: Option<Result<Vec<Perm>, Error>>,
}

impl Node {
    /// The last part of the path.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// The path of a child, put together as `xenstore-ls` does.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len().saturating_add(name.len()).saturating_add(1));
    path.extend_from_slice(parent);
    if !parent.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
