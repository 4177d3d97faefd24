//! XenStore's security advisories, each as a test of that name, through the whole daemon: the
//! attack of the advisory, and a check that it has no effect. Debian's daemons are patched, so most
//! tests run against them as well, if they do what the advisory's fix promises.

use conformance::{Daemon, DaemonKind, Peer, Version};
use std::time::{Duration, Instant};
use xenstore_core::wire::{Header, MsgType};

const SOON: Duration = Duration::from_secs(5);

/// Runs a check against these daemons, each fresh.
fn on(kinds: &[DaemonKind], check: impl Fn(&mut Daemon, &mut Peer)) {
    for kind in kinds {
        eprintln!("daemon `{}`", kind.name());
        let Some(mut daemon) = Daemon::start(*kind) else { continue };
        let mut dom0 = daemon.connect();
        check(&mut daemon, &mut dom0);
        assert!(daemon.runs(), "the daemon is gone");
        assert_eq!(dom0.ask("GET_DOMAIN_PATH", "1|"), "/local/domain/1|");
    }
}

/// Introduces a domain that owns its home.
fn home(daemon: &Daemon, dom0: &mut Peer, domid: u16) -> Peer {
    let guest = daemon.introduce(dom0, domid);
    dom0.expect_ok("MKDIR", format!("/local/domain/{domid}|"));
    dom0.expect_ok("SET_PERMS", format!("/local/domain/{domid}|n{domid}|"));
    guest
}

/// Kills a domain and waits until the daemon has noticed.
fn kill(daemon: &Daemon, dom0: &mut Peer, guest: Peer, domid: u16) {
    drop(guest);
    daemon.destroy(domid);
    let end = Instant::now() + SOON;
    while dom0.ask("IS_DOMAIN_INTRODUCED", format!("{domid}|")) == "T|" {
        assert!(Instant::now() < end, "domain {domid} died and is introduced still");
    }
}

const C_AND_OURS: [DaemonKind; 2] = [DaemonKind::C, DaemonKind::Ours];

/// A reply of more than 4096 bytes desynchronises the client: E2BIG instead.
#[test]
fn xsa_072_no_reply_is_over_4096_bytes() {
    on(&C_AND_OURS, |_, dom0| {
        for index in 0..300 {
            dom0.expect_ok("MKDIR", format!("/d/a-name-of-20-bytes-{index}|"));
        }
        assert_eq!(dom0.ask("DIRECTORY", "/d|"), "E2BIG");
        let mut found = 0;
        let mut offset = 0;
        loop {
            let reply = dom0
                .call(MsgType::DirectoryPart.code(), 0, format!("/d\0{offset}\0").as_bytes())
                .expect("a part of the listing");
            assert!(reply.payload.len() <= 4096, "a part of {} bytes", reply.payload.len());
            let mut strings = reply.payload.split(|byte| *byte == 0).skip(1).peekable();
            let names: Vec<_> = strings.by_ref().take_while(|name| !name.is_empty()).collect();
            found += names.len();
            offset += names.iter().map(|name| name.len() + 1).sum::<usize>();
            // The end of the list is an empty name with a NUL of its own.
            if reply.payload.ends_with(b"\0\0") {
                break;
            }
            assert!(!names.is_empty(), "a part without names that is not the end");
        }
        assert_eq!(found, 300);
    });
}

/// Watches, special watches and IS_DOMAIN_INTRODUCED check permissions; a transaction id in WATCH
/// has no effect; removal fires no watch of a client that may not see it.
#[test]
fn xsa_115_watches_ask_for_permissions() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        dom0.expect_ok("WRITE", "/secret/deep|v");
        for (wpath, token) in [("/secret", "s"), ("/secret/deep", "d"), ("@introduceDomain", "i")] {
            guest.expect_ok("WATCH", format!("{wpath}|{token}|"));
            assert_eq!(guest.event(SOON), Some(format!("{wpath}|{token}|")));
        }
        dom0.expect_ok("WRITE", "/secret/deep|w");
        dom0.expect_ok("SET_PERMS", "/secret/deep|n0|b0|");
        dom0.expect_ok("RM", "/secret|");
        drop(daemon.introduce(dom0, 8));
        assert_eq!(guest.events(), Ok(vec![]));
        assert_eq!(guest.ask("IS_DOMAIN_INTRODUCED", "8|"), "EACCES");
        // No transaction has this number; WATCH does not look at it.
        assert_eq!(guest.ask_in(77, "WATCH", "x|t|"), "OK|");
        assert_eq!(guest.event(SOON), Some("x|t|".to_owned()));
    });
}

/// A failed creation is not charged.
#[test]
fn xsa_115_a_refused_creation_costs_no_quota() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for index in 0..2000 {
            assert_eq!(guest.ask("WRITE", format!("/tool/x{index}|v")), "EACCES");
        }
        guest.expect_ok("WRITE", "x|v");
    });
}

/// A guest that writes as fast as it can does not keep domain 0's transactions from committing.
#[test]
fn xsa_206_a_writing_guest_starves_no_transaction() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        guest.expect_ok("WRITE", "data|0");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Sixteen at a time, so that the store never waits for it.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for _ in 0..16 {
                        guest.request(MsgType::Write.code(), 0, b"data\0v").expect("room for it");
                    }
                    for _ in 0..16 {
                        let reply = guest.reply(Instant::now() + SOON).expect("a reply");
                        assert_eq!(reply.payload, b"OK\0");
                    }
                }
            });
            let mut worst = 0;
            for turn in 0..50 {
                let mut tries = 0;
                loop {
                    tries += 1;
                    let tx = dom0.start();
                    dom0.ask_in(tx, "READ", "/local/domain/7/data|");
                    dom0.ask_in(tx, "WRITE", format!("/seen|{turn}"));
                    let end = dom0.ask_in(tx, "TRANSACTION_END", "T|");
                    if end == "OK|" {
                        break;
                    }
                    assert_eq!(end, "EAGAIN");
                }
                worst = worst.max(tries);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(worst <= 3, "a transaction of domain 0 took {worst} tries");
        });
    });
}

/// A domain and the one that it targets die in the same moment.
#[test]
fn xsa_233_a_domain_and_its_target_die_together() {
    on(&[DaemonKind::OCaml, DaemonKind::Ours], |daemon, dom0| {
        let first = home(daemon, dom0, 7);
        let second = home(daemon, dom0, 8);
        dom0.expect_ok("SET_TARGET", "8|7|");
        let _ = std::fs::remove_file(daemon.guests().join("8.page"));
        kill(daemon, dom0, first, 7);
        kill(daemon, dom0, second, 8);
        let mut again = home(daemon, dom0, 7);
        again.expect_ok("WRITE", "x|v");
        let mut again = home(daemon, dom0, 8);
        assert_eq!(again.ask("READ", "/local/domain/7/x|"), "EACCES");
    });
}

/// Permissions do not outlive their domain.
#[test]
fn xsa_322_a_reused_domid_inherits_no_permission() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut first = home(daemon, dom0, 7);
        dom0.expect_ok("WRITE", "/shared|v");
        dom0.expect_ok("SET_PERMS", "/shared|n0|b7|");
        dom0.expect_ok("WRITE", "/given|v");
        dom0.expect_ok("SET_PERMS", "/given|n7|");
        dom0.expect_ok("SET_PERMS", "@introduceDomain|n0|r7|");
        assert_eq!(first.ask("READ", "/shared|"), "v");
        kill(daemon, dom0, first, 7);
        let mut second = home(daemon, dom0, 7);
        assert_eq!(second.ask("READ", "/shared|"), "EACCES");
        assert_eq!(second.ask("WRITE", "/shared|w"), "EACCES");
        assert!(matches!(second.ask("READ", "/given|").as_str(), "EACCES" | "ENOENT"));
        second.expect_ok("WATCH", "@introduceDomain|t|");
        assert!(second.event(SOON).is_some());
        drop(daemon.introduce(dom0, 9));
        assert_eq!(second.events(), Ok(vec![]));
    });
}

/// A relative path that is too long once it is absolute makes no unreachable node.
#[test]
fn xsa_323_every_node_that_is_made_can_be_reached() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for length in [900, 1000, 1006, 1007, 1008, 1023, 1024, 1025, 2030, 2047, 2048, 2049, 3000]
        {
            let answer = guest.ask("WRITE", format!("{{a*{length}}}|v"));
            let absolute = format!("/local/domain/7/{{a*{length}}}|");
            if answer == "OK|" {
                assert_eq!(dom0.ask("READ", &absolute), "v", "{length} bytes");
                dom0.expect_ok("RM", &absolute);
            } else {
                assert_ne!(dom0.ask("READ", &absolute), "v", "{length} bytes: {answer}");
            }
        }
        assert_eq!(dom0.ask("DIRECTORY", "/local/domain/7|"), "");
        dom0.expect_ok("RM", "/local/domain/7|");
    });
}

/// A token that makes an event longer than a payload may be crashes nothing.
#[test]
fn xsa_324_a_token_of_any_length() {
    on(&C_AND_OURS, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for length in [1, 2000, 4080, 4092, 4093] {
            assert!(guest.events().is_ok());
            let answer = guest.ask("WATCH", format!("a|{{t*{length}}}|"));
            if answer == "OK|" {
                let first = guest.event(SOON).expect("the first event");
                assert!(first.starts_with("a|"), "{first}");
            }
            guest.expect_ok("WRITE", "a/b/c/d/e/f|v");
            guest.expect_ok("RM", "a|");
        }
        guest.expect_ok("RESET_WATCHES", "|");
    });
}

/// A client that breaks the protocol does not count as a dead domain.
#[test]
fn xsa_325_a_broken_client_is_no_dead_domain() {
    on(&C_AND_OURS, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        dom0.expect_ok("WATCH", "@releaseDomain|r|");
        assert_eq!(dom0.event(SOON).as_deref(), Some("@releaseDomain|r|"));
        let header = Header { kind: MsgType::Read.code(), req_id: 1, tx_id: 0, len: 4097 };
        guest.send(&header.to_bytes()).expect("the ring takes 16 bytes");
        assert!(guest.reply(Instant::now() + Duration::from_millis(300)).is_err());
        assert_eq!(dom0.events(), Ok(vec![]));
        assert_eq!(dom0.ask("IS_DOMAIN_INTRODUCED", "7|"), "T|");
        daemon.destroy(7);
        assert_eq!(dom0.event(SOON).as_deref(), Some("@releaseDomain|r|"));
    });
}

/// A guest that reads nothing does not make the daemon grow, neither by replies nor by events.
#[test]
fn xsa_326_a_guest_that_reads_nothing_is_bounded() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for index in 0..100 {
            guest.expect_ok("WATCH", format!("d|{index}-{{t*1000}}|"));
        }
        guest.expect_ok("WRITE", "d/x|v");
        assert!(guest.events().is_ok());
        let before = daemon.memory_kib();
        // From here on the guest reads nothing: 100 events of 1000 bytes each for every change.
        for index in 0..400 {
            dom0.expect_ok("WRITE", format!("/local/domain/7/d/n{index}|v"));
        }
        let grown = daemon.memory_kib().saturating_sub(before);
        assert!(grown < 6 * 1024, "40 MB of unread events: the daemon grew by {grown} KiB");
    });
}

/// Waiting events that are equal are sent once. The ring takes one of these and begins the next;
/// those that fill the next ring are encoded already.
#[test]
fn xsa_326_identical_events_that_wait_are_one() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        guest.expect_ok("WATCH", "a|{t*900}|");
        assert!(guest.event(SOON).is_some());
        for _ in 0..50 {
            dom0.expect_ok("WRITE", "/local/domain/7/a|x");
        }
        // Twice: the first reply may overtake an event.
        let told =
            [guest.events(), guest.events()].map(|events| events.expect("a live ring").len());
        let told: usize = told.iter().sum();
        assert!((1..=4).contains(&told), "{told} events of 50 identical ones");
    });
}

/// Nodes, watches, transactions and the nodes of a transaction are bounded.
#[test]
fn xsa_326_everything_that_a_guest_makes_is_bounded() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        let refused = |answer: &str| matches!(answer, "ENOSPC" | "EQUOTA" | "E2BIG" | "EBUSY");
        let mut bounded =
            |what: &str, most: usize, kind: &str, payload: &dyn Fn(usize) -> String| {
                let made =
                    (0..most).take_while(|index| !refused(&guest.ask(kind, payload(*index))));
                assert!(made.count() < most, "no bound on {what}");
            };
        bounded("nodes", 1500, "MKDIR", &|index| format!("d{}/n{index}|", index % 8));
        bounded("watches", 200, "WATCH", &|index| format!("w|{index}|"));
        bounded("transactions", 20, "TRANSACTION_START", &|_| "|".to_owned());
    });
}

/// The nodes that one transaction of a guest touches are bounded, absent ones included.
#[test]
fn xsa_326_the_nodes_of_a_transaction_are_bounded() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        let tx = guest.start();
        let reads = (0..3000)
            .take_while(|index| guest.ask_in(tx, "READ", format!("n{index}|")) == "ENOENT");
        let count = reads.count();
        assert!((900..=1024).contains(&count), "{count} nodes in one transaction");
        assert_ne!(guest.ask_in(tx, "TRANSACTION_END", "F|"), "ENOENT");
    });
}

/// RESET_WATCHES gives the whole quota of watches back.
#[test]
fn xsa_330_reset_watches_leaves_nothing() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for round in 0..50 {
            for index in 0..90 {
                guest.expect_ok("WATCH", format!("w{index}/{round}|t|"));
            }
            guest.expect_ok("RESET_WATCHES", "|");
        }
        assert!(guest.events().is_ok());
        dom0.expect_ok("WRITE", "/local/domain/7/w1/1|v");
        assert_eq!(guest.events(), Ok(vec![]));
    });
}

/// A guest cannot give its nodes, and their cost, to another domain.
#[test]
fn xsa_352_a_guest_gives_no_node_away() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        let _other = home(daemon, dom0, 8);
        guest.expect_ok("WRITE", "x|v");
        for perms in ["n8|", "b8|b7|", "n0|", "n0|b7|"] {
            let answer = guest.ask("SET_PERMS", format!("x|{perms}"));
            assert!(matches!(answer.as_str(), "EPERM" | "EACCES"), "{perms}: {answer}");
        }
        assert_eq!(dom0.ask("GET_PERMS", "/local/domain/7/x|"), "n7|");
    });
}

/// The root is a node like the others.
#[test]
fn xsa_353_the_root_has_permissions() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for (kind, payload) in [
            ("READ", "/|"),
            ("DIRECTORY", "/|"),
            ("GET_PERMS", "/|"),
            ("SET_PERMS", "/|b7|"),
            ("WRITE", "/|x"),
            ("RM", "/|"),
        ] {
            assert_eq!(guest.ask(kind, payload), "EACCES", "{kind} {payload}");
        }
        assert_eq!(dom0.ask("GET_PERMS", "/|"), "n0|");
        assert_eq!(dom0.ask("READ", "/local/domain/7|"), "");
    });
}

/// A reader that is slow to take its replies occupies no memory for those that it has requested and
/// not taken.
#[test]
fn xsa_416_unread_replies_hold_no_memory() {
    const ASKED: usize = 200;
    const CLIENTS: usize = 40;
    on(&[DaemonKind::Ours], |daemon, dom0| {
        dom0.expect_ok("WRITE", "/big|{x*4000}");
        let before = daemon.memory_kib();
        let mut slow: Vec<Peer> = (0..CLIENTS).map(|_| daemon.connect()).collect();
        for client in &mut slow {
            for _ in 0..ASKED {
                client.request(MsgType::Read.code(), 0, b"/big\0").expect("a request");
            }
        }
        for index in 0..2000 {
            dom0.expect_ok("WRITE", format!("/n{}|{{y*1000}}", index % 10));
        }
        // 32 MB were requested. The replies that a client does not take are bounded by 64 KiB and
        // one reply.
        let grown = daemon.memory_kib().saturating_sub(before);
        assert!(grown < 6 * 1024, "the daemon grew by {grown} KiB while forty clients were slow");
        for client in &mut slow {
            for _ in 0..ASKED {
                let reply = client.reply(Instant::now() + SOON).expect("a late reply");
                assert_eq!(reply.payload.len(), 4000);
            }
        }
    });
}

/// A permission entry for a domid without a domain gives the first domain of that number nothing.
#[test]
fn xsa_417_a_new_domain_gets_nothing_from_an_old_entry() {
    on(&C_AND_OURS, |daemon, dom0| {
        dom0.expect_ok("WRITE", "/a|v");
        dom0.expect_ok("SET_PERMS", "/a|n0|b7|");
        let mut guest = home(daemon, dom0, 7);
        assert_eq!(guest.ask("READ", "/a|"), "EACCES");
        assert_eq!(guest.ask("WRITE", "/a|w"), "EACCES");
        kill(daemon, dom0, guest, 7);
        dom0.expect_ok("SET_PERMS", "/a|n0|r8|b7|");
        let mut guest = home(daemon, dom0, 7);
        assert_eq!(guest.ask("READ", "/a|"), "EACCES");
    });
}

/// Trees as deep as a path allows are made, watched and removed.
#[test]
fn xsa_418_deep_trees() {
    on(&C_AND_OURS, |_, dom0| {
        for round in 0..5 {
            dom0.expect_ok("WATCH", format!("/|{round}|"));
            dom0.expect_ok("WRITE", "{/a*1000}|v");
            dom0.expect_ok("WRITE", "{/a*500}/b{/c*400}|v");
            dom0.expect_ok("RM", "/a|");
            assert_eq!(dom0.ask("READ", "{/a*1000}|"), "ENOENT");
        }
    });
}

/// The nodes of a dead domain are removed with it, wherever they are, and are not given to domain
/// 0.
#[test]
fn xsa_419_nodes_of_a_dead_domain_go() {
    on(&C_AND_OURS, |daemon, dom0| {
        dom0.expect_ok("MKDIR", "/shared|");
        for round in 0..5 {
            let mut guest = home(daemon, dom0, 7);
            dom0.expect_ok("SET_PERMS", "/shared|n0|b7|");
            for index in 0..200 {
                guest.expect_ok("WRITE", format!("/shared/n{index}|{round}"));
                guest.expect_ok("WRITE", format!("n{index}|v"));
            }
            kill(daemon, dom0, guest, 7);
            assert_eq!(dom0.ask("DIRECTORY", "/shared|"), "", "round {round}");
            assert_eq!(dom0.ask("READ", "/local/domain/7|"), "ENOENT");
        }
    });
}

/// Lengths that are negative as a signed number end the connection, and nothing else.
#[test]
fn xsa_420_lengths_that_look_negative() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        for len in [0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xc000_0000, u32::MAX] {
            let mut client = daemon.connect();
            let header = Header { kind: MsgType::Read.code(), req_id: 1, tx_id: 0, len };
            let _ = client.send(&header.to_bytes());
            let _ = client.send(b"/tool\0");
            let answer = client.reply(Instant::now() + Duration::from_millis(300));
            assert!(answer.as_ref().map_or(true, |reply| reply.error().is_some()), "{answer:?}");
            dom0.expect_ok("WRITE", format!("/alive|{len}"));
        }
    });
}

/// RELEASE of a domain while requests of several others, and its own, are waiting.
#[test]
fn xsa_425_release_among_waiting_requests() {
    on(&C_AND_OURS, |daemon, dom0| {
        for _ in 0..20 {
            let mut guests: Vec<_> = (7..15).map(|domid| home(daemon, dom0, domid)).collect();
            for guest in &mut guests {
                for _ in 0..10 {
                    guest.request(MsgType::Mkdir.code(), 0, b"x\0").expect("the ring takes it");
                }
            }
            for domid in 7..15 {
                dom0.expect_ok("RELEASE", format!("{domid}|"));
            }
        }
    });
}

/// `/local/domain/` and its like are refused like any other invalid path.
#[test]
fn xsa_481_paths_that_are_nearly_a_home() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        for path in [
            "/local/domain/",
            "/local/domain//",
            "/local/domain/7/",
            "/local/domain//7",
            "/local//domain/7",
            "/local/domain/x/",
            "/local/domain/70000/",
            "/local/",
            "local/domain/",
        ] {
            for (kind, rest) in
                [("READ", "|"), ("WRITE", "|v"), ("DIRECTORY", "|"), ("WATCH", "|t|"), ("RM", "|")]
            {
                assert_eq!(guest.ask(kind, format!("{path}{rest}")), "EINVAL", "{kind} {path}");
                assert_eq!(dom0.ask(kind, format!("{path}{rest}")), "EINVAL", "{kind} {path}");
            }
        }
    });
}

/// A reused domid starts with a count of 0 nodes. `quota-reused`: not with the older oxenstored,
/// which keeps the old count.
#[test]
fn xsa_483_a_reused_domid_starts_at_no_nodes() {
    on(&DaemonKind::ALL, |daemon, dom0| {
        let counts_on = daemon.is(DaemonKind::OCaml, Version::V4_17_5_72);
        for round in 0..4 {
            let mut guest = home(daemon, dom0, 7);
            let mut write = |index| guest.ask("WRITE", format!("d{}/n{index}|v", index % 4));
            let refused = (0..600).map(|index| (index, write(index))).find(|(_, got)| got != "OK|");
            let expected = counts_on && round > 0;
            assert_eq!(refused.is_some(), expected, "round {round}: {refused:?}");
            kill(daemon, dom0, guest, 7);
        }
    });
}

/// RESET_WATCHES inside a transaction.
#[test]
fn xsa_484_reset_watches_in_a_transaction() {
    on(&[DaemonKind::Ours], |daemon, dom0| {
        let mut guest = home(daemon, dom0, 7);
        let tx = guest.start();
        assert_eq!(guest.ask_in(tx, "WRITE", "x|v"), "OK|");
        assert_eq!(guest.ask_in(tx, "RESET_WATCHES", "|"), "OK|");
        assert_eq!(guest.ask_in(tx, "TRANSACTION_END", "T|"), "ENOENT");
        assert_eq!(guest.ask("READ", "x|"), "ENOENT");
        let tx = dom0.start();
        assert_eq!(dom0.ask_in(tx, "RESET_WATCHES", "|"), "OK|");
        assert_eq!(dom0.ask_in(tx, "READ", "/tool|"), "ENOENT");
    });
}
