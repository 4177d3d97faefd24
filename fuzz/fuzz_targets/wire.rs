//! Arbitrary bytes through all parsers: messages, strings, paths, permissions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xenstore_core::limits::{ABS_PATH_MAX, HEADER_SIZE, PAYLOAD_MAX};
use xenstore_core::path::{Path, SpecialPaths, is_relative, resolve};
use xenstore_core::perms::{Incarnation, Perms};
use xenstore_core::wire::{Error, Header, MsgType, Strings, split_message};

fuzz_target!(|data: &[u8]| {
    messages(data);
    strings(data);
    permissions(data);
    names(data);
    if let Some((choice, given)) = data.split_first() {
        let special = if choice & 1 == 0 { SpecialPaths::Allowed } else { SpecialPaths::Refused };
        paths(given, u16::from(choice >> 1) * 513, special);
    }
});

fn messages(data: &[u8]) {
    let mut rest = data;
    loop {
        match split_message(rest) {
            Ok(Some((header, payload, behind))) => {
                assert_eq!(header.len as usize, payload.len());
                assert!(payload.len() <= PAYLOAD_MAX);
                assert_eq!(HEADER_SIZE + payload.len() + behind.len(), rest.len());
                assert_eq!(header.to_bytes(), rest[..HEADER_SIZE]);
                assert_eq!(Header::parse(&header.to_bytes()), Some(header));
                if let Some(kind) = MsgType::from_code(header.kind) {
                    assert_eq!(kind.code(), header.kind);
                }
                strings(payload);
                rest = behind;
            }
            Ok(None) => {
                let announced = Header::parse(rest).map(|header| header.len as usize);
                assert!(announced.is_none_or(|len| rest.len() < HEADER_SIZE + len));
                break;
            }
            Err(error) => {
                assert!(error.len as usize > PAYLOAD_MAX);
                assert_eq!(split_message(&rest[..HEADER_SIZE]), Err(error));
                break;
            }
        }
    }
}

fn strings(payload: &[u8]) {
    let mut strings = Strings::new(payload);
    let mut joined = Vec::new();
    for string in strings.by_ref() {
        assert!(!string.contains(&0));
        joined.extend_from_slice(string);
        joined.push(0);
    }
    assert!(!strings.rest().contains(&0));
    joined.extend_from_slice(strings.rest());
    assert_eq!(joined, payload);
}

fn names(data: &[u8]) {
    if let Some(error) = Error::from_name(data) {
        assert_eq!(error.name().as_bytes(), data);
    }
}

fn permissions(data: &[u8]) {
    let of = |domid: xenstore_core::server::DomId| Incarnation(u32::from(domid.0) + 1);
    let Ok(perms) = Perms::parse(data, of) else { return };
    assert_eq!(perms.len(), Strings::new(data).count());
    assert_eq!(perms.len(), perms.entries().count());
    let mut printed = Vec::new();
    perms.write(0, |_| true, &mut printed);
    assert_eq!(Perms::parse(&printed, of), Ok(perms.clone()));
    let mut owner = Vec::new();
    perms.write(0, |_| false, &mut owner);
    assert!(printed.starts_with(&owner) && Strings::new(&owner).count() == 1);
}

fn paths(given: &[u8], home: u16, special: SpecialPaths) {
    let mut scratch = Vec::new();
    let Ok(path) = resolve(given, home, special, &mut scratch) else { return };
    let bytes = path.as_bytes();
    assert!(bytes.len() <= ABS_PATH_MAX && path.counted_len() <= bytes.len());
    assert!(bytes.ends_with(given) && (is_relative(given) || bytes == given));
    assert!(special == SpecialPaths::Allowed || !path.is_special());
    // A path that is resolved again, for any domain, does not change.
    let mut again = Vec::new();
    assert_eq!(resolve(bytes, home ^ 1, special, &mut again), Ok(path));
    let slash: &[u8] = if path.is_special() { b"" } else { b"/" };
    let names: Vec<&[u8]> = path.names().collect();
    assert_eq!([slash, &names.join(&b'/')].concat(), bytes);
    assert!(path.overlaps(path) && (path.is_special() || path.overlaps(Path::ROOT)));
    if let Some((parent, name)) = path.split_last() {
        assert_eq!(names.last(), Some(&name));
        assert!(parent.overlaps(path) && path.overlaps(parent));
        assert!(parent.is_special() == path.is_special());
        assert_eq!(parent.names().count() + 1, names.len());
    } else {
        assert!(path.is_root() || names.len() == 1);
    }
}
