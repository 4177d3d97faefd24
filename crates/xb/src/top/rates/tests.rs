//! Rates by table: what is known, what is not, and what begins anew.

use super::*;
use crate::top::sample::{NetworkCounters, StoreSample, UseOfBound};
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};

const SECOND: Duration = Duration::from_secs(1);

/// A domain without disks, whose handle and counters are these.
pub(crate) fn domain(domid: u16, handle: u8, cpu_ms: u64) -> DomainSample {
    DomainSample {
        info: DomainInfo {
            domid: DomId(domid),
            handle: [handle; 16],
            state: RunState::Running,
            memory_kib: 32 << 10,
            memory_max_kib: 64 << 10,
            vcpus_online: 1,
            vcpus: 1,
            activity: None,
            ssid: None,
            cpu_time_ns: cpu_ms * 1_000_000,
        },
        name: format!("g{domid}"),
        target_kib: Some(64 << 10),
        grant_frames: Some(UseOfBound { used: 1, most: Some(32) }),
        granted_pages: Some(40),
        mapped_pages: Some(0),
        events: Some(0),
        store: StoreSample::default(),
        disks: Vec::new(),
        networks: Vec::new(),
    }
}

/// A disk that has read and written so many requests of one page, of up to 127 us each.
pub(crate) fn disk(devid: u32, at: Duration, requests: u64) -> DiskSample {
    let of = |requests| RequestSums { requests, sectors: requests * 8 };
    let mut latencies = vec![0; 26];
    latencies[7] = requests;
    let counters = DiskCounters {
        at,
        read: of(requests / 2),
        write: of(requests - requests / 2),
        others: 0,
        errors: Some(0),
        out_of_requests: None,
        latencies: Some(latencies),
        persistent: Some(1),
        in_flight: Some(0),
    };
    DiskSample {
        devid,
        name: format!("disk{devid}"),
        backend: DomId::DOM0,
        backend_kind: "vbd".into(),
        counters: Some(counters),
    }
}

pub(crate) fn host(at: Duration, domains: Vec<DomainSample>) -> HostSample {
    HostSample { at, memory_kib: Some(1 << 20), processors: Some(2), domains }
}

/// The CPU in percent of the domain with number 3.
fn cpu(before: Option<DomainSample>, now: DomainSample) -> Option<f64> {
    let before = before.map(|before| host(10 * SECOND, vec![domain(0, 0, 0), before]));
    let now = host(12 * SECOND, vec![domain(0, 0, 0), now]);
    rows(before.as_ref(), &now)[1].cpu_percent
}

#[test]
fn a_domain_has_rates_if_it_was_there_before() {
    for (before, now, percent) in [
        // It has used half a processor.
        (Some(domain(3, 7, 1000)), domain(3, 7, 2000), Some(50.0)),
        // Nothing.
        (Some(domain(3, 7, 1000)), domain(3, 7, 1000), Some(0.0)),
        // There is no earlier sample.
        (None, domain(3, 7, 2000), None),
        // It has come.
        (Some(domain(2, 6, 1000)), domain(3, 7, 2000), None),
        // Another one has its number.
        (Some(domain(3, 6, 1000)), domain(3, 7, 2000), None),
        // It was started again under its number and handle.
        (Some(domain(3, 7, 1000)), domain(3, 7, 10), None),
    ] {
        assert_eq!(cpu(before.clone(), now.clone()), percent, "{before:?} {now:?}");
    }
}

#[test]
fn the_first_turn_knows_no_rates() {
    let mut one = domain(3, 7, 2000);
    one.disks = vec![disk(51712, SECOND, 10)];
    let now = host(SECOND, vec![one]);
    let rows = rows(None, &now);
    let rates = rows[0].disk;
    assert_eq!((rows[0].cpu_percent, rows[0].events), (None, None));
    assert_eq!((rates.requests, rates.bytes, rates.p99_us), (None, None, None));
    assert_eq!(rates.errors, Some(0), "what is counted since the connection is known");
}

/// The rates of a domain's disks, from before and now, two seconds later.
fn disk_rates(before: Vec<DiskSample>, now: Vec<DiskSample>) -> DiskRates {
    let with = |disks| DomainSample { disks, ..domain(3, 7, 0) };
    let before = host(10 * SECOND, vec![with(before)]);
    let now = host(12 * SECOND, vec![with(now)]);
    rows(Some(&before), &now)[0].disk
}

#[test]
fn disks_have_rates_if_all_of_them_have() {
    let (then, now) = (10 * SECOND, 12 * SECOND);
    let unknown = |devid| DiskSample { counters: None, ..disk(devid, now, 0) };
    let other_backend = DiskSample { backend: DomId(5), ..disk(1, now, 300) };
    for (what, before, after, requests, bytes, p99_us) in [
        ("none", vec![], vec![], Some(0.0), Some(0.0), None),
        (
            "one",
            vec![disk(1, then, 100)],
            vec![disk(1, now, 300)],
            Some(100.0),
            Some(409_600.0),
            Some(128),
        ),
        (
            "two",
            vec![disk(1, then, 0), disk(2, then, 0)],
            vec![disk(1, now, 100), disk(2, now, 300)],
            Some(200.0),
            Some(819_200.0),
            Some(128),
        ),
        ("idle", vec![disk(1, then, 100)], vec![disk(1, then, 100)], Some(0.0), Some(0.0), None),
        ("one that has come", vec![], vec![disk(1, now, 300)], None, None, None),
        (
            "one that was connected anew",
            vec![disk(1, then, 300)],
            vec![disk(1, now, 100)],
            None,
            None,
            None,
        ),
        ("one that nobody counts", vec![unknown(1)], vec![unknown(1)], None, None, None),
        (
            "one of two that nobody counts",
            vec![disk(1, then, 0), unknown(2)],
            vec![disk(1, now, 300), unknown(2)],
            None,
            None,
            None,
        ),
        (
            "another under its number",
            vec![disk(1, then, 100)],
            vec![other_backend],
            None,
            None,
            None,
        ),
        ("one that has gone", vec![disk(1, then, 100)], vec![], Some(0.0), Some(0.0), None),
    ] {
        let rates = disk_rates(before, after);
        let got = (rates.requests, rates.bytes, rates.p99_us);
        assert_eq!(got, (requests, bytes, p99_us), "{what}");
    }
}

/// A 32-bit counter of an older kernel that has wrapped is unknown for a turn, and not a large rate.
#[test]
fn a_counter_that_wraps_is_unknown_for_a_turn() {
    let mut before = disk(1, 10 * SECOND, 100);
    if let Some(counters) = &mut before.counters {
        counters.read.sectors = u64::from(u32::MAX);
    }
    let rates = disk_rates(vec![before], vec![disk(1, 12 * SECOND, 300)]);
    assert_eq!((rates.requests, rates.bytes), (None, None));
}

#[test]
fn totals_are_unknown_if_a_part_is() {
    let at = SECOND;
    let (one, two) = (disk(1, at, 10), disk(2, at, 4));
    let totals = disk_totals(&[one.clone(), two]);
    assert_eq!(totals.read, Some(RequestSums { requests: 7, sectors: 56 }));
    assert_eq!(totals.out_of_requests, None, "nobody counts these");
    let unknown = DiskSample { counters: None, ..one.clone() };
    assert_eq!(disk_totals(&[one, unknown]), DiskTotals::default());
    let none = disk_totals(&[]);
    assert_eq!((none.read, none.out_of_requests), (Some(RequestSums::default()), Some(0)));
    let network = |counters| NetworkSample { devid: 0, counters };
    let counted = network(Some(NetworkCounters { received: 3, sent: 5 }));
    assert_eq!(network_totals(&[counted, counted]), Some((10, 6)));
    assert_eq!(network_totals(&[counted, network(None)]), None);
    assert_eq!(network_totals(&[]), Some((0, 0)));
}
