//! The counters of backends: those of `xen-blockd` in its file, those of Linux's own backends in
//! sysfs, and those of `tapdisk` in shared memory. A backend in another domain tells nothing here.

use super::sample::{DiskCounters, NetworkCounters, RequestSums};
use crate::devices::disk::stats::{self, CountedDisks, DiskStats};
use crate::host::folder::Folder;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::DomId;
use xen_driver::process::FRESH_EVERY;
use xenbus::Id;

/// The devices of backends in Linux, named by their type, frontend and number: `vbd-3-51712`.
const XEN_BACKENDS: &str = "/sys/bus/xen-backend/devices";
/// The folders in which `tapdisk` counts, named as those: `vbd3-3-51712`.
const SHARED_MEMORY: &str = "/dev/shm";
/// The type of disks that `tapdisk` serves.
const TAPDISK: &str = "vbd3";
/// The types of disks.
const DISK_TYPES: [&str; 3] = ["vbd", "tap", TAPDISK];
/// The type of network interfaces.
const NETWORK_TYPE: &str = "vif";
/// The longest file of counters that is read: a line for each of many thousand disks.
const FILE_MAX: u64 = 16 << 20;

/// The places where backends count.
#[derive(Debug)]
pub(super) struct CounterSources {
    /// The file of `xen-blockd`.
    blockd: PathBuf,
    /// The folder of the kernel's devices; none on a hosted host.
    kernel: Option<PathBuf>,
    /// The folder of shared memory.
    shared: PathBuf,
    /// The file of `xen-blockd` with a shared lock, which tells it that somebody looks; and the time
    /// of the first of these looks.
    looking: Option<(File, Duration)>,
}

/// The counters of all devices.
#[derive(Debug, Default)]
pub(super) struct AllCounters {
    /// Disks, those without counters too.
    pub(super) disks: BTreeMap<Id, Option<DiskCounters>>,
    /// Network interfaces, those without counters too.
    pub(super) networks: BTreeMap<Id, Option<NetworkCounters>>,
    /// The counts of `xen-blockd`, as it writes them.
    pub(super) counted: Vec<DiskStats>,
}

impl CounterSources {
    /// Names the places of a hosted host in a folder, or of the Xen host that this is.
    pub(super) fn of(folder: Option<&Folder>) -> Self {
        let kernel = folder.is_none().then(|| XEN_BACKENDS.into());
        let (blockd, shared) = (stats::path(folder), SHARED_MEMORY.into());
        Self { blockd, kernel, shared, looking: None }
    }

    /// Reads all counters; `now` is the time, by CLOCK_MONOTONIC.
    pub(super) fn read(&mut self, now: Duration) -> AllCounters {
        let mut all = AllCounters::default();
        if let Some(kernel) = &self.kernel {
            self.read_kernel(kernel, now, &mut all);
        }
        let Some(CountedDisks { at, disks }) = self.read_blockd(now) else { return all };
        for disk in &disks {
            all.disks.insert(disk.id, Some(of_blockd(at, disk)));
        }
        all.counted = disks;
        all
    }

    /// Reads the file of `xen-blockd`, and lets it know that somebody looks.
    fn read_blockd(&mut self, now: Duration) -> Option<CountedDisks> {
        let mut last = None;
        let counted = CountedDisks::read(|| {
            let (file, mut text) = (File::open(&self.blockd)?, String::new());
            (&file).take(FILE_MAX).read_to_string(&mut text)?;
            last = Some(file);
            Ok(text)
        });
        let since = self.looking.as_ref().map_or(now, |(_, since)| *since);
        // The backend has the lock for a moment, now and then; then the next look gets it.
        let locked = last.filter(|file| flock(file, FlockOperation::NonBlockingLockShared).is_ok());
        self.looking = locked.map(|file| (file, since));
        let CountedDisks { at, disks } = counted.ok().flatten()?;
        // A backend that knows of the looks writes all that has changed; what it has not written
        // is as it was.
        let known_for = FRESH_EVERY * 2;
        let is_known = self.looking.is_some() && now.saturating_sub(since) >= known_for;
        let at = if is_known { at.max(now.saturating_sub(known_for)) } else { at };
        Some(CountedDisks { at, disks })
    }

    fn read_kernel(&self, folder: &Path, now: Duration, all: &mut AllCounters) {
        // Where no backend was loaded there is no such folder.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some((kind, id)) = name.to_str().and_then(device) else { continue };
            let path = entry.path();
            if kind == NETWORK_TYPE {
                all.networks.insert(id, of_network(&path));
            } else if kind == TAPDISK {
                let path = self.shared.join(&name).join("statistics");
                all.disks.insert(id, of_tapdisk(&path, now));
            } else if DISK_TYPES.contains(&kind) {
                all.disks.insert(id, of_kernel(&path.join("statistics"), now));
            }
        }
    }
}

/// Parses the name of a device: `vbd-3-51712`.
fn device(name: &str) -> Option<(&str, Id)> {
    let (rest, devid) = name.rsplit_once('-')?;
    let (kind, frontend) = rest.rsplit_once('-')?;
    Some((kind, Id { frontend: DomId(frontend.parse().ok()?), devid: devid.parse().ok()? }))
}

/// Returns the counters of a disk of `xen-blockd`, which had them at `at`.
fn of_blockd(at: Duration, disk: &DiskStats) -> DiskCounters {
    let mut counters = DiskCounters {
        at,
        errors: Some(disk.wrong),
        latencies: Some(Vec::new()),
        persistent: Some(disk.persistent),
        in_flight: Some(disk.in_flight),
        ..DiskCounters::default()
    };
    for (kind, counts) in &disk.counts {
        let sums = RequestSums { requests: counts.requests, sectors: counts.sectors };
        match kind.as_str() {
            "read" => counters.read = sums,
            "write" => counters.write = sums,
            _ => counters.others = counters.others.saturating_add(counts.requests),
        }
        counters.errors = counters.errors.map(|errors| errors.saturating_add(counts.errors));
        if let Some(latencies) = &mut counters.latencies {
            latencies.resize(latencies.len().max(counts.latencies.len()), 0);
            for (sum, more) in latencies.iter_mut().zip(&counts.latencies) {
                *sum = sum.saturating_add(*more);
            }
        }
    }
    counters
}

/// Reads the number in a small file of sysfs.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads the counters of a disk that the kernel's `xen-blkback` serves.
fn of_kernel(folder: &Path, at: Duration) -> Option<DiskCounters> {
    let of = |name: &str| number(&folder.join(name));
    let sums = |requests: &str, sectors: &str| {
        Some(RequestSums { requests: of(requests)?, sectors: of(sectors)? })
    };
    Some(DiskCounters {
        at,
        read: sums("rd_req", "rd_sect")?,
        write: sums("wr_req", "wr_sect")?,
        // Kernels before Linux 3.2 count neither.
        others: of("f_req").unwrap_or(0).saturating_add(of("ds_req").unwrap_or(0)),
        errors: None,
        out_of_requests: of("oo_req"),
        latencies: None,
        persistent: None,
        in_flight: None,
    })
}

/// Reads the counters of an interface that the kernel's `xen-netback` serves.
fn of_network(device: &Path) -> Option<NetworkCounters> {
    let interface = std::fs::read_dir(device.join("net")).ok()?.flatten().next()?.path();
    let of = |name: &str| number(&interface.join("statistics").join(name));
    Some(NetworkCounters { received: of("rx_bytes")?, sent: of("tx_bytes")? })
}

/// The words of 8 bytes in the memory of a `tapdisk`, the version in the lower half of the first.
/// Source: `struct vbd3_stats`, `tools/libs/stat/xenstat_priv.h`.
const TAPDISK_WORDS: usize = 11;
/// The version whose words are known.
const TAPDISK_VERSION: u64 = 1;

/// Reads the counters of a disk that a `tapdisk` serves.
fn of_tapdisk(path: &Path, at: Duration) -> Option<DiskCounters> {
    let mut bytes = [0; TAPDISK_WORDS * 8];
    File::open(path).ok()?.read_exact(&mut bytes).ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    let mut of = words.iter().map(|word| u64::from_ne_bytes(*word));
    let mut next = || of.next();
    if next()? & u64::from(u32::MAX) != TAPDISK_VERSION {
        return None;
    }
    let out_of_requests = next();
    let (reads, _, read_sectors, _) = (next()?, next()?, next()?, next()?);
    let (writes, _, write_sectors, _) = (next()?, next()?, next()?, next()?);
    Some(DiskCounters {
        at,
        read: RequestSums { requests: reads, sectors: read_sectors },
        write: RequestSums { requests: writes, sectors: write_sectors },
        others: 0,
        errors: next(),
        out_of_requests,
        latencies: None,
        persistent: None,
        in_flight: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    const AT: Duration = Duration::from_secs(9);
    /// A line of the file of `xen-blockd`.
    const LINE: &str = "vbd 3/51712 persistent 4 in-flight 2 wrong 1 replayed 0 throttled 0 connects 1 \
                        read 5 40 0 0 64 128 0,5 write 2 16 0 1 64 128 1,1 flush 3 0 0 0 1 1 0,3";

    /// A folder with the places of a Xen host.
    fn places(folder: &Path) -> CounterSources {
        CounterSources {
            blockd: folder.join("stats"),
            kernel: Some(folder.join("devices")),
            shared: folder.join("shm"),
            looking: None,
        }
    }

    fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = folder.join(name);
        create_dir_all(path.parent().unwrap()).unwrap();
        write(path, content).unwrap();
    }

    fn id(frontend: u16, devid: u32) -> Id {
        Id { frontend: DomId(frontend), devid }
    }

    /// Disks that processes serve are counted, beside those of the kernel (netdata/netdata 5357).
    #[test]
    fn user_space_backends_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(root, "stats", format!("at 7\n{LINE}\nend 7\n"));
        for (name, value) in
            [("rd_req", 10), ("wr_req", 20), ("rd_sect", 80), ("wr_sect", 160), ("oo_req", 1)]
        {
            put(root, &format!("devices/vbd-4-768/statistics/{name}"), format!("{value}\n"));
        }
        let words = [1_u64, 2, 30, 29, 240, 0, 40, 39, 320, 0, 5];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        put(root, "devices/vbd3-5-51728/nodename", "");
        put(root, "shm/vbd3-5-51728/statistics", words);
        let all = places(root).read(AT);
        let ours = all.disks[&id(3, 51712)].as_ref().unwrap();
        assert_eq!(ours.at, Duration::from_micros(7));
        assert_eq!((ours.read.requests, ours.write.sectors, ours.others), (5, 16, 3));
        assert_eq!((ours.errors, ours.latencies.as_deref()), (Some(2), Some(&[1, 9][..])));
        let kernel = all.disks[&id(4, 768)].as_ref().unwrap();
        assert_eq!((kernel.read.requests, kernel.write.sectors), (10, 160));
        assert_eq!((kernel.errors, kernel.out_of_requests), (None, Some(1)));
        let tapdisk = all.disks[&id(5, 51728)].as_ref().unwrap();
        assert_eq!((tapdisk.read.requests, tapdisk.read.sectors), (30, 240));
        assert_eq!((tapdisk.write.requests, tapdisk.write.sectors), (40, 320));
        assert_eq!((tapdisk.errors, tapdisk.out_of_requests), (Some(5), Some(2)));
    }

    /// An interface or a disk whose backend tells nothing is not one that has done nothing
    /// (xcp-ng/xcp 379).
    #[test]
    fn what_is_not_told_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for device in ["vif-3-0", "vif-3-1", "vbd-3-768", "vbd3-3-51712", "pci-3-0", "x", "vbd-a-1"]
        {
            put(root, &format!("devices/{device}/nodename"), "");
        }
        for (name, value) in [("rx_bytes", 3), ("tx_bytes", 5)] {
            put(
                root,
                &format!("devices/vif-3-0/net/anyname/statistics/{name}"),
                format!("{value}\n"),
            );
        }
        put(root, "shm/vbd3-3-51712/statistics", [2; TAPDISK_WORDS * 8]);
        let all = places(root).read(AT);
        let counters = NetworkCounters { received: 3, sent: 5 };
        let networks = [(id(3, 0), Some(counters)), (id(3, 1), None)];
        assert_eq!(all.networks.into_iter().collect::<Vec<_>>(), networks);
        let disks = [(id(3, 768), None), (id(3, 51712), None)];
        assert_eq!(all.disks.into_iter().collect::<Vec<_>>(), disks);
        let nothing = places(&root.join("nowhere")).read(AT);
        assert!(nothing.disks.is_empty() && nothing.networks.is_empty());
    }

    #[test]
    fn the_backend_learns_that_somebody_looks() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "stats", "at 7\nend 7\n");
        let writer = File::options().write(true).open(folder.path().join("stats")).unwrap();
        let alone = || flock(&writer, FlockOperation::NonBlockingLockExclusive).is_ok();
        let mut sources = places(folder.path());
        sources.read(AT);
        assert!(!alone());
        sources.read(AT);
        assert!(!alone());
        drop(sources);
        assert!(alone());
    }

    /// A backend that was idle for long writes nothing meanwhile: the time before the last look does
    /// not count in the rate of what comes then.
    #[test]
    fn idle_counters_are_known_up_to_the_last_look() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "stats", format!("at 1000000\n{LINE}\nend 1000000\n"));
        let mut sources = places(folder.path());
        let mut at = |now| sources.read(now).disks[&id(3, 51712)].as_ref().unwrap().at;
        let second = Duration::from_secs(1);
        assert_eq!(at(9 * second), second, "it may have been at work since");
        assert_eq!(at(9 * second + FRESH_EVERY), second, "it may not know of the look");
        assert_eq!(at(12 * second), 12 * second - FRESH_EVERY * 2);
    }
}
