//! The promises of the ring page itself: features, reconnection, the order of replies and events.

use conformance::{Daemon, DaemonKind, Peer, Version};
use std::time::{Duration, Instant};
use xenstore_core::wire::{MsgType, feature};

const SOON: Duration = Duration::from_secs(5);

fn home(daemon: &Daemon, dom0: &mut Peer, domid: u16) -> Peer {
    let guest = daemon.introduce(dom0, domid);
    dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
    dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
    guest
}

#[test]
fn ours_shows_its_features_in_the_page() {
    let Some(daemon) = Daemon::start(DaemonKind::Ours) else { return };
    let mut dom0 = daemon.connect();
    let mut guest = home(&daemon, &mut dom0, 7);
    assert_eq!(guest.ring().features().expect("the page"), feature::ALL);
    assert_eq!(guest.ring().error().expect("the page"), 0);
    assert_eq!(guest.ring().connection().expect("the page"), 0);
}

#[test]
fn reconnection_resets_the_guest() {
    for kind in [DaemonKind::OCaml, DaemonKind::Ours] {
        eprintln!("daemon `{}`", kind.name());
        let Some(daemon) = Daemon::start(kind) else { continue };
        let mut dom0 = daemon.connect();
        let mut guest = home(&daemon, &mut dom0, 7);
        guest.expect_ok("WRITE", "kept|v");
        guest.expect_ok("WATCH", "w|t|");
        let tx = guest.start();
        assert_eq!(guest.ask_in(tx, "WRITE", "lost|v"), "OK|");
        // In the middle of a message, with an event that is not read.
        dom0.expect_ok("WRITE", "/local/domain/7/w|v");
        guest.send(&[1; 10]).expect("a part of a header");
        guest.ring().reconnect(SOON).expect("the connection word back at 0");
        guest.forget();
        assert_eq!(guest.ask("READ", "kept|"), "v");
        assert_eq!(guest.ask("READ", "lost|"), "ENOENT");
        dom0.expect_ok("WRITE", "/local/domain/7/w|x");
        // `reconnect-watches`: the older oxenstored forgets none.
        let kept = daemon.is(DaemonKind::OCaml, Version::V4_17_5_72);
        assert_eq!(guest.events(), Ok(kept.then(|| "w|t|".to_owned()).into_iter().collect()));
        assert!(matches!(guest.ask_in(tx, "READ", "kept|").as_str(), "ENOENT" | "EIO"));
    }
}

#[test]
fn the_reply_to_watch_comes_before_its_first_event() {
    for kind in DaemonKind::ALL {
        eprintln!("daemon `{}`", kind.name());
        let Some(daemon) = Daemon::start(kind) else { continue };
        let mut dom0 = daemon.connect();
        let mut guest = home(&daemon, &mut dom0, 7);
        for peer in [&mut dom0, &mut guest] {
            peer.request(MsgType::Watch.code(), 0, b"/a\0t\0").expect("a request");
            let end = Instant::now() + SOON;
            let first = peer.message(end).expect("a reply");
            assert_eq!(first.header.kind, MsgType::Watch.code());
            let second = peer.message(end).expect("an event");
            assert_eq!(second.header.kind, MsgType::WatchEvent.code());
            assert_eq!((second.header.req_id, second.header.tx_id), (0, 0));
        }
    }
}

/// Requests and replies together are many times the size of the ring, so both wrap often.
#[test]
fn messages_of_every_length_pass_through_the_ring() {
    for kind in DaemonKind::ALL {
        eprintln!("daemon `{}`", kind.name());
        let Some(daemon) = Daemon::start(kind) else { continue };
        let mut dom0 = daemon.connect();
        let mut guest = home(&daemon, &mut dom0, 7);
        for length in (0..1900).step_by(37) {
            guest.expect_ok("WRITE", format!("x|{{a*{length}}}b"));
            let reply = guest.call(MsgType::Read.code(), 0, b"x\0").expect("a reply");
            assert_eq!(reply.payload.len(), length + 1);
            assert!(reply.payload.ends_with(b"b"));
        }
    }
}

#[test]
fn requests_that_are_sent_together_are_all_answered() {
    for kind in DaemonKind::ALL {
        eprintln!("daemon `{}`", kind.name());
        let Some(daemon) = Daemon::start(kind) else { continue };
        let mut dom0 = daemon.connect();
        let mut guest = home(&daemon, &mut dom0, 7);
        for peer in [&mut dom0, &mut guest] {
            let ids: Vec<u32> = (0..40_u32)
                .map(|index| {
                    let payload = format!("/tool/{index}\0");
                    peer.request(MsgType::Read.code(), 0, payload.as_bytes()).expect("a request")
                })
                .collect();
            let mut answered: Vec<u32> = ids
                .iter()
                .map(|_| peer.reply(Instant::now() + SOON).expect("a reply").header.req_id)
                .collect();
            answered.sort_unstable();
            assert_eq!(answered, ids);
        }
    }
}

/// Linux signals only moves that the daemon may wait for: requests that come when all others were
/// taken, room in a ring that was full. A daemon must look again once its own index has moved.
#[test]
fn a_guest_that_signals_as_seldom_as_linux_is_served() {
    const IN_FLIGHT: u32 = 24;
    for kind in [DaemonKind::C, DaemonKind::Ours] {
        eprintln!("daemon `{}`", kind.name());
        let Some(daemon) = Daemon::start(kind) else { continue };
        let mut dom0 = daemon.connect();
        let mut guest = home(&daemon, &mut dom0, 7);
        guest.ring().signal_where_needed();
        // Replies that never fill their ring, and some that do.
        for length in [1, 150] {
            guest.expect_ok("WRITE", format!("x|{{a*{length}}}"));
            for nth in 0..40_000 {
                guest.request(MsgType::Read.code(), 0, b"x\0").expect("a request");
                if nth >= IN_FLIGHT {
                    let reply = guest.reply(Instant::now() + SOON);
                    assert!(reply.is_ok(), "reply {nth}: {:?}", guest.ring().indices());
                }
            }
            for _ in 0..IN_FLIGHT {
                guest.reply(Instant::now() + SOON).expect("a reply");
            }
        }
    }
}
