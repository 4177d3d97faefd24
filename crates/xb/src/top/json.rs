//! A turn as a JSON object. What is unknown is null.

use super::rates::{DiskRates, DiskRow, DomainRow, SECTOR_BYTES};
use super::sample::{DiskCounters, DomainSample, HostSample, NetworkSample, UseOfBound};
use crate::domain;
use crate::domain::Domain;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns a turn, which was taken at `at`.
#[must_use]
pub fn object(at: SystemTime, host: &HostSample, rows: &[DomainRow<'_>]) -> Value {
    let at = at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
    json!({
        "at": at, "memory_kib": host.memory_kib, "processors": host.processors,
        "domains": rows.iter().map(domain_object).collect::<Vec<_>>(),
    })
}

fn used(of: Option<UseOfBound>) -> Option<u64> {
    of.map(|of| of.used)
}

fn most(of: Option<UseOfBound>) -> Option<u64> {
    of.and_then(|of| of.most)
}

fn domain_object(row: &DomainRow<'_>) -> Value {
    let DomainSample { info, name, store, .. } = row.sample;
    let state = Domain { info: *info, name: String::new() }.state();
    json!({
        "name": name, "domid": info.domid.0, "uuid": domain::uuid(info), "state": state,
        "cpu_percent": row.cpu_percent, "cpu_time_ns": info.cpu_time_ns, "vcpus": info.vcpus_online,
        "memory_kib": info.memory_kib, "memory_target_kib": row.sample.target_kib,
        "memory_max_kib": info.memory_max_kib,
        "disk": rates_object(&row.disk),
        "events_per_s": row.events,
        "grant_frames": used(row.sample.grant_frames),
        "grant_frames_max": most(row.sample.grant_frames),
        "granted_pages": row.sample.granted_pages, "mapped_pages": row.sample.mapped_pages,
        "store": {
            "nodes": used(store.nodes), "nodes_max": most(store.nodes),
            "watches": used(store.watches), "watches_max": most(store.watches),
            "refusals": store.refusals,
        },
        "disks": row.disks.iter().map(disk_object).collect::<Vec<_>>(),
        "networks": row.sample.networks.iter().map(network_object).collect::<Vec<_>>(),
    })
}

fn rates_object(rates: &DiskRates) -> Value {
    json!({
        "requests_per_s": rates.requests, "bytes_per_s": rates.bytes, "p99_us": rates.p99_us,
        "errors": rates.errors,
    })
}

fn disk_object(row: &DiskRow<'_>) -> Value {
    let disk = row.sample;
    let mut value = rates_object(&row.rates);
    value["vdev"] = json!(disk.name);
    value["backend_domid"] = json!(disk.backend.0);
    value["backend"] = json!(disk.backend_kind);
    let count = |of: fn(&DiskCounters) -> u64| disk.counters.as_ref().map(of);
    value["reads"] = json!(count(|of| of.read.requests));
    value["writes"] = json!(count(|of| of.write.requests));
    value["read_bytes"] = json!(count(|of| of.read.sectors.saturating_mul(SECTOR_BYTES)));
    value["written_bytes"] = json!(count(|of| of.write.sectors.saturating_mul(SECTOR_BYTES)));
    value["other_requests"] = json!(count(|of| of.others));
    value
}

fn network_object(network: &NetworkSample) -> Value {
    json!({
        "devid": network.devid,
        "sent_to_guest_bytes": network.counters.map(|counters| counters.sent),
        "received_from_guest_bytes": network.counters.map(|counters| counters.received),
    })
}

#[cfg(test)]
mod tests {
    use super::super::rates::rows;
    use super::super::rates::tests::{disk, domain, host};
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_unknown_is_null() {
        let second = Duration::from_secs(1);
        let mut one = domain(3, 7, 0);
        one.disks = vec![disk(51712, second, 10)];
        one.networks = vec![NetworkSample { devid: 0, counters: None }];
        let now = host(second, vec![one]);
        let value = object(UNIX_EPOCH + second, &now, &rows(None, &now));
        assert_eq!(value["at"], json!(1.0));
        let of = &value["domains"][0];
        assert_eq!(
            (&of["cpu_percent"], &of["disk"]["requests_per_s"]),
            (&json!(null), &json!(null))
        );
        assert_eq!((&of["grant_frames"], &of["grant_frames_max"]), (&json!(1), &json!(32)));
        assert_eq!(of["store"]["refusals"], json!(null));
        let disk = &of["disks"][0];
        assert_eq!((&disk["reads"], &disk["read_bytes"]), (&json!(5), &json!(20480)));
        assert_eq!(disk["errors"], json!(0));
        assert_eq!(of["networks"][0]["sent_to_guest_bytes"], json!(null));
    }
}
