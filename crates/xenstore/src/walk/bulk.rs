//! The bulk read: CONTROL `subtree`, path, cursor. A reply contains the next cursor (empty after
//! the last part), then records in depth-first order with children sorted by name, the root first.
//! A record contains the path relative to the root, the permissions joined by commas and the length
//! of the value in decimal, each with a NUL after it, and the value's bytes.

use super::node::{Node, join};
use super::options::{NodeParts, Options};
use crate::client::Client;
use crate::error::Error;
use crate::perms::Perm;
use xenstore_core::wire::{MsgType, Strings};

/// One bulk read of a subtree.
pub(super) struct BulkRead<'a> {
    root: &'a [u8],
    options: Options,
    last: Option<Vec<u8>>,
}

/// One record of a reply.
struct BulkRecord<'a> {
    path: &'a [u8],
    perms: &'a [u8],
    value: &'a [u8],
}

impl<'a> BulkRead<'a> {
    pub(super) fn new(root: &'a [u8], options: Options) -> Self {
        Self { root, options, last: None }
    }

    /// Returns the whole path of the last node visited, if there was one.
    pub(super) fn last(self) -> Option<Vec<u8>> {
        self.last
    }

    /// Visits every node. Returns false if the daemon refused the first or a later request.
    pub(super) fn run<E: From<Error>>(
        &mut self,
        client: &mut Client,
        visit: &mut impl FnMut(Node) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut cursor = Vec::new();
        loop {
            let parts: [&[u8]; 5] = [b"subtree\0", self.root, b"\0", &cursor, b"\0"];
            let reply = match client.request_in(self.options.tx, MsgType::Control, &parts) {
                Ok(reply) => reply,
                Err(Error::Refused { .. } | Error::TooLong { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            // A daemon that does not know the command may answer with anything.
            let Some((next, records)) = parse(&reply) else { return Ok(false) };
            let Some(nodes) = records.iter().map(|record| self.node(record)).collect() else {
                return Ok(false);
            };
            let nodes: Vec<Option<Node>> = nodes;
            for node in nodes.into_iter().flatten() {
                self.last = Some(node.path.clone());
                visit(node)?;
            }
            if next.is_empty() {
                return Ok(true);
            }
            if next == cursor {
                return Ok(false);
            }
            cursor = next.to_vec();
        }
    }

    /// Returns the node of a record: `Some(None)` for the root, `None` if the record is malformed.
    fn node(&self, record: &BulkRecord<'_>) -> Option<Option<Node>> {
        let perms = record.perms.split(|byte| *byte == b',').map(Perm::parse);
        let perms = perms.collect::<Option<Vec<Perm>>>()?;
        if record.path.is_empty() {
            return Some(None);
        }
        Some(Some(Node {
            path: join(self.root, record.path),
            depth: record.path.iter().filter(|byte| **byte == b'/').count(),
            value: Ok(record.value.to_vec()),
            perms: (self.options.parts == NodeParts::ValuesAndPerms).then_some(Ok(perms)),
        }))
    }
}

/// Parses the next cursor and the records of a reply.
fn parse(reply: &[u8]) -> Option<(&[u8], Vec<BulkRecord<'_>>)> {
    let mut strings = Strings::new(reply);
    let cursor = strings.next()?;
    let mut rest = strings.rest();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let mut strings = Strings::new(rest);
        let (path, perms, len) = (strings.next()?, strings.next()?, strings.next()?);
        let len = std::str::from_utf8(len).ok()?.parse().ok()?;
        let (value, after) = strings.rest().split_at_checked(len)?;
        records.push(BulkRecord { path, perms, value });
        rest = after;
    }
    // A daemon with the bulk read never sends an empty part. Others answer "" or "OK".
    if records.is_empty() { None } else { Some((cursor, records)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_any_byte() {
        let reply = b"next\0\0n0\x000\0a/b\0n0,r5\x004\0\0a\0b";
        let (cursor, records) = parse(reply).unwrap();
        assert_eq!((cursor, records.len()), (&b"next"[..], 2));
        assert_eq!((records[0].path, records[0].value), (&b""[..], &b""[..]));
        assert_eq!((records[1].path, records[1].perms), (&b"a/b"[..], &b"n0,r5"[..]));
        assert_eq!(records[1].value, b"\0a\0b");
    }

    #[test]
    fn what_is_no_bulk_reply_is_none() {
        for reply in [&b""[..], b"OK\0", b"\0", b"\0a\0n0\x005\0abc", b"\0a\0n0\0x\0", b"\0a\0"] {
            assert!(parse(reply).is_none(), "{}", reply.escape_ascii());
        }
    }
}
