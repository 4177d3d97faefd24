//! The counts of disks, as `xen-blockd` writes them into the file `stats` beside its records.

use crate::Error;
use crate::host::Host;
use crate::host::daemons::BLOCK;
use crate::host::folder::Folder;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::DomId;
use xenbus::Id;

/// The counts of a disk since it was connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskStats {
    /// The device of the disk.
    pub id: Id,
    /// Pages that the backend keeps mapped.
    pub persistent: u64,
    /// Requests that the backend has taken and not answered.
    pub in_flight: u64,
    /// Requests refused before the disk was asked.
    pub wrong: u64,
    /// Requests taken over from a backend that was killed.
    pub replayed: u64,
    /// True if a request had to wait for a limit of the disk in the last seconds.
    pub throttled: bool,
    /// The number of times that the guest has connected the disk in the last seconds.
    pub connects: u32,
    /// By kind of request: read, write, flush, discard.
    pub counts: Vec<(String, RequestCounts)>,
}

/// The counts of one kind of request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestCounts {
    /// Requests answered.
    pub requests: u64,
    /// Sectors of 512 bytes in them.
    pub sectors: u64,
    /// Segments that lay behind one another in memory and became one.
    pub merges: u64,
    /// Requests that the disk has failed.
    pub errors: u64,
    /// The median latency, in us.
    pub median_us: u64,
    /// The latency that one request of a hundred exceeds, in us.
    pub p99_us: u64,
    /// The numbers of requests that took less than 1, 2, 4, ... us; the last has all others.
    pub latencies: Vec<u64>,
}

/// The counts of all disks of a backend, as they were at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CountedDisks {
    /// The time of that moment, by CLOCK_MONOTONIC.
    pub at: Duration,
    /// The disks.
    pub disks: Vec<DiskStats>,
}

/// The attempts to read the file while its backend writes it.
const READ_TRIES: u32 = 3;

impl CountedDisks {
    /// Reads the file of a backend; `None` if it has not counted yet.
    ///
    /// # Errors
    /// There is no such file.
    pub fn read(
        mut file: impl FnMut() -> std::io::Result<String>,
    ) -> std::io::Result<Option<Self>> {
        for _ in 0..READ_TRIES {
            if let Some(counted) = Self::parse(&file()?) {
                return Ok(Some(counted));
            }
        }
        Ok(None)
    }

    /// Parses a whole file; `None` if its beginning and its end are of different writings.
    fn parse(text: &str) -> Option<Self> {
        let (first, rest) = text.split_once('\n')?;
        let (lines, last) = rest.trim_end_matches('\n').rsplit_once('\n').unwrap_or(("", rest));
        let at = first.strip_prefix("at ")?;
        if last.trim_end().strip_prefix("end ")? != at {
            return None;
        }
        let at = Duration::from_micros(at.parse().ok()?);
        Some(Self { at, disks: lines.lines().filter_map(parse).collect() })
    }
}

/// Returns the path of the file in which the backend of a host counts.
pub(crate) fn path(folder: Option<&Folder>) -> PathBuf {
    let dir = folder.map_or_else(|| Path::new("/run").join(BLOCK.name()), Folder::record);
    dir.join("stats")
}

/// Reads the counts of all disks of a host from its backend's file.
///
/// # Errors
/// A sentence: the backend has written nothing yet.
pub fn read(host: &mut Host) -> Result<Vec<DiskStats>, Error> {
    let path = path(host.folder());
    let counted = CountedDisks::read(|| std::fs::read_to_string(&path));
    let counted = counted.map_err(Error::io(path.display()))?;
    counted.map(|counted| counted.disks).ok_or_else(|| {
        let (path, name) = (path.display(), BLOCK.name());
        Error::Refused(format!("{path}: {name} has not counted yet; try again"))
    })
}

/// Parses `vbd 3/51712 persistent 4 in-flight 2 wrong 0 replayed 0 throttled 0 connects 1 read 1 8 0 0 64 64
/// 0,0,1,... write ...`.
fn parse(line: &str) -> Option<DiskStats> {
    let words: Vec<&str> = line.split(' ').collect();
    let [_, id, "persistent", persistent, "in-flight", in_flight, rest @ ..] = words.as_slice()
    else {
        return None;
    };
    let ["wrong", wrong, "replayed", replayed, rest @ ..] = rest else { return None };
    let ["throttled", throttled, "connects", connects, kinds @ ..] = rest else { return None };
    let (frontend, devid) = id.split_once('/')?;
    let id = Id { frontend: DomId(frontend.parse().ok()?), devid: devid.parse().ok()? };
    let counts = kinds.chunks_exact(8).map(|kind| {
        let number = |at: usize| kind.get(at)?.parse().ok();
        let counts = RequestCounts {
            requests: number(1)?,
            sectors: number(2)?,
            merges: number(3)?,
            errors: number(4)?,
            median_us: number(5)?,
            p99_us: number(6)?,
            latencies: kind
                .get(7)?
                .split(',')
                .map(|count| count.parse().ok())
                .collect::<Option<_>>()?,
        };
        Some((kind.first()?.to_string(), counts))
    });
    let number = |text: &str| text.parse::<u64>().ok();
    let (persistent, in_flight) = (number(persistent)?, number(in_flight)?);
    let (wrong, replayed) = (number(wrong)?, number(replayed)?);
    let (throttled, connects) = (number(throttled)? > 0, connects.parse().ok()?);
    let counts = counts.collect::<Option<_>>()?;
    Some(DiskStats { id, persistent, in_flight, wrong, replayed, throttled, connects, counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_file_is_read() {
        let line = "vbd 3/51712 persistent 4 in-flight 2 wrong 1 replayed 2 throttled 1 connects 3 read 5 40 3 0 64 128 0,2,3";
        let stats = parse(line).unwrap();
        assert_eq!((stats.persistent, stats.wrong, stats.replayed), (4, 1, 2));
        assert_eq!(stats.in_flight, 2);
        assert_eq!((stats.throttled, stats.connects), (true, 3));
        let (requests, sectors, merges, errors) = (5, 40, 3, 0);
        let (median_us, p99_us, latencies) = (64, 128, vec![0, 2, 3]);
        let read =
            RequestCounts { requests, sectors, merges, errors, median_us, p99_us, latencies };
        assert_eq!(stats.counts, [("read".to_owned(), read)]);
        assert_eq!(parse(&line.replace("replayed", "again")), None);
    }

    #[test]
    fn a_file_of_two_writings_is_not_read() {
        let line = "vbd 3/51712 persistent 4 in-flight 2 wrong 1 replayed 2 throttled 1 connects 3 read 5 40 3 0 64 128 0,2,3";
        let whole = format!("at 7\n{line}\nend 7\n");
        let counted = CountedDisks::parse(&whole).unwrap();
        assert_eq!((counted.at, counted.disks.len()), (Duration::from_micros(7), 1));
        assert_eq!(CountedDisks::parse("at 7\nend 7\n").unwrap().disks, []);
        for part in [format!("at 7\n{line}\nend 8\n"), format!("at 7\n{line}\n")] {
            assert_eq!(CountedDisks::parse(&part), None, "{part}");
        }
        for part in ["", "at 7\n", "at 7", "end 7\n", "at x\nend x\n"] {
            assert_eq!(CountedDisks::parse(part), None, "{part}");
        }
        let mut parts = vec![whole, String::new(), "at 7\n".to_owned()];
        let read = CountedDisks::read(|| Ok(parts.pop().unwrap_or_default())).unwrap();
        assert_eq!(read.map(|counted| counted.disks.len()), Some(1), "tried again");
    }
}
