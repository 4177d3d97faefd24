//! The users that domains run as where the broker is root: a range of ids for each host of the
//! machine.
//!
//! The kernel counts some resources by user and not by control group. Therefore no two hosts share
//! an id: each range has a file in [`LOCKS`], and the broker that has locked it has the range.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The folder of the ranges' locks.
const LOCKS: &str = "/run/xenbus/users";
/// The first id of the first range.
const FIRST: u32 = 0x6000_0000;
/// The number of ids of a range: more than a host has domains.
const EACH: u32 = 0x8000;
/// The number of ranges.
const COUNT: u32 = 0x1000;

/// A range of ids that is this host's alone.
#[derive(Debug)]
pub(super) struct Users {
    /// The first id of the range, which no domain has.
    pub(super) first: u32,
    _lock: OwnedFd,
}

impl Users {
    /// True if this process can give its children such ids: it is root, and not in a user namespace
    /// that lacks them.
    pub(super) fn are_there() -> bool {
        let has_all = |map: &str| {
            fs::read_to_string(map).unwrap_or_default().lines().any(|line| {
                let numbers: Vec<u64> =
                    line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
                let [inside, _, count] = numbers[..] else { return false };
                let end = u64::from(FIRST) + u64::from(COUNT) * u64::from(EACH);
                inside <= u64::from(FIRST) && inside.saturating_add(count) >= end
            })
        };
        let maps = ["/proc/self/uid_map", "/proc/self/gid_map"];
        rustix::process::geteuid().is_root() && maps.into_iter().all(has_all)
    }

    /// Takes the range that begins with `before`, or else one that no host has and no process runs
    /// as.
    ///
    /// # Errors
    /// All are taken, or the system's error.
    pub(super) fn take(before: Option<u32>, inode: u64) -> io::Result<Self> {
        if let Some(users) = Self::reclaim(before)? {
            return Ok(users);
        }
        let busy = in_use();
        let begin = u32::try_from(inode % u64::from(COUNT)).unwrap_or(0);
        for range in (begin..COUNT).chain(0..begin) {
            if !busy.contains(&range)
                && let Some(users) = Self::lock(range)?
            {
                return Ok(users);
            }
        }
        Err(io::Error::other(format!("all {COUNT} ranges of user ids are in use ({LOCKS})")))
    }

    /// Takes the range of an earlier broker; `None` where another host has it.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn reclaim(before: Option<u32>) -> io::Result<Option<Self>> {
        let range = before.and_then(|first| first.checked_sub(FIRST)).map(|offset| offset / EACH);
        range.filter(|range| *range < COUNT).map_or(Ok(None), Self::lock)
    }

    fn lock(range: u32) -> io::Result<Option<Self>> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{LOCKS}: {error}"));
        fs::DirBuilder::new().recursive(true).mode(0o755).create(LOCKS).map_err(at)?;
        let path = Path::new(LOCKS).join(range.to_string());
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(at)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { first: FIRST + range * EACH, _lock: file.into() })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(at(errno.into())),
        }
    }

    /// True if an id is in the range.
    pub(super) fn has(&self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|offset| offset < EACH)
    }
}

/// Returns the ranges that processes run as: those of a host whose broker has died, while its
/// processes have not.
fn in_use() -> Vec<u32> {
    let mut ranges = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let id = ids.split_whitespace().next().and_then(|id| id.parse::<u32>().ok());
        ranges.extend(id.and_then(|id| id.checked_sub(FIRST)).map(|offset| offset / EACH));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_hosts_have_the_same_users() {
        if !Users::are_there() {
            conformance::skip("ranges of users", "root alone gives them out");
            return;
        }
        // As if of two folders with the same inode number, on two file systems.
        let one = Users::take(None, 77).unwrap();
        let two = Users::take(None, 77).unwrap();
        assert!(!one.has(two.first) && !two.has(one.first));
        assert!(one.has(one.first + EACH - 1) && !one.has(one.first + EACH));
        let first = one.first;
        assert!(Users::reclaim(Some(first)).unwrap().is_none(), "it is taken");
        drop(one);
        assert_eq!(Users::take(Some(first), 0).unwrap().first, first, "it is had again");
        assert!(Users::reclaim(Some(0)).unwrap().is_none(), "none of ours");
    }
}
