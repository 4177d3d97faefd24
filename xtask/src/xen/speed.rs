//! Our block backend beside the kernel's, on the same loop device: the facts `block_WHAT_ours` and
//! `block_WHAT_kernel`.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The measurements in the guest: the middle of a fact's name, and its description.
const ROWS: &[(&str, &str)] = &[
    ("dd_read_1m", "dd, direct reads of 1 MiB, KiB/s"),
    ("dd_write_1m", "dd, direct writes of 1 MiB, KiB/s"),
    ("dd_read_4k", "dd, direct reads of 4 KiB, KiB/s"),
    ("dd_read_cached", "dd, reads through the guest's cache, KiB/s"),
    ("fio_randread_4k", "fio, random reads of 4 KiB, depth 8, requests/s"),
    ("fio_randwrite_4k", "fio, random writes of 4 KiB, depth 8, requests/s"),
    ("fio_read_128k", "fio, reads of 128 KiB, depth 4, requests/s"),
];
/// The goal of the ratio of ours to the kernel's.
const AIM: f64 = 0.7;

/// One row of the table.
pub(super) struct SpeedRow {
    name: &'static str,
    description: &'static str,
    ours: f64,
    kernel: f64,
}

impl SpeedRow {
    fn ratio(&self) -> f64 {
        self.ours / self.kernel.max(1.0)
    }
}

/// Returns the rows of a boot's facts; none where nothing was measured.
pub(super) fn rows(facts: &BTreeMap<String, Map<String, Value>>) -> Vec<SpeedRow> {
    let fact = |name: &str, who: &str| {
        let name = format!("block_{name}_{who}");
        facts.values().find_map(|facts| facts.get(&name)?.as_f64())
    };
    let row = |(name, description): &(&'static str, &'static str)| {
        Some(SpeedRow {
            name,
            description,
            ours: fact(name, "ours")?,
            kernel: fact(name, "kernel")?,
        })
    };
    ROWS.iter().filter_map(row).collect()
}

/// Returns the rows as JSON, for the result.
pub(super) fn json(rows: &[SpeedRow]) -> Value {
    let row = |row: &SpeedRow| {
        let ratio = (row.ratio() * 100.0).round() / 100.0;
        (row.name.to_owned(), json!({"ours": row.ours, "kernel": row.kernel, "ratio": ratio}))
    };
    Value::Object(rows.iter().map(row).collect())
}

/// Prints the rows for a person.
pub(super) fn print(rows: &[SpeedRow]) {
    if rows.is_empty() {
        return;
    }
    println!("{:58}{:>14}{:>14}{:>14}", "block devices", "ours", "xen-blkback", "ratio");
    for row in rows {
        let mark = if row.ratio() < AIM { "  below the aim" } else { "" };
        let (SpeedRow { description, ours, kernel, .. }, ratio) = (row, row.ratio());
        println!("{description:58}{ours:>14}{kernel:>14}{ratio:>14.2}{mark}");
    }
    println!(
        "the aim is {AIM}; no fault, as a busy machine moves figures under emulation by far more\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_needs_both_figures() {
        let of = |text: &str| {
            let facts = serde_json::from_str(text).unwrap();
            rows(&BTreeMap::from([("ours-block".to_owned(), facts)]))
        };
        assert!(of(r#"{"block_dd_read_1m_ours": 70}"#).is_empty());
        let rows = of(r#"{"block_dd_read_1m_ours": 70, "block_dd_read_1m_kernel": 140}"#);
        assert_eq!(json(&rows)["dd_read_1m"]["ratio"], 0.5);
    }
}
