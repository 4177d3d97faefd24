//! The capacity of arenas for a domain's devices, and the error, in pages, for a request that does
//! not fit.

use crate::support::puppet::Puppet;
use crate::support::{BrokerHost, playing};
use xen::GrantRef;
use xen::gnttab::{GrantMap, PageAccess};
use xen_hosted::domain::MissingFeature;
use xen_hosted::limits::{ARENA_PAGES, ARENAS_MAX, raise_descriptors};
use xen_hosted::{Platform, Role};

/// Pages of a queue of block requests: its ring, and 32 requests of eleven pages.
const QUEUE: u32 = 8 + 32 * 11;

#[test]
fn eight_devices_with_four_queues_each_have_their_pages() {
    if raise_descriptors() < 20_000 {
        conformance::skip(
            "twelve arenas",
            "the broker may have fewer than 20 descriptors for a domain",
        );
        return;
    }
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut config = playing("puppet");
    config.memory_max_kib = 128 * 1024;
    let mut guest = Puppet::start_with(&mut control, &config);
    let domid = guest.domid();
    for queue in 0..8 * 4 {
        assert_eq!(guest.ask(&format!("offer-batch 0 {QUEUE}")), "done", "queue {queue}");
    }
    let accounts = control.accounts(domid).unwrap();
    assert_eq!((accounts.granted, accounts.arenas), (8 * 4 * u64::from(QUEUE), 12));
    // The last page works like the first.
    let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
    let mut grants = backend.grants();
    let last = GrantRef(guest.ask("offer 0").parse().unwrap());
    assert_eq!(last.0 / ARENA_PAGES, 11);
    for grant in [GrantRef(GrantRef::FIRST_FREE.0), last] {
        let mapping = grants.map(domid, grant, PageAccess::ReadWrite).unwrap();
        mapping.page().copy_in(0, b"a request").unwrap();
    }
    // One page too many for all possible arenas: no arena is made for it.
    let most = ARENAS_MAX as u32 * ARENA_PAGES;
    let said = guest.ask(&format!("offer-batch 0 {most}"));
    let text = "32768 pages to grant were asked for, and 759 of 12280 are free";
    assert_eq!(said, format!("ENOSPC: {text}"));
    assert_eq!(control.accounts(domid).unwrap().arenas, 12);
    // Released pages are granted again.
    drop(grants);
    assert_eq!(guest.ask("take-back"), "done");
    assert_eq!(guest.ask("offer-batch 0 12280"), "done");
    assert_eq!(control.accounts(domid).unwrap().arenas, 12);
}

/// Arenas are charged to a domain's memory, and the pages that it touches to its processes' limit:
/// further arenas are refused before that kills it.
#[test]
fn more_arenas_than_a_domain_has_memory_for_are_refused() {
    let host = BrokerHost::start();
    let mut control = host.control();
    let mut config = playing("puppet");
    config.memory_max_kib = 24 * 1024;
    let mut guest = Puppet::start_with(&mut control, &config);
    if guest.created.lacks.contains(&MissingFeature::MemoryLimit) {
        conformance::skip("memory of arenas", "no memory control group may be made here");
        return;
    }
    let said = guest.ask("offer-all 0");
    let (pages, end) = said.split_once(' ').unwrap();
    let text = "ENOSPC: 1 pages to grant were asked for, and 0 of";
    assert_eq!(end, format!("{text} {pages} are free"));
    assert!((1..24 / 4).contains(&control.accounts(guest.domid()).unwrap().arenas), "{said}");
    assert_eq!(guest.ask("alloc 0"), "3", "it lives");
}
