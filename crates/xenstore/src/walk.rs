//! Visits every node of a subtree, in the order of a recursive listing.
//!
//! There are two methods. The **bulk read** asks this project's daemon through CONTROL for as many
//! nodes at a time as a message holds. The **plain walk** works with every daemon: it keeps many
//! requests in flight, for the next nodes, and their number bounds its memory. The bulk read is
//! tried first. On any error the plain walk continues at the node where it stopped.

use crate::client::Client;
use crate::error::Error;
use crate::store::text;
use bulk::BulkRead;
use plain::PlainWalk;
use xenstore_core::wire::MsgType;

mod bulk;
mod node;
mod options;
mod plain;

pub use node::Node;
pub use options::{Method, NodeParts, Options};

/// Calls `visit` for every node below `root`, not for the root itself: parents before children,
/// children in the daemon's order. A node that vanishes meanwhile is left out, or has an error for
/// a value.
///
/// # Errors
/// The error of listing the root (ENOENT, EACCES …), the error of listing a node below it other
/// than ENOENT, or the error of `visit`.
pub fn walk<E: From<Error>>(
    client: &mut Client,
    root: &[u8],
    options: Options,
    mut visit: impl FnMut(Node) -> Result<(), E>,
) -> Result<(), E> {
    text(MsgType::Directory, root)?;
    let mut after = None;
    if options.method == Method::Fastest {
        let mut bulk = BulkRead::new(root, options);
        if bulk.run(client, &mut visit)? {
            return Ok(());
        }
        after = bulk.last();
    }
    PlainWalk::new(options, after).run(client, root, &mut visit)
}
