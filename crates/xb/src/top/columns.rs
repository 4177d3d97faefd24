//! The columns of the screen: a table of titles, widths, cells and orders.

use super::rates::{DiskRates, DomainRow};
use super::sample::UseOfBound;
use crate::domain::Domain;
use crate::text::{self, clean};
use std::cmp::Ordering;

/// A cell of what is unknown.
const UNKNOWN: &str = "-";

/// A column of the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopColumn {
    /// Its title.
    pub(super) title: &'static str,
    /// Its width. The first column gets what is left over.
    pub(super) width: u16,
    /// The side at which its cells stand.
    pub(super) side: CellSide,
    /// Its cell in a row.
    pub(super) cell: fn(&DomainRow<'_>) -> String,
    /// Its value in a row, by which rows are sorted.
    pub(super) value: fn(&DomainRow<'_>) -> CellValue,
}

/// The side of a column at which its cells stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CellSide {
    Left,
    Right,
}

/// A value by which rows are sorted: words upwards, numbers downwards; what is unknown comes last.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum CellValue {
    Word(String),
    Number(Option<f64>),
}

impl CellValue {
    /// Compares two values of a column.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Word(one), Self::Word(other)) => one.cmp(other),
            (Self::Number(Some(one)), Self::Number(Some(other))) => other.total_cmp(one),
            (Self::Number(one), Self::Number(other)) => other.is_some().cmp(&one.is_some()),
            (Self::Word(_), Self::Number(_)) => Ordering::Less,
            (Self::Number(_), Self::Word(_)) => Ordering::Greater,
        }
    }

    /// True if the value is not known.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Number(None))
    }
}

const fn number(
    title: &'static str,
    width: u16,
    cell: fn(&DomainRow<'_>) -> String,
    value: fn(&DomainRow<'_>) -> CellValue,
) -> TopColumn {
    TopColumn { title, width, side: CellSide::Right, cell, value }
}

/// The column by which rows are sorted at first.
pub(super) const FIRST_SORT: usize = 3;

/// All columns.
pub(super) const COLUMNS: [TopColumn; 16] = [
    TopColumn {
        title: "NAME",
        width: 12,
        side: CellSide::Left,
        cell: |row| name(row),
        value: |row| CellValue::Word(row.sample.name.to_lowercase()),
    },
    number(
        "ID",
        5,
        |row| row.sample.info.domid.to_string(),
        |row| {
            // As words: upwards.
            CellValue::Word(format!("{:5}", row.sample.info.domid.0))
        },
    ),
    TopColumn {
        title: "STATE",
        width: 9,
        side: CellSide::Left,
        cell: |row| state(row).to_owned(),
        value: |row| CellValue::Word(state(row).to_owned()),
    },
    number(
        "CPU %",
        6,
        |row| known(row.cpu_percent, |percent| format!("{percent:.1}")),
        |row| CellValue::Number(row.cpu_percent),
    ),
    number(
        "MEMORY",
        9,
        |row| known(target(row), |kib| text::size(kib.saturating_mul(1024))),
        |row| CellValue::Number(as_number(target(row))),
    ),
    number(
        "VCPU",
        4,
        |row| row.sample.info.vcpus_online.to_string(),
        |row| CellValue::Number(Some(row.sample.info.vcpus_online.into())),
    ),
    number("REQ/S", 6, |row| requests(&row.disk), |row| CellValue::Number(row.disk.requests)),
    number("BYTES/S", 9, |row| bytes(&row.disk), |row| CellValue::Number(row.disk.bytes)),
    number("P99", 7, |row| latency(&row.disk), |row| CellValue::Number(as_number(row.disk.p99_us))),
    number("ERR", 4, |row| errors(&row.disk), |row| CellValue::Number(as_number(row.disk.errors))),
    number("EV/S", 6, |row| known(row.events, count), |row| CellValue::Number(row.events)),
    number(
        "GRANTS",
        7,
        |row| known(row.sample.grant_frames, of_bound),
        |row| CellValue::Number(row.sample.grant_frames.map(|of| of.used as f64)),
    ),
    number(
        "MAPPED",
        6,
        |row| known(row.sample.mapped_pages, |pages| pages.to_string()),
        |row| CellValue::Number(as_number(row.sample.mapped_pages)),
    ),
    number(
        "WATCHES",
        7,
        |row| known(row.sample.store.watches, of_bound),
        |row| CellValue::Number(row.sample.store.watches.map(|of| of.used as f64)),
    ),
    number(
        "NODES",
        9,
        |row| known(row.sample.store.nodes, of_bound),
        |row| CellValue::Number(row.sample.store.nodes.map(|of| of.used as f64)),
    ),
    number(
        "REFUSED",
        7,
        |row| known(row.sample.store.refusals, |count| count.to_string()),
        |row| CellValue::Number(as_number(row.sample.store.refusals)),
    ),
];

/// Returns the name of a row's domain as it is shown: a guest may have chosen it.
pub(super) fn name(row: &DomainRow<'_>) -> String {
    clean(&row.sample.name)
}

fn state(row: &DomainRow<'_>) -> &'static str {
    Domain { info: row.sample.info, name: String::new() }.state()
}

/// Returns the memory that a domain is asked to have, in KiB; of one that nobody asks, what it has.
fn target(row: &DomainRow<'_>) -> Option<u64> {
    row.sample.target_kib.or(Some(row.sample.info.memory_kib))
}

fn known<T>(value: Option<T>, shown: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), shown)
}

fn as_number(count: Option<u64>) -> Option<f64> {
    count.map(|count| count as f64)
}

/// Formats the use of something, and the most: `4/128`.
fn of_bound(of: UseOfBound) -> String {
    match of.most {
        Some(most) => format!("{}/{most}", of.used),
        None => of.used.to_string(),
    }
}

/// Formats a number in at most six characters.
pub(super) fn count(of: f64) -> String {
    match of {
        0.0 => "0".into(),
        of if of < 9.95 => format!("{of:.1}"),
        of if of < 99_999.5 => format!("{of:.0}"),
        of if of < 9_999_500.0 => format!("{:.0}k", of / 1e3),
        of => format!("{:.0}M", of / 1e6),
    }
}

/// Formats requests a second.
pub(super) fn requests(rates: &DiskRates) -> String {
    known(rates.requests, count)
}

/// Formats bytes a second.
pub(super) fn bytes(rates: &DiskRates) -> String {
    known(rates.bytes, |bytes| text::size(bytes as u64))
}

/// Formats the latency of one request of a hundred.
pub(super) fn latency(rates: &DiskRates) -> String {
    known(rates.p99_us, |us| match us {
        us if us < 1000 => format!("{us} us"),
        us if us < 1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        us => format!("{:.0} s", us as f64 / 1e6),
    })
}

/// Formats the number of requests that have failed.
pub(super) fn errors(rates: &DiskRates) -> String {
    known(rates.errors, |count| count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_columns() {
        for (of, text) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (9.94, "9.9"),
            (9.96, "10"),
            (99_999.0, "99999"),
            (123_456.0, "123k"),
            (12_345_678.0, "12M"),
        ] {
            assert_eq!(count(of), text);
        }
        for (us, text) in [(64, "64 us"), (4096, "4 ms"), (2_000_000, "2 s")] {
            assert_eq!(latency(&DiskRates { p99_us: Some(us), ..DiskRates::default() }), text);
        }
        let unknown = DiskRates::default();
        let cells = [requests(&unknown), bytes(&unknown), latency(&unknown), errors(&unknown)];
        assert_eq!(cells, [UNKNOWN; 4].map(str::to_owned));
    }

    #[test]
    fn what_is_unknown_comes_last() {
        let number = |of| CellValue::Number(of);
        assert_eq!(number(Some(2.0)).order(&number(Some(1.0))), Ordering::Less);
        assert_eq!(number(Some(0.0)).order(&number(None)), Ordering::Less);
        assert_eq!(number(None).order(&number(Some(0.0))), Ordering::Greater);
        assert_eq!(number(None).order(&number(None)), Ordering::Equal);
    }

    #[test]
    fn the_first_order_is_that_of_processors() {
        assert_eq!(COLUMNS[FIRST_SORT].title, "CPU %");
    }
}
