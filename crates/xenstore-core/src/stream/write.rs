//! Writes records. Every length is a multiple of 8, padding included, as C's reader expects.

use super::kind;
use super::record::{
    ConnectionPeer, ConnectionRecord, DEPTH_ALL, DomainRecord, FLAGS, HAS_IDENTITY, HAS_UNIQUE_ID,
    IDENT, IS_SHUT_DOWN, NO_TARGET, NodeRecord, Quotas, StreamRecord, VERSION, WatchDataRecord,
};
use alloc::vec::Vec;

/// Appends the stream's header, which is always big-endian.
pub(crate) fn header(to: &mut Vec<u8>) {
    to.extend_from_slice(IDENT);
    to.extend_from_slice(&VERSION.to_be_bytes());
    to.extend_from_slice(&FLAGS.to_be_bytes());
}

fn put16(value: u16, to: &mut Vec<u8>) {
    to.extend_from_slice(&value.to_ne_bytes());
}

fn put32(value: u32, to: &mut Vec<u8>) {
    to.extend_from_slice(&value.to_ne_bytes());
}

fn put64(value: u64, to: &mut Vec<u8>) {
    to.extend_from_slice(&value.to_ne_bytes());
}

/// Converts a length. Nothing in the store is too long for 16 bits: paths, values and tokens fit in
/// a message.
fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn pad(start: usize, to: &mut Vec<u8>) {
    let odd = to.len().saturating_sub(start) % 8;
    if odd != 0 {
        to.extend(core::iter::repeat_n(0, 8usize.saturating_sub(odd)));
    }
}

impl StreamRecord<'_> {
    fn kind(&self) -> u32 {
        match self {
            Self::Global(_) => kind::GLOBAL,
            Self::Connection(_) => kind::CONNECTION,
            Self::Watch(WatchDataRecord { depth: None, .. }) => kind::WATCH,
            Self::Watch(_) => kind::WATCH_EXTENDED,
            Self::Transaction { .. } => kind::TRANSACTION,
            Self::Node(_) => kind::NODE,
            Self::GlobalQuota(_) => kind::GLOBAL_QUOTA,
            Self::Domain(_) => kind::DOMAIN,
            Self::Generation(_) => kind::GENERATION,
            Self::Unconnected(_) => kind::UNCONNECTED,
            Self::DomainMore(_) => kind::DOMAIN_MORE,
            Self::ConnectionMore { .. } => kind::CONNECTION_MORE,
            Self::Input { .. } => kind::INPUT,
            Self::Other | Self::End => kind::END,
        }
    }

    /// Appends the record.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        put32(self.kind(), to);
        let len_at = to.len();
        put32(0, to);
        let start = to.len();
        self.write_body(start, to);
        pad(start, to);
        let len = len32(to.len().saturating_sub(start));
        if let Some(place) = to.get_mut(len_at..start) {
            place.copy_from_slice(&len.to_ne_bytes());
        }
    }

    fn write_body(&self, start: usize, to: &mut Vec<u8>) {
        match self {
            Self::Global(global) => {
                put32(global.socket_fd.cast_unsigned(), to);
                put32(global.evtchn_fd.cast_unsigned(), to);
            }
            Self::Connection(connection) => connection.write(start, to),
            Self::Watch(watch) => watch.write(to),
            Self::Transaction { conn, id } => {
                put32(*conn, to);
                put32(*id, to);
            }
            Self::Node(node) => node.write(to),
            Self::GlobalQuota(quotas) => {
                put16(len16(quotas.values.len()), to);
                put16(0, to);
                quotas.write(to);
            }
            Self::Domain(domain) | Self::Unconnected(domain) => domain.write(to),
            Self::Generation(generation) => put64(*generation, to),
            Self::DomainMore(more) => {
                put16(more.domid, to);
                let identity = if more.identity.is_some() { HAS_IDENTITY } else { 0 };
                put16(identity | if more.shutdown { IS_SHUT_DOWN } else { 0 }, to);
                put32(more.weight, to);
                put64(more.identity.unwrap_or(0), to);
            }
            Self::ConnectionMore { conn, next_transaction, ended } => {
                put32(*conn, to);
                put32(*next_transaction, to);
                put32(*ended, to);
            }
            Self::Input { conn, bytes } => {
                put32(*conn, to);
                put32(len32(bytes.len()), to);
                to.extend_from_slice(bytes);
            }
            Self::Other | Self::End => {}
        }
    }
}

impl ConnectionRecord<'_> {
    fn write(&self, start: usize, to: &mut Vec<u8>) {
        let ring = match self.peer {
            ConnectionPeer::Ring { .. } => 0,
            ConnectionPeer::Socket { .. } => 1,
        };
        let unique_id = match self.peer {
            ConnectionPeer::Ring { identity, .. } => identity,
            ConnectionPeer::Socket { .. } => None,
        };
        put32(self.id, to);
        put16(ring, to);
        put16(if unique_id.is_some() { HAS_UNIQUE_ID } else { 0 }, to);
        match self.peer {
            ConnectionPeer::Ring { domid, target, port, .. } => {
                put16(domid, to);
                put16(target.unwrap_or(NO_TARGET), to);
                put32(port, to);
            }
            ConnectionPeer::Socket { fd } => {
                put32(fd, to);
                put32(0, to);
            }
        }
        put16(len16(self.input.len()), to);
        put16(self.partial, to);
        put32(len32(self.output.len()), to);
        to.extend_from_slice(self.input);
        to.extend_from_slice(self.output);
        if let Some(unique_id) = unique_id {
            pad(start, to);
            put64(unique_id, to);
        }
    }
}

impl WatchDataRecord<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        put32(self.conn, to);
        put16(len16(self.path.len().saturating_add(1)), to);
        put16(len16(self.token.len().saturating_add(1)), to);
        if let Some(depth) = self.depth {
            // The value is at most one less than the value for everything: no path has so many
            // names.
            put16(depth.min(DEPTH_ALL.saturating_sub(1)), to);
            put16(0, to);
        }
        for text in [self.path, self.token] {
            to.extend_from_slice(text);
            to.push(0);
        }
    }
}

impl NodeRecord<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        // The node is not of a transaction: no connection, no transaction, no kind of access.
        put32(0, to);
        put32(0, to);
        put16(len16(self.path.len().saturating_add(1)), to);
        put16(len16(self.value.len()), to);
        put16(0, to);
        put16(len16(self.entries.len()), to);
        to.extend_from_slice(self.entries.as_flattened());
        to.extend_from_slice(self.path);
        to.push(0);
        to.extend_from_slice(self.value);
    }
}

impl Quotas<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.values.as_flattened());
        to.extend_from_slice(self.names);
    }
}

impl DomainRecord<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        put16(self.domid, to);
        put16(len16(self.quotas.values.len()), to);
        put32(self.features.unwrap_or(0), to);
        self.quotas.write(to);
    }
}
