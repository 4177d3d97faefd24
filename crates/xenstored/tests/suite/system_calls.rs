//! The daemon's system calls, as strace shows them.

use crate::common::*;
use std::process::Command;

/// The number of requests that arrive together. Their answers are some 1300 bytes.
const TOGETHER: u32 = 50;

#[test]
fn all_requests_of_one_read_are_answered_in_one_write() {
    if Command::new("strace").arg("-V").output().is_err() {
        conformance::skip("answers in one write", "there is no strace");
        return;
    }
    let dir = dir();
    let log = dir.path().join("calls");
    let mut command = Command::new("strace");
    // strace ends as its child does, and not by the signal that the test sends.
    command.args([
        "-I",
        "never",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        "trace=network,read,write,writev",
    ]);
    command.arg("-o").arg(&log).arg(env!("CARGO_BIN_EXE_xenstored"));
    clean(&mut command, &dir.path().join("socket"));
    let mut daemon = Daemon::start_with(command, dir, &[]);
    let mut client = daemon.client();
    client.write("/a", b"1");
    let together: Vec<u8> = (0..TOGETHER).flat_map(|id| message(READ, id, b"/a\0")).collect();
    client.send(&together);
    for id in 0..TOGETHER {
        assert_eq!(client.receive(), Some((READ, id, b"1".to_vec())));
    }
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let log = std::fs::read_to_string(daemon.dir.path().join("calls")).unwrap();
    // Keeps the sends to a client: the daemon's signal handler sends to the daemon itself.
    let is_client = |line: &&str| line.starts_with("recvfrom(") || line.contains("MSG_NOSIGNAL");
    let calls: Vec<&str> = log.lines().filter(is_client).collect();
    let ends = |line: &&str| line.rsplit("= ").next().and_then(|end| end.trim().parse().ok());
    let moved: Vec<usize> = calls.iter().filter_map(ends).collect();
    let answers = TOGETHER as usize * (16 + 1);
    assert_eq!(moved, [16 + 4, 16 + 3, together.len(), answers], "{calls:#?}");
}
