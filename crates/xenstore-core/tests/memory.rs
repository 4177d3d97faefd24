//! Tests of the memory that a store keeps. They are a program of their own, because they read the
//! memory use of the whole process.

#[path = "suite/common/mod.rs"]
mod common;

use common::TestStore;

/// Returns the bytes of this process in memory.
fn resident() -> isize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux says so");
    let pages = statm.split_whitespace().nth(1).expect("the second number is the resident set");
    pages.parse::<isize>().expect("a number") * 4096
}

/// An idle transaction of a guest must not keep old states of the whole store alive.
#[test]
fn an_idle_transaction_does_not_keep_the_past_of_the_store() {
    let mut store = TestStore::new();
    let dom0 = store.socket();
    let value = "v".repeat(1000);
    let mut keepers = Vec::new();
    for domid in 1..=10 {
        keepers.push(store.guest(domid));
        let home = format!("/local/domain/{domid}");
        store.write(dom0, 0, &home, "").unwrap();
        store.set_perms(dom0, 0, &home, &[&format!("n{domid}")]).unwrap();
    }
    let before = resident();
    for round in 0..100 {
        for at in 0..200 {
            store.write(dom0, 0, &format!("/tool/{at}"), &format!("{value}{round}")).unwrap();
        }
        store.start(keepers[round % 10]);
        // A transaction may take its 10 ms, whatever happens meanwhile.
        store.pass(11_000);
    }
    let grown = resident() - before;
    assert!(grown < 8 * 1024 * 1024, "a store of 200 KB takes {grown} bytes");
}
