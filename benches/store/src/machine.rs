//! The machine: the CPU in use, the descriptor limit, and the facts that go with the table.

use crate::Result;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;

/// Returns the processors that this process may use.
pub(crate) fn allowed() -> Result<CpuSet> {
    Ok(sched_getaffinity(None)?)
}

/// Returns the last of them, as the first one has most of the interrupts.
pub(crate) fn last_cpu(allowed: &CpuSet) -> Result<usize> {
    let cpu = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu));
    Ok(cpu.ok_or("no CPU in this process's affinity mask")?)
}

/// Ties a process (`None`: this thread) to one CPU.
pub(crate) fn pin(pid: Option<u32>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok(sched_setaffinity(pid, &set)?)
}

/// Runs `work` on the processors that this process may use other than `cpu`, or on `cpu` if there
/// is no other. Threads and programs that it starts run there as well.
pub(crate) fn beside<T>(cpu: usize, all: &CpuSet, work: impl FnOnce() -> T) -> Result<T> {
    let mut others = *all;
    others.unset(cpu);
    if others.count() > 0 {
        sched_setaffinity(None, &others)?;
    }
    let done = work();
    pin(None, cpu)?;
    Ok(done)
}

/// Raises the descriptor limit, which the daemons inherit; returns the limit reached.
pub(crate) fn raise_descriptors(wanted: u64) -> Result<u64> {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(u64::MAX);
    // Root may raise the hard limit as well; another user gets as far as the hard limit.
    for maximum in [hard.max(wanted), hard] {
        let current = maximum.min(wanted);
        let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return Ok(current);
        }
    }
    Ok(now.current.unwrap_or(u64::MAX))
}

/// Returns CPU model, number of CPUs, memory and kernel, in one line.
pub(crate) fn facts() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model);
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: f64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0.0);
    let gib = kib / 1024.0 / 1024.0;
    format!("{model}, {cpus} CPUs, {gib:.0} GiB, Linux {}", kernel.trim())
}

/// Returns today's date (UTC) as year-month-day.
pub(crate) fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = since.map_or(0, |time| time.as_secs() / 86_400) as i64;
    // Civil date from a day number: the proleptic Gregorian calendar in eras of 400 years,
    // each year starting in March so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
