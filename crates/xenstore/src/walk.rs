//! Every node of a subtree, in the order in which a recursive listing meets it.
//!
//! Two ways. The **bulk read** asks our daemon through CONTROL for as many nodes as a message
//! holds at a time. The **plain way** works with every daemon: it keeps many requests in flight,
//! for the nodes that come next, and its memory is bounded by their number. The bulk read is tried first;
//! on any error the plain way goes on where it stopped.

use crate::client::Client;
use crate::error::Error;
use crate::perms::Perm;
use crate::store::text;
use crate::transaction::TransactionId;
use bulk::Bulk;
use plain::Plain;
use xenstore_core::wire::MsgType;

mod bulk;
mod plain;

/// A node that a walk has come to.
#[derive(Debug)]
pub struct Node {
    /// Its whole path.
    pub path: Vec<u8>,
    /// How many levels it lies below the children of the root of the walk.
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

/// What a walk reads of each node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Values.
    Values,
    /// Values and permissions.
    ValuesAndPerms,
}

/// Which ways a walk may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The bulk read where the daemon has it.
    Fastest,
    /// One request for each value and listing.
    Plain,
}

/// How to walk.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Within which transaction: there the whole walk sees the store at one moment.
    pub tx: TransactionId,
    /// What to read.
    pub read: Read,
    /// Which way to take.
    pub way: Way,
    /// Most requests in flight at a time on the plain way.
    pub in_flight_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tx: TransactionId::NONE, read: Read::Values, way: Way::Fastest, in_flight_max: 128 }
    }
}

/// Calls `visit` for every node below `root`, not for the root itself: parents before children,
/// children in the daemon's order. A node that vanishes meanwhile is left out, or has an error
/// for a value.
///
/// # Errors
/// What listing the root says (ENOENT, EACCES …); what listing a node below says, other than
/// ENOENT; what `visit` returns.
pub fn walk<E: From<Error>>(
    client: &mut Client,
    root: &[u8],
    options: Options,
    mut visit: impl FnMut(Node) -> Result<(), E>,
) -> Result<(), E> {
    text(MsgType::Directory, root)?;
    let mut after = None;
    if options.way == Way::Fastest {
        let mut bulk = Bulk::new(root, options);
        if bulk.run(client, &mut visit)? {
            return Ok(());
        }
        after = bulk.last();
    }
    Plain::new(options, after).run(client, root, &mut visit)
}

/// The path of a child, put together as `xenstore-ls` does.
fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len().saturating_add(name.len()).saturating_add(1));
    path.extend_from_slice(parent);
    if !parent.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
