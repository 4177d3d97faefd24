//! Malformed streams, which no store has written.

use super::{dump, dump_again, full, lasting, restore};
use crate::common::TestStore;
use xenstore_core::server::{Config, Server};

/// Returns a stream with these records after the header.
pub(crate) fn stream_of(version: u32, records: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let flags = u32::from(cfg!(target_endian = "big"));
    let mut stream = [&b"xenstore"[..], &version.to_be_bytes(), &flags.to_be_bytes()].concat();
    for (kind, body) in records {
        stream.extend_from_slice(&kind.to_ne_bytes());
        stream.extend_from_slice(&(body.len() as u32).to_ne_bytes());
        stream.extend_from_slice(body);
        stream.resize(stream.len().next_multiple_of(8), 0);
    }
    stream
}

/// A field of two or four bytes, or bytes.
pub(crate) enum RecordField {
    Two(u16),
    Four(u32),
    Bytes(&'static [u8]),
}

pub(crate) fn body(fields: &[RecordField]) -> Vec<u8> {
    let bytes = |field: &RecordField| match field {
        RecordField::Two(value) => value.to_ne_bytes().to_vec(),
        RecordField::Four(value) => value.to_ne_bytes().to_vec(),
        RecordField::Bytes(bytes) => bytes.to_vec(),
    };
    fields.iter().flat_map(bytes).collect()
}

/// Asserts that a store restored from a stream is consistent, and can be written again.
fn in_order(stream: &[u8]) {
    let Ok(restored) = restore(stream) else { return };
    let mut store = TestStore::new();
    store.server = restored.server;
    store.check();
    let again = dump(&store.server);
    restore(&again).expect("what was read is written so that it can be read");
}

#[test]
fn a_stream_that_ends_too_early_is_refused() {
    let stream = dump(&full().0.server);
    for len in 0..stream.len() {
        let error =
            restore(&stream[..len]).err().unwrap_or_else(|| panic!("{len} bytes are enough"));
        assert!(error.offset <= len, "{error} in {len} bytes");
    }
    let longer = [&stream[..], &[0; 8]].concat();
    assert!(restore(&longer).err().unwrap().what.contains("follows"));
}

#[test]
fn a_flipped_bit_is_refused_or_makes_a_store_in_order() {
    let stream = dump(&full().0.server);
    let mut refused = 0;
    for bit in 0..stream.len() * 8 {
        let mut flipped = stream.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(restore(&flipped).is_err());
        in_order(&flipped);
    }
    assert!(refused > stream.len(), "{refused} of {} were refused", stream.len() * 8);
}

#[test]
fn an_error_says_which_record_and_where() {
    use RecordField::{Bytes, Four, Two};
    let ring = |id, domid| {
        body(&[Four(id), Two(0), Two(0), Two(domid), Two(0x7ff4), Four(3), Two(0), Two(0), Four(0)])
    };
    let node = |path: &'static [u8], perms: &'static [u8], count| {
        body(&[
            Four(0),
            Four(0),
            Two(path.len() as u16),
            Two(0),
            Two(0),
            Two(count),
            Bytes(perms),
            Bytes(path),
        ])
    };
    let owner = if cfg!(target_endian = "big") { &b"n\0\0\0"[..] } else { b"n\0\0\0" };
    let watch = |path: &'static [u8]| {
        body(&[Four(1), Two(path.len() as u16), Two(2), Bytes(path), Bytes(b"t\0")])
    };
    let cases: [(&str, u32, Vec<Vec<u8>>); 14] = [
        ("has a ring already", 2, vec![ring(1, 7), ring(2, 7)]),
        ("0, or another's", 2, vec![ring(1, 7), ring(1, 8)]),
        ("0, or another's", 2, vec![ring(0, 7)]),
        ("domain is none", 2, vec![ring(1, 0x7ff5)]),
        ("parent is not there", 5, vec![node(b"/a/b\0", owner, 1)]),
        ("there already", 5, vec![node(b"/a\0", owner, 1), node(b"/a\0", owner, 1)]),
        ("no owner", 5, vec![node(b"/a\0", b"", 0)]),
        ("unknown permission", 5, vec![node(b"/a\0", b"x\0\0\0", 1)]),
        ("owner is no domain", 5, vec![node(b"/a\0", b"n\x01\x07\0", 1)]),
        ("relative", 5, vec![node(b"a\0", owner, 1)]),
        ("only NUL", 5, vec![node(b"/a\0b\0", owner, 1)]),
        ("longer than it is", 5, vec![node(b"/a\0", owner, 1000)]),
        ("no such special", 5, vec![node(b"@other\0", owner, 1)]),
        ("connection is not there", 3, vec![watch(b"/a\0")]),
    ];
    for (what, kind, bodies) in cases {
        let at = bodies.len() - 1;
        let records: Vec<_> = bodies.into_iter().map(|body| (kind, body)).collect();
        let before: usize =
            records[..at].iter().map(|(_, body)| 8 + body.len().next_multiple_of(8)).sum();
        let error = restore(&stream_of(2, &records)).err().unwrap_or_else(|| panic!("{what}"));
        assert!(error.what.contains(what), "{error} in place of {what:?}");
        assert_eq!((error.record, error.kind, error.offset), (at as u32, Some(kind), 16 + before));
        let told = error.to_string();
        assert!(told.contains(&format!("record {at} (")) && told.contains("at byte"), "{told}");
    }
}

#[test]
fn what_is_no_stream_is_refused() {
    for (stream, what) in [
        (Vec::new(), "no whole header"),
        (b"xenstorf\0\0\0\x02\0\0\0\0".to_vec(), "no stream of a XenStore"),
        (stream_of(0, &[]), "version"),
        (stream_of(3, &[(0, Vec::new())]), "version"),
        (b"xenstore\0\0\0\x02\0\0\0\x02".to_vec(), "byte order"),
        (stream_of(2, &[]), "not with END"),
    ] {
        let error = restore(&stream).err().unwrap_or_else(|| panic!("{what}"));
        assert!(error.what.contains(what), "{error}");
    }
}

/// The first stream of this version, as it was written then. It must remain readable for ever.
#[test]
#[cfg(target_endian = "little")]
fn a_saved_stream_is_read_and_written_as_ever() {
    const SAVED: &[u8] = include_bytes!("saved.stream");
    let stream = dump(&full().0.server);
    if stream != SAVED {
        let new = concat!(env!("CARGO_TARGET_TMPDIR"), "/saved.stream");
        std::fs::write(new, &stream).expect("the folder is cargo's own");
        panic!("the state is written otherwise than before; the new stream is {new}");
    }
    let restored = Server::restore(Config::default(), SAVED, 0).expect("it was a store's");
    assert!(lasting(dump_again(&restored)) == lasting(SAVED.to_vec()));
}
