//! What disks have done, as `xen-blockd` writes it into the file `stats` beside its records.

use crate::Error;
use crate::host::Host;
use crate::host::folder::Folder;
use std::path::PathBuf;
use xen::DomId;
use xenbus::Id;

/// What a disk has done since it was connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Which disk.
    pub id: Id,
    /// Pages that the backend keeps mapped.
    pub persistent: u64,
    /// By kind of request: read, write, flush, discard.
    pub counts: Vec<(String, Counts)>,
}

/// What one kind of request came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Sectors of 512 bytes in them.
    pub sectors: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Half of them took less, in us.
    pub median_us: u64,
    /// Of a hundred, one took longer, in us.
    pub p99_us: u64,
}

/// What the backend of a host says of all its disks.
///
/// # Errors
/// A sentence: it has said nothing yet.
pub fn read(host: &mut Host) -> Result<Vec<Stats>, Error> {
    let dir = host.folder().map_or_else(|| PathBuf::from("/run/xen-blockd"), Folder::record);
    let path = dir.join("stats");
    let text = std::fs::read_to_string(&path).map_err(Error::io(path.display()))?;
    let Some(lines) = text.strip_suffix("end\n") else {
        let path = path.display();
        return Err(Error::Refused(format!(
            "{path}: xen-blockd counts every 5 seconds and has not yet; try again"
        )));
    };
    Ok(lines.lines().filter_map(parse).collect())
}

/// `vbd 3/51712 persistent 4 read 1 8 0 64 64 write ...`.
fn parse(line: &str) -> Option<Stats> {
    let words: Vec<&str> = line.split(' ').collect();
    let [_, id, "persistent", persistent, kinds @ ..] = words.as_slice() else { return None };
    let (frontend, devid) = id.split_once('/')?;
    let id = Id { frontend: DomId(frontend.parse().ok()?), devid: devid.parse().ok()? };
    let counts = kinds.chunks_exact(6).map(|kind| {
        let number = |at: usize| kind.get(at)?.parse().ok();
        let counts = Counts {
            requests: number(1)?,
            sectors: number(2)?,
            errors: number(3)?,
            median_us: number(4)?,
            p99_us: number(5)?,
        };
        Some((kind.first()?.to_string(), counts))
    });
    Some(Stats { id, persistent: persistent.parse().ok()?, counts: counts.collect::<Option<_>>()? })
}
