//! What a hostile guest tries against memory, time and the rules of transactions.

mod common;

use common::Store;
use std::time::{Duration, Instant};
use xenstore_core::server::ConnId;
use xenstore_core::wire::{Header, MsgType};

/// What a domain is charged for the quota `memory`.
fn memory(store: &mut Store, domid: u16) -> u64 {
    let dom0 = store.socket();
    let text = store.call(dom0, MsgType::Control, 0, format!("quota\0{domid}\0").as_bytes());
    let text = String::from_utf8(text.expect("a known domain")).expect("text");
    let line = text.lines().find(|line| line.starts_with("memory")).expect("a line on memory");
    let number = line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next());
    number.expect("a number").parse().expect("a number")
}

/// A guest whose home it owns, and a client of domain 0.
fn guest(store: &mut Store, domid: u16) -> (ConnId, String) {
    let dom0 = store.socket();
    let conn = store.guest(domid);
    let home = format!("/local/domain/{domid}");
    store.write(dom0, 0, &home, "").unwrap();
    store.set_perms(dom0, 0, &home, &[&format!("n{domid}")]).unwrap();
    (conn, home)
}

/// A request whose reply nobody wants; what the core says it cost, and how long it took.
fn timed(
    store: &mut Store,
    conn: ConnId,
    kind: MsgType,
    tx: u32,
    payload: &[u8],
) -> (u32, Duration) {
    let header = Header { kind: kind.code(), req_id: 1, tx_id: tx, len: payload.len() as u32 };
    let began = Instant::now();
    let cost = store.server.request(conn, &header, payload, store.now, &mut store.machine);
    (cost, began.elapsed())
}

/// One chain of `depth` nodes below the guest's home, written by the guest.
fn chain(home: &str, depth: usize) -> String {
    format!("{home}{}", "/a".repeat(depth))
}

/// XSA-326: what is written again and again in a transaction counts each time.
#[test]
fn the_log_of_a_transaction_is_bounded_by_the_quota_of_memory() {
    let mut store = Store::new();
    let (conn, home) = guest(&mut store, 5);
    let path = format!("{home}/x");
    let value = "v".repeat(1500);
    store.write(conn, 0, &path, &value).unwrap();
    let tx = store.start(conn);
    for _ in 0..20_000 {
        let _ = store.write(conn, tx, &path, &value);
    }
    let used = memory(&mut store, 5);
    assert!(used < 2_621_440 + 8192, "a guest with a quota of 2,621,440 bytes has {used}");
}

#[test]
fn the_log_of_requests_that_change_nothing_is_bounded() {
    let mut store = Store::new();
    let (conn, home) = guest(&mut store, 5);
    let tx = store.start(conn);
    for _ in 0..100_000 {
        let _ = store.rm(conn, tx, &format!("{home}/absent"));
    }
    let used = memory(&mut store, 5);
    assert!(used < 2_621_440 + 8192, "a guest with a quota of 2,621,440 bytes has {used}");
}

#[test]
fn permissions_inherited_in_a_transaction_are_a_read() {
    let mut store = Store::new();
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

/// What the core does must show in what it says a request cost: fairness stands on it.
#[test]
fn a_commit_costs_what_it_takes() {
    let mut store = Store::new();
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
    println!("commit: cost {cost}, {took:?}");
    assert!(cost >= 1000, "a commit that looks at 1000 nodes again cost {cost} ({took:?})");
}

#[test]
fn a_deep_path_costs_more_than_a_short_one() {
    let mut store = Store::new();
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
    println!("shallow {near:?}, deep {far:?}");
    assert!(far.0 > near.0 * 4, "shallow {near:?}, deep {far:?}");
}

/// Events that wait are dropped once, not once for each watch.
#[test]
fn the_end_of_a_guest_with_many_events_is_quick() {
    let mut store = Store::new();
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
    let began = Instant::now();
    store.server.reset(reader, store.now, &mut store.machine);
    let took = began.elapsed();
    println!("reset: {took:?}");
    assert!(took < Duration::from_millis(20), "a reset with 64,000 waiting events took {took:?}");
}

/// Guests' watches that are not allowed to see anything must not slow everybody down.
#[test]
fn watches_of_the_root_by_guests_cost_little() {
    let mut store = Store::new();
    let dom0 = store.socket();
    // The shortest of many, as other tests run beside this one.
    let run = |store: &mut Store| {
        let one = |_| {
            let began = Instant::now();
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
    println!("a write of domain 0: {without:?}, with 25,600 watches that may not see it {with:?}");
    assert!(with < without * 20 + Duration::from_micros(400), "{without:?} became {with:?}");
}

/// What a guest may do in one round of the daemon (256 units of cost) takes little time.
#[test]
fn a_guests_share_of_a_round_is_short() {
    let mut store = Store::new();
    let (conn, home) = guest(&mut store, 5);
    store.write(conn, 0, &chain(&home, 900), "").unwrap();
    let hot = format!("{home}/hot");
    store.write(conn, 0, &hot, "0").unwrap();
    let first = store.start(conn);
    store.read(conn, first, &hot).unwrap();
    store.write(conn, 0, &hot, "1").unwrap();
    store.write(conn, first, &hot, "2").unwrap();
    store.commit(conn, first).unwrap_err();
    // This one takes the turn, and is brought up to date at every read after a change of the store.
    let tx = store.start(conn);
    for at in 0..900 {
        let _ = store.read(conn, tx, &format!("{}/x{at}", chain(&home, 900)));
    }
    let (mut cost, mut took) = (0, Duration::ZERO);
    // As many as one look into the ring brings.
    for _ in 0..20 {
        for (tx, kind, payload) in [(0, MsgType::Write, "z\x001"), (tx, MsgType::Read, "hot\0")] {
            let (more, longer) = timed(&mut store, conn, kind, tx, payload.as_bytes());
            cost += more;
            took += longer;
        }
    }
    println!("cost {cost}, {took:?}");
    assert!(cost > 256 || took < Duration::from_millis(50), "a cost of {cost} took {took:?}");
}

/// As in the C daemon the number of entries counts before they are read: each may be a question
/// to the hypervisor.
#[test]
fn too_many_permissions_are_refused_before_they_are_read() {
    let mut store = Store::new();
    let (conn, home) = guest(&mut store, 5);
    let refused = store.set_perms(conn, 0, &home, &["n5", "r6", "r7", "r8", "r9", "what"]);
    assert_eq!(refused, Err("ENOSPC".into()));
}

/// Two clients: the first has been refused on `path`, so that its transactions take turns.
fn refuse(store: &mut Store, conn: ConnId, path: &str) {
    store.write(conn, 0, path, "0").unwrap();
    let tx = store.start(conn);
    store.read(conn, tx, path).unwrap();
    store.write(conn, 0, path, "1").unwrap();
    store.write(conn, tx, path, "2").unwrap();
    store.commit(conn, tx).unwrap_err();
}

/// What a connection was waiting for is not done after its end, even if it ends while the queue runs.
#[test]
fn an_ended_guests_waiting_requests_are_not_run() {
    let mut store = Store::new();
    let dom0 = store.socket();
    let (bad, home) = guest(&mut store, 5);
    for name in ["one", "two", "x", "y"] {
        store.write(bad, 0, &format!("{home}/{name}"), "0").unwrap();
    }
    store.watch(bad, &home, "t").unwrap();
    store.events(bad);
    refuse(&mut store, dom0, "/tool/hot");
    let tx = store.start(dom0);
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
