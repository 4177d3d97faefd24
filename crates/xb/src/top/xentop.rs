//! The columns of `xentop -b`, for programs that read these.
//!
//! Names, widths and order are xentop's: `docs/man/xentop.1.pod`. The one difference is that what is
//! unknown is `-` in every column, as xentop has it in those of disks; also the use of processors in
//! the first turn, which xentop prints as 0.0.

use super::rates::{DiskTotals, DomainRow, disk_totals, network_totals};
use super::sample::{DomainSample, HostSample, RequestSums};
use crate::text::clean;
use xen::domctl::{RunState, VcpuActivity};
use xen::domwatch::ShutdownReason;

/// The longest name of a domain that is shown, unless all of it is asked for.
const NAME_MAX: usize = 10;
/// The most pages of a domain without a limit, in KiB: so Xen writes that there is none.
const UNLIMITED_KIB: u64 = u32::MAX as u64 * 4;
/// A cell of what is unknown.
const UNKNOWN: &str = "-";

/// The names of the columns, and the least widths. All stand at the right of their columns.
const COLUMNS: [(&str, usize); 19] = [
    ("NAME", NAME_MAX),
    ("STATE", 6),
    ("CPU(sec)", 10),
    ("CPU(%)", 6),
    ("MEM(k)", 10),
    ("MEM(%)", 6),
    ("MAXMEM(k)", 10),
    ("MAXMEM(%)", 9),
    ("VCPUS", 5),
    ("NETS", 4),
    ("NETTX(k)", 8),
    ("NETRX(k)", 8),
    ("VBDS", 4),
    ("VBD_OO", 8),
    ("VBD_RD", 8),
    ("VBD_WR", 8),
    ("VBD_RSECT", 10),
    ("VBD_WSECT", 10),
    ("SSID", 4),
];

/// The part of domains' names that is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameLength {
    /// As many characters as the column has.
    Cut,
    /// All of it; the column is as wide as the longest.
    Full,
}

/// Returns the lines of a turn: the names of the columns, and a line for each domain, by name.
#[must_use]
pub fn lines(host: &HostSample, rows: &[DomainRow<'_>], names: NameLength) -> String {
    let mut table = vec![COLUMNS.map(|(name, _)| name.to_owned())];
    let mut sorted: Vec<&DomainRow<'_>> = rows.iter().collect();
    sorted.sort_by_key(|row| row.sample.name.to_lowercase());
    table.extend(sorted.into_iter().map(|row| cells(host, row, names)));
    let mut widths = COLUMNS.map(|(_, width)| width);
    for row in &table {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &table {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}"));
        text.push_str(&cells.collect::<Vec<_>>().join(" "));
        text.push('\n');
    }
    text
}

fn cells(host: &HostSample, row: &DomainRow<'_>, names: NameLength) -> [String; COLUMNS.len()] {
    let DomainSample { info, name, networks, disks, .. } = row.sample;
    let name = clean(name);
    let name = match names {
        NameLength::Cut => name.chars().take(NAME_MAX).collect(),
        NameLength::Full => name,
    };
    let share = |kib: u64| {
        let all = host.memory_kib.filter(|all| *all > 0)?;
        Some(format!("{:.1}", kib as f64 * 100.0 / all as f64))
    };
    let (memory_max, max_share) = if info.memory_max_kib >= UNLIMITED_KIB {
        ("no limit".to_owned(), Some("n/a".to_owned()))
    } else {
        (info.memory_max_kib.to_string(), share(info.memory_max_kib))
    };
    let totals = network_totals(networks);
    let DiskTotals { read, write, out_of_requests } = disk_totals(disks);
    let requests = |sums: Option<RequestSums>| known(sums.map(|sums| sums.requests.to_string()));
    let sectors = |sums: Option<RequestSums>| known(sums.map(|sums| sums.sectors.to_string()));
    [
        name,
        state(row.sample),
        (info.cpu_time_ns / 1_000_000_000).to_string(),
        known(row.cpu_percent.map(|percent| format!("{percent:.1}"))),
        info.memory_kib.to_string(),
        known(share(info.memory_kib)),
        memory_max,
        known(max_share),
        info.vcpus.to_string(),
        networks.len().to_string(),
        known(totals.map(|(sent, _)| (sent / 1024).to_string())),
        known(totals.map(|(_, received)| (received / 1024).to_string())),
        disks.len().to_string(),
        known(out_of_requests.map(|count| count.to_string())),
        requests(read),
        requests(write),
        sectors(read),
        sectors(write),
        known(info.ssid.map(|ssid| ssid.to_string())),
    ]
}

fn known(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Returns the state in xentop's letters: `--b---`.
fn state(domain: &DomainSample) -> String {
    let state = domain.info.state;
    let crashed = state == RunState::Shutdown(ShutdownReason::Crash);
    let runs = match domain.info.activity {
        Some(activity) => activity == VcpuActivity::Running,
        // The platform does not tell what it does, only that it may.
        None => domain.runs(),
    };
    let letters = [
        ('d', state == RunState::Dying),
        ('s', matches!(state, RunState::Shutdown(_)) && !crashed),
        ('b', domain.info.activity == Some(VcpuActivity::Blocked)),
        ('c', crashed),
        ('p', state == RunState::Paused),
        ('r', runs),
    ];
    letters.map(|(letter, is_so)| if is_so { letter } else { '-' }).iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::rates::rows;
    use super::super::rates::tests::{disk, domain, host};
    use super::super::sample::{NetworkCounters, NetworkSample};
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);
    const HEAD: &str = "      NAME  STATE   CPU(sec) CPU(%)     MEM(k) MEM(%)  MAXMEM(k) MAXMEM(%) VCPUS NETS NETTX(k) NETRX(k) VBDS   VBD_OO   VBD_RD   VBD_WR  VBD_RSECT  VBD_WSECT SSID";

    /// The line of a domain, by its name, between two samples with these.
    fn line_of(before: &DomainSample, now: &DomainSample) -> String {
        let before = host(10 * SECOND, vec![before.clone()]);
        let now = host(12 * SECOND, vec![now.clone()]);
        let text = lines(&now, &rows(Some(&before), &now), NameLength::Cut);
        let (head, line) = text.split_once('\n').unwrap();
        assert_eq!(head, HEAD);
        line.trim_end().to_owned()
    }

    #[test]
    fn lines_are_those_of_xentop() {
        let mut one = domain(3, 7, 3000);
        one.name = "a-long-name-of-a-guest".into();
        one.info.ssid = Some(0);
        one.disks = vec![disk(51712, 12 * SECOND, 10), disk(51728, 12 * SECOND, 5)];
        let counters = Some(NetworkCounters { received: 4096, sent: 9000 });
        one.networks = vec![NetworkSample { devid: 0, counters }];
        let mut before = domain(3, 7, 2000);
        before.name.clone_from(&one.name);
        let line = "a-long-nam -----r          3   50.0      32768    3.1      65536       6.2     1    1        8        4    2        -        7        8         56         64    0";
        assert_eq!(line_of(&before, &one), line);
        // An unlimited domain 0, as Xen has it, of which there is no earlier sample.
        one.info.memory_max_kib = UNLIMITED_KIB;
        one.info.activity = Some(VcpuActivity::Blocked);
        (one.networks[0].counters, one.disks[0].counters) = (None, None);
        let line = "a-long-nam --b---          3      -      32768    3.1   no limit       n/a     1    1        -        -    2        -        -        -          -          -    0";
        assert_eq!(line_of(&domain(3, 6, 0), &one), line);
    }

    #[test]
    fn a_turn_has_the_domains_by_name() {
        let named = |domid, name: &str| DomainSample { name: name.into(), ..domain(domid, 1, 0) };
        let now = host(SECOND, vec![named(0, "Domain-0"), named(1, "web\x1b[2J"), named(2, "a")]);
        let text = lines(&now, &rows(None, &now), NameLength::Full);
        let names: Vec<&str> =
            text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(names, ["NAME", "a", "Domain-0", "web?[2J"]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|width| *width == HEAD.len()), "{text}");
    }

    #[test]
    fn a_long_name_widens_its_column_if_it_is_asked_for() {
        let name = "a-long-name-of-a-guest";
        let one = DomainSample { name: name.into(), ..domain(1, 1, 0) };
        let now = host(SECOND, vec![one]);
        let text = lines(&now, &rows(None, &now), NameLength::Full);
        assert!(text.lines().nth(1).unwrap().starts_with(&format!("{name} -----r")), "{text}");
    }

    #[test]
    fn states_have_the_letters_of_xentop() {
        let mut one = domain(1, 1, 0);
        for (state, activity, letters) in [
            (RunState::Running, None, "-----r"),
            (RunState::Running, Some(VcpuActivity::Running), "-----r"),
            (RunState::Running, Some(VcpuActivity::Ready), "------"),
            (RunState::Running, Some(VcpuActivity::Blocked), "--b---"),
            (RunState::Paused, Some(VcpuActivity::Ready), "----p-"),
            (RunState::Paused, None, "----p-"),
            (RunState::Shutdown(ShutdownReason::Crash), None, "---c--"),
            (RunState::Shutdown(ShutdownReason::Poweroff), None, "-s----"),
            (RunState::Dying, None, "d-----"),
        ] {
            (one.info.state, one.info.activity) = (state, activity);
            assert_eq!(self::state(&one), letters, "{state:?} {activity:?}");
        }
    }
}
