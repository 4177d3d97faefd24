//! Tests that work that is too long for one round is done in slices, and that the visible state is
//! right meanwhile.

use crate::common::TestStore;
use xenstore_core::limits::SLICE_COST;
use xenstore_core::quota::Quota;
use xenstore_core::server::{ConnId, DomId, Notice};
use xenstore_core::wire::MsgType;

/// Makes nodes below `top`, 1000 in a directory, all of domain 0.
fn fill(store: &mut TestStore, dom0: ConnId, top: &str, nodes: usize) {
    for at in 0..nodes {
        let path = format!("{top}/{}/{at}\0v", at / 1000);
        store.send(dom0, MsgType::Write, 0, path.as_bytes());
        store.server.consume_output(dom0, usize::MAX, store.now);
    }
    store.settle();
}

/// Adds a guest that owns its home and the nodes named here.
fn owner(store: &mut TestStore, dom0: ConnId, domid: u16, nodes: &[&str]) -> ConnId {
    let guest = store.guest(domid);
    let home = format!("/local/domain/{domid}");
    for path in [home.as_str()].iter().chain(nodes) {
        store.write(dom0, 0, path, "").unwrap();
        store.set_perms(dom0, 0, path, &[&format!("n{domid}")]).unwrap();
    }
    guest
}

/// Asserts that freeing so many nodes took as many rounds as expected, four nodes for the cost of a
/// simple request.
fn assert_slices(rounds: usize, nodes: usize) {
    let slices = nodes / 4 / SLICE_COST as usize;
    assert!((slices..=slices + 3).contains(&rounds), "{nodes} nodes in {rounds} rounds");
}

#[test]
fn what_is_removed_is_freed_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 20_000);
    store.send(dom0, MsgType::Rm, 0, b"/big\0");
    // The nodes are first taken off the accounts, and then freed.
    assert_slices(store.settle(), 2 * 20_000);
    assert_eq!(store.read(dom0, 0, "/big/3/3500"), Err("ENOENT".to_owned()));
    store.check();
}

/// The nodes of a large subtree are taken off the accounts in slices, no matter who removes them
/// and who owns them.
#[test]
fn what_is_removed_is_taken_off_the_accounts_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = owner(&mut store, dom0, 7, &[]);
    let other = owner(&mut store, dom0, 8, &["/local/domain/7/of-8"]);
    // The top belongs to domain 0: a node made below another domain's node has the same owner.
    store.write(dom0, 0, "/local/domain/7/big", "").unwrap();
    store.set_perms(dom0, 0, "/local/domain/7/big", &["n0"]).unwrap();
    fill(&mut store, dom0, "/local/domain/7/big", 20_000);
    store.write(other, 0, "/local/domain/7/of-8/1", "v").unwrap();
    let before = store.usage(dom0, 0, "nodes");
    store.send(guest, MsgType::Rm, 0, b"/local/domain/7\0");
    assert_eq!(store.read(dom0, 0, "/local/domain/7"), Err("ENOENT".to_owned()));
    let now =
        |store: &TestStore, domid| store.server.usage(DomId(domid)).unwrap().now(Quota::Nodes);
    assert!(now(&store, 0) > before - 10_000, "most are charged yet");
    // One of the owners dies meanwhile. The next domain of its number owns none of the nodes.
    store.dies(8);
    store.guest(8);
    store.check();
    store.settle();
    assert_eq!(now(&store, 0), before - 20_021);
    assert_eq!((now(&store, 7), now(&store, 8)), (0, 0));
    store.check();
}

/// The watches fire for the nodes that their domains may read, each once, and for the top at once.
#[test]
fn who_watches_what_is_in_a_large_subtree_is_told_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 20_000);
    let guest = store.guest(7);
    let watched = ["/big/0/7", "/big/3/3500", "/big/11", "/big/19/19999", "/big/19/absent"];
    for path in watched.iter().chain(&["/big", "/other"]) {
        store.watch(dom0, path, "t").unwrap();
        store.watch(guest, path, "t").unwrap();
    }
    store.set_perms(dom0, 0, "/big/11", &["n0", "r7"]).unwrap();
    store.settle();
    store.events(dom0);
    store.events(guest);
    store.rm(dom0, 0, "/big").unwrap();
    // One round has passed with the answer.
    let mut events = store.events(dom0);
    assert_eq!(events, ["/big t", "/big/0/7 t", "/big/11 t"]);
    store.settle();
    events.extend(store.events(dom0));
    assert_eq!(events.len(), 5, "{events:?}");
    events.sort();
    assert_eq!(events[1..], ["/big/0/7 t", "/big/11 t", "/big/19/19999 t", "/big/3/3500 t"]);
    assert_eq!(store.events(guest), ["/big/11 t"]);
    store.check();
}

/// The subtree is removed in a transaction that has made some of it.
#[test]
fn what_a_transaction_removes_is_taken_off_the_accounts_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 5_000);
    let before = store.usage(dom0, 0, "nodes");
    for interfere in [false, true] {
        let tx = store.start(dom0);
        store.write(dom0, tx, "/big/new/below", "v").unwrap();
        store.rm(dom0, tx, "/big").unwrap();
        store.write(dom0, tx, "/big/3", "v").unwrap();
        if interfere {
            store.write(dom0, 0, "/other", "v").unwrap();
        }
        store.commit(dom0, tx).unwrap();
        store.check();
        store.settle();
        store.check();
        store.rm(dom0, 0, "/other").ok();
        let left = 2 + before - 5_006;
        assert_eq!(store.server.usage(DomId(0)).unwrap().now(Quota::Nodes), left);
        store.rm(dom0, 0, "/big").unwrap();
        fill(&mut store, dom0, "/big", 5_000);
    }
}

/// A transaction with the last copy frees it in slices, too.
#[test]
fn what_a_transaction_has_kept_is_freed_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 20_000);
    let tx = store.start(dom0);
    store.rm(dom0, 0, "/big").unwrap();
    store.settle();
    assert_eq!(store.read(dom0, tx, "/big/3/3500"), Ok("v".to_owned()));
    store.send(dom0, MsgType::TransactionEnd, tx, b"F\0");
    assert_slices(store.settle(), 20_000);
    store.check();
}

#[test]
fn a_guest_is_charged_until_what_it_let_go_is_freed() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = owner(&mut store, dom0, 7, &[]);
    let before = store.usage(dom0, 7, "memory");
    let tx = store.start(guest);
    for at in 0..800 {
        store.read(guest, tx, &format!("n{at}")).unwrap_err();
    }
    let open = store.usage(dom0, 7, "memory");
    assert!(open > before + 800 * 200, "{before} became {open}");
    store.send(guest, MsgType::TransactionEnd, tx, b"F\0");
    let usage = store.server.usage(DomId(7)).unwrap();
    assert_eq!(usage.now(Quota::Memory), open);
    store.settle();
    assert_eq!(store.usage(dom0, 7, "memory"), before);
    store.check();
}

/// A dead domain's nodes far from its home are found, while other requests are served.
#[test]
fn the_nodes_of_a_dead_domain_are_looked_for_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 100_000);
    let strays = ["/big/0/1", "/big/15/15001/below", "/zzz"];
    owner(&mut store, dom0, 7, &strays);
    store.write(dom0, 0, "/zzz/other", "").unwrap();
    store.dies(7);
    assert_eq!(store.read(dom0, 0, "/local/domain/7"), Err("ENOENT".to_owned()));
    assert_eq!(store.read(dom0, 0, "/zzz"), Ok(String::new()), "it is the last");
    // The next domain of its number owns none of them, and keeps its own.
    let next = owner(&mut store, dom0, 7, &["/zz-own"]);
    let nodes = store.usage(dom0, 7, "nodes");
    assert_eq!(nodes, 2);
    assert_eq!(store.read(next, 0, "/zzz"), Err("EACCES".to_owned()));
    store.write(dom0, 0, "/zzz", "of a dead domain").unwrap();
    assert_eq!(store.usage(dom0, 7, "nodes"), nodes);
    let rounds = store.settle();
    assert!(rounds >= 4, "the rest of 100,000 nodes was looked at in {rounds} rounds");
    for path in strays {
        assert_eq!(store.read(dom0, 0, path), Err("ENOENT".to_owned()), "{path}");
    }
    assert_eq!(store.read(dom0, 0, "/zz-own"), Ok(String::new()));
    assert_eq!(store.usage(dom0, 7, "nodes"), nodes);
    store.check();
}

/// Two domains die at once, and one of a number whose earlier domain has died.
#[test]
fn domains_that_die_one_after_the_other_are_all_buried() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 20_000);
    for round in 0..3 {
        for domid in [7, 8] {
            owner(&mut store, dom0, domid, &[&format!("/zzz-{domid}-{round}")]);
        }
        store.dies(7);
        store.dies(8);
    }
    assert_eq!(store.read(dom0, 0, "/zzz-8-2"), Ok(String::new()));
    store.settle();
    let left = store.list(dom0, 0, "/").unwrap();
    assert!(left.iter().all(|name| !name.starts_with("zzz")), "{left:?}");
    store.check();
}

#[test]
fn a_check_looks_at_a_large_store_in_slices() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    fill(&mut store, dom0, "/big", 20_000);
    store.warnings();
    let told = |store: &mut TestStore| {
        store.receive(dom0);
        store.notices.iter().filter(|notice| matches!(notice, Notice::Info(_))).count()
    };
    let id = store.send(dom0, MsgType::Control, 0, b"check\0");
    // The check uses the state of one moment, whatever happens meanwhile.
    store.send(dom0, MsgType::Rm, 0, b"/big/3\0");
    store.send(dom0, MsgType::Write, 0, b"/new\0v");
    assert_eq!(told(&mut store), 0);
    assert!(store.settle() >= 20_000 / SLICE_COST as usize - 2);
    assert_eq!(told(&mut store), 1);
    assert_eq!(store.reply(dom0, id), Some(Ok(b"OK\0".to_vec())));
}

/// `DOMID_ANY` is no domain, but it may own nodes, and therefore has a record in the store.
#[test]
fn the_nodes_of_any_domain_go_with_its_record() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    for path in ["/any", "/any/below", "/z"] {
        store.write(dom0, 0, path, "").unwrap();
        store.set_perms(dom0, 0, path, &["n32757"]).unwrap();
    }
    store.check();
    store.dies(32757);
    store.settle();
    assert_eq!(store.read(dom0, 0, "/z"), Err("ENOENT".to_owned()));
    store.check();
}
