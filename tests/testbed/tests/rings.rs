//! Guests of the whole daemon: their rings, their faults, their deaths.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen_io::xs_ring::{ClientRing, ErrorWord, RingError};
use xenstore_core::wire::{Header, feature, split_message};

const READ: u32 = 2;
const WATCH: u32 = 4;
const INTRODUCE: u32 = 8;
const RELEASE: u32 = 9;
const WRITE: u32 = 11;
const SET_PERMS: u32 = 14;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

const PATIENCE: Duration = Duration::from_secs(20);

fn message(kind: u32, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut bytes = Header { kind, req_id, tx_id: 0, len }.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

type RawReply = (u32, u32, Vec<u8>);

/// The daemon on a test bed of its own, with a client that speaks for domain 0.
struct TestDaemon {
    daemon: Child,
    dir: TempDir,
    dom0: UnixStream,
}

impl TestDaemon {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_xenstored-testbed"))
            .env("XENSHIM_GUESTS", dir.path())
            .env("XENSTORED_PATH", dir.path().join("socket"))
            .env_remove("NOTIFY_SOCKET")
            .args(["-N", "-F"])
            .arg(dir.path().join("pid"))
            .args(args)
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while !dir.path().join("pid").exists() {
            assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended");
            assert!(began.elapsed() < PATIENCE, "the daemon does not come up");
            std::thread::sleep(Duration::from_millis(2));
        }
        let dom0 = UnixStream::connect(dir.path().join("socket")).unwrap();
        dom0.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { daemon, dir, dom0 }
    }

    fn receive(&mut self) -> RawReply {
        let mut header = [0; 16];
        self.dom0.read_exact(&mut header).unwrap();
        let header = Header::parse(&header).unwrap();
        let mut payload = vec![0; header.len as usize];
        self.dom0.read_exact(&mut payload).unwrap();
        (header.kind, header.req_id, payload)
    }

    fn call(&mut self, kind: u32, payload: &[u8]) -> RawReply {
        self.dom0.write_all(&message(kind, 1, payload)).unwrap();
        self.receive()
    }

    /// Makes a call, and checks that the answer is "OK".
    fn ok(&mut self, kind: u32, payload: &[u8]) {
        let (got, _, answer) = self.call(kind, payload);
        assert_eq!((got, answer), (kind, b"OK\0".to_vec()), "{}", payload.escape_ascii());
    }

    /// Makes a domain with a home of its own.
    fn guest(&mut self, domid: u16) -> RingGuest {
        let guest = RingGuest::create(self.dir.path(), domid);
        self.introduce(domid);
        let home = format!("/local/domain/{domid}\0");
        self.ok(WRITE, home.as_bytes());
        self.ok(SET_PERMS, format!("{home}n{domid}\0").as_bytes());
        guest
    }

    fn introduce(&mut self, domid: u16) {
        self.ok(INTRODUCE, format!("{domid}\u{0}1\u{0}1\u{0}").as_bytes());
    }

    /// Raises `VIRQ_DOM_EXC`.
    fn raise(&self) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(&u32::MAX.to_ne_bytes(), self.dir.path().join("evtchn")).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A domain: its ring, and its end of the event channel.
struct RingGuest {
    domid: u16,
    dir: PathBuf,
    ring: ClientRing,
    /// A second view of the page, for writes that no honest guest makes.
    page: xen::shared::SharedPage,
    events: UnixDatagram,
    unread: Vec<u8>,
}

impl RingGuest {
    fn create(dir: &std::path::Path, domid: u16) -> Self {
        let path = dir.join(format!("{domid}.page"));
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        let ring = ClientRing::new(testbed::page::map(&file).unwrap());
        let page = testbed::page::map(&file).unwrap();
        let event_path = dir.join(format!("{domid}.evt"));
        let _ = std::fs::remove_file(&event_path);
        let events = UnixDatagram::bind(event_path).unwrap();
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { domid, dir: dir.to_owned(), ring, page, events, unread: Vec::new() }
    }

    fn notify(&self) {
        let socket = UnixDatagram::unbound().unwrap();
        let word = u32::from(self.domid).to_ne_bytes();
        socket.send_to(&word, self.dir.join("evtchn")).unwrap();
    }

    /// Waits for the daemon's next notification.
    fn wait(&self) {
        let mut word = [0; 4];
        self.events.recv(&mut word).expect("no event from the daemon");
        assert_eq!(u32::from_ne_bytes(word), u32::from(self.domid));
    }

    fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let sent = self.ring.write(bytes).unwrap();
            bytes = &bytes[sent..];
            self.notify();
            if !bytes.is_empty() {
                self.wait();
            }
        }
    }

    fn receive(&mut self) -> RawReply {
        loop {
            if let Some((header, payload, rest)) = split_message(&self.unread).unwrap() {
                let got = (header.kind, header.req_id, payload.to_vec());
                self.unread = rest.to_vec();
                return got;
            }
            let mut bytes = [0; 1024];
            let count = self.ring.read(&mut bytes).unwrap();
            if count == 0 {
                self.wait();
            } else {
                self.unread.extend_from_slice(&bytes[..count]);
                self.notify();
            }
        }
    }

    fn call(&mut self, kind: u32, payload: &[u8]) -> RawReply {
        self.send(&message(kind, 1, payload));
        self.receive()
    }

    fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_guest_reads_writes_and_watches() {
    let mut host = TestDaemon::start(&[]);
    let mut guest = host.guest(7);
    assert_eq!(guest.ring.features(), Ok(feature::ALL));
    assert_eq!(guest.call(WRITE, b"data/x\0v"), (WRITE, 1, b"OK\0".to_vec()));
    assert_eq!(guest.call(READ, b"/local/domain/7/data/x\0"), (READ, 1, b"v".to_vec()));
    assert_eq!(guest.call(READ, b"/tool\0"), (ERROR, 1, b"EACCES\0".to_vec()));
    assert_eq!(guest.call(WATCH, b"data\0tok\0").0, WATCH);
    assert_eq!(guest.receive(), (WATCH_EVENT, 0, b"data\0tok\0".to_vec()));
    host.ok(WRITE, b"/local/domain/7/data/x\0w");
    assert_eq!(guest.receive(), (WATCH_EVENT, 0, b"data/x\0tok\0".to_vec()));
}

#[test]
fn messages_longer_than_the_ring_come_through_both_ways() {
    let mut host = TestDaemon::start(&[]);
    let mut guest = host.guest(7);
    let value = vec![b'v'; 2000];
    for req_id in 0..50 {
        guest.send(&message(WRITE, req_id, &[b"big\0", &value[..]].concat()));
        assert_eq!(guest.receive(), (WRITE, req_id, b"OK\0".to_vec()));
        guest.send(&message(READ, req_id, b"big\0"));
        assert_eq!(guest.receive(), (READ, req_id, value.clone()));
    }
}

#[test]
fn many_requests_on_the_ring_are_answered_in_order() {
    let mut host = TestDaemon::start(&["-Q", "outstanding=4"]);
    let mut guest = host.guest(7);
    for round in 0..100 {
        let batch: Vec<u8> =
            (0..40).flat_map(|at| message(READ, round * 40 + at, b"x\0")).collect();
        guest.send(&batch);
        for at in 0..40 {
            assert_eq!(guest.receive(), (ERROR, round * 40 + at, b"ENOENT\0".to_vec()));
        }
    }
}

#[test]
fn a_guest_that_leaves_its_ring_exactly_full_is_not_served_for_ever() {
    let mut host = TestDaemon::start(&["-w", "watch-event=1"]);
    let mut guest = host.guest(7);
    assert_eq!(guest.call(WATCH, b"x\0tok\0").0, WATCH);
    assert_eq!(guest.receive().0, WATCH_EVENT);
    // A reply that fills the ring's 1024 bytes, so that no part of it waits in the daemon.
    let value = vec![b'v'; 1024 - 16];
    host.ok(WRITE, &[b"/local/domain/7/y\0", &value[..]].concat());
    guest.send(&message(READ, 1, b"y\0"));
    guest.wait_until("the answer", || {
        guest.page.load_u32(2060).unwrap() % 1024 == guest.page.load_u32(2056).unwrap() % 1024
            && guest.page.load_u32(2060) != guest.page.load_u32(2056)
    });
    host.ok(WRITE, b"/local/domain/7/x\0v");
    guest.wait_until("the error word", || guest.ring.error().unwrap() != 0);
}

#[test]
fn impossible_indices_end_that_ring_only_until_it_is_introduced_again() {
    let mut host = TestDaemon::start(&[]);
    let (mut bad, mut good) = (host.guest(7), host.guest(8));
    bad.page.store_u32(2052, 5000).unwrap();
    bad.notify();
    let error = |guest: &RingGuest| guest.ring.error().unwrap();
    bad.wait_until("the error word", || error(&bad) == ErrorWord::RingIndex as u32);
    assert_eq!(good.call(READ, b"x\0").0, ERROR);
    // The ring is no longer served: further writes are not read.
    assert!(matches!(bad.ring.write(b"x"), Err(RingError::Index { .. })));
    bad.notify();
    host.introduce(7);
    assert_eq!(error(&bad), 0);
    while bad.events.set_nonblocking(true).is_ok() && bad.events.recv(&mut [0; 4]).is_ok() {}
    bad.events.set_nonblocking(false).unwrap();
    assert_eq!(bad.call(WRITE, b"x\0v"), (WRITE, 1, b"OK\0".to_vec()));
    assert!(host.log().contains("domain 7"), "{}", host.log());
    assert!(!host.log().contains("domain 8"), "{}", host.log());
}

#[test]
fn an_announced_length_over_the_limit_ends_that_ring_until_it_reconnects() {
    let mut host = TestDaemon::start(&[]);
    let mut guest = host.guest(7);
    assert_eq!(guest.call(WATCH, b"x\0tok\0").0, WATCH);
    assert_eq!(guest.receive().0, WATCH_EVENT);
    guest.send(&Header { kind: READ, len: 5000, ..Header::default() }.to_bytes());
    let ring = &guest.ring;
    guest.wait_until("the error word", || ring.error() == Ok(ErrorWord::Protocol as u32));

    ring.request_reconnect().unwrap();
    guest.notify();
    guest.wait_until("the connection", || ring.connected() == Ok(true));
    assert_eq!(ring.error(), Ok(0));
    guest.unread.clear();
    host.ok(WRITE, b"/local/domain/7/x\0v");
    assert_eq!(guest.call(READ, b"x\0"), (READ, 1, b"v".to_vec()), "the watch is gone");
}

#[test]
fn half_a_request_is_forgotten_by_a_reconnect() {
    let mut host = TestDaemon::start(&[]);
    let mut guest = host.guest(7);
    guest.send(&message(WRITE, 1, b"x\0value")[..20]);
    let page = &guest.page;
    guest.wait_until("the half to be read", || page.load_u32(2048) == Ok(20));
    guest.ring.request_reconnect().unwrap();
    guest.notify();
    let ring = &guest.ring;
    guest.wait_until("the connection", || ring.connected() == Ok(true));
    for word in [2048, 2052, 2056, 2060] {
        assert_eq!(guest.page.load_u32(word), Ok(0));
    }
    assert_eq!(guest.call(READ, b"x\0"), (ERROR, 1, b"ENOENT\0".to_vec()));
}

#[test]
fn death_and_shutdown_are_told_and_numbers_used_again() {
    let mut host = TestDaemon::start(&[]);
    let mut guest = host.guest(7);
    assert_eq!(guest.call(WRITE, b"x\0v").0, WRITE);
    host.ok(WATCH, b"@releaseDomain\0rel\0");
    assert_eq!(host.receive().0, WATCH_EVENT);

    std::fs::write(host.dir.path().join("7.shutdown"), []).unwrap();
    host.raise();
    assert_eq!(host.receive(), (WATCH_EVENT, 0, b"@releaseDomain\0rel\0".to_vec()));
    assert_eq!(guest.call(READ, b"x\0").0, READ, "a domain that is shut down is still there");

    std::fs::remove_file(host.dir.path().join("7.shutdown")).unwrap();
    std::fs::remove_file(host.dir.path().join("7.page")).unwrap();
    host.raise();
    assert_eq!(host.receive(), (WATCH_EVENT, 0, b"@releaseDomain\0rel\0".to_vec()));
    assert_eq!(host.call(INTRODUCE, b"7\x001\x001\0").0, ERROR, "no such domain");

    let mut next = host.guest(7);
    assert_eq!(next.call(READ, b"x\0"), (ERROR, 1, b"ENOENT\0".to_vec()), "nothing is inherited");
    host.ok(RELEASE, b"7\0");
    assert_eq!(host.receive().0, WATCH_EVENT);
}

#[test]
fn a_flood_of_guests_leaves_domain_0_its_turn() {
    let mut host = TestDaemon::start(&[]);
    let guests: Vec<RingGuest> = (1..=20).map(|domid| host.guest(domid)).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for guest in guests {
            let stop = &stop;
            scope.spawn(move || {
                let one = message(READ, 1, b"x\0");
                let mut bytes = [0; 1024];
                while !stop.load(Ordering::Relaxed) {
                    let _ = guest.ring.read(&mut bytes);
                    // Whole requests only; a ring with no room for one is tried again in the next
                    // round.
                    if guest
                        .page
                        .load_u32(2052)
                        .unwrap()
                        .wrapping_sub(guest.page.load_u32(2048).unwrap())
                        < 900
                    {
                        let _ = guest.ring.write(&one);
                    }
                    guest.notify();
                }
            });
        }
        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let began = Instant::now();
            host.ok(WRITE, b"/a\0b");
            slowest = slowest.max(began.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(slowest < Duration::from_secs(2), "domain 0 waited {slowest:?}");
    });
}

#[test]
fn sigterm_ends_a_daemon_with_guests() {
    let mut host = TestDaemon::start(&[]);
    let _guest = host.guest(7);
    let pid = Pid::from_child(&host.daemon);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(host.daemon.wait().unwrap().success(), "{}", host.log());
    assert!(!host.dir.path().join("socket").exists());
}
