//! The growth of counters between two samples, a second. Pure functions.
//!
//! A rate is known if both samples have the counter, of the same domain and device, and it has not
//! gone back: a counter that went back was begun anew, or has wrapped. A domain is the same if its
//! number and its handle are: one that took the number of another has no rates in its first turn.

use super::sample::{
    DiskCounters, DiskSample, DomainSample, HostSample, NetworkSample, RequestSums,
};
use std::time::Duration;
use xen_driver::backend::histogram::quantile_us;

/// The bytes of a sector, whatever the disk's own are.
pub const SECTOR_BYTES: u64 = 512;
/// The share of requests that take no longer than the latency that is shown.
const P99: f64 = 0.99;

/// A domain with its rates.
#[derive(Clone, Debug)]
pub struct DomainRow<'a> {
    /// Its counters.
    pub sample: &'a DomainSample,
    /// Hundredths of a processor's time that it has used.
    pub cpu_percent: Option<f64>,
    /// Notifications a second.
    pub events: Option<f64>,
    /// The doings of all of its disks together.
    pub disk: DiskRates,
    /// Its disks.
    pub disks: Vec<DiskRow<'a>>,
}

/// A disk with its rates.
#[derive(Clone, Debug)]
pub struct DiskRow<'a> {
    /// Its counters.
    pub sample: &'a DiskSample,
    /// Its doings.
    pub rates: DiskRates,
}

/// The doings of a disk, or of several together.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct DiskRates {
    /// Requests a second.
    pub requests: Option<f64>,
    /// Bytes a second, read and written.
    pub bytes: Option<f64>,
    /// The latency that one request of a hundred has exceeded, in us; `None` also if there was none.
    pub p99_us: Option<u64>,
    /// Requests that have failed or were refused, since the disk was connected.
    pub errors: Option<u64>,
}

/// The growth of a disk's counters in some time.
#[derive(Clone, Debug)]
struct DiskGrowth {
    within: Duration,
    requests: u64,
    sectors: u64,
    latencies: Option<Vec<u64>>,
}

/// Returns the rows of all domains of `now`, in the same order.
#[must_use]
pub fn rows<'a>(before: Option<&HostSample>, now: &'a HostSample) -> Vec<DomainRow<'a>> {
    now.domains.iter().map(|domain| row(before, now.at, domain)).collect()
}

fn row<'a>(before: Option<&HostSample>, at: Duration, now: &'a DomainSample) -> DomainRow<'a> {
    let earlier = before.and_then(|before| {
        let domains = &before.domains;
        let place = domains.binary_search_by_key(&now.info.domid, |domain| domain.info.domid);
        let same = domains.get(place.ok()?)?;
        (same.key() == now.key()).then_some((before.at, same))
    });
    let within = earlier.and_then(|(before, _)| at.checked_sub(before));
    let rate = |of: &dyn Fn(&DomainSample) -> Option<u64>| {
        let (_, earlier) = earlier?;
        per_second(of(now)?.checked_sub(of(earlier)?)?, within?)
    };
    let (mut disks, mut growths) = (Vec::new(), Vec::new());
    for disk in &now.disks {
        let growth = earlier.and_then(|(_, domain)| {
            let is_same = |other: &&DiskSample| is_same_disk(disk, other);
            let earlier = domain.disks.iter().find(is_same)?.counters.as_ref()?;
            grown(earlier, disk.counters.as_ref()?)
        });
        let errors = disk.counters.as_ref().and_then(|counters| counters.errors);
        disks
            .push(DiskRow { sample: disk, rates: rates_of(std::slice::from_ref(&growth), errors) });
        growths.push(growth);
    }
    let errors = total(disks.iter().map(|disk| disk.rates.errors));
    DomainRow {
        sample: now,
        cpu_percent: rate(&|domain| Some(domain.info.cpu_time_ns)).map(|ns| ns / 1e7),
        events: rate(&|domain| domain.events),
        disk: rates_of(&growths, errors),
        disks,
    }
}

fn is_same_disk(one: &DiskSample, other: &DiskSample) -> bool {
    one.devid == other.devid
        && one.backend == other.backend
        && one.backend_kind == other.backend_kind
}

/// Returns a count as a rate; nothing in no time is none.
fn per_second(count: u64, within: Duration) -> Option<f64> {
    match (count, within.is_zero()) {
        (0, _) => Some(0.0),
        (_, true) => None,
        _ => Some(count as f64 / within.as_secs_f64()),
    }
}

/// Returns the growth of counters.
fn grown(before: &DiskCounters, now: &DiskCounters) -> Option<DiskGrowth> {
    let sums = |one: RequestSums, other: RequestSums| {
        let requests = one.requests.checked_sub(other.requests)?;
        Some(RequestSums { requests, sectors: one.sectors.checked_sub(other.sectors)? })
    };
    let read = sums(now.read, before.read)?;
    let write = sums(now.write, before.write)?;
    let others = now.others.checked_sub(before.others)?;
    if let (Some(one), Some(other)) = (now.errors, before.errors) {
        one.checked_sub(other)?;
    }
    let latencies = match (&now.latencies, &before.latencies) {
        (Some(now), Some(before)) if now.len() == before.len() => {
            let pairs = now.iter().zip(before);
            Some(pairs.map(|(now, before)| now.checked_sub(*before)).collect::<Option<_>>()?)
        }
        _ => None,
    };
    Some(DiskGrowth {
        within: now.at.checked_sub(before.at)?,
        requests: read.requests.saturating_add(write.requests).saturating_add(others),
        sectors: read.sectors.saturating_add(write.sectors),
        latencies,
    })
}

/// Returns the rates of disks together; unknown if those of one are.
fn rates_of(growths: &[Option<DiskGrowth>], errors: Option<u64>) -> DiskRates {
    let sum = |of: fn(&DiskGrowth) -> u64| {
        let rates = growths.iter().map(|growth| {
            let growth = growth.as_ref()?;
            per_second(of(growth), growth.within)
        });
        rates.sum::<Option<f64>>()
    };
    let mut latencies: Option<Vec<u64>> = Some(Vec::new());
    for growth in growths {
        let more = growth.as_ref().and_then(|growth| growth.latencies.as_ref());
        latencies = latencies.zip(more).map(|(sum, more)| added(sum, more));
    }
    DiskRates {
        requests: sum(|growth| growth.requests),
        bytes: sum(|growth| growth.sectors.saturating_mul(SECTOR_BYTES)),
        p99_us: latencies.and_then(|counts| quantile_us(&counts, P99)),
        errors,
    }
}

/// Returns the sum of counts; unknown if one of them is.
fn total(mut counts: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    counts.try_fold(0_u64, |sum, count| Some(sum.saturating_add(count?)))
}

fn added(mut sum: Vec<u64>, more: &[u64]) -> Vec<u64> {
    sum.resize(sum.len().max(more.len()), 0);
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
    sum
}

/// The counters of all disks of a domain together; each is unknown if that of one disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskTotals {
    /// Reads.
    pub read: Option<RequestSums>,
    /// Writes.
    pub write: Option<RequestSums>,
    /// The number of times that a backend was out of requests.
    pub out_of_requests: Option<u64>,
}

/// Returns the counters of these disks together.
#[must_use]
pub fn disk_totals(disks: &[DiskSample]) -> DiskTotals {
    let sums = |of: fn(&DiskCounters) -> RequestSums| {
        disks.iter().try_fold(RequestSums::default(), |sum, disk| {
            let more = of(disk.counters.as_ref()?);
            Some(RequestSums {
                requests: sum.requests.saturating_add(more.requests),
                sectors: sum.sectors.saturating_add(more.sectors),
            })
        })
    };
    let out_of_requests = total(disks.iter().map(|disk| disk.counters.as_ref()?.out_of_requests));
    DiskTotals { read: sums(|of| of.read), write: sums(|of| of.write), out_of_requests }
}

/// Returns the bytes that backends have sent to these interfaces and received from them; unknown if
/// those of one are.
#[must_use]
pub fn network_totals(networks: &[NetworkSample]) -> Option<(u64, u64)> {
    networks.iter().try_fold((0_u64, 0_u64), |(sent, received), network| {
        let more = network.counters?;
        Some((sent.saturating_add(more.sent), received.saturating_add(more.received)))
    })
}

#[cfg(test)]
pub(super) mod tests;
