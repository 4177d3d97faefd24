//! Every node of a subtree, in the order in which a recursive listing meets it.
//!
//! Two ways. The **bulk read** asks our daemon through CONTROL for as many nodes as a message
//! holds at a time. The **plain way** works with every daemon: it keeps many requests in flight,
//! for the nodes that come next, and its memory is bounded by their number. The bulk read is tried first;
//! on any error the plain way goes on where it stopped.

use crate::client::Client;
use crate::error::Error;
use crate::store::text;
use bulk::Bulk;
use plain::Plain;
use xenstore_core::wire::MsgType;

mod bulk;
mod node;
mod options;
mod plain;

pub use node::Node;
pub use options::{Options, Read, Way};

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
