//! Tests named for Xen's security advisories on XenStore daemons, as far as they concern the store
//! itself. The others are in the conformance suite, through the whole daemon.

use crate::common::TestStore;
use xenstore_core::server::{ConnId, DomId};
use xenstore_core::wire::MsgType;

fn refused<T>(name: &str) -> Result<T, String> {
    Err(name.to_owned())
}

fn with_guest() -> (TestStore, ConnId, ConnId) {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let guest = store.guest(7);
    store.mkdir(dom0, 0, "/local/domain/7").unwrap();
    store.set_perms(dom0, 0, "/local/domain/7", &["n7"]).unwrap();
    (store, dom0, guest)
}

/// A reply longer than a message is an error, and the stream continues after it.
#[test]
fn xsa_072_no_reply_is_longer_than_a_message() {
    let (mut store, dom0, _) = with_guest();
    for at in 0..500 {
        store.write(dom0, 0, &format!("/big/a-rather-long-name-{at}"), "").unwrap();
    }
    assert_eq!(store.list(dom0, 0, "/big"), refused("E2BIG"));
    assert_eq!(store.read(dom0, 0, "/big").unwrap(), "");
}

/// A failed creation leaves no trace in the tree or the accounts.
#[test]
fn xsa_115_failed_creations_are_not_accounted_for() {
    let (mut store, dom0, guest) = with_guest();
    let before = (store.usage(dom0, 7, "nodes"), store.usage(dom0, 7, "memory"));
    store.call(dom0, MsgType::SetQuota, 0, b"7\0nodes\x005\0").unwrap();
    assert_eq!(store.write(guest, 0, "a/b/c/d/e/f", "v"), refused("ENOSPC"));
    assert_eq!(store.write(guest, 0, "a", &"v".repeat(3000)), refused("ENOSPC"));
    assert_eq!(store.list(guest, 0, "/local/domain/7").unwrap(), Vec::<String>::new());
    assert_eq!((store.usage(dom0, 7, "nodes"), store.usage(dom0, 7, "memory")), before);
    store.check();
}

/// A domain and the domain that has it as a target die together.
#[test]
fn xsa_233_a_domain_and_its_stub_domain_die_together() {
    for order in [[7, 9], [9, 7]] {
        let (mut store, dom0, _) = with_guest();
        let stub = store.guest(9);
        store.call(dom0, MsgType::SetTarget, 0, b"9\x007\0").unwrap();
        store.watch(stub, "/local/domain/7", "t").unwrap();
        store.watch(dom0, "@releaseDomain", "r").unwrap();
        store.events(dom0);
        for domid in order {
            store.dies(domid);
            assert_eq!(store.events(dom0), ["@releaseDomain r"]);
        }
        assert_eq!(store.machine.detached, order);
        store.check();
    }
}

/// Every way of writing charges the node quota.
#[test]
fn xsa_272_every_way_to_make_nodes_is_charged() {
    let (mut store, dom0, guest) = with_guest();
    store.call(dom0, MsgType::SetQuota, 0, b"7\0nodes\x0010\0").unwrap();
    store.write(guest, 0, "w", "").unwrap();
    store.mkdir(guest, 0, "m/n").unwrap();
    assert_eq!(store.usage(dom0, 7, "nodes"), 4);
    let tx = store.start(guest);
    store.write(guest, tx, "t/u", "").unwrap();
    store.commit(guest, tx).unwrap();
    assert_eq!(store.usage(dom0, 7, "nodes"), 6);
    // Two transactions that fit one by one, but not together.
    let other = store.guest(7);
    let (one, two) = (store.start(guest), store.start(other));
    for at in 0..3 {
        store.write(guest, one, &format!("one{at}"), "").unwrap();
        store.write(other, two, &format!("two{at}"), "").unwrap();
    }
    assert_eq!(store.commit(guest, one), Ok(()));
    assert_eq!(store.commit(other, two), refused("ENOSPC"));
    assert_eq!(store.usage(dom0, 7, "nodes"), 9);
    store.check();
}

/// Permissions of a dead domain are void for its successor.
#[test]
fn xsa_322_a_reused_domid_inherits_no_permission() {
    let (mut store, dom0, _) = with_guest();
    store.write(dom0, 0, "/shared", "v").unwrap();
    store.set_perms(dom0, 0, "/shared", &["n0", "b7", "r8"]).unwrap();
    store.dies(7);
    // Domain 8 never existed: the entry is shown as it was written, and gives no rights.
    assert_eq!(store.perms(dom0, 0, "/shared").unwrap(), "n0 r8");
    let successor = store.guest(7);
    assert_eq!(store.read(successor, 0, "/shared"), refused("EACCES"));
    store.check();
}

/// The longest token with the longest path gives an event or none, but no broken stream.
#[test]
fn xsa_324_an_event_is_never_longer_than_a_message() {
    let (mut store, dom0, guest) = with_guest();
    let token = "t".repeat(4096 - 4);
    assert_eq!(store.watch(guest, "x", &token), Ok(()));
    store.events(guest);
    store.write(dom0, 0, &format!("/local/domain/7/x/{}", "y".repeat(2000)), "").unwrap();
    assert!(store.events(guest).is_empty());
    store.write(dom0, 0, "/local/domain/7/x", "").unwrap();
    assert_eq!(store.events(guest).len(), 1);
}

/// Only the privileged may give a node to another domain.
#[test]
fn xsa_352_a_guest_cannot_give_its_nodes_away() {
    let (mut store, dom0, guest) = with_guest();
    store.guest(8);
    store.write(guest, 0, "x", "").unwrap();
    assert_eq!(store.set_perms(guest, 0, "x", &["n8"]), refused("EPERM"));
    let tx = store.start(guest);
    assert_eq!(store.set_perms(guest, tx, "x", &["n8"]), refused("EPERM"));
    store.commit(guest, tx).unwrap();
    assert_eq!(store.usage(dom0, 8, "nodes"), 0);
    store.set_perms(dom0, 0, "/local/domain/7/x", &["n8"]).unwrap();
    assert_eq!(store.usage(dom0, 8, "nodes"), 1);
    store.check();
}

/// The root node has permissions like any other.
#[test]
fn xsa_353_the_root_node_is_protected() {
    let (mut store, dom0, guest) = with_guest();
    assert_eq!(store.list(guest, 0, "/"), refused("EACCES"));
    assert_eq!(store.write(guest, 0, "/", "v"), refused("EACCES"));
    assert_eq!(store.rm(guest, 0, "/"), refused("EACCES"));
    assert_eq!(store.set_perms(guest, 0, "/", &["b7"]), refused("EACCES"));
    assert_eq!(store.rm(dom0, 0, "/"), refused("EINVAL"));
}

/// A creation that fails half way is undone completely.
#[test]
fn xsa_414_a_failed_creation_is_undone() {
    let (mut store, dom0, guest) = with_guest();
    store.call(dom0, MsgType::SetQuota, 0, b"7\0nodes\x004\0").unwrap();
    assert_eq!(store.write(guest, 0, "a/b/c/d", "v"), refused("ENOSPC"));
    assert_eq!(store.read(guest, 0, "a"), refused("ENOENT"));
    assert_eq!(store.write(guest, 0, "a/b/c", "v"), Ok(()));
    assert_eq!(store.rm(guest, 0, "a"), Ok(()));
    assert_eq!(store.write(guest, 0, "a/b/c", "v"), Ok(()));
    store.check();
}

/// A creation that fails in a transaction leaves no node. Successful ones remain, and nothing is
/// orphaned.
#[test]
fn xsa_415_a_failed_creation_in_a_transaction_leaves_no_orphan() {
    let (mut store, dom0, guest) = with_guest();
    store.call(dom0, MsgType::SetQuota, 0, b"7\0nodes\x004\0").unwrap();
    let tx = store.start(guest);
    store.write(guest, tx, "ok", "v").unwrap();
    assert_eq!(store.write(guest, tx, "a/b/c/d", "v"), refused("ENOSPC"));
    store.commit(guest, tx).unwrap();
    assert_eq!(store.list(guest, 0, "/local/domain/7").unwrap(), ["ok"]);
    assert_eq!(store.usage(dom0, 7, "nodes"), 2);
    store.check();
}

/// An entry written before a domain exists is void for the domain that gets the number later.
#[test]
fn xsa_417_an_entry_for_nobody_is_void_for_who_comes() {
    let (mut store, dom0, _) = with_guest();
    store.write(dom0, 0, "/x", "v").unwrap();
    store.set_perms(dom0, 0, "/x", &["n0", "b9"]).unwrap();
    let guest = store.guest(9);
    assert_eq!(store.read(guest, 0, "/x"), refused("EACCES"));
    // The entry of a domain that exists and is not introduced yet is valid: the toolstack writes
    // such entries.
    store.machine.existing.insert(10);
    store.set_perms(dom0, 0, "/x", &["n0", "b10"]).unwrap();
    let guest = store.guest(10);
    assert_eq!(store.read(guest, 0, "/x").unwrap(), "v");
}

/// The deepest possible path is made, watched, walked and removed on a small stack.
#[test]
fn xsa_418_depth_costs_no_stack() {
    let run = || {
        let (mut store, dom0, _) = with_guest();
        let path = "/d".repeat(1536);
        store.write(dom0, 0, &path, "v").unwrap();
        store.watch(dom0, &path, "t").unwrap();
        store.events(dom0);
        let copy = store.start(dom0);
        store.write(dom0, copy, &path, "w").unwrap();
        store.commit(dom0, copy).unwrap();
        store.check();
        let tx = store.start(dom0);
        assert!(store.call(dom0, MsgType::Control, tx, b"subtree\0/d\0\0").is_ok());
        store.rm(dom0, tx, "/d").unwrap();
        store.commit(dom0, tx).unwrap();
        let told = store.events(dom0);
        assert!(
            told.len() == 2 && told.iter().all(|event| *event == format!("{path} t")),
            "{}",
            told.len()
        );
        store.check();
    };
    let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn(run).unwrap();
    thread.join().unwrap();
}

/// A dead domain's nodes are removed with it, wherever they are, and are charged to no other
/// domain.
#[test]
fn xsa_419_nodes_of_a_dead_domain_go_with_it() {
    let (mut store, dom0, guest) = with_guest();
    store.write(dom0, 0, "/public", "").unwrap();
    store.set_perms(dom0, 0, "/public", &["b0"]).unwrap();
    store.write(guest, 0, "/public/mine/deep", "v").unwrap();
    let before = store.usage(dom0, 0, "nodes");
    store.dies(7);
    assert_eq!(store.list(dom0, 0, "/public").unwrap(), Vec::<String>::new());
    assert_eq!(store.usage(dom0, 0, "nodes"), before);
    store.check();
}

/// A commit is complete or has no effect, and the accounts agree with it, deletions included.
#[test]
fn xsa_421_a_commit_is_whole_or_nothing() {
    let (mut store, dom0, guest) = with_guest();
    store.write(guest, 0, "a/b/c", "v").unwrap();
    store.write(guest, 0, "r", "v").unwrap();
    let tx = store.start(guest);
    store.read(guest, tx, "r").unwrap();
    store.rm(guest, tx, "a").unwrap();
    store.write(guest, tx, "a/new", "v").unwrap();
    store.write(dom0, 0, "/local/domain/7/r", "changed").unwrap();
    assert_eq!(store.commit(guest, tx), refused("EAGAIN"));
    assert_eq!(store.read(guest, 0, "a/b/c").unwrap(), "v");
    assert_eq!(store.read(guest, 0, "a/new"), refused("ENOENT"));
    assert_eq!(store.usage(dom0, 7, "nodes"), 5);
    // A node is made and removed in one transaction, and removed by two transactions at once.
    let (one, two) = (store.start(guest), store.start(guest));
    for tx in [one, two] {
        store.write(guest, tx, "temp/x", "v").unwrap();
        store.rm(guest, tx, "temp").unwrap();
        store.rm(guest, tx, "a").unwrap();
    }
    store.commit(guest, one).unwrap();
    store.commit(guest, two).unwrap();
    assert_eq!(store.usage(dom0, 7, "nodes"), 2);
    store.check();
}

/// Paths that end before a domid or a name are errors.
#[test]
fn xsa_481_malformed_paths_are_errors() {
    let (mut store, dom0, guest) = with_guest();
    for path in [
        "/local/domain/",
        "/local/domain//",
        "/local/domain/7/",
        "//",
        "",
        "/local//domain",
        "@",
        "@/",
    ] {
        for conn in [dom0, guest] {
            assert_eq!(store.read(conn, 0, path), refused("EINVAL"), "{path}");
            assert_eq!(store.rm(conn, 0, path), refused("EINVAL"), "{path}");
        }
    }
}

/// A reused domid starts from zero.
#[test]
fn xsa_483_a_reused_domid_starts_from_zero() {
    let (mut store, dom0, guest) = with_guest();
    for at in 0..100 {
        store.write(guest, 0, &format!("n{at}"), "").unwrap();
    }
    store.watch(guest, "x", "t").unwrap();
    store.start(guest);
    store.dies(7);
    store.guest(7);
    for quota in ["nodes", "watches", "transactions", "memory"] {
        assert_eq!(store.usage(dom0, 7, quota), 0, "{quota}");
    }
    store.check();
}

/// RESET_WATCHES with a transaction open, and within it.
#[test]
fn xsa_330_484_reset_watches_in_a_transaction() {
    let (mut store, dom0, guest) = with_guest();
    store.watch(guest, "x", "t").unwrap();
    let (one, two) = (store.start(guest), store.start(guest));
    assert_eq!(store.call(guest, MsgType::ResetWatches, one, b"\0"), Ok(b"OK\0".to_vec()));
    for tx in [one, two] {
        assert_eq!(store.read(guest, tx, "x"), refused("ENOENT"));
    }
    for quota in ["watches", "transactions"] {
        assert_eq!(store.usage(dom0, 7, quota), 0, "{quota}");
    }
    for at in 0..128 {
        store.watch(guest, "x", &at.to_string()).unwrap();
    }
    store.check();
}

/// A transaction gives a node to a domain that dies before the commit. No other domain gets the
/// node.
#[test]
fn xsa_322_a_commit_gives_nothing_to_a_dead_domains_successor() {
    for touched in [false, true] {
        let (mut store, dom0, _) = with_guest();
        store.write(dom0, 0, "/x", "v").unwrap();
        store.guest(9);
        let tx = store.start(dom0);
        store.set_perms(dom0, tx, "/x", &["n9"]).unwrap();
        if touched {
            store.write(dom0, 0, "/other", "v").unwrap();
        }
        store.dies(9);
        let successor = store.guest(9);
        assert_eq!(store.commit(dom0, tx), refused("EAGAIN"));
        assert_eq!(store.read(successor, 0, "/x"), refused("EACCES"));
        store.check();
    }
}

/// A number is reused before the report of the death has come: the successor gets nothing of the
/// dead domain's, and the report does not affect the successor.
#[test]
fn xsa_322_a_number_used_again_before_the_death_is_told() {
    let (mut store, dom0, _) = with_guest();
    let home = "/local/domain/7";
    store.write(dom0, 0, "/shared", "v").unwrap();
    store.set_perms(dom0, 0, "/shared", &["n0", "r7"]).unwrap();
    // It is another domain already, without a report to the store.
    *store.machine.lives.entry(7).or_default() += 1;
    let successor = store.guest(7);
    assert_eq!(store.read(dom0, 0, home), refused("ENOENT"));
    assert_eq!(store.read(successor, 0, "/shared"), refused("EACCES"));
    store.mkdir(dom0, 0, home).unwrap();
    store.set_perms(dom0, 0, home, &["n7"]).unwrap();
    store.server.domain_died(DomId(7), store.now, &mut store.machine);
    assert_eq!(store.write(successor, 0, "alive", "v"), Ok(()));
    store.dies(7);
    assert_eq!(store.read(dom0, 0, home), refused("ENOENT"));
    store.check();
}
