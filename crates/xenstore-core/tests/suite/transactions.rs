//! Tests of the state that a transaction sees, of its refusal, and that no transaction starves.

use crate::common::TestStore;
use xenstore_core::limits::{HOLD_MAX_US, SNAPSHOT_BYTES, SNAPSHOT_BYTES_MAX};
use xenstore_core::server::{ConnId, DomId, EndReason};
use xenstore_core::wire::MsgType;

fn again() -> Result<(), String> {
    Err("EAGAIN".to_owned())
}

fn two() -> (TestStore, ConnId, ConnId) {
    let mut store = TestStore::new();
    let (one, two) = (store.socket(), store.socket());
    for path in ["/a", "/b", "/dir/x"] {
        store.write(one, 0, path, "old").unwrap();
    }
    (store, one, two)
}

#[test]
fn a_transaction_sees_its_snapshot_and_its_own_writes() {
    let (mut store, one, two) = two();
    let tx = store.start(one);
    store.write(two, 0, "/a", "new").unwrap();
    assert_eq!(store.read(one, tx, "/a").unwrap(), "old");
    store.write(one, tx, "/b", "mine").unwrap();
    assert_eq!(store.read(one, tx, "/b").unwrap(), "mine");
    assert_eq!(store.read(two, 0, "/b").unwrap(), "old");
    store.abort(one, tx).unwrap();
    assert_eq!(store.read(two, 0, "/b").unwrap(), "old");
    assert_eq!(store.read(one, tx, "/b"), Err("ENOENT".to_owned()));
    store.check();
}

/// A change of a node that was read is a conflict; other changes are not.
#[test]
fn refused_only_for_a_true_conflict() {
    type TransactionStep = fn(&mut TestStore, ConnId, u32) -> Result<(), String>;
    let read: TransactionStep = |store, conn, tx| store.read(conn, tx, "/a").map(drop);
    let absent: TransactionStep =
        |store, conn, tx| store.read(conn, tx, "/none").map(drop).or(Ok(()));
    let list: TransactionStep = |store, conn, tx| store.list(conn, tx, "/dir").map(drop);
    let perms: TransactionStep = |store, conn, tx| store.perms(conn, tx, "/a").map(drop);
    let write: TransactionStep = |store, conn, tx| store.write(conn, tx, "/a", "new");
    let child: TransactionStep = |store, conn, tx| store.write(conn, tx, "/dir/y", "new");
    let child_value: TransactionStep = |store, conn, tx| store.write(conn, tx, "/dir/x", "new");
    let appear: TransactionStep = |store, conn, tx| store.mkdir(conn, tx, "/none");
    let chmod: TransactionStep = |store, conn, tx| store.set_perms(conn, tx, "/a", &["r0"]);
    let remove: TransactionStep = |store, conn, tx| store.rm(conn, tx, "/a");
    let same: TransactionStep = |store, conn, tx| store.write(conn, tx, "/a", "old");
    let cases: [(&str, TransactionStep, TransactionStep, bool); 14] = [
        ("value", read, write, true),
        ("value and removal", read, remove, true),
        ("value and permissions", read, chmod, false),
        ("value written as it was", read, same, false),
        ("absence", absent, appear, true),
        ("absence of another", absent, write, false),
        ("list", list, child, true),
        ("list and a child's value", list, child_value, false),
        ("permissions", perms, chmod, true),
        ("permissions and value", perms, write, false),
        ("blind write", write, write, false),
        ("blind write and removal", write, remove, false),
        ("another child", child, child_value, false),
        ("write below and list", child_value, child, false),
    ];
    for (name, mine, theirs, conflict) in cases {
        let (mut store, one, two) = two();
        let tx = store.start(one);
        mine(&mut store, one, tx).unwrap();
        store.write(one, tx, "/result", name).unwrap();
        theirs(&mut store, two, 0).unwrap();
        let expected = if conflict { again() } else { Ok(()) };
        assert_eq!(store.commit(one, tx), expected, "{name}");
        store.check();
    }
}

#[test]
fn reading_alone_always_commits() {
    let (mut store, one, two) = two();
    let tx = store.start(one);
    store.read(one, tx, "/a").unwrap();
    store.write(two, 0, "/a", "new").unwrap();
    assert_eq!(store.commit(one, tx), Ok(()));
}

#[test]
fn different_children_of_one_directory_both_commit() {
    let (mut store, one, two) = two();
    let (first, second) = (store.start(one), store.start(two));
    store.write(one, first, "/dir/one/state", "1").unwrap();
    store.write(two, second, "/dir/two/state", "1").unwrap();
    assert_eq!(store.commit(one, first), Ok(()));
    assert_eq!(store.commit(two, second), Ok(()));
    assert_eq!(store.list(one, 0, "/dir").unwrap(), ["one", "two", "x"]);
    store.check();
}

#[test]
fn write_skew_is_refused() {
    let (mut store, one, two) = two();
    let (first, second) = (store.start(one), store.start(two));
    store.read(one, first, "/a").unwrap();
    store.read(two, second, "/b").unwrap();
    store.write(one, first, "/b", "1").unwrap();
    store.write(two, second, "/a", "1").unwrap();
    assert_eq!(store.commit(one, first), Ok(()));
    assert_eq!(store.commit(two, second), again());
}

#[test]
fn events_come_with_the_commit_and_not_before() {
    let (mut store, one, two) = two();
    store.watch(two, "/", "t").unwrap();
    assert_eq!(store.events(two), ["/ t"]);
    let tx = store.start(one);
    store.write(one, tx, "/a", "1").unwrap();
    store.write(one, tx, "/a", "2").unwrap();
    store.rm(one, tx, "/b").unwrap();
    assert!(store.events(two).is_empty());
    store.commit(one, tx).unwrap();
    assert_eq!(store.events(two), ["/a t", "/b t"]);
}

/// Runs "read /a, write /a" on `one` until it commits, while `two` writes /a before every request.
/// Returns the number of tries. The writer's requests may be delayed.
fn tries_against_a_writer(store: &mut TestStore, one: ConnId, two: ConnId) -> u32 {
    for attempt in 1..=10 {
        let tx = store.start(one);
        for step in 0..4 {
            store.send(two, MsgType::Write, 0, format!("/a\0{attempt}.{step}").as_bytes());
            store.read(one, tx, "/a").unwrap();
            store.now += 100;
        }
        store.write(one, tx, "/a", "mine").unwrap();
        store.send(two, MsgType::Write, 0, b"/a\0late");
        match store.commit(one, tx) {
            Ok(()) => return attempt,
            Err(error) => assert_eq!(error, "EAGAIN"),
        }
    }
    panic!("it never committed");
}

#[test]
fn xsa_206_a_writer_does_not_starve_a_transaction() {
    let (mut store, one, two) = two();
    assert!(tries_against_a_writer(&mut store, one, two) <= 3);
    store.receive(two);
    store.check();
}

#[test]
fn a_delay_ends_with_the_holder_its_death_or_ten_milliseconds() {
    for how in 0..3 {
        let (mut store, one, two) = two();
        // A refusal makes the next transaction of this connection take its turn.
        let tx = store.start(one);
        store.read(one, tx, "/a").unwrap();
        store.write(one, tx, "/b", "1").unwrap();
        store.write(two, 0, "/a", "2").unwrap();
        assert_eq!(store.commit(one, tx), again());
        let tx = store.start(one);
        store.read(one, tx, "/a").unwrap();
        let delayed = store.send(two, MsgType::Write, 0, b"/a\0mine");
        assert_eq!(store.reply(two, delayed), None);
        // Other requests of the same connection are served; those that depend on the delayed one
        // are not.
        store.write(two, 0, "/b", "meanwhile").unwrap();
        let behind = store.send(two, MsgType::Read, 0, b"/a\0");
        assert_eq!(store.reply(two, behind), None);
        match how {
            0 => store.commit(one, tx).unwrap(),
            1 => store.server.disconnect(one, store.now, &mut store.machine),
            _ => {
                store.pass(HOLD_MAX_US - 1);
                assert_eq!(store.reply(two, delayed), None);
                store.pass(1);
            }
        }
        assert_eq!(store.reply(two, delayed), Some(Ok(b"OK\0".to_vec())), "{how}");
        assert_eq!(store.reply(two, behind), Some(Ok(b"mine".to_vec())), "{how}");
        store.check();
    }
}

/// A request stays behind one that waits for the same node, whatever name either uses.
#[test]
fn relative_and_absolute_names_of_one_node_keep_their_order() {
    for [first, second] in [["x", "/local/domain/7/x"], ["/local/domain/7/x", "x"]] {
        let mut store = TestStore::new();
        let dom0 = store.socket();
        let guest = store.guest(7);
        store.write(dom0, 0, "/local/domain/7/x", "old").unwrap();
        store.set_perms(dom0, 0, "/local/domain/7/x", &["b0"]).unwrap();
        // Domain 0 is refused on the node once, so that its next try has the turn.
        for value in ["1", "2"] {
            let tx = store.start(dom0);
            store.read(dom0, tx, "/local/domain/7/x").unwrap();
            if value == "1" {
                store.write(dom0, 0, "/local/domain/7/x", "mine").unwrap();
            }
            store.write(dom0, tx, "/local/domain/7/x", value).unwrap();
            if value == "1" {
                assert_eq!(store.commit(dom0, tx), again());
                continue;
            }
            let delayed = store.send(guest, MsgType::Write, 0, format!("{first}\0late").as_bytes());
            assert_eq!(store.reply(guest, delayed), None);
            let behind = store.send(guest, MsgType::Read, 0, format!("{second}\0").as_bytes());
            assert_eq!(store.reply(guest, behind), None, "{second} passed {first}");
            store.commit(dom0, tx).unwrap();
            assert_eq!(store.reply(guest, delayed), Some(Ok(b"OK\0".to_vec())));
            assert_eq!(store.reply(guest, behind), Some(Ok(b"late".to_vec())));
        }
    }
}

#[test]
fn pipelined_requests_of_a_waiting_transaction_go_on_with_it() {
    let (mut store, one, two) = two();
    let tx = store.start(one);
    store.read(one, tx, "/a").unwrap();
    store.write(one, tx, "/r", "1").unwrap();
    store.write(two, 0, "/a", "new").unwrap();
    assert_eq!(store.commit(one, tx), again());
    let (first, second) = (store.start(one), store.start(two));
    store.read(one, first, "/a").unwrap();
    let waiting: Vec<u32> = [
        (MsgType::Read, &b"/a\0"[..]),
        (MsgType::Write, b"/a\0two"),
        (MsgType::TransactionEnd, b"T\0"),
    ]
    .into_iter()
    .map(|(kind, payload)| store.send(two, kind, second, payload))
    .collect();
    assert_eq!(store.reply(two, waiting[0]), None);
    store.write(one, first, "/a", "one").unwrap();
    store.commit(one, first).unwrap();
    assert_eq!(store.reply(two, waiting[0]), Some(Ok(b"one".to_vec())));
    assert_eq!(store.reply(two, waiting[2]), Some(Ok(b"OK\0".to_vec())));
    assert_eq!(store.read(one, 0, "/a").unwrap(), "two");
}

#[test]
fn sixteen_clients_on_the_same_keys_commit_within_three_tries() {
    let mut store = TestStore::new();
    let conns: Vec<ConnId> = (0..16).map(|_| store.socket()).collect();
    all_commit_within_three_tries(&mut store, &conns);
}

#[test]
fn sixteen_guests_on_the_same_keys_commit_within_three_tries() {
    let mut store = TestStore::new();
    let conns: Vec<ConnId> = (1..=16).map(|domid| store.guest(domid)).collect();
    all_commit_within_three_tries(&mut store, &conns);
}

fn all_commit_within_three_tries(store: &mut TestStore, conns: &[ConnId]) {
    let keys = ["/k0", "/k1", "/k2", "/k3", "/k4"];
    let dom0 = store.socket();
    for key in keys {
        store.write(dom0, 0, key, "0").unwrap();
        store.set_perms(dom0, 0, key, &["b0"]).unwrap();
    }
    // Every client has one request in flight. In each round all clients with an answer continue.
    struct Client {
        tx: u32,
        step: usize,
        waits: Option<u32>,
        tries: u32,
        commits: u32,
    }
    let mut clients: Vec<Client> = conns
        .iter()
        .map(|_| Client { tx: 0, step: 0, waits: None, tries: 0, commits: 0 })
        .collect();
    let mut worst = 0;
    let (mut refusals, mut commits) = (0, 0);
    for _ in 0..4000 {
        store.now += 10;
        for (conn, client) in conns.iter().zip(&mut clients) {
            if let Some(id) = client.waits {
                let Some(reply) = store.reply(*conn, id) else { continue };
                match (client.step, reply) {
                    (0, reply) => {
                        let text = String::from_utf8(reply.unwrap()).unwrap();
                        client.tx = text.trim_end_matches('\0').parse().unwrap();
                    }
                    (11, Ok(_)) => {
                        worst = worst.max(client.tries);
                        (client.tries, client.commits) = (0, client.commits + 1);
                        commits += 1;
                    }
                    (11, Err(error)) => {
                        assert_eq!(error, "EAGAIN");
                        refusals += 1;
                    }
                    (_, reply) => drop(reply.unwrap()),
                }
                client.step = (client.step + 1) % 12;
            }
            let (kind, tx, payload) = match client.step {
                0 => (MsgType::TransactionStart, 0, "\0".to_owned()),
                step @ 1..=5 => (MsgType::Read, client.tx, format!("{}\0", keys[step - 1])),
                step @ 6..=10 => {
                    (MsgType::Write, client.tx, format!("{}\0{}", keys[step - 6], conn.0))
                }
                _ => (MsgType::TransactionEnd, client.tx, "T\0".to_owned()),
            };
            client.tries += u32::from(client.step == 0);
            client.waits = Some(store.send(*conn, kind, tx, payload.as_bytes()));
        }
        if store.server.deadline().is_some_and(|due| due <= store.now) {
            store.pass(0);
        }
    }
    assert!(worst <= 3, "one transaction took {worst} tries");
    assert!(clients.iter().all(|client| client.commits > 0), "a client never committed");
    assert!(refusals * 5 < commits, "{refusals} refusals for {commits} commits");
}

#[test]
fn a_guests_turn_never_delays_dom0() {
    let (mut store, one, _) = two();
    let guest = store.guest(7);
    store.set_perms(one, 0, "/a", &["b0"]).unwrap();
    store.mkdir(one, 0, "/local/domain/7").unwrap();
    store.set_perms(one, 0, "/local/domain/7", &["n7"]).unwrap();
    let tx = store.start(guest);
    store.read(guest, tx, "/a").unwrap();
    store.write(guest, tx, "r", "1").unwrap();
    store.write(one, 0, "/a", "1").unwrap();
    assert_eq!(store.commit(guest, tx), again());
    let tx = store.start(guest);
    store.read(guest, tx, "/a").unwrap();
    store.write(guest, tx, "r", "1").unwrap();
    store.write(one, 0, "/a", "2").unwrap();
    assert_eq!(store.commit(guest, tx), again());
    store.check();
}

#[test]
fn the_quota_of_open_transactions_and_their_memory_come_back() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = store.guest(7);
    store.mkdir(dom0, 0, "/local/domain/7").unwrap();
    store.set_perms(dom0, 0, "/local/domain/7", &["n7"]).unwrap();
    for _ in 0..3 {
        let open: Vec<u32> = (0..10).map(|_| store.start(guest)).collect();
        assert_eq!(
            store.call(guest, MsgType::TransactionStart, 0, b"\0"),
            Err("ENOSPC".to_owned())
        );
        for tx in open {
            store.write(guest, tx, &format!("n{tx}"), "value").unwrap();
            store.abort(guest, tx).unwrap();
        }
    }
    let usage = store.call(dom0, MsgType::Control, 0, b"quota\x007\0").unwrap();
    let usage = String::from_utf8(usage).unwrap();
    assert!(usage.contains("transactions     :        0"), "{usage}");
    assert!(usage.contains("refused 3 times"), "{usage}");
    store.server.domain_died(DomId(7), 0, &mut store.machine);
    store.check();
}

#[test]
fn what_an_own_node_inherited_is_seen_even_if_its_absence_was_seen_before() {
    let mut store = TestStore::new();
    let (one, other) = (store.socket(), store.socket());
    let tx = store.start(one);
    assert_eq!(store.perms(one, tx, "/a"), Err("ENOENT".to_owned()));
    store.mkdir(one, tx, "/a").unwrap();
    store.set_perms(other, 0, "/", &["b0"]).unwrap();
    assert_eq!(store.perms(one, tx, "/a").unwrap(), "n0");
    assert_eq!(store.commit(one, tx), again());
    store.check();
}

/// A change without an effect has one when the log runs again, and a look that was refused before
/// and after it is refused only before it.
#[test]
fn a_refused_look_is_seen_again_behind_a_change_without_effect() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = store.guest(1);
    store.set_perms(dom0, 0, "/", &["n0", "w1"]).unwrap();
    let refused = || Err("EACCES".to_owned());

    // The node is absent, and then there.
    let tx = store.start(guest);
    assert_eq!(store.read(guest, tx, "/a/x"), refused());
    store.rm(guest, tx, "/a").unwrap();
    assert_eq!(store.read(guest, tx, "/a/x"), refused());
    store.mkdir(dom0, 0, "/a").unwrap();
    store.set_perms(dom0, 0, "/", &["n0", "b1"]).unwrap();
    assert_eq!(store.commit(guest, tx), again());

    // It is there, and then absent.
    for value in [None, Some("v")] {
        store.set_perms(dom0, 0, "/", &["n0", "w1"]).unwrap();
        store.rm(dom0, 0, "/a").unwrap();
        store.mkdir(dom0, 0, "/a").unwrap();
        let tx = store.start(guest);
        assert_eq!(store.read(guest, tx, "/a"), refused());
        match value {
            None => store.mkdir(guest, tx, "/a").unwrap(),
            Some(value) => store.write(guest, tx, "/a", value).unwrap(),
        }
        assert_eq!(store.read(guest, tx, "/a"), refused());
        store.rm(dom0, 0, "/a").unwrap();
        assert_eq!(store.commit(guest, tx), again());
    }
    store.check();
}

#[test]
fn what_a_connection_waits_for_goes_when_another_request_from_the_queue_ends_it() {
    let mut store = TestStore::new();
    let (holder, other) = (store.socket(), store.socket());
    let guest = store.guest(1);
    store.write(holder, 0, "/local/domain/1/x", "0").unwrap();
    store.set_perms(holder, 0, "/local/domain/1/x", &["n1"]).unwrap();
    store.watch(guest, "x", "t").unwrap();
    store.events(guest);
    // After one refusal, the holder's next transaction takes its turn at its first read.
    let tx = store.start(holder);
    store.read(holder, tx, "/local/domain/1/x").unwrap();
    store.write(holder, tx, "/h", "").unwrap();
    store.write(other, 0, "/local/domain/1/x", "1").unwrap();
    assert_eq!(store.commit(holder, tx), again());
    store.events(guest);
    let tx = store.start(holder);
    store.read(holder, tx, "/local/domain/1/x").unwrap();
    let first = store.send(other, MsgType::Write, 0, b"/local/domain/1/x\0two");
    let second = store.send(guest, MsgType::Write, 0, b"x\0three");
    assert_eq!((store.reply(other, first), store.reply(guest, second)), (None, None));
    // The event of the first write is more than the guest may leave unread.
    store.call(holder, MsgType::SetQuota, 0, b"1\0memory\x0010\0").unwrap();
    store.commit(holder, tx).unwrap();
    assert_eq!(store.reply(other, first), Some(Ok(b"OK\0".to_vec())));
    assert_eq!(store.ended(), [(guest, EndReason::Unread)]);
    assert!(store.server.output(guest).is_empty());
    assert_eq!(store.read(other, 0, "/local/domain/1/x").unwrap(), "two");
    store.check();
}

/// A guest's transaction that stays open while the store changes a lot is refused, and keeps
/// nothing alive.
#[test]
fn a_transaction_left_open_for_too_long_is_refused() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = store.guest(7);
    store.mkdir(dom0, 0, "/local/domain/7").unwrap();
    store.set_perms(dom0, 0, "/local/domain/7", &["n7"]).unwrap();
    store.write(guest, 0, "x", "old").unwrap();
    fill(&mut store, dom0);
    let (guests, own) = (store.start(guest), store.start(dom0));
    for tx in [(guest, guests), (dom0, own)] {
        store.read(tx.0, tx.1, "/local/domain/7/x").unwrap();
        store.write(tx.0, tx.1, "/local/domain/7/y", "mine").unwrap();
    }
    store.write(dom0, 0, "/local/domain/7/x", "new").unwrap();
    grow_old(&mut store, dom0);
    // Until its end it is shown the present state.
    assert_eq!(store.read(guest, guests, "x").unwrap(), "new");
    assert_eq!(store.write(guest, guests, "z", "mine"), Ok(()));
    assert_eq!(store.write(guest, guests, "/busy", "mine"), Err("EACCES".to_owned()));
    assert_eq!(store.commit(guest, guests), again());
    assert_eq!(store.list(guest, 0, "/local/domain/7").unwrap(), ["x"]);
    // Domain 0's transactions are not limited, and are judged by the state that they saw.
    assert_eq!(store.read(dom0, own, "/local/domain/7/x").unwrap(), "old");
    assert_eq!(store.commit(dom0, own), again());
    store.check();
}

/// Adds a guest that owns its home and has a node `x` there. Returns it with a transaction that has
/// read `x`.
fn reader(store: &mut TestStore, dom0: ConnId, domid: u16) -> (ConnId, u32) {
    let guest = store.guest(domid);
    let home = format!("/local/domain/{domid}");
    store.write(dom0, 0, &format!("{home}/x"), "old").unwrap();
    store.set_perms(dom0, 0, &home, &[&format!("n{domid}")]).unwrap();
    store.set_perms(dom0, 0, &format!("{home}/x"), &[&format!("n{domid}")]).unwrap();
    let tx = store.start(guest);
    assert_eq!(store.read(guest, tx, "x").unwrap(), "old");
    (guest, tx)
}

/// Makes nodes of domain 0's that take as much memory as snapshots may keep alive.
fn fill(store: &mut TestStore, dom0: ConnId) {
    for at in 0..SNAPSHOT_BYTES / 4000 {
        store.write(dom0, 0, &format!("/busy/{at}"), &"v".repeat(4000)).unwrap();
    }
}

/// Advances the clock, and replaces all nodes of [`fill`], after which a guest's snapshot is too
/// old.
fn grow_old(store: &mut TestStore, dom0: ConnId) {
    store.now += HOLD_MAX_US + 1;
    for at in 0..SNAPSHOT_BYTES / 4000 {
        // The reply is not read, which would end the round.
        let payload = format!("/busy/{at}\0{}", "w".repeat(4000));
        store.send(dom0, MsgType::Write, 0, payload.as_bytes());
    }
    store.receive(dom0);
}

/// The transaction commits however many other changes there are: the state that it read is
/// unchanged.
#[test]
fn a_guests_old_transaction_is_brought_up_to_date_and_commits() {
    let (mut store, dom0, _) = two();
    fill(&mut store, dom0);
    let (guest, tx) = reader(&mut store, dom0, 7);
    for _ in 0..10 {
        grow_old(&mut store, dom0);
    }
    assert_eq!(store.write(guest, tx, "y", "mine"), Ok(()));
    assert_eq!(store.commit(guest, tx), Ok(()));
    assert_eq!(store.list(guest, 0, "/local/domain/7").unwrap(), ["x", "y"]);
    store.check();
}

/// A transaction that only read commits: it saw a state that existed at one time. One that
/// continues after the state is gone does not.
#[test]
fn a_guests_old_transaction_that_only_read_commits_though_it_was_given_up() {
    let (mut store, dom0, _) = two();
    fill(&mut store, dom0);
    for (domid, asks) in [(7, false), (8, true)] {
        let (guest, tx) = reader(&mut store, dom0, domid);
        store.write(dom0, 0, &format!("/local/domain/{domid}/x"), "new").unwrap();
        grow_old(&mut store, dom0);
        if asks {
            assert_eq!(store.read(guest, tx, "x").unwrap(), "new");
        }
        assert_eq!(store.commit(guest, tx), if asks { again() } else { Ok(()) });
    }
}

/// Requests after a transaction was given up have not been executed, so the commit must not
/// succeed, even if only reads came before.
#[test]
fn a_transaction_that_was_given_up_before_its_first_change_is_refused() {
    let (mut store, dom0, _) = two();
    fill(&mut store, dom0);
    let (guest, tx) = reader(&mut store, dom0, 7);
    store.write(dom0, 0, "/local/domain/7/x", "new").unwrap();
    grow_old(&mut store, dom0);
    assert_eq!(store.write(guest, tx, "y", "mine"), Ok(()));
    assert_eq!(store.commit(guest, tx), again());
    assert_eq!(store.list(guest, 0, "/local/domain/7").unwrap(), ["x"]);
}

/// There are too many to be brought up to date in a round: the oldest are, and those that would
/// keep too much are given up.
#[test]
fn what_all_snapshots_keep_alive_is_bounded() {
    let (mut store, dom0, _) = two();
    for at in 0..SNAPSHOT_BYTES_MAX / 4000 {
        store.write(dom0, 0, &format!("/busy/{}/{at}", at / 1000), &"v".repeat(4000)).unwrap();
    }
    let mut open = Vec::new();
    for domid in 7..27 {
        let (guest, tx) = reader(&mut store, dom0, domid);
        for at in 0..100 {
            assert!(store.read(guest, tx, &format!("absent{at}")).is_err());
        }
        store.write(guest, tx, "y", "mine").unwrap();
        open.push((guest, tx));
    }
    // One request replaces everything at once, before any of the snapshots is old.
    let tx = store.start(dom0);
    for list in store.list(dom0, 0, "/busy").unwrap() {
        store.rm(dom0, tx, &format!("/busy/{list}")).unwrap();
    }
    store.commit(dom0, tx).unwrap();
    let ends: Vec<_> = open.into_iter().map(|(guest, tx)| store.commit(guest, tx)).collect();
    // 256 requests are run again in a round. Each transaction has 102.
    let mut expected = vec![Ok(()); 3];
    expected.resize(20, again());
    assert_eq!(ends, expected);
    store.check();
}

/// A guest pays for the state that it has replaced and its own open transactions keep. None of its
/// requests is refused for that; its oldest transactions are.
#[test]
fn what_a_guests_own_snapshots_keep_is_charged_to_it() {
    let (mut store, dom0, _) = two();
    let (guest, first) = reader(&mut store, dom0, 7);
    let used = |store: &mut TestStore| store.usage(dom0, 7, "memory");
    let home = |at: usize| format!("/local/domain/7/{}/{at}", at / 100);
    let before = used(&mut store);
    store.abort(guest, first).unwrap();
    let value = "v".repeat(1000);
    for at in 0..600 {
        store.write(guest, 0, &home(at), &value).unwrap();
    }
    let nodes = used(&mut store);
    assert!(nodes > before + 600_000);
    let mut open = Vec::new();
    for round in 0..4 {
        let tx = store.start(guest);
        store.read(guest, tx, &home(0)).unwrap();
        store.write(guest, tx, "y", "mine").unwrap();
        open.push(tx);
        for at in 1..600 {
            store.write(guest, 0, &home(at), &format!("{round}{value}")).unwrap();
        }
    }
    let now = used(&mut store);
    assert!(now > nodes + 2 * 600_000 && now <= 2_621_440, "{nodes} became {now}");
    // The rest is the memory that the younger ones keep.
    let ends: Vec<_> = open.into_iter().map(|tx| store.commit(guest, tx)).collect();
    assert!(ends[0] == again() && ends[3] == Ok(()), "{ends:?}");
    let rest = used(&mut store);
    assert!((nodes..nodes + 4096).contains(&rest), "{nodes} became {rest}");
    store.check();
}

/// A delayed request holds up only those other requests of its connection whose answers would show
/// the difference.
#[test]
fn a_delay_holds_up_none_but_who_could_tell() {
    let (mut store, one, two) = two();
    for path in ["/a/b/c", "/a/b/d/e", "/a/z"] {
        store.write(one, 0, path, "0").unwrap();
    }
    store.refuse(one, "/a/b/c");
    let tx = store.start(one);
    store.read(one, tx, "/a/b/c").unwrap();
    // The connection of `two` has many users. The first writes the node that the holder has read,
    // and waits.
    let waits = store.send(two, MsgType::Write, 0, b"/a/b/c\x001");
    assert!(store.reply(two, waits).is_none());
    for (kind, payload) in [
        (MsgType::Directory, &b"/a/b\0"[..]),
        (MsgType::Read, b"/a/b\0"),
        (MsgType::Directory, b"/\0"),
        (MsgType::Write, b"/a/b\0x"),
        (MsgType::GetPerms, b"/a\0"),
        (MsgType::Write, b"/a/b/c/below\0x"),
        (MsgType::Read, b"/a/z\0"),
    ] {
        let id = store.send(two, kind, 0, payload);
        assert!(store.reply(two, id).is_some(), "{kind:?} {:?}", String::from_utf8_lossy(payload));
    }
    let follow = [
        store.send(two, MsgType::Read, 0, b"/a/b/c\0"),
        store.send(two, MsgType::Rm, 0, b"/a/b\0"),
        // This request comes after the removal.
        store.send(two, MsgType::Directory, 0, b"/a\0"),
        store.send(two, MsgType::Read, 0, b"/a/b/d/e\0"),
    ];
    for id in follow {
        assert!(store.reply(two, id).is_none());
    }
    store.abort(one, tx).unwrap();
    assert_eq!(store.reply(two, waits), Some(Ok(b"OK\0".to_vec())));
    let replies = follow.map(|id| store.reply(two, id).unwrap());
    assert_eq!(replies[0], Ok(b"1".to_vec()));
    assert_eq!(replies[1], Ok(b"OK\0".to_vec()));
    assert_eq!(replies[2], Ok(b"z\0".to_vec()));
    assert_eq!(replies[3], Err("ENOENT".to_owned()));
    store.check();
}

/// A path on which guests are refused is not contested among domain 0's transactions.
#[test]
fn guests_refusals_do_not_make_domain_0_take_turns() {
    let (mut store, one, two) = two();
    let guest = store.guest(7);
    store.set_perms(one, 0, "/a", &["b0"]).unwrap();
    let tx = store.start(guest);
    store.read(guest, tx, "/a").unwrap();
    store.write(guest, tx, "/a", "guest").unwrap();
    store.write(one, 0, "/a", "1").unwrap();
    assert_eq!(store.commit(guest, tx), again());
    let (first, second) = (store.start(one), store.start(two));
    store.read(one, first, "/a").unwrap();
    // This request would be delayed if the first had the turn.
    assert_eq!(store.read(two, second, "/a").unwrap(), "1");
}
