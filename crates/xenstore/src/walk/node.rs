//! A node that a walk visits.

use crate::error::Error;
use crate::perms::Perm;

/// A node that a walk visits.
#[derive(Debug)]
pub struct Node {
    /// Its whole path.
    pub path: Vec<u8>,
    /// The number of levels below the children of the walk's root.
    pub depth: usize,
    /// Its value, or the error of reading it.
    pub value: Result<Vec<u8>, Error>,
    /// Its permissions, or the error of reading them; `None` if they were not requested.
    pub perms: Option<Result<Vec<Perm>, Error>>,
}

impl Node {
    /// Returns the last part of the path.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// Returns the path of a child, joined as `xenstore-ls` does.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len().saturating_add(name.len()).saturating_add(1));
    path.extend_from_slice(parent);
    if !parent.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
