//! Runs the comparison against Debian's `libxen-dev`.

use conformance::peers::{Peers, target_dir};
use header_check::compare::compare;
use header_check::{Row, drivers, hypervisor, row, store};

#[test]
fn every_number_is_the_headers() {
    let peers = match Peers::get() {
        Ok(peers) => peers,
        Err(why) => return conformance::skip("the C headers", why),
    };
    let rows: Vec<Row> =
        [hypervisor::rows(), drivers::rows(), store::rows()].into_iter().flatten().collect();
    let folder = target_dir().join("header-check");
    let outcome = compare(&rows, peers.root(), &folder).unwrap();
    println!("{} the same; newer than these headers: {}", outcome.same, outcome.newer.join(", "));
    assert!(outcome.different.is_empty(), "{:#?}", outcome.different);

    // A row that is wrong on purpose is found.
    let wrong = compare(&[row("XENSTORE_RING_SIZE", 1023)], peers.root(), &folder.join("wrong"));
    assert_eq!(wrong.unwrap().different.len(), 1);
}
