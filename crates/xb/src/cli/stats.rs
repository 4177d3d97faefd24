//! `xb disk stats`.

use super::options::GlobalOptions;
use super::out;
use crate::devices::disk;
use crate::devices::disk::stats::{self, RequestCounts};
use crate::{Error, domain, text};
use serde_json::{Value, json};

/// The counts of one kind of request, as JSON.
fn as_json(counts: &RequestCounts) -> Value {
    json!({
        "requests": counts.requests, "bytes": counts.sectors.saturating_mul(512), "errors": counts.errors,
        "merges": counts.merges, "median_us": counts.median_us, "p99_us": counts.p99_us,
        "latencies_log2_us": counts.latencies,
    })
}

pub(crate) fn run(options: &GlobalOptions, which: Option<&str>) -> Result<u8, Error> {
    let mut host = options.open()?;
    let domains = match which {
        Some(which) => vec![domain::find(&mut host, which)?],
        None => domain::list(&mut host)?,
    };
    let read = stats::read(&mut host)?;
    let mut rows = vec![
        ["DOMAIN", "VDEV", "REQUEST", "COUNT", "DATA", "MERGES", "ERRORS", "MEDIAN", "P99"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut values = Vec::new();
    for domain in &domains {
        for disk in disk::list(&mut host.store, domain.info.domid)? {
            let Some(of) = read.iter().find(|of| of.id == disk.attached.device.id) else {
                continue;
            };
            let mut value = json!({
                "domain": domain.name, "vdev": disk.vdev, "persistent_pages": of.persistent,
                "in_flight": of.in_flight,
                "wrong": of.wrong, "replayed": of.replayed,
                "throttled": of.throttled, "connects": of.connects,
            });
            for (name, counts) in &of.counts {
                value[name.as_str()] = as_json(counts);
                rows.push(vec![
                    out::clean(&domain.name),
                    out::clean(&disk.vdev),
                    out::clean(name),
                    counts.requests.to_string(),
                    text::size(counts.sectors.saturating_mul(512)),
                    counts.merges.to_string(),
                    counts.errors.to_string(),
                    format!("{} us", counts.median_us),
                    format!("{} us", counts.p99_us),
                ]);
            }
            values.push(value);
        }
    }
    if options.json { out::json(&Value::Array(values)) } else { out::table(&rows) }
}
