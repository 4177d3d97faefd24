//! The creation of domains, and the cost of many.

use crate::host::{MeasuredHost, WITHIN, create, run};
use crate::result::Result;
use crate::table::{Extent, Goal, Row};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File};
use std::io::Read;
use std::time::{Duration, Instant};
use xen::domctl::DomainControl;
use xenstore::Store;

/// Returns a number of /proc/meminfo or /proc/PID/status, in KiB.
fn kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Returns the processor time of a process, in clock ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = text.rsplit_once(") ").map_or("", |split| split.1);
    after.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (part * (sorted.len() - 1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// Returns the memory that is available on the machine, in KiB.
fn available() -> f64 {
    kib("/proc/meminfo", "MemAvailable") as f64
}

/// Makes the row of the memory of a domain, its program included. The available memory falls while
/// the domains are made and rises when they end. The larger of the two counts, because other
/// processes of the machine allocate and free memory meanwhile.
fn memory_row(fallen: f64, risen: f64, count: usize) -> Row {
    let each = [fallen, risen].map(|all| all / count as f64);
    let text = format!("MemAvailable fell by {:.0}, then rose by {:.0}", each[0], each[1]);
    let most = each[0].max(each[1]);
    let value = if most > 0.0 { most } else { f64::NAN };
    Row::new("memory a domain, KiB", text, value, Goal::AtMost(1024.0))
}

/// Adds the rows of the times of each domain: until made, until started, until its first reply.
fn creation_rows(times: &[[Duration; 3]], rows: &mut Vec<Row>) {
    let count = times.len();
    let column = |from: usize, at: usize| -> Vec<Duration> {
        times.iter().skip(from).map(|row| row[at]).collect()
    };
    for (name, from) in [("all", 0), ("the last 100", count.saturating_sub(100))] {
        let [made, started, replied] = [0, 1, 2].map(|at| column(from, at));
        let text = format!(
            "of {count}; p99 {:.2} ms; made {:.2}, introduced {:.2}",
            ms(quantile(&replied, 0.99)),
            ms(quantile(&made, 0.5)),
            ms(quantile(&started, 0.5)),
        );
        let work = format!("create to first reply, ms, {name}");
        rows.push(Row::new(&work, text, ms(quantile(&replied, 0.5)), Goal::AtMost(10.0)));
    }
}

/// Creates `count` domains until their first reply from the store, and measures their cost when
/// idle.
pub(crate) fn many(extent: &Extent) -> Result<Vec<Row>> {
    let (count, idle) = (extent.domains, extent.idle);
    let mut rows = Vec::new();
    let host = MeasuredHost::start(extent.limit)?;
    let (broker, store) =
        (host.broker.id(), host.store.as_ref().map_or(0, std::process::Child::id));
    let (mut control, mut client) = (host.control()?, host.client()?);
    let before = available();
    let mut times: Vec<[Duration; 3]> = Vec::new();
    let mut domids = Vec::new();
    for _ in 0..count {
        let (mut said, output) = std::io::pipe()?;
        let output: std::os::fd::OwnedFd = output.into();
        let output = File::from(output);
        let begin = Instant::now();
        let created = create(&mut control, &["first", "stay"], &output)?;
        let made = begin.elapsed();
        drop(output);
        client.write(format!("/local/domain/{}/name", created.domid), "guest")?;
        let perm = xenstore::Perm::parse(format!("n{}", created.domid).as_bytes());
        client
            .set_perms(format!("/local/domain/{}/name", created.domid), &[perm.ok_or("perm")?])?;
        run(&mut control, &mut client, &created)?;
        let started = begin.elapsed();
        let mut wait = [PollFd::new(&said, PollFlags::IN)];
        let limit = Timespec { tv_sec: i64::try_from(WITHIN.as_secs())?, tv_nsec: 0 };
        if poll(&mut wait, Some(&limit))? == 0 || said.read(&mut [0])? == 0 {
            let info = control.info(created.domid)?;
            return Err(
                format!("domain {} did not reach the store: {info:?}", created.domid).into()
            );
        }
        times.push([made, started, begin.elapsed()]);
        domids.push(created.domid);
    }
    creation_rows(&times, &mut rows);
    let fallen = before - available();
    let used = |pid| kib(&format!("/proc/{pid}/status"), "VmRSS") as f64 / 1024.0;
    let text = format!("broker {:.1}, store {:.1}", used(broker), used(store));
    let both = used(broker) + used(store);
    rows.push(Row::new("broker and store, MiB", text, both, Goal::AtMost(64.0)));
    let at = [ticks(broker), ticks(store)];
    // The idle cost is measured during this sleep.
    std::thread::sleep(idle);
    let spent = [broker, store].map(ticks).iter().sum::<u64>() - at.iter().sum::<u64>();
    let text = format!("{count} domains, {idle:?}, in ticks of 10 ms");
    rows.push(Row::new("processor time of both, idle", text, spent as f64, Goal::AtMost(0.0)));
    let full = available();
    let begin = Instant::now();
    for domid in &domids {
        control.destroy(*domid)?;
    }
    let last = domids.last().map_or(0, |domid| domid.0);
    while client.is_domain_introduced(last)? {
        if begin.elapsed() > WITHIN {
            return Err("the store does not let go of its domains".into());
        }
    }
    rows.push(memory_row(fallen, available() - full, count));
    let text = format!("ms for {count}, until the store has let go of them");
    rows.push(Row::new("destroy all", text, ms(begin.elapsed()), Goal::None));
    Ok(rows)
}
