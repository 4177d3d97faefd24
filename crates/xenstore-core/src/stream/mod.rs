//! A store's whole state as a stream of records, for live update.
//!
//! The format is Xen's own, `docs/designs/xenstore-migration.md` version 2, so that a daemon can take over
//! from the C one and give to it; what it has no place for goes into records of our own, which others pass
//! over. `docs/xenstore.md` lists both. This module is the format; [`Server::dump`] and
//! [`Server::restore`] are the state. A stream is believed in nothing: what it makes takes no more than a
//! multiple of its own length, and an error says which record it is in.
//!
//! [`Server::dump`]: crate::server::Server::dump
//! [`Server::restore`]: crate::server::Server::restore

mod kind;
mod read;
mod record;
mod write;

pub use read::Error;
pub(crate) use read::Reader;
pub(crate) use record::{Connection, Domain, DomainMore, Node, Peer, Quotas, Record, Watch};
pub use record::{Global, Link};
pub(crate) use write::header;
