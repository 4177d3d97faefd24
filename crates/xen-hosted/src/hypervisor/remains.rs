//! The remains of a host: what it holds of its machine is noted, so that the next broker, or who takes the host
//! down, finds and ends what a broker has left that died or could not end a domain.

use super::connections::Connections;
use super::directory::Directory;
use super::users::Users;
use crate::HostDir;
use crate::domain::cgroup;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The file in the host's directory that says what it holds.
const FILE: &str = "holds";

/// The things that a broker holds: noted before they are taken, so that they are found whenever the broker dies.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Holdings {
    /// The groups above those of its domains.
    pub(super) groups: Vec<PathBuf>,
    /// The first id of its domains' users.
    pub(super) first_id: Option<u32>,
}

impl Holdings {
    /// Reads the note of the broker before.
    pub(super) fn read(directory: &Directory) -> io::Result<Self> {
        Ok(Self::decode(&directory.read(FILE)?, &directory.name))
    }

    /// Adds a group.
    pub(super) fn add_group(&mut self, group: &Path, directory: &Directory) -> io::Result<()> {
        if !self.groups.iter().any(|known| known == group) {
            self.groups.push(group.to_owned());
            self.write(directory)?;
        }
        Ok(())
    }

    /// Notes it.
    pub(super) fn write(&self, directory: &Directory) -> io::Result<()> {
        directory.write(FILE, &self.encode())
    }

    /// `users=ID` and `group=PATH`, each with a NUL behind it.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(id) = self.first_id {
            bytes.extend_from_slice(format!("users={id}\0").as_bytes());
        }
        for group in &self.groups {
            bytes.extend_from_slice(b"group=");
            bytes.extend_from_slice(group.as_os_str().as_bytes());
            bytes.push(0);
        }
        bytes
    }

    /// Groups that are not called `name` are none of the host's.
    fn decode(bytes: &[u8], name: &str) -> Self {
        let mut holdings = Self::default();
        for line in bytes.split(|byte| *byte == 0) {
            if let Some(path) = line.strip_prefix(b"group=") {
                let path = Path::new(OsStr::from_bytes(path));
                if path.is_absolute() && path.file_name() == Some(OsStr::new(name)) {
                    holdings.groups.push(path.to_owned());
                }
            } else if let Some(id) = line.strip_prefix(b"users=") {
                holdings.first_id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            }
        }
        holdings
    }
}

/// Something that a host has left on its machine.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Remainder {
    /// A domain's process, by its number, which does not end.
    Process(i32),
    /// A control group that has processes.
    Group(PathBuf),
}

impl fmt::Display for Remainder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Group(path) => write!(f, "control group {}", path.display()),
        }
    }
}

/// Ends what a broker has left that serves `host` no more; what cannot be ended.
///
/// # Errors
/// `WouldBlock` where a broker serves it, or what the system answered.
pub fn clear(host: &HostDir) -> io::Result<Vec<Remainder>> {
    let Some(directory) = Directory::find(host)? else { return Ok(Vec::new()) };
    let holdings = Holdings::read(&directory)?;
    let users = Users::again(holdings.first_id)?;
    let left = end(&directory.name, &holdings, users.as_ref(), &Connections::to_try());
    if left.is_empty() {
        Holdings::default().write(&directory)?;
    }
    Ok(left)
}

/// Ends what is left of the host that is called `name`; what cannot be ended.
pub(super) fn end(
    name: &str,
    holdings: &Holdings,
    users: Option<&Users>,
    connections: &Connections,
) -> Vec<Remainder> {
    if let Some(users) = users {
        connections.end_of_users(users);
    }
    let mut pids = BTreeSet::new();
    for (pid, number) in mounted(name) {
        connections.end_of_process(pid, number);
        // It was told when its broker died.
        let _ = kill_process(pid, Signal::KILL);
        pids.insert(pid.as_raw_nonzero().get());
    }
    let mut left = Vec::new();
    for group in &holdings.groups {
        left.extend(cgroup::clear_host(group).into_iter().map(Remainder::Group));
    }
    for group in &left {
        if let Remainder::Group(path) = group {
            pids.extend(cgroup::processes(path));
        }
    }
    let pids = pids.into_iter().filter(|pid| lives(*pid)).map(Remainder::Process);
    pids.chain(left).collect()
}

/// True while a process has a thread that has not ended: the first may have, and wait for others.
fn lives(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    })
}

/// Processes that have a mount of FUSE which is called `name`, with its connection's number.
fn mounted(name: &str) -> Vec<(Pid, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().into_vec();
        let pid = std::str::from_utf8(&number).ok().and_then(|number| number.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        found.extend(mounts.lines().find_map(|line| connection(line, name)).map(|at| (pid, at)));
    }
    found
}

/// The connection of a line of `mountinfo`, where it is the host's of this name.
fn connection(line: &str, name: &str) -> Option<u32> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let ours = right.next() == Some("fuse") && right.next() == Some(name);
    let device = left.split(' ').nth(2)?;
    ours.then(|| device.strip_prefix("0:")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holdings_round_trip_and_name_nothing_of_others() {
        let name = "xenbus-1-2";
        let groups = vec![PathBuf::from("/sys/fs/cgroup/a\nb/xenbus-1-2")];
        let holdings = Holdings { groups, first_id: Some(7) };
        assert_eq!(Holdings::decode(&holdings.encode(), name), holdings);
        let others = b"group=/sys/fs/cgroup/system.slice\0group=xenbus-1-2\0users=x\0rubbish";
        assert_eq!(Holdings::decode(others, name), Holdings::default());
        assert_eq!(Holdings::decode(b"", name), Holdings::default());
    }

    #[test]
    fn a_mount_is_told_by_its_name() {
        let line = "610 588 0:44 / /dev rw,nosuid - fuse xenbus-1-2 rw,user_id=1000";
        assert_eq!(connection(line, "xenbus-1-2"), Some(44));
        assert_eq!(connection(line, "xenbus-1-3"), None);
        assert_eq!(connection("22 1 8:1 / / rw - ext4 /dev/vda rw", "xenbus-1-2"), None);
    }
}
