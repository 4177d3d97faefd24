//! XenStore's client. It blocks, and works over the daemon's Unix socket, `/dev/xen/xenbus` or a
//! guest's ring, without a runtime or a thread of its own. Many requests may be in flight,
//! transactions are closures that are retried on EAGAIN, watches are an iterator and a file
//! descriptor to poll.
//!
//! ```no_run
//! use xenstore::{Client, Store};
//!
//! # fn main() -> Result<(), xenstore::Error> {
//! let mut client = Client::open()?;
//! client.transaction(|tx| {
//!     let count = tx.read("/tool/example/count").unwrap_or_default().len();
//!     tx.write("/tool/example/count", vec![b'.'; count + 1])
//! })?;
//! client.watch("/local/domain", "domains")?;
//! for event in client.events(None) {
//!     println!("{}", String::from_utf8_lossy(&event?.path));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The package also contains the command-line tool `xenstore`, which replaces Debian's
//! `xenstore-read`, `xenstore-ls` and so on if it is called by their names.
//! The feature `cli`, on by default, builds it.
//!
//! | module | contents |
//! |---|---|
//! | [`client`] | the connection, pipelining, requests about domains |
//! | [`store`] | [`Store`]: reading and writing nodes, inside and outside transactions |
//! | [`transaction`] | [`Transaction`] and the bounds of its retries |
//! | [`watch`] | watch events |
//! | [`share`] | one connection for several processes of a domain |
//! | [`walk`] | every node of a subtree in order: bulk read, or many requests in flight |
//! | [`perms`] | [`Perm`]: the access of a domain to a node |
//! | [`transport`] | the places of the store, and the transports to it |
//! | [`error`] | [`Error`] |

pub mod client;
pub mod error;
pub mod perms;
pub mod share;
pub mod store;
pub mod transaction;
pub mod transport;
pub mod walk;
pub mod watch;

pub use client::{Client, Ticket};
pub use error::Error;
pub use perms::{NodeAccess, Perm};
pub use store::Store;
pub use transaction::{Transaction, TransactionId};
pub use watch::{Event, Events};
pub use xenstore_core::wire::MsgType;

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
