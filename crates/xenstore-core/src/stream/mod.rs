//! A store's whole state as a stream of records, for live update.
//!
//! The format is Xen's own, `docs/designs/xenstore-migration.md` version 2, so that a daemon can
//! take over from the C one and hand over to it. State for which that format has no record goes
//! into records of this project's own, which other daemons skip. `docs/xenstore.md` lists both.
//! This module is the format; [`Server::dump`] and [`Server::restore`] are the state. A stream is
//! not trusted: the memory that it causes is limited to a multiple of its own length, and an error
//! names the record.
//!
//! [`Server::dump`]: crate::server::Server::dump
//! [`Server::restore`]: crate::server::Server::restore

mod kind;
mod read;
mod record;
mod write;

pub use read::Error;
pub(crate) use read::RecordReader;
pub(crate) use record::{
    ConnectionPeer, ConnectionRecord, DomainMore, DomainRecord, NodeRecord, Quotas, StreamRecord,
    WatchDataRecord,
};
pub use record::{DaemonHandles, TransportState};
pub(crate) use write::header;
