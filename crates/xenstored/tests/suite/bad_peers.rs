//! Tests that a client's bad behaviour does not affect other clients.

use crate::common::*;
use std::os::unix::net::UnixStream;
use std::process::Command;

#[test]
fn a_length_over_the_limit_ends_that_connection_only() {
    let daemon = Daemon::start(&[]);
    let mut good = daemon.client();
    for len in [4097_u32, 0x8000_0000, u32::MAX] {
        let mut bad = daemon.client();
        let mut bytes = message(WRITE, 1, b"/before\0x");
        let header = [READ, 2, 0, len];
        bytes.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend([b'x'; 100]);
        bad.send(&bytes);
        assert_eq!(bad.receive(), Some((WRITE, 1, b"OK\0".to_vec())), "the requests before count");
        assert_eq!(bad.receive(), None, "length {len}");
        good.write("/good", b"1");
    }
    assert!(daemon.log().contains("level=warn"), "{}", daemon.log());
}

#[test]
fn a_message_that_never_ends_harms_nobody() {
    let daemon = Daemon::start(&[]);
    let whole = message(WRITE, 1, b"/slow\0value");
    let mut stalled = Vec::new();
    for cut in 1..whole.len() {
        let mut client = daemon.client();
        client.send(&whole[..cut]);
        stalled.push((client, cut));
    }
    let mut good = daemon.client();
    good.write("/good", b"1");
    for (client, cut) in &mut stalled {
        client.send(&whole[*cut..]);
        assert_eq!(client.receive(), Some((WRITE, 1, b"OK\0".to_vec())), "cut at {cut}");
    }
    drop(stalled);
    wait_for("the connections to be closed", || good.stat("sockets") == 1);
}

#[test]
fn bytes_one_at_a_time_are_messages_too() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    for byte in message(WRITE, 9, b"/a\0b") {
        client.send(&[byte]);
    }
    assert_eq!(client.receive(), Some((WRITE, 9, b"OK\0".to_vec())));
}

#[test]
fn who_does_not_read_is_not_read_from_and_loses_nothing() {
    const COUNT: u32 = 5000;
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let value = vec![b'v'; 4000];
    client.write("/big", &value);
    let mut writer = client.0.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        for req_id in 0..COUNT {
            std::io::Write::write_all(&mut writer, &message(READ, req_id, b"/big\0")).unwrap();
        }
    });
    let mut other = daemon.client();
    // The 20 MB of answers do not fit in the socket. The daemon keeps them for the reader, and no
    // other client waits for it.
    wait_for("the daemon to be held up", || other.stat("bytes_out") > 100_000);
    other.write("/other", b"1");
    let rounds = other.stat("rounds");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(other.stat("rounds") - rounds < 20, "the loop turns while it waits for a reader");
    for req_id in 0..COUNT {
        let (kind, got, payload) = client.receive().unwrap();
        assert_eq!((kind, got, payload.len()), (READ, req_id, value.len()));
    }
    thread.join().unwrap();
}

#[test]
fn many_requests_in_one_write_are_all_answered_in_order() {
    const COUNT: u32 = 20_000;
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let mut writer = client.0.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let all: Vec<u8> = (0..COUNT).flat_map(|req_id| message(WRITE, req_id, b"/a\0b")).collect();
        std::io::Write::write_all(&mut writer, &all).unwrap();
    });
    for req_id in 0..COUNT {
        assert_eq!(client.receive(), Some((WRITE, req_id, b"OK\0".to_vec())));
    }
    thread.join().unwrap();
}

#[test]
fn a_full_table_of_descriptors_is_waited_out() {
    let dir = dir();
    let mut command = Command::new("sh");
    clean(&mut command, &dir.path().join("socket"));
    // Both limits are set, so that the daemon cannot raise its own.
    command.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_xenstored"));
    let daemon = Daemon::start_with(command, dir, &[]);
    let mut first = daemon.client();
    let mut others: Vec<Client> = (0..60).map(|_| daemon.client()).collect();
    wait_for("the table to be full", || daemon.log().contains("no further client"));
    let accepted = first.stat("accepted");
    assert!(accepted < 40, "{accepted} accepted");
    let rounds = first.stat("rounds");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(first.stat("rounds") - rounds < 20, "the loop turns while it cannot accept");
    assert_eq!(daemon.log().matches("no further client").count(), 1, "said once");
    // The served clients close. The waiting ones get their places.
    others.drain(..40);
    for client in &mut others {
        client.write("/late", b"1");
    }
}

#[test]
fn who_vanishes_leaves_nothing() {
    let daemon = Daemon::start(&[]);
    let mut good = daemon.client();
    good.write("/good", b"0");
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = fds();
    for _ in 0..200 {
        let mut client = daemon.client();
        // Answers and events are on their way when the socket closes.
        client.send(&message(WATCH, 1, b"/\0t\0"));
        client.send(&message(WRITE, 2, b"/gone\0x"));
        drop(client);
        drop(UnixStream::connect(&daemon.socket).unwrap());
    }
    wait_for("all to have come", || good.stat("accepted") == 401);
    wait_for("the connections to be closed", || good.stat("sockets") == 1);
    assert_eq!(fds(), before);
    good.write("/good", b"1");
}
