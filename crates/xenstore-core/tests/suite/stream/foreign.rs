//! A stream as the C daemon writes it: its order of records, no records of this project's own,
//! waiting requests as input.

use super::hostile::RecordField::{Bytes, Four, Two};
use super::hostile::{body, stream_of};
use super::{dump, restore};
use crate::common::TestStore;
use xenstore_core::server::DomId;
use xenstore_core::stream::DaemonHandles;
use xenstore_core::wire::{Header, MsgType};

/// Returns a stream with dom0's socket, a guest with a watch and a partly sent answer, nodes, and
/// the guest's quotas.
fn from_c(version: u32) -> Vec<u8> {
    let event = Header { kind: MsgType::WatchEvent.code(), req_id: 0, tx_id: 0, len: 4 };
    let mut ring = body(&[
        Four(2),
        Two(0),
        Two(1),
        Two(7),
        Two(0x7ff4),
        Four(23),
        Two(3),
        Two(5),
        Four(25),
        Bytes(b"inp"),
        Bytes(b"tail\n"),
    ]);
    ring.extend_from_slice(&event.to_bytes());
    ring.extend_from_slice(b"x\0t\0");
    ring.resize(ring.len().next_multiple_of(8), 0);
    ring.extend_from_slice(&77u64.to_ne_bytes());
    let node = |path: &'static [u8], value: &'static [u8], perms: [&'static [u8]; 2]| {
        let mut node = body(&[
            Four(0),
            Four(0),
            Two(path.len() as u16),
            Two(value.len() as u16),
            Two(0),
            Two(perms.iter().map(|perm| perm.len() as u16 / 4).sum()),
        ]);
        for bytes in [perms[0], perms[1], path, value] {
            node.extend_from_slice(bytes);
        }
        node.resize(node.len().next_multiple_of(8), 0);
        node
    };
    let names = b"nodes\0soft-memory\0some-other\0";
    stream_of(
        version,
        &[
            (1, body(&[Four(11), Four(12)])),
            (6, body(&[Two(1), Two(1), Four(2000), Four(9), Bytes(b"nodes\0glob\0\0")])),
            (2, body(&[Four(1), Two(1), Two(0), Four(9), Four(0), Two(0), Two(0), Four(0)])),
            (3, body(&[Four(1), Two(2), Two(4), Bytes(b"/\0all\0\0\0")])),
            (2, ring),
            (3, body(&[Four(2), Two(2), Two(2), Bytes(b"x\0t\0\0\0\0\0")])),
            (4, body(&[Four(2), Four(1)])),
            (5, node(b"/\0", b"", [b"n\0\0\0", b""])),
            (5, node(b"/local\0", b"", [b"n\0\0\0", b""])),
            (5, node(b"/local/domain\0", b"", [b"n\0\0\0", b""])),
            (5, node(b"/local/domain/7\0", b"home", [b"n\0\x07\0", b"r\x01\x08\0"])),
            (5, node(b"/local/domain/7/x\0", b"v", [b"n\0\x07\0", b""])),
            (5, node(b"@releaseDomain\0", b"", [b"n\0\0\0", b"r\0\x07\0"])),
            (7, body(&[Two(7), Two(3), Four(3), Four(55), Four(66), Four(77), Bytes(names)])),
            (0x77, body(&[Four(1)])),
            (0, Vec::new()),
        ],
    )
}

#[test]
#[cfg(target_endian = "little")]
fn the_c_daemons_state_is_taken_over() {
    for version in [1, 2] {
        let restored = restore(&from_c(version)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(restored.global, Some(DaemonHandles { socket_fd: 11, evtchn_fd: 12 }));
        let [dom0, guest] = &restored.connections[..] else { panic!("two connections") };
        assert_eq!((dom0.ring, dom0.handle, &dom0.input[..]), (None, 9, &b""[..]));
        assert_eq!((guest.ring, guest.handle, &guest.input[..]), (Some(DomId(7)), 23, &b"inp"[..]));
        let (dom0, guest) = (dom0.conn, guest.conn);
        let mut store = TestStore::new();
        store.server = restored.server;
        assert_eq!(&store.server.output(guest)[..5], b"tail\n");
        store.server.consume_output(guest, 5, 0);
        assert_eq!(store.events(guest), ["x t"]);
        store.write(dom0, 0, "/local/domain/7/x", "new").unwrap();
        assert_eq!(store.events(guest), ["x t"]);
        assert_eq!(store.events(dom0), ["/local/domain/7/x all"]);
        // A void entry gives no rights to any later domain of the number.
        assert_eq!(store.perms(dom0, 0, "/local/domain/7").unwrap(), "n7 r8");
        let stranger = store.guest(8);
        assert_eq!(store.read(stranger, 0, "/local/domain/7"), Err("EACCES".to_owned()));
        assert_eq!(store.commit(guest, 1), Err("EAGAIN".to_owned()));
        let get = |store: &mut TestStore, kind, payload: &[u8]| {
            String::from_utf8(store.call(dom0, kind, 0, payload).unwrap()).unwrap()
        };
        store.machine.existing.insert(7);
        assert_eq!(get(&mut store, MsgType::GetQuota, b"7\0nodes\0"), "55\0");
        assert_eq!(get(&mut store, MsgType::GetQuota, b"nodes\0"), "2000\0");
        let features = if version == 1 { "15\0" } else { "3\0" };
        assert_eq!(get(&mut store, MsgType::GetFeature, b"7\0"), features);
        // The domain is known by its identity: a domain with another identity is another domain.
        store.machine.lives.insert(7, 77);
        store.server.domain_died(DomId(7), 0, &mut store.machine);
        assert_eq!(store.read(dom0, 0, "/local/domain/7/x").unwrap(), "new");
        store.dies(7);
        assert_eq!(store.read(dom0, 0, "/local/domain/7/x"), Err("ENOENT".to_owned()));
        store.check();
    }
}

/// A stream that Debian's `xenstored` 4.17 has written for a live update: domain 0's ring, the
/// socket of the command, a socket with two watches and a part of a request, guest 7 with the same,
/// some nodes.
#[test]
#[cfg(target_endian = "little")]
fn debians_daemons_state_is_taken_over() {
    let restored = restore(include_bytes!("debian-4.17.stream")).unwrap();
    assert_eq!(restored.global, Some(DaemonHandles { socket_fd: 3, evtchn_fd: 6 }));
    let known: Vec<_> =
        restored.connections.iter().map(|known| (known.ring, known.handle)).collect();
    let rings = [Some(DomId(0)), None, None, Some(DomId(7))];
    assert_eq!(known, [(rings[0], 2), (rings[1], 7), (rings[2], 8), (rings[3], 2)]);
    let input: Vec<_> = restored.connections.iter().map(|known| known.input.len()).collect();
    assert_eq!(input, [0, 0, 20, 9]);
    let [command, watcher, guest] = [1, 2, 3].map(|at| restored.connections[at].conn);
    let mut store = TestStore::new();
    store.server = restored.server;
    store.machine.existing.insert(7);
    // This is the answer to the command, left for the next daemon.
    store.receive(command);
    assert_eq!(store.reply(command, 7), Some(Ok(b"OK\0".to_vec())));
    assert_eq!(store.perms(command, 0, "/local/domain/7").unwrap(), "n7 r9");
    assert_eq!(store.read(guest, 0, "data/x").unwrap_err(), "EACCES");
    store.write(guest, 0, "data/y", "v").unwrap();
    assert_eq!(store.events(guest), ["data/y gtok"]);
    assert_eq!(store.read(command, 0, "/bytes").unwrap(), "\u{1}\0\u{2}");
    store.write(command, 0, "/bytes", "").unwrap();
    store.dies(7);
    assert_eq!(store.events(watcher), ["/bytes tok", "@releaseDomain rel"]);
    store.check();
}

/// C's daemon assigns the sockets in a stream to domain 0, which must be known by then.
#[test]
fn rings_stand_before_sockets() {
    let mut store = TestStore::new();
    store.socket();
    store.guest(0);
    let rings: Vec<_> =
        restore(&dump(&store.server)).unwrap().connections.iter().map(|known| known.ring).collect();
    assert_eq!(rings, [Some(DomId(0)), None]);
}
