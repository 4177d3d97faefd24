//! The remains of a host. A broker records what it holds, so that the next broker, or the program
//! that takes the host down, finds and ends what is left after a broker that died or could not end
//! a domain. Nothing is identified by a name that others could use as well: a process is identified
//! by its number and its start.

use super::connections::FuseConnections;
use super::directory::Directory;
use super::process::ends_until;
use super::users::Users;
use crate::HostDir;
use crate::domain::cgroup;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xen::DomId;

/// The file in the host's directory that holds the record.
const FILE: &str = "holds";
/// The number of processes that may be added before the record is written without those that have
/// ended.
const ADDED_MAX: usize = 1024;
/// The time that a dead broker's processes may take to end.
const PROCESSES_END_WITHIN: Duration = Duration::from_secs(1);
/// The number of descendants of a domain's first process that are examined.
const DESCENDANTS_MAX: usize = 4096;

/// The identity of a domain's first process, which later processes with its number do not have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ProcessIdentity {
    pid: i32,
    /// The time from the machine's start to that of the process, in clock ticks.
    start: u64,
}

impl ProcessIdentity {
    /// Returns the identity of an existing process.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in brackets, which may contain anything; the start is the 22nd
        // field.
        let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// Opens a pidfd of the process, if it is still the same.
    fn open(self) -> Option<OwnedFd> {
        // The handle is opened before the check, so that the check is of the process of the handle.
        let pid = Pid::from_raw(self.pid)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        (Self::of(pid) == Some(self)).then_some(handle)
    }

    /// Formats `process=PID START`, with a NUL behind it.
    fn encode(self) -> Vec<u8> {
        format!("process={} {}\0", self.pid, self.start).into_bytes()
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (pid, start) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

/// Returns a name of the scope in which process numbers are valid: this boot of the machine, and
/// this namespace of processes.
fn stamp() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// The holdings of a broker. Each is recorded when it is taken, so that it is found whenever the
/// broker dies.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Holdings {
    /// The groups above those of its domains.
    pub(super) groups: Vec<PathBuf>,
    /// The first id of its domains' users.
    pub(super) first_id: Option<u32>,
    /// Its domains' first processes.
    pub(super) processes: BTreeSet<ProcessIdentity>,
    /// The number of processes that were added since the record was written as a whole.
    added: usize,
}

impl Holdings {
    /// Reads the record of the previous broker.
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

    /// Adds a process. Those that have ended stay in the file until they are the majority.
    pub(super) fn add_process(
        &mut self,
        process_identity: ProcessIdentity,
        directory: &Directory,
    ) -> io::Result<()> {
        self.processes.insert(process_identity);
        self.added += 1;
        if self.added <= self.processes.len().saturating_mul(2).max(ADDED_MAX) {
            return directory.append(FILE, &process_identity.encode());
        }
        self.added = 0;
        self.write(directory)
    }

    /// Empties the record, which needs no room on the disk.
    pub(super) fn forget(directory: &Directory) -> io::Result<()> {
        directory.remove(FILE)
    }

    /// Writes the whole record.
    pub(super) fn write(&self, directory: &Directory) -> io::Result<()> {
        directory.write(FILE, &self.encode())
    }

    /// Formats `where=STAMP`, `users=ID`, `group=PATH` and processes, each with a NUL behind it.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = format!("where={}\0", stamp()).into_bytes();
        if let Some(id) = self.first_id {
            bytes.extend_from_slice(format!("users={id}\0").as_bytes());
        }
        for group in &self.groups {
            bytes.extend_from_slice(b"group=");
            bytes.extend_from_slice(group.as_os_str().as_bytes());
            bytes.push(0);
        }
        bytes.extend(self.processes.iter().flat_map(|process_identity| process_identity.encode()));
        bytes
    }

    /// Parses a record. Groups that are not called `name` are not the host's; processes of another
    /// boot of the machine, or of another namespace of processes, are ignored.
    fn decode(bytes: &[u8], name: &str) -> Self {
        let mut holdings = Self::default();
        let mut is_here = false;
        for line in bytes.split(|byte| *byte == 0) {
            if let Some(path) = line.strip_prefix(b"group=") {
                let path = Path::new(OsStr::from_bytes(path));
                if path.is_absolute() && path.file_name() == Some(OsStr::new(name)) {
                    holdings.groups.push(path.to_owned());
                }
            } else if let Some(id) = line.strip_prefix(b"users=") {
                holdings.first_id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            } else if let Some(process) = line.strip_prefix(b"process=").filter(|_| is_here) {
                holdings.processes.extend(ProcessIdentity::decode(process));
            } else if let Some(of) = line.strip_prefix(b"where=") {
                is_here = of == stamp().as_bytes();
            }
        }
        holdings
    }
}

/// A thing that a host has left on its machine.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Remainder {
    /// A process of a domain, by its number, which does not end.
    Process(i32),
    /// A control group that still has processes.
    Group(PathBuf),
}

impl Remainder {
    /// Returns the number of the domain whose group it is.
    pub(super) fn domid(&self) -> Option<DomId> {
        match self {
            Self::Process(_) => None,
            Self::Group(path) => path.file_name()?.to_str()?.parse().ok().map(DomId),
        }
    }
}

impl fmt::Display for Remainder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Group(path) => write!(f, "control group {}", path.display()),
        }
    }
}

/// Ends what is left of a broker that no longer serves `host`. Returns what cannot be ended.
///
/// # Errors
/// `WouldBlock` where a broker serves it, or the system's error.
pub fn clear(host: &HostDir) -> io::Result<Vec<Remainder>> {
    let Some(directory) = Directory::find(host)? else { return Ok(Vec::new()) };
    let holdings = Holdings::read(&directory)?;
    let users = Users::reclaim(holdings.first_id)?;
    let left = end(&directory.name, &holdings, users.as_ref(), &FuseConnections::for_cleanup());
    if left.is_empty() {
        Holdings::forget(&directory)?;
    }
    Ok(left)
}

/// Ends what is left of the host that is called `name`. Returns what cannot be ended within a
/// second or two.
pub(super) fn end(
    name: &str,
    holdings: &Holdings,
    users: Option<&Users>,
    connections: &FuseConnections,
) -> Vec<Remainder> {
    if let Some(users) = users {
        connections.end_of_users(users);
    }
    let open = |process_identity: &ProcessIdentity| {
        process_identity.open().map(|handle| (*process_identity, handle))
    };
    let mut processes: Vec<(ProcessIdentity, OwnedFd)> =
        holdings.processes.iter().filter_map(open).collect();
    for (process_identity, handle) in &processes {
        for (task, number) in connections_of(process_identity.pid, name) {
            connections.end_of_task(&task, number);
        }
        // It got this signal when its broker died, unless it has changed its setting.
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
    let end = Instant::now() + PROCESSES_END_WITHIN;
    processes.retain(|(_, handle)| !ends_until(handle, end));
    let left = cgroup::clear_hosts(&holdings.groups);
    let processes = processes.iter().map(|(process_identity, _)| process_identity.pid);
    let in_groups = left.iter().flat_map(|group| cgroup::processes(group));
    let pids: BTreeSet<i32> = processes.chain(in_groups).collect();
    let pids = pids.into_iter().map(Remainder::Process);
    pids.chain(left.into_iter().map(Remainder::Group)).collect()
}

/// Returns the connections to FUSE of a process and its descendants, each with the folder in
/// `/proc` of a task that has it: the first threads may have ended, and wait for others.
fn connections_of(pid: i32, name: &str) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut processes = vec![pid];
    let mut looked = 0;
    while let Some(process) = processes.get(looked).copied().filter(|_| looked < DESCENDANTS_MAX) {
        looked += 1;
        let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        for task in tasks.map(|task| task.path()) {
            let mounts = fs::read_to_string(task.join("mountinfo")).unwrap_or_default();
            let number = mounts.lines().find_map(|line| connection(line, name));
            found.extend(number.map(|number| (task.clone(), number)));
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found
}

/// Returns the connection in a line of `mountinfo`, where it is of a domain's `/dev`, which only
/// its sandbox can mount.
fn connection(line: &str, name: &str) -> Option<u32> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let ours = right.next() == Some("fuse") && right.next() == Some(name);
    let mut left = left.split(' ').skip(2);
    let (device, root, at) = (left.next()?, left.next()?, left.next()?);
    (ours && root == "/" && at == "/dev").then(|| device.strip_prefix("0:")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holdings_round_trip_and_name_nothing_of_others() {
        let name = "xenbus-1-2";
        let groups = vec![PathBuf::from("/sys/fs/cgroup/a\nb/xenbus-1-2")];
        let processes = BTreeSet::from([ProcessIdentity { pid: 12, start: 34 }]);
        let holdings = Holdings { groups, first_id: Some(7), processes, added: 0 };
        assert_eq!(Holdings::decode(&holdings.encode(), name), holdings);
        // After another boot of the machine those numbers are of other processes.
        let before = String::from_utf8(holdings.encode()).unwrap().replace(&stamp(), "elsewhere");
        let before = Holdings::decode(before.as_bytes(), name);
        assert!(before.processes.is_empty() && before.groups == holdings.groups);
        let others =
            b"group=/sys/fs/cgroup/a.slice\0group=xenbus-1-2\0users=x\0process=x 1\0rubbish";
        assert_eq!(Holdings::decode(others, name), Holdings::default());
        assert_eq!(Holdings::decode(b"", name), Holdings::default());
    }

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let own = ProcessIdentity::of(rustix::process::getpid()).unwrap();
        assert!(own.open().is_some());
        assert!(ProcessIdentity { start: own.start + 1, ..own }.open().is_none());
    }

    #[test]
    fn a_mount_is_told_by_its_name_and_place() {
        let line = "610 588 0:44 / /dev rw,nosuid - fuse xenbus-1-2 rw,user_id=1000";
        assert_eq!(connection(line, "xenbus-1-2"), Some(44));
        assert_eq!(connection(line, "xenbus-1-3"), None);
        // Any process that may mount can make such a mount.
        assert_eq!(connection(&line.replace("/ /dev ", "/ /mnt/x "), "xenbus-1-2"), None);
        assert_eq!(connection("22 1 8:1 / / rw - ext4 /dev/vda rw", "xenbus-1-2"), None);
    }
}
