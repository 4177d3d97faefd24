//! The table as data: the work, the bound and the numbers of each row, and the comparisons that
//! decide it.

use crate::daemon::MeasuredDaemon;

/// The unit of a number, which decides its format.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// A rate, `83.5k/s`.
    PerSecond,
    /// Seconds, as µs, ms or s.
    Time,
    /// Bytes, plain below 10,000 and as MiB above.
    Bytes,
    /// A share, in per cent.
    Share,
    /// A plain number.
    Count,
}

/// One number in a daemon's cell.
pub(crate) struct CellNumber {
    /// The text before the number.
    pub(crate) label: &'static str,
    /// The metric, `SCENARIO.METRIC`.
    pub(crate) metric: &'static str,
    /// The unit that it is written in.
    pub(crate) unit: Unit,
}

/// The reference of a comparison.
#[derive(Clone, Copy)]
pub(crate) enum Reference {
    /// Another daemon's number, or another number of ours.
    Metric(MeasuredDaemon, &'static str),
    /// A fixed number; `factor` is then the limit itself.
    Fixed,
}

/// A comparison of `ours.metric` with `factor` times the other number.
pub(crate) struct RowComparison {
    /// The name in the sentence.
    pub(crate) label: &'static str,
    /// Our number.
    pub(crate) metric: &'static str,
    /// True for an upper bound, false for a lower one.
    pub(crate) at_most: bool,
    /// The factor of the other number.
    pub(crate) factor: f64,
    /// The other number.
    pub(crate) reference: Reference,
    /// The unit in which a fixed limit is written.
    pub(crate) unit: Unit,
}

/// A row of the table.
pub(crate) struct Row {
    /// The name for `--only`.
    pub(crate) id: &'static str,
    /// The scenario that its numbers come from.
    pub(crate) scenario: &'static str,
    /// The work.
    pub(crate) work: &'static str,
    /// The bound, in words.
    pub(crate) bound: &'static str,
    /// The numbers in each cell.
    pub(crate) numbers: &'static [CellNumber],
    /// The comparisons that decide; without any, the row only informs.
    pub(crate) comparisons: &'static [RowComparison],
}

const fn show(label: &'static str, metric: &'static str, unit: Unit) -> CellNumber {
    CellNumber { label, metric, unit }
}

const fn rate(metric: &'static str) -> CellNumber {
    show("", metric, Unit::PerSecond)
}

const fn labelled(label: &'static str, metric: &'static str) -> CellNumber {
    show(label, metric, Unit::PerSecond)
}

const fn cpu(metric: &'static str) -> CellNumber {
    show("cpu ", metric, Unit::Time)
}

const fn time(label: &'static str, metric: &'static str) -> CellNumber {
    show(label, metric, Unit::Time)
}

const fn at_most(
    label: &'static str,
    metric: &'static str,
    factor: f64,
    kind: MeasuredDaemon,
    other: &'static str,
) -> RowComparison {
    let reference = Reference::Metric(kind, other);
    RowComparison { label, metric, at_most: true, factor, reference, unit: Unit::Count }
}

const fn at_least(
    label: &'static str,
    metric: &'static str,
    factor: f64,
    kind: MeasuredDaemon,
    other: &'static str,
) -> RowComparison {
    let reference = Reference::Metric(kind, other);
    RowComparison { label, metric, at_most: false, factor, reference, unit: Unit::Count }
}

const fn limit(
    label: &'static str,
    metric: &'static str,
    factor: f64,
    unit: Unit,
) -> RowComparison {
    RowComparison { label, metric, at_most: true, factor, reference: Reference::Fixed, unit }
}

use MeasuredDaemon::{C, Echo, Ours};

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        id: "one-read",
        scenario: "rates",
        work: "one client, one request in flight: reads",
        bound: "at least 0.9 of the echo's rate, at most 0.5 x C's processor time",
        numbers: &[rate("rates.read1.rate"), cpu("rates.read1.cpu")],
        comparisons: &[
            at_least("of the echo's rate", "rates.read1.rate", 0.9, Echo, "rates.read1.rate"),
            at_most("x C's processor time", "rates.read1.cpu", 0.5, C, "rates.read1.cpu"),
        ],
    },
    Row {
        id: "one-write",
        scenario: "rates",
        work: "one client, one request in flight: writes",
        bound: "at least 0.9 of the echo's rate, at most 0.5 x C's processor time",
        numbers: &[rate("rates.write1.rate"), cpu("rates.write1.cpu")],
        comparisons: &[
            at_least("of the echo's rate", "rates.write1.rate", 0.9, Echo, "rates.write1.rate"),
            at_most("x C's processor time", "rates.write1.cpu", 0.5, C, "rates.write1.cpu"),
        ],
    },
    Row {
        id: "latency",
        scenario: "rates",
        work: "one client, one request in flight: latency of reads (R) and writes (W), p50 / p99",
        bound: "",
        numbers: &[
            time("R ", "rates.read1.p50"),
            time("/ ", "rates.read1.p99"),
            time("W ", "rates.write1.p50"),
            time("/ ", "rates.write1.p99"),
        ],
        comparisons: &[],
    },
    Row {
        id: "pipelined-read",
        scenario: "rates",
        work: "reads, 32 in flight",
        bound: "at most 1/15 of C's processor time per operation",
        numbers: &[rate("rates.read32.rate"), cpu("rates.read32.cpu")],
        comparisons: &[at_most(
            "x C's processor time",
            "rates.read32.cpu",
            1.0 / 15.0,
            C,
            "rates.read32.cpu",
        )],
    },
    Row {
        id: "pipelined-write",
        scenario: "rates",
        work: "writes, 32 in flight",
        bound: "at most 1/10 of C's processor time per operation",
        numbers: &[rate("rates.write32.rate"), cpu("rates.write32.cpu")],
        comparisons: &[at_most(
            "x C's processor time",
            "rates.write32.cpu",
            0.1,
            C,
            "rates.write32.cpu",
        )],
    },
    Row {
        id: "idle-connections",
        scenario: "idle",
        work: "reads, 32 in flight, with 0 / 100 / 1000 / 5000 idle connections",
        bound: "with 1000 at least 0.95 of the same without them",
        numbers: &[
            rate("idle.idle0.rate"),
            labelled("/ ", "idle.idle100.rate"),
            labelled("/ ", "idle.idle1000.rate"),
            labelled("/ ", "idle.idle5000.rate"),
        ],
        comparisons: &[
            at_least("of the rate without", "idle.idle1000.rate", 0.95, Ours, "idle.idle0.rate"),
            at_most(
                "x the processor time without",
                "idle.idle1000.cpu",
                1.0 / 0.95,
                Ours,
                "idle.idle0.cpu",
            ),
        ],
    },
    Row {
        id: "active-connections",
        scenario: "active",
        work: "1 / 100 / 1000 / 5000 clients with one request in flight each, 80 % reads",
        bound: "",
        numbers: &[
            rate("active.active1.rate"),
            labelled("/ ", "active.active100.rate"),
            labelled("/ ", "active.active1000.rate"),
            labelled("/ ", "active.active5000.rate"),
        ],
        comparisons: &[],
    },
    Row {
        id: "watches",
        scenario: "watches",
        work: "writes, 32 in flight, with 0 / 10,000 / 100,000 unrelated watches",
        bound: "at least 0.95 of the same without them",
        numbers: &[
            rate("watches.watch0.rate"),
            labelled("/ ", "watches.watch10000.rate"),
            labelled("/ ", "watches.watch100000.rate"),
        ],
        comparisons: &[
            at_least("at 10,000", "watches.watch10000.rate", 0.95, Ours, "watches.watch0.rate"),
            at_least("at 100,000", "watches.watch100000.rate", 0.95, Ours, "watches.watch0.rate"),
            at_most(
                "x the processor time at 100,000",
                "watches.watch100000.cpu",
                1.0 / 0.95,
                Ours,
                "watches.watch0.cpu",
            ),
        ],
    },
    Row {
        id: "sixteen",
        scenario: "active",
        work: "one request of 16 clients with one in flight each, 80 % reads: what each of the 12 of a transaction costs at least",
        bound: "",
        numbers: &[rate("active.active16.rate"), cpu("active.active16.cpu")],
        comparisons: &[],
    },
    Row {
        id: "transactions",
        scenario: "transactions",
        work: "transactions of 5 reads and 5 writes, 16 clients on disjoint subtrees (1 client)",
        bound: "at most 0.3 x C's processor time, no EAGAIN at all",
        numbers: &[
            rate("transactions.tx16.rate"),
            cpu("transactions.tx16.cpu"),
            show("EAGAIN ", "transactions.tx16.again", Unit::Share),
            labelled("1 client ", "transactions.tx1.rate"),
        ],
        comparisons: &[
            at_most(
                "x C's processor time",
                "transactions.tx16.cpu",
                0.3,
                C,
                "transactions.tx16.cpu",
            ),
            limit("EAGAIN", "transactions.tx16.again", 0.0, Unit::Share),
        ],
    },
    Row {
        id: "together",
        scenario: "transactions",
        work: "the same, the ten requests of each sent at once",
        bound: "at most 0.3 x C's processor time",
        numbers: &[rate("transactions.together.rate"), cpu("transactions.together.cpu")],
        comparisons: &[at_most(
            "x C's processor time",
            "transactions.together.cpu",
            0.3,
            C,
            "transactions.together.cpu",
        )],
    },
    Row {
        id: "devices",
        scenario: "devices",
        work: "16 clients creating 50 devices each under one directory",
        bound: "no EAGAIN, at least 3 x C",
        numbers: &[
            rate("devices.devices.rate"),
            show("EAGAIN ", "devices.devices.again", Unit::Share),
        ],
        comparisons: &[
            at_least("x C's rate", "devices.devices.rate", 3.0, C, "devices.devices.rate"),
            limit("EAGAIN", "devices.devices.again", 0.0, Unit::Share),
        ],
    },
    Row {
        id: "contended",
        scenario: "contended",
        work: "16 clients, the same 5 keys: commits",
        bound: "at least 5 x C's commits per second, EAGAIN under 20 %, at most 3 tries",
        numbers: &[
            rate("contended.same.rate"),
            show("EAGAIN ", "contended.same.again", Unit::Share),
            show("most tries ", "contended.same.tries", Unit::Count),
        ],
        comparisons: &[
            at_least("x C's commits", "contended.same.rate", 5.0, C, "contended.same.rate"),
            limit("EAGAIN", "contended.same.again", 0.2, Unit::Share),
            limit("most tries", "contended.same.tries", 3.0, Unit::Count),
        ],
    },
    Row {
        id: "fanout",
        scenario: "fanout",
        work: "one write matched by 1000 watches of 1000 connections",
        bound: "at most 1.5 x the time of 1000 bare sends to 1000 sockets",
        numbers: &[
            time("", "fanout.fanout.wall"),
            cpu("fanout.fanout.cpu"),
            time("bare sends ", "fanout.fanout.bare"),
        ],
        comparisons: &[at_most(
            "x the bare sends",
            "fanout.fanout.wall",
            1.5,
            Ours,
            "fanout.fanout.bare",
        )],
    },
    Row {
        id: "fill",
        scenario: "store",
        work: "fill of 100,000 nodes, 64 in flight: the first 50,000 / the last 50,000",
        bound: "",
        numbers: &[
            time("", "store.fill100k.first"),
            time("/ ", "store.fill100k.last"),
            rate("store.fill100k.rate"),
        ],
        comparisons: &[],
    },
    Row {
        id: "fill-million",
        scenario: "million",
        work: "fill of 1,000,000 nodes, 64 in flight: the first 50,000 / the last 50,000",
        bound: "the last 50,000 at most 1.3 x the first 50,000",
        numbers: &[
            time("", "million.fill1m.first"),
            time("/ ", "million.fill1m.last"),
            rate("million.fill1m.rate"),
        ],
        comparisons: &[at_most(
            "x the first",
            "million.fill1m.last",
            1.3,
            Ours,
            "million.fill1m.first",
        )],
    },
    Row {
        id: "large-read",
        scenario: "store",
        work: "reads, 32 in flight, in a store of 0 / 100,000 nodes",
        bound: "",
        numbers: &[rate("store.empty.read.rate"), labelled("/ ", "store.full100k.read.rate")],
        comparisons: &[],
    },
    Row {
        id: "large-write",
        scenario: "store",
        work: "writes, 32 in flight, in a store of 0 / 100,000 nodes",
        bound: "",
        numbers: &[rate("store.empty.write.rate"), labelled("/ ", "store.full100k.write.rate")],
        comparisons: &[],
    },
    Row {
        id: "million-read-write",
        scenario: "million",
        work: "reads / writes, 32 in flight, in a store of 1,000,000 nodes",
        bound: "",
        numbers: &[rate("million.full1m.read.rate"), labelled("/ ", "million.full1m.write.rate")],
        comparisons: &[],
    },
    Row {
        id: "domains",
        scenario: "domains",
        work: "10,000 domains of 61 nodes (C and oxenstored: 1000): the first 100 / the last 100 / the first 1000",
        bound: "the last 100 at most 1.2 x the first 100; 1000 in at most 0.3 x C's total",
        numbers: &[
            time("", "domains.domains.first"),
            time("/ ", "domains.domains.last"),
            time("/ ", "domains.domains.thousand"),
        ],
        comparisons: &[
            at_most("x the first 100", "domains.domains.last", 1.2, Ours, "domains.domains.first"),
            at_most("x C's 1000", "domains.domains.thousand", 0.3, C, "domains.domains.thousand"),
        ],
    },
    Row {
        id: "rm",
        scenario: "rm",
        work: "rm of a directory of 10,000: its time / another client's longest wait / peak of memory",
        bound: "at most 2 ms, no other client waits longer, no peak of memory",
        numbers: &[
            time("", "rm.rm.time"),
            time("/ ", "rm.rm.wait"),
            show("/ ", "rm.rm.peak", Unit::Bytes),
        ],
        comparisons: &[
            limit("rm", "rm.rm.time", 0.002, Unit::Time),
            limit("longest wait", "rm.rm.wait", 0.002, Unit::Time),
            limit("peak", "rm.rm.peak", 256.0 * 1024.0, Unit::Bytes),
        ],
    },
    Row {
        id: "ls",
        scenario: "store",
        work: "`xenstore ls` of 100,000 nodes: our tool / Debian's",
        bound: "ours on ours 0.5 s, on C 2 s, on oxenstored 3 s",
        numbers: &[time("", "store.ls.ours"), time("/ ", "store.ls.debian")],
        comparisons: &[limit("ours on ours", "store.ls.ours", 0.5, Unit::Time)],
    },
    Row {
        id: "memory",
        scenario: "store",
        work: "memory a node, 32-byte values, 100,000 nodes",
        bound: "less than C; the aim is 135",
        numbers: &[show("", "store.fill100k.memory", Unit::Bytes)],
        comparisons: &[at_most("x C's", "store.fill100k.memory", 1.0, C, "store.fill100k.memory")],
    },
    Row {
        id: "memory-million",
        scenario: "million",
        work: "memory a node, 32-byte values, 1,000,000 nodes",
        bound: "the aim is 135",
        numbers: &[show("", "million.fill1m.memory", Unit::Bytes)],
        comparisons: &[limit("bytes", "million.fill1m.memory", 135.0, Unit::Bytes)],
    },
    Row {
        id: "guests",
        scenario: "guests",
        work: "domain 0's writes beside 100 guests: p99 before / with 10 transactions open in each",
        bound: "does not move",
        numbers: &[time("", "guests.before.p99"), time("/ ", "guests.open.p99")],
        comparisons: &[at_most(
            "x the p99 before",
            "guests.open.p99",
            1.15,
            Ours,
            "guests.before.p99",
        )],
    },
    Row {
        id: "hostile",
        scenario: "hostile",
        work: "domain 0's writes beside guests that do the worst of each message type: p99 beside 50 idle ones / one at \
               work / 50 at work",
        bound: "at most 1.5 x the p99 beside idle ones, or 2 ms where that is more",
        numbers: &[
            time("", "hostile.idle.p99"),
            time("/ ", "hostile.one.p99"),
            time("/ ", "hostile.all.p99"),
        ],
        comparisons: &[
            limit("of what one may make it", "hostile.one.share", 1.0, Unit::Count),
            limit("of what 50 may make it", "hostile.all.share", 1.0, Unit::Count),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::SCENARIOS;

    #[test]
    fn rows_name_scenarios_that_exist_and_their_own_numbers() {
        for row in ROWS {
            assert!(SCENARIOS.iter().any(|scenario| scenario.name == row.scenario), "{}", row.id);
            let prefix = format!("{}.", row.scenario);
            for show in row.numbers {
                assert!(show.metric.starts_with(&prefix), "{}: {}", row.id, show.metric);
            }
        }
    }

    #[test]
    fn ids_are_unique() {
        for (at, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..at].iter().all(|other| other.id != row.id), "{}", row.id);
        }
    }
}
