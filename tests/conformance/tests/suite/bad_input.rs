//! Peers that break every rule: no other client is affected, and the daemon ends with as much
//! memory as it began with.
//!
//! These hold for our daemon, and for the C one where it promises the same.

use conformance::{Daemon, DaemonKind, Peer, ReceiveFailure};
use std::time::{Duration, Instant};
use xenstore_core::wire::{Header, MsgType};

const A_WHILE: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_secs(5);

/// Runs a check against a daemon of each kind. Then the store must answer, and memory and file
/// descriptors must be back at their former numbers.
fn on(kinds: &[DaemonKind], check: impl Fn(&Daemon, &mut Peer)) {
    for kind in kinds {
        eprintln!("daemon `{}`", kind.name());
        let Some(mut daemon) = Daemon::start(*kind) else { continue };
        let mut dom0 = daemon.connect();
        // The check runs once before the measurement, so that one-time allocations are made.
        check(&daemon, &mut dom0);
        settle(&mut dom0);
        let (memory, descriptors) = (daemon.memory_kib(), daemon.descriptors());
        check(&daemon, &mut dom0);
        assert!(daemon.runs(), "the daemon is gone: {}", daemon.exit());
        let end = Instant::now() + SOON;
        while daemon.descriptors() > descriptors {
            assert!(
                Instant::now() < end,
                "{descriptors} descriptors became {}",
                daemon.descriptors()
            );
            settle(&mut dom0);
        }
        let grown = daemon.memory_kib().saturating_sub(memory);
        assert!(grown <= 2048, "the daemon grew by {grown} KiB");
    }
}

/// Lets the daemon finish its work on peers that are gone.
fn settle(dom0: &mut Peer) {
    for _ in 0..10 {
        dom0.expect_ok("WRITE", "/settle|v");
    }
}

const C_AND_OURS: [DaemonKind; 2] = [DaemonKind::C, DaemonKind::Ours];

fn header(kind: u32, len: u32) -> [u8; 16] {
    Header { kind, req_id: 1, tx_id: 0, len }.to_bytes()
}

fn home(daemon: &Daemon, dom0: &mut Peer, domid: u16) -> Peer {
    let guest = daemon.introduce(dom0, domid);
    dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
    dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
    guest
}

fn gone(daemon: &Daemon, dom0: &mut Peer, domid: u16) {
    daemon.destroy(domid);
    let end = Instant::now() + SOON;
    while dom0.ask("IS_DOMAIN_INTRODUCED", format!("{domid}|")) == "T|" {
        assert!(Instant::now() < end, "domain {domid} died and is introduced still");
    }
}

#[test]
fn lengths_over_the_limit_end_the_connection_at_once() {
    on(&C_AND_OURS, |daemon, dom0| {
        for len in [4097, 5000, 65535, 65536, 0x7fff_ffff, 0x8000_0000, u32::MAX - 15, u32::MAX] {
            for kind in [0, 2, 11, 20, 99, u32::MAX] {
                let mut client = daemon.connect();
                let _ = client.send(&header(kind, len));
                assert_eq!(
                    client.reply(Instant::now() + SOON),
                    Err(ReceiveFailure::Closed),
                    "{kind} {len}"
                );
            }
        }
        dom0.expect_ok("WRITE", "/a|v");
    });
}

#[test]
fn a_guest_with_a_length_over_the_limit_is_left_alone_until_it_is_introduced_again() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        guest.send(&header(MsgType::Read.code(), u32::MAX)).expect("the ring takes 16 bytes");
        assert_eq!(guest.reply(Instant::now() + A_WHILE), Err(ReceiveFailure::Silent));
        assert_eq!(guest.ring().error().expect("the page"), 3, "XENSTORE_ERROR_PROTO");
        drop(guest);
        gone(daemon, dom0, 7);
        let mut again = home(daemon, dom0, 7);
        again.expect_ok("WRITE", "x|v");
        drop(again);
        gone(daemon, dom0, 7);
    });
}

#[test]
fn impossible_ring_indices_hurt_only_their_guest() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let cases = [(2000, 0), (u32::MAX, 0), (0x8000_0000, 0), (0, 5000), (0, u32::MAX)];
        for (req_prod, rsp_cons) in cases {
            let mut guest = home(daemon, dom0, 7);
            let mut other = home(daemon, dom0, 8);
            guest.expect_ok("WRITE", "x|v");
            let [_, produced, consumed, _] = guest.ring().indices().expect("the page");
            let ring = guest.ring();
            let bad = (produced.wrapping_add(req_prod), consumed.wrapping_add(rsp_cons));
            ring.set_indices(bad.0, bad.1).expect("the page");
            ring.notify().expect("the event channel");
            // If only the response indices are wrong, that shows when there is a response.
            dom0.expect_ok("WRITE", "/local/domain/7/x|w");
            other.expect_ok("WRITE", "y|v");
            if req_prod != 0 {
                let end = Instant::now() + SOON;
                while guest.ring().error().expect("the page") != 2 {
                    assert!(Instant::now() < end, "no XENSTORE_ERROR_RINGIDX for {req_prod:#x}");
                }
            }
            drop((guest, other));
            gone(daemon, dom0, 7);
            gone(daemon, dom0, 8);
        }
    });
}

#[test]
fn every_type_with_every_kind_of_payload() {
    on(&C_AND_OURS, |daemon, dom0| {
        let payloads: [&[u8]; 9] = [
            b"",
            b"\0",
            b"\0\0\0\0\0",
            b"/",
            b"/a\0b\0c\0d\0e\0",
            b"\xff\xff\xff\xff",
            b"7\0",
            &[0; 4096],
            &[b'9'; 4096],
        ];
        let mut client = daemon.connect();
        // All types except RELEASE and CONTROL, which sets the daemon's own state.
        for kind in (1..30).chain([255, 65535, u32::MAX]).filter(|kind| *kind != 9) {
            for (at, payload) in payloads.iter().enumerate() {
                for tx_id in [0, 1, u32::MAX] {
                    let reply = client.call(kind, tx_id, payload);
                    assert!(reply.is_ok(), "type {kind}, payload {at}, tx {tx_id}: {reply:?}");
                }
            }
        }
        dom0.expect_ok("WRITE", "/a|v");
    });
}

#[test]
fn peers_that_stall_in_the_middle_of_a_message() {
    // Not the C daemon: see `stalled-client` in docs/compatibility.md.
    on(&[DaemonKind::OCaml, DaemonKind::Ours], |daemon, dom0| {
        let message = [header(MsgType::Read.code(), 6).as_slice(), b"/tool\0"].concat();
        let mut stalled = Vec::new();
        for length in 0..message.len() {
            let mut client = daemon.connect();
            client.send(&message[..length]).expect("a part of a message");
            stalled.push((client, length));
        }
        let mut guest = home(daemon, dom0, 7);
        guest.send(&message[..20]).expect("a part of a message");
        for index in 0..100 {
            dom0.expect_ok("WRITE", format!("/a/{}|v", index % 10));
        }
        // A client that goes on is answered as before.
        for (client, length) in stalled.iter_mut().step_by(3) {
            client.send(&message[*length..]).expect("the rest");
            assert!(client.reply(Instant::now() + SOON).is_ok(), "stalled after {length} bytes");
        }
        guest.send(&message[20..]).expect("the rest");
        assert!(guest.reply(Instant::now() + SOON).is_ok());
        drop(guest);
        gone(daemon, dom0, 7);
    });
}

#[test]
fn one_byte_at_a_time() {
    on(&DaemonKind::ALL, |daemon, _| {
        let mut client = daemon.connect();
        let message = [header(MsgType::Write.code(), 4).as_slice(), b"/b\0v"].concat();
        for byte in &message {
            client.send(&[*byte]).expect("one byte");
        }
        let reply = client.reply(Instant::now() + SOON).expect("a reply");
        assert_eq!(reply.payload, b"OK\0");
    });
}

#[test]
fn peers_that_vanish() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        for round in 0..50_u32 {
            let mut client = daemon.connect();
            let _ = client.start();
            client.expect_ok("WATCH", format!("/|{round}|"));
            let _ = client.request(MsgType::Read.code(), 0, b"/tool\0");
            let _ = client.send(&header(MsgType::Write.code(), 4000));
            drop(client);
            dom0.expect_ok("WRITE", "/a|v");
        }
    });
}

#[test]
fn a_guest_that_vanishes_in_the_middle_of_everything() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        for _ in 0..10 {
            let mut guest = home(daemon, dom0, 7);
            let tx = guest.start();
            assert_eq!(guest.ask_in(tx, "WRITE", "x|v"), "OK|");
            guest.expect_ok("WATCH", "x|t|");
            guest.send(&header(MsgType::Write.code(), 1000)).expect("a header");
            guest.send(&[b'a'; 500]).expect("a part of a payload");
            drop(guest);
            gone(daemon, dom0, 7);
            assert_eq!(dom0.ask("READ", "/local/domain/7|"), "ENOENT");
        }
    });
}

#[test]
fn peers_that_send_and_never_read() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        dom0.expect_ok("WRITE", "/big|{x*4000}");
        let mut client = daemon.connect();
        // Until the daemon takes no more of them: it must stop, or its memory grows.
        let request = [header(MsgType::Read.code(), 5).as_slice(), b"/big\0"].concat();
        let batch = request.repeat(50);
        let mut sent = 0;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && sent < 200_000 {
            match client.send_some(&batch) {
                Some(0) | None => break,
                Some(count) => sent += count / request.len(),
            }
        }
        assert!(sent < 200_000, "the daemon took {sent} requests of one that reads nothing");
        let started = Instant::now();
        for index in 0..1000 {
            dom0.expect_ok("WRITE", format!("/a{}|v", index % 10));
        }
        assert!(started.elapsed() < SOON, "others wait for one that reads nothing");
        assert!(daemon.memory_kib() < 100 * 1024, "{} KiB", daemon.memory_kib());
    });
}

#[test]
fn a_watcher_that_never_reads_is_let_go() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut watcher = daemon.connect();
        for index in 0..50 {
            watcher.expect_ok("WATCH", format!("/w|{index}-{{t*2000}}|"));
        }
        let before = daemon.memory_kib();
        for index in 0..1000 {
            dom0.expect_ok("WRITE", format!("/w/n{}|v", index % 200));
        }
        let grown = daemon.memory_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "20 MB of unread events: the daemon grew by {grown} KiB");
        dom0.expect_ok("RM", "/w|");
    });
}

#[test]
fn noise_from_many_clients() {
    on(&C_AND_OURS, |daemon, dom0| {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..200 {
            let mut client = daemon.connect();
            let bytes: Vec<u8> = (0..random() % 300).map(|_| random().to_le_bytes()[0]).collect();
            let _ = client.send(&bytes);
            dom0.expect_ok("WRITE", "/a|v");
        }
    });
}
