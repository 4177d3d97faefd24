//! Attacks of a hostile guest on memory, time and the rules of transactions. They are a program of
//! their own, because they compare times, which the cache contents of longer tests would disturb.

#[path = "suite/common/mod.rs"]
mod common;
#[path = "suite/time.rs"]
mod time;

use common::TestStore;
use std::time::Duration;
use time::Moment;
use xenstore_core::server::ConnId;
use xenstore_core::wire::{Header, MsgType};

/// Measures the time of one simple request on this machine now, the unit of all times here.
fn simple() -> Duration {
    let mut store = TestStore::new();
    let conn = store.socket();
    let began = Moment::now();
    for at in 0..1000 {
        store.send(conn, MsgType::Write, 0, format!("/tool/x\0{at}").as_bytes());
        store.server.consume_output(conn, usize::MAX, store.now);
    }
    began.elapsed() / 1000
}

/// Adds a guest that owns its home. Returns its connection and its home.
fn guest(store: &mut TestStore, domid: u16) -> (ConnId, String) {
    let dom0 = store.socket();
    let conn = store.guest(domid);
    let home = format!("/local/domain/{domid}");
    store.write(dom0, 0, &home, "").unwrap();
    store.set_perms(dom0, 0, &home, &[&format!("n{domid}")]).unwrap();
    (conn, home)
}

/// Makes a request and drops the reply. Returns the cost that the core reports, and the time taken.
fn timed(
    store: &mut TestStore,
    conn: ConnId,
    kind: MsgType,
    tx: u32,
    payload: &[u8],
) -> (u32, Duration) {
    let header = Header { kind: kind.code(), req_id: 1, tx_id: tx, len: payload.len() as u32 };
    let began = Moment::now();
    let cost = store.server.request(conn, &header, payload, store.now, &mut store.machine);
    (cost, began.elapsed())
}

/// Returns one chain of `depth` nodes below the guest's home, written by the guest.
fn chain(home: &str, depth: usize) -> String {
    format!("{home}{}", "/a".repeat(depth))
}

/// XSA-326: repeated writes of one node in a transaction count each time.
#[test]
fn the_log_of_a_transaction_is_bounded_by_the_quota_of_memory() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    let path = format!("{home}/x");
    let value = "v".repeat(1500);
    store.write(conn, 0, &path, &value).unwrap();
    let tx = store.start(conn);
    for _ in 0..20_000 {
        let _ = store.write(conn, tx, &path, &value);
    }
    let dom0 = store.socket();
    let used = store.usage(dom0, 5, "memory");
    assert!(used < 2_621_440 + 8192, "a guest with a quota of 2,621,440 bytes has {used}");
}

#[test]
fn the_log_of_requests_that_change_nothing_is_bounded() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    let tx = store.start(conn);
    for _ in 0..100_000 {
        let _ = store.rm(conn, tx, &format!("{home}/absent"));
    }
    let dom0 = store.socket();
    let used = store.usage(dom0, 5, "memory");
    assert!(used < 2_621_440 + 8192, "a guest with a quota of 2,621,440 bytes has {used}");
}

#[test]
fn permissions_inherited_in_a_transaction_are_a_read() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    store.write(dom0, 0, "/a", "").unwrap();
    let tx = store.start(dom0);
    assert_eq!(store.perms(dom0, tx, "/a/b"), Err("ENOENT".into()));
    store.write(dom0, tx, "/a/b", "").unwrap();
    assert_eq!(store.perms(dom0, tx, "/a/b"), Ok("n0".into()));
    store.set_perms(dom0, 0, "/a", &["r0"]).unwrap();
    let committed = store.commit(dom0, tx);
    let now = store.perms(dom0, 0, "/a/b");
    assert!(
        committed.is_err() || now == Ok("n0".into()),
        "the transaction saw n0, committed, and made {now:?}"
    );
}

/// The cost that the core reports for a request must include all its work: fairness depends on it.
#[test]
fn a_commit_costs_what_it_takes() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    store.write(conn, 0, &chain(&home, 900), "").unwrap();
    let tx = store.start(conn);
    for at in 0..1000 {
        let path = format!("{}/x{at}", chain(&home, 900));
        let _ = store.read(conn, tx, &path);
    }
    store.write(conn, tx, &format!("{home}/y"), "1").unwrap();
    store.write(conn, 0, &format!("{home}/z"), "1").unwrap();
    let (cost, took) = timed(&mut store, conn, MsgType::TransactionEnd, tx, b"T\0");
    eprintln!("commit: cost {cost}, {took:?}");
    assert!(cost >= 1000, "a commit that looks at 1000 nodes again cost {cost} ({took:?})");
}

/// A transaction of as many requests as a guest can make, of any kind: the cost of running them
/// again is limited, and so is the time.
#[test]
fn the_longest_commits_are_short() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    let node = |at: usize| format!("{home}/{}/{}", at / 50, at % 50);
    for at in 0..900 {
        store.write(conn, 0, &node(at), "0").unwrap();
    }
    type RequestFn<'s> = &'s dyn Fn(&mut TestStore, u32, usize) -> Result<(), String>;
    let value = "v".repeat(1000);
    let deep = chain(&home, 60);
    let asks: [(&str, RequestFn<'_>); 7] = [
        ("write", &|store, tx, at| store.write(conn, tx, &node(at % 900), "1")),
        ("write much", &|store, tx, at| store.write(conn, tx, &node(at % 900), &value)),
        ("read", &|store, tx, at| store.read(conn, tx, &node(at % 900)).map(drop)),
        ("permissions", &|store, tx, at| store.set_perms(conn, tx, &node(at % 900), &["n5", "r6"])),
        ("make and remove", &|store, tx, at| match at % 2 {
            0 => store.mkdir(conn, tx, &deep),
            _ => store.rm(conn, tx, &format!("{home}/a")),
        }),
        ("list and make", &|store, tx, at| match at % 2 {
            0 => store.list(conn, tx, &home).map(drop),
            _ => store.mkdir(conn, tx, &format!("{home}/z{}", at % 40)),
        }),
        ("the same leaf and the top", &|store, tx, at| match at % 2 {
            0 => store.write(conn, tx, &chain(&home, 30), &at.to_string()),
            _ => store.read(conn, tx, &home).map(drop),
        }),
    ];
    for (what, ask) in asks {
        let tx = store.start(conn);
        let granted = (0..4000).filter(|at| ask(&mut store, tx, *at).is_ok()).count();
        store.write(conn, tx, &node(0), "2").ok();
        // The snapshot is no longer the store's state.
        store.write(conn, 0, &format!("{home}/other"), what).unwrap();
        let (cost, took) = timed(&mut store, conn, MsgType::TransactionEnd, tx, b"T\0");
        eprintln!("{what}: {granted} requests, a commit of cost {cost} in {took:?}");
        assert!(granted >= 20, "{what}: {granted}");
        // The limit is twice the quota of nodes, and the last request in full.
        assert!(cost <= 2 * 1024 + 1024, "{what}: cost {cost}");
        assert!(took < 20_000 * simple(), "{what}: {took:?}");
        store.receive(conn);
    }
}

/// The longest single requests of a guest, in a store whose part visible to the guest is large.
#[test]
fn the_longest_requests_are_short() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let (conn, home) = guest(&mut store, 5);
    for (top, nodes, a_list) in
        [("wide", 50_000, 50_000), ("deep", 50_000, 500), ("fits", 500, 500)]
    {
        let top = format!("{home}/{top}");
        store.write(dom0, 0, &top, "").unwrap();
        store.set_perms(dom0, 0, &top, &["n0", "b5"]).unwrap();
        for at in 0..nodes {
            let payload = format!("{top}/{}/{at}\0v", at / a_list);
            store.send(dom0, MsgType::Write, 0, payload.as_bytes());
            store.server.consume_output(dom0, usize::MAX, store.now);
        }
    }
    // Other guests watch the nodes to be removed, and may not read them.
    for domid in 20..220 {
        let (other, _) = guest(&mut store, domid);
        for at in 0..128 {
            let at = usize::from(domid - 20) * 128 + at;
            store.watch(other, &format!("{home}/wide/0/{at}"), "t").unwrap();
        }
    }
    let longest = chain(&home, 990);
    let perms: Vec<u8> = (0..4).flat_map(|domid| format!("r{domid}\0").into_bytes()).collect();
    let with_perms = [format!("{home}\0n5\0").as_bytes(), &perms].concat();
    let text = |text: String| text.into_bytes();
    type NamedRequest = (&'static str, MsgType, Vec<u8>);
    let asks: [NamedRequest; 14] = [
        ("directory", MsgType::Directory, text(format!("{home}/fits/0\0"))),
        ("directory that is too big", MsgType::Directory, text(format!("{home}/wide/0\0"))),
        ("part", MsgType::DirectoryPart, text(format!("{home}/wide/0\x00150000\0"))),
        ("long write", MsgType::Write, text(format!("{longest}\0v"))),
        ("long read", MsgType::Read, text(format!("{longest}\0"))),
        ("long watch", MsgType::Watch, text(format!("{longest}/w\0t\0"))),
        ("long unwatch", MsgType::Unwatch, text(format!("{longest}/w\0t\0"))),
        ("rm of a chain", MsgType::Rm, text(format!("{home}/a\0"))),
        ("mkdir", MsgType::Mkdir, text(format!("{longest}\0"))),
        ("set permissions", MsgType::SetPerms, with_perms),
        ("permissions", MsgType::GetPerms, text(format!("{home}\0"))),
        ("rm of a long list", MsgType::Rm, text(format!("{home}/wide\0"))),
        ("rm of many lists", MsgType::Rm, text(format!("{home}/deep\0"))),
        ("reset", MsgType::ResetWatches, text("\0".to_owned())),
    ];
    for (what, kind, payload) in asks {
        let (cost, took) = timed(&mut store, conn, kind, 0, &payload);
        let answer = store.reply(conn, 1).expect("it is answered").map(|payload| payload.len());
        eprintln!("{what}: cost {cost} in {took:?}: {answer:?}");
        assert_eq!(answer.is_err(), kind == MsgType::Directory && cost > 8, "{what}: {answer:?}");
        assert!(cost <= 2048, "{what}: cost {cost}");
        assert!(took < 20_000 * simple(), "{what}: {took:?}");
        // The remaining work is done in slices, each of which is short, too.
        while store.server.deadline().is_some_and(|at| at <= store.now) {
            let began = Moment::now();
            store.server.tick(store.now, &mut store.machine);
            let took = began.elapsed();
            assert!(took < 20_000 * simple(), "{what}: a slice of {took:?}");
        }
        // Slices are charged to the guest that caused them, with its next request.
        let (cost, _) = timed(&mut store, conn, MsgType::Read, 0, format!("{home}\0").as_bytes());
        assert_eq!(
            cost > 10_000,
            what.starts_with("rm of") && what != "rm of a chain",
            "{what}: {cost}"
        );
        store.reply(conn, 1).unwrap().unwrap();
    }
    store.check();
}

/// Domain 0's requests are not divided, whatever their size. The test prints the times of the
/// largest (docs/performance.md).
#[test]
fn the_longest_requests_of_domain_0_are_told() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    for at in 0..100_000 {
        let payload = format!("/big/{}/{at}\0v", at / 100);
        store.send(dom0, MsgType::Write, 0, payload.as_bytes());
        store.server.consume_output(dom0, usize::MAX, store.now);
    }
    let tx = store.start(dom0);
    for at in 0..10_000 {
        store.write(dom0, tx, &format!("/big/{}/{at}", at / 100), "new").unwrap();
    }
    store.write(dom0, 0, "/other", "v").unwrap();
    let (cost, took) = timed(&mut store, dom0, MsgType::TransactionEnd, tx, b"T\0");
    eprintln!("a commit of 10,000 writes: cost {cost} in {took:?}");
    assert!(cost >= 10_000, "it was run again: {cost}");
    assert_eq!(store.reply(dom0, 1), Some(Ok(b"OK\0".to_vec())));
    let (cost, took) = timed(&mut store, dom0, MsgType::Rm, 0, b"/big\0");
    eprintln!("rm of 100,000 nodes: cost {cost} in {took:?}");
    // The rest of the work is done in slices.
    assert!(cost <= 2048, "{cost}");
    let mut slices = (0, Duration::ZERO);
    while store.server.deadline().is_some_and(|at| at <= store.now) {
        let began = Moment::now();
        store.server.tick(store.now, &mut store.machine);
        slices = (slices.0 + 1, slices.1.max(began.elapsed()));
    }
    eprintln!("and {} slices, the longest of {:?}", slices.0, slices.1);
    assert!(slices.0 > 20, "{}", slices.0);
    store.check();
}

#[test]
fn a_deep_path_costs_more_than_a_short_one() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    store.write(conn, 0, &chain(&home, 900), "").unwrap();
    let deep = format!("{}\0", chain(&home, 900));
    let shallow = format!("{home}\0");
    let mut run = |path: &str| {
        let mut all = (0, Duration::ZERO);
        for _ in 0..200 {
            let (cost, took) = timed(&mut store, conn, MsgType::Read, 0, path.as_bytes());
            all = (all.0 + cost, all.1 + took);
            store.receive(conn);
        }
        all
    };
    let (near, far) = (run(&shallow), run(&deep));
    eprintln!("shallow {near:?}, deep {far:?}");
    assert!(far.0 > near.0 * 4, "shallow {near:?}, deep {far:?}");
}

/// Waiting events are dropped once, not once for each watch.
#[test]
fn the_end_of_a_guest_with_many_events_is_quick() {
    let mut store = TestStore::new();
    let (reader, _) = guest(&mut store, 5);
    let (writer, home) = guest(&mut store, 6);
    let dom0 = store.socket();
    store.set_perms(dom0, 0, &home, &["r6"]).unwrap();
    for at in 0..128 {
        store.watch(reader, &home, &format!("{at}")).unwrap();
    }
    store.events(reader);
    for at in 0..500 {
        store.write(writer, 0, &format!("{home}/{at}"), "").unwrap();
    }
    let began = Moment::now();
    store.server.reset(reader, store.now, &mut store.machine);
    let took = began.elapsed();
    eprintln!("reset: {took:?}");
    assert!(took < 120_000 * simple(), "a reset with 64,000 waiting events took {took:?}");
}

/// Watches of guests that may not read anything must not slow others down.
#[test]
fn watches_of_the_root_by_guests_cost_nothing() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    // The shortest time of many is taken, as other tests run at the same time.
    let run = |store: &mut TestStore| {
        let one = |_| {
            let began = Moment::now();
            store.write(dom0, 0, "/tool/x", "1").unwrap();
            began.elapsed()
        };
        (0..50).map(one).min().unwrap_or_default()
    };
    let without = run(&mut store);
    for domid in 1..=200 {
        let conn = store.guest(domid);
        for at in 0..128 {
            store.watch(conn, "/", &format!("{at}")).unwrap();
        }
        store.events(conn);
    }
    let with = run(&mut store);
    eprintln!("a write of domain 0: {without:?}, with 25,600 watches that may not see it {with:?}");
    // None of the watches is examined.
    assert!(with < without * 3 + simple() * 3, "{without:?} became {with:?}");
}

/// A delay holds one request, never the others of its connection.
#[test]
fn many_delayed_requests_do_not_close_the_connection_to_others() {
    let mut store = TestStore::new();
    let (ring, other) = (store.socket(), store.socket());
    store.write(other, 0, "/hot", "0").unwrap();
    // `other` is refused once, and takes its turn.
    let tx = store.start(other);
    store.read(other, tx, "/hot").unwrap();
    store.write(ring, 0, "/hot", "1").unwrap();
    store.write(other, tx, "/hot", "2").unwrap();
    store.commit(other, tx).unwrap_err();
    let tx = store.start(other);
    store.read(other, tx, "/hot").unwrap();
    for _ in 0..64 {
        store.send(ring, MsgType::Write, 0, b"/hot\x003");
    }
    assert!(store.server.wants_input(ring), "nobody else is served on this connection");
}

/// A guest's turns one after the other delay another guest for 10 ms at most.
#[test]
fn one_guest_does_not_keep_the_turn() {
    let mut store = TestStore::new();
    let (bad, bad_home) = guest(&mut store, 5);
    let (good, good_home) = guest(&mut store, 6);
    for (conn, home) in [(bad, &bad_home), (good, &good_home)] {
        let path = format!("{home}/x");
        store.write(conn, 0, &path, "0").unwrap();
        let tx = store.start(conn);
        store.read(conn, tx, &path).unwrap();
        store.write(conn, 0, &path, "1").unwrap();
        store.write(conn, tx, &path, "2").unwrap();
        store.commit(conn, tx).unwrap_err();
    }
    for _ in 0..10 {
        let tx = store.start(bad);
        store.send(bad, MsgType::Read, tx, format!("{bad_home}/x\0").as_bytes());
    }
    let tx = store.start(good);
    let id = store.send(good, MsgType::Read, tx, format!("{good_home}/x\0").as_bytes());
    let mut waited = 0;
    while store.reply(good, id).is_none() {
        store.pass(1000);
        waited += 1;
        assert!(waited < 1000);
    }
    assert!(waited <= 20, "it waited {waited} ms for turns of one other guest");
}

/// The end of a turn costs little, however many requests wait and however long the holder's log is.
#[test]
fn what_waits_for_a_turn_is_tried_in_little_time() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let (holder, home) = guest(&mut store, 5);
    let hot = format!("{home}/hot");
    store.write(holder, 0, &chain(&home, 900), "").unwrap();
    store.write(holder, 0, &hot, "0").unwrap();
    store.set_perms(dom0, 0, &hot, &["b5"]).unwrap();
    // Two transactions with long logs: the first has the turn, the second waits for it.
    let (tx, next, first) = (store.start(holder), store.start(holder), store.start(holder));
    for at in 0..900 {
        let path = format!("{}/x{at}", chain(&home, 900));
        let _ = store.read(holder, tx, &path);
        let _ = store.read(holder, next, &path);
    }
    store.read(holder, first, &hot).unwrap();
    store.write(holder, 0, &hot, "1").unwrap();
    store.write(holder, first, &hot, "2").unwrap();
    store.commit(holder, first).unwrap_err();
    store.read(holder, tx, &hot).unwrap();
    store.send(holder, MsgType::Read, next, format!("{hot}\0").as_bytes());
    let (mut took, mut cost) = (Duration::ZERO, 0);
    for domid in 10..30 {
        let conn = store.guest(domid);
        for _ in 0..4 {
            let payload = format!("{hot}\x00z");
            let (more, longer) = timed(&mut store, conn, MsgType::Write, 0, payload.as_bytes());
            took += longer;
            cost += more;
        }
    }
    eprintln!("80 writes that wait: cost {cost}, {took:?}");
    let began = Moment::now();
    store.pass(10_001);
    let ended = began.elapsed();
    eprintln!("the end of the turn: {ended:?}");
    assert!(took + ended < 100_000 * simple(), "waiting {took:?}, end {ended:?}");
}

/// The requests that a guest may make in one round of the daemon (256 units of cost) take little
/// time.
#[test]
fn a_guests_share_of_a_round_is_short() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    store.write(conn, 0, &chain(&home, 900), "").unwrap();
    let hot = format!("{home}/hot");
    store.write(conn, 0, &hot, "0").unwrap();
    let first = store.start(conn);
    store.read(conn, first, &hot).unwrap();
    store.write(conn, 0, &hot, "1").unwrap();
    store.write(conn, first, &hot, "2").unwrap();
    store.commit(conn, first).unwrap_err();
    // This transaction takes the turn, and is brought up to date at every read after a change of
    // the store.
    let tx = store.start(conn);
    for at in 0..900 {
        let _ = store.read(conn, tx, &format!("{}/x{at}", chain(&home, 900)));
    }
    let (mut cost, mut took) = (0, Duration::ZERO);
    // This is the number of requests that one read of the ring brings.
    for _ in 0..20 {
        for (tx, kind, payload) in [(0, MsgType::Write, "z\x001"), (tx, MsgType::Read, "hot\0")] {
            let (more, longer) = timed(&mut store, conn, kind, tx, payload.as_bytes());
            cost += more;
            took += longer;
        }
    }
    eprintln!("cost {cost}, {took:?}");
    assert!(cost > 256 || took < 50_000 * simple(), "a cost of {cost} took {took:?}");
}

/// As in the C daemon the number of entries is checked before they are parsed: each may need a
/// query to the hypervisor.
#[test]
fn too_many_permissions_are_refused_before_they_are_read() {
    let mut store = TestStore::new();
    let (conn, home) = guest(&mut store, 5);
    let refused = store.set_perms(conn, 0, &home, &["n5", "r6", "r7", "r8", "r9", "what"]);
    assert_eq!(refused, Err("ENOSPC".into()));
}

/// The waiting requests of a connection are not run after its end, even if it ends while the queue
/// runs.
#[test]
fn an_ended_guests_waiting_requests_are_not_run() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let (bad, home) = guest(&mut store, 5);
    for name in ["one", "two", "x", "y"] {
        store.write(bad, 0, &format!("{home}/{name}"), "0").unwrap();
    }
    store.watch(bad, &home, "t").unwrap();
    store.events(bad);
    store.refuse(dom0, "/tool/hot");
    let tx = store.start(dom0);
    store.read(dom0, tx, "/tool/hot").unwrap();
    for name in ["one", "two"] {
        store.read(dom0, tx, &format!("{home}/{name}")).unwrap();
    }
    for name in ["x", "y"] {
        store.write(dom0, 0, &format!("{home}/{name}"), "1").unwrap();
    }
    store.call(dom0, MsgType::SetQuota, 0, b"5\0memory\x00100\0").unwrap();
    for name in ["one", "two"] {
        store.send(bad, MsgType::Write, 0, format!("{home}/{name}\x001").as_bytes());
    }
    assert_eq!(store.server.counters().delayed, 2);
    store.abort(dom0, tx).unwrap();
    assert_eq!(store.ended().len(), 1, "it leaves more unread than its quota");
    assert_eq!(store.read(dom0, 0, &format!("{home}/one")), Ok("1".into()));
    assert_eq!(
        store.read(dom0, 0, &format!("{home}/two")),
        Ok("0".into()),
        "written after its end"
    );
}

/// Linux sends the requests of all users of domain 0 over one ring: a refused user is one of many.
#[test]
fn a_refusal_of_one_user_of_a_ring_does_not_serialise_the_others() {
    let mut store = TestStore::new();
    let ring = store.socket();
    store.write(ring, 0, "/tool/unrelated", "0").unwrap();
    store.refuse(ring, "/tool/hot");
    let one = store.start(ring);
    store.read(ring, one, "/tool/hot").unwrap();
    let other = store.start(ring);
    let id = store.send(ring, MsgType::Read, other, b"/tool/unrelated\0");
    assert!(store.reply(ring, id).is_some(), "an unrelated transaction waits for a turn");
}

/// A client that vanishes with many watches of one path delays no other.
#[test]
fn the_end_of_a_client_with_many_watches_is_quick() {
    let mut store = TestStore::new();
    let conn = store.socket();
    for at in 0..50_000 {
        store.send(conn, MsgType::Watch, 0, format!("/tool\0{at}\0").as_bytes());
        store.server.consume_output(conn, usize::MAX, store.now);
    }
    store.receive(conn);
    let began = Moment::now();
    store.server.disconnect(conn, store.now, &mut store.machine);
    let took = began.elapsed();
    eprintln!("{took:?}");
    assert!(took < 1_000_000 * simple(), "the end of 50,000 watches took {took:?}");
}

/// WATCH needs no permission: guests may watch names whose prefixes equal those of domain 0's in
/// the index.
#[test]
fn names_made_to_collide_in_the_index_cost_the_others_nothing() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let alike = |at: usize| format!("multi-qu{at:06}m-queues");
    // The shortest time of some is taken, as other tests run at the same time.
    let time_of_writes = |store: &mut TestStore| {
        let one = |_| {
            let began = Moment::now();
            for at in 0..1000 {
                store.write(dom0, 0, "/tool/multi-queue-num-queues", &at.to_string()).unwrap();
            }
            began.elapsed()
        };
        (0..10).map(one).min().unwrap_or_default()
    };
    let before = time_of_writes(&mut store);
    for domid in 1..=100 {
        let guest = store.guest(domid);
        for at in 0..128 {
            let name = alike(usize::from(domid) * 128 + at);
            store.watch(guest, &format!("/tool/{name}"), "t").unwrap();
        }
        store.events(guest);
    }
    let after = time_of_writes(&mut store);
    eprintln!("before {before:?}, after {after:?}");
    assert!(after < 10 * before, "1000 writes took {before:?}, beside 12,800 watches {after:?}");
}

#[test]
fn a_reset_of_watches_with_many_events_is_quick_and_paid_for() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let (reader, home) = guest(&mut store, 7);
    for at in 0..128 {
        store.watch(reader, &home, &at.to_string()).unwrap();
    }
    store.events(reader);
    for at in 0..150 {
        store.write(dom0, 0, &format!("{home}/{at}"), "").unwrap();
    }
    let (cost, took) = timed(&mut store, reader, MsgType::ResetWatches, 0, b"\0");
    eprintln!("cost {cost}, {took:?}");
    assert!(cost > 1000, "dropping 19,200 events cost {cost}");
    assert!(took < 20_000 * simple(), "dropping them took {took:?}");
}
