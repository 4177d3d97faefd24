//! Limits and accounts of a domain's processes: control groups, version 2 where it has the
//! controller, else version 1.
//!
//! All domains of a host live below `xenbus-…` in the broker's own group, so all limits of the
//! broker apply to them too. Version 2 needs no controller for freezing and for processor time;
//! where version 1 has all the others, version 2 is not used.
//!
//! A domain of one task with the usual share has no processor group of its own but is in the group
//! of all domains ([`Share::OfTasks`]). There it gets the share that a group of its own would give
//! it, and the kernel changes no stack of run queues when it hands the processor to the next such
//! domain.

use super::delegation::{self, group_to_divide};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A use of a control group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GroupPurpose {
    Memory,
    Cpu,
    CpuTime,
    Tasks,
    Freeze,
}

/// The uses, with the controllers that version 2 and version 1 have for them.
const USES: [(GroupPurpose, Option<&str>, &str); 5] = [
    (GroupPurpose::Memory, Some("memory"), "memory"),
    (GroupPurpose::Cpu, Some("cpu"), "cpu"),
    (GroupPurpose::CpuTime, None, "cpuacct"),
    (GroupPurpose::Tasks, Some("pids"), "pids"),
    (GroupPurpose::Freeze, None, "freezer"),
];

/// The version of the interface of control groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CgroupVersion {
    One,
    Two,
}

/// A hierarchy in which domains get groups.
#[derive(Clone, Debug)]
struct Hierarchy {
    version: CgroupVersion,
    /// The group above those of the domains.
    base: PathBuf,
    uses: Vec<GroupPurpose>,
}

impl Hierarchy {
    /// Makes the group of a domain.
    fn make(&self, dir: &Path) -> io::Result<()> {
        let made = self.make_dir(dir);
        if made.is_ok() && self.version == CgroupVersion::Two {
            // No domain's pressure is read, and the kernel counts it at each switch of tasks. The
            // pressure of the broker's own group is still counted.
            for group in [self.base.as_path(), dir] {
                let _ = fs::write(group.join("cgroup.pressure"), "0");
            }
        }
        made
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The group above may be gone while no domain was in it: systemd removes empty
                // groups when the process ends with which it has started the broker.
                fs::create_dir(&self.base)?;
                if self.version == CgroupVersion::Two {
                    delegation::enable(&self.base);
                }
                fs::create_dir(dir)
            }
            made => made,
        }
    }
}

/// The weight and the cap of a group for which nothing was set, and of a task in a group of others.
const USUAL: (u16, u16) = (256, 0);

/// The source of a domain's share of the processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Share {
    /// A group of its own.
    OfGroup,
    /// The group of all domains, in which each task has the same share: for a domain of one task.
    OfTasks,
}

impl Share {
    /// Returns the share that suffices for a domain.
    pub(crate) fn of(tasks_max: u32, weight: u16, cap: u16) -> Self {
        if tasks_max == 1 && (weight, cap) == USUAL { Self::OfTasks } else { Self::OfGroup }
    }
}

/// The limits that this machine lets the broker set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// A line of /proc/self/mountinfo that is about control groups.
struct CgroupMount {
    at: PathBuf,
    root: PathBuf,
    kind: CgroupVersion,
    controllers: Vec<String>,
}

fn mounted(line: &str) -> Option<CgroupMount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, at) = (left.next()?.into(), left.next()?.into());
    let mut right = right.split(' ');
    let kind = match right.next()? {
        "cgroup" => CgroupVersion::One,
        "cgroup2" => CgroupVersion::Two,
        _ => return None,
    };
    let controllers = right.nth(1)?.split(',').map(str::to_owned).collect();
    Some(CgroupMount { at, root, kind, controllers })
}

/// Returns the group of this process in the hierarchy with `controller`; version 2 has an empty
/// controller.
fn own_group(text: &str, controller: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let found = fields.next()?.split(',').any(|name| name == controller);
        found.then(|| fields.next().map(PathBuf::from))?
    })
}

impl Cgroups {
    /// Finds the hierarchies, and makes a group called `name` in each. `note` is called with each
    /// group before it is made.
    pub(crate) fn find(name: &str, mut note: impl FnMut(&Path)) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts: Vec<CgroupMount> = mounts.lines().filter_map(mounted).collect();
        let mut found = Self::default();
        let mut wanted: Vec<GroupPurpose> = USES.iter().map(|row| row.0).collect();
        for mount in mounts.iter().filter(|mount| mount.kind == CgroupVersion::Two) {
            let own = own_group(&own, "");
            let Some(base) = base(mount, own.as_deref().map(group_to_divide), name) else {
                continue;
            };
            let older = |controller| {
                mounts.iter().any(|m| {
                    m.kind == CgroupVersion::One && m.controllers.iter().any(|c| c == controller)
                })
            };
            if !delegation::has_controllers(&base) && older("cpuacct") && older("freezer") {
                // Version 2 is not used beside version 1: a group in it would cost more than its
                // remaining uses are worth.
                continue;
            }
            note(&base);
            if !made(&base) {
                continue;
            }
            let have = delegation::enable(&base);
            let uses: Vec<GroupPurpose> = USES
                .iter()
                .filter(|(_, needs, _)| needs.is_none_or(|needs| have.iter().any(|h| h == needs)))
                .map(|row| row.0)
                .collect();
            wanted.retain(|wanted| !uses.contains(wanted));
            found.hierarchies.push(Hierarchy { version: CgroupVersion::Two, base, uses });
        }
        for (purpose, _, controller) in USES {
            if !wanted.contains(&purpose) {
                continue;
            }
            let holds =
                |mount: &&CgroupMount| mount.controllers.iter().any(|has| has == controller);
            let Some(mount) = mounts.iter().filter(|m| m.kind == CgroupVersion::One).find(holds)
            else {
                continue;
            };
            let own = own_group(&own, controller);
            let Some(base) = base(mount, own.as_deref(), name) else { continue };
            match found.hierarchies.iter_mut().find(|known| known.base == base) {
                Some(known) => known.uses.push(purpose),
                None => {
                    note(&base);
                    if made(&base) {
                        let (version, uses) = (CgroupVersion::One, vec![purpose]);
                        found.hierarchies.push(Hierarchy { version, base, uses });
                    }
                }
            }
        }
        found
    }

    /// Removes the host's own groups, once no domain is left.
    pub(crate) fn remove(&self) {
        for hierarchy in &self.hierarchies {
            let _ = fs::remove_dir(&hierarchy.base);
            if hierarchy.version == CgroupVersion::Two
                && let Some(own) = hierarchy.base.parent()
            {
                delegation::leave(own);
            }
        }
    }

    fn has(&self, purpose: GroupPurpose) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.uses.contains(&purpose))
    }

    /// Returns which limits there are: memory, processor time, tasks, the freezer, and accounting.
    pub(crate) fn bounds(&self) -> [bool; 5] {
        let [memory, cpu, tasks, freeze] =
            [GroupPurpose::Memory, GroupPurpose::Cpu, GroupPurpose::Tasks, GroupPurpose::Freeze]
                .map(|purpose| self.has(purpose));
        [memory, cpu, tasks, freeze, memory && self.has(GroupPurpose::CpuTime)]
    }

    /// True if a domain of one task needs no group of its own here. The conditions: the hierarchy
    /// is of version 1 and bounds nothing else; another group ensures that there is one task; and a
    /// task counts as much as a group, which it does unless the broker was started with `nice`.
    fn shares_by_task(&self, hierarchy: &Hierarchy) -> bool {
        hierarchy.version == CgroupVersion::One
            && hierarchy.uses == [GroupPurpose::Cpu]
            && self.has(GroupPurpose::Tasks)
            && rustix::process::getpriority_process(None) == Ok(0)
    }

    /// Makes the groups of a domain.
    ///
    /// # Errors
    /// The error of mkdir(2) or open(2); nothing is left then.
    pub(crate) fn create(&self, name: &str, share: Share) -> io::Result<Group> {
        let mut group = Group { dirs: Vec::new(), join: Vec::new(), into: None, share_later: None };
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.base.join(name);
            if share == Share::OfTasks && self.shares_by_task(hierarchy) {
                let tasks = hierarchy.base.join("tasks");
                group.join.push(fs::File::options().write(true).open(tasks)?.into());
                group.share_later = Some(dir);
                continue;
            }
            if let Err(error) = hierarchy.make(&dir) {
                group.remove();
                return Err(error);
            }
            group.dirs.push((hierarchy.version, dir.clone(), hierarchy.uses.clone()));
            let opened = match hierarchy.version {
                CgroupVersion::Two => fs::File::open(&dir).map(|dir| group.into = Some(dir.into())),
                CgroupVersion::One => fs::File::options()
                    .write(true)
                    .open(dir.join("tasks"))
                    .map(|tasks| group.join.push(tasks.into())),
            };
            if let Err(error) = opened {
                group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }
}

/// Ends the processes in hosts' groups of a dead broker, and removes the groups, within a second.
/// Returns the groups that are left.
pub(crate) fn clear_hosts(bases: &[PathBuf]) -> Vec<PathBuf> {
    const TRIES: u32 = 100;
    let mut left: Vec<PathBuf> = Vec::new();
    for base in bases.iter().filter(|base| base.exists()) {
        let below = fs::read_dir(base).into_iter().flatten().flatten();
        left.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
        // After those below it; domains of one task may be in it themselves.
        left.push(base.clone());
    }
    for again in 0..TRIES {
        if again > 0 && !left.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        left.retain(|group| !clear(group));
    }
    for own in bases.iter().filter(|base| !left.contains(base)).filter_map(|base| base.parent()) {
        // In version 1 there is nothing to undo.
        delegation::leave(own);
    }
    left
}

/// Ends all processes in a group and removes it. Returns true if the group is gone.
fn clear(group: &Path) -> bool {
    // Each file is written where it exists: version 2, or the freezer of version 1.
    for (file, word) in [("cgroup.freeze", "0"), ("cgroup.kill", "1"), ("freezer.state", "THAWED")]
    {
        let _ = write_there(&group.join(file), word);
    }
    for pid in processes(group).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
    fs::remove_dir(group).map_or_else(|error| error.kind() == ErrorKind::NotFound, |()| true)
}

/// Writes into a file that exists already.
fn write_there(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::File::options().write(true).open(path)?, text.as_bytes())
}

/// Returns the numbers of the processes in a group.
pub(crate) fn processes(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the host's group in a mounted hierarchy.
fn base(mount: &CgroupMount, own: Option<&Path>, name: &str) -> Option<PathBuf> {
    let own = own?;
    let below = own.strip_prefix(&mount.root).ok()?;
    Some(mount.at.join(below).join(name))
}

fn made(base: &Path) -> bool {
    match fs::create_dir(base) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::AlreadyExists,
    }
}

/// The groups of one domain.
#[derive(Debug)]
pub(crate) struct Group {
    dirs: Vec<(CgroupVersion, PathBuf, Vec<GroupPurpose>)>,
    /// Files of version 1: a process that writes 0 into them joins the group.
    join: Vec<OwnedFd>,
    /// The group of version 2 that the first process is created in.
    into: Option<OwnedFd>,
    /// The processor group that is made when the domain's share becomes other than that of its
    /// task.
    share_later: Option<PathBuf>,
}

impl Group {
    /// Takes the means by which the domain's first process joins: the files to write `0` to, and
    /// the group to be created in. They are needed once.
    pub(crate) fn entrances(&mut self) -> (Vec<OwnedFd>, Option<OwnedFd>) {
        (std::mem::take(&mut self.join), self.into.take())
    }

    fn file(
        &self,
        purpose: GroupPurpose,
        one: &str,
        two: &str,
    ) -> Option<(CgroupVersion, PathBuf)> {
        let (version, dir, _) = self.dirs.iter().find(|(.., uses)| uses.contains(&purpose))?;
        let name = if *version == CgroupVersion::One { one } else { two };
        Some((*version, dir.join(name)))
    }

    fn write(
        &self,
        purpose: GroupPurpose,
        one: (&str, String),
        two: (&str, String),
    ) -> io::Result<()> {
        match self.file(purpose, one.0, two.0) {
            Some((CgroupVersion::One, path)) => fs::write(path, one.1),
            Some((CgroupVersion::Two, path)) => fs::write(path, two.1),
            None => Ok(()),
        }
    }

    fn read(&self, purpose: GroupPurpose, one: &str, two: &str) -> Option<(CgroupVersion, String)> {
        let (version, path) = self.file(purpose, one, two)?;
        Some((version, fs::read_to_string(path).ok()?))
    }

    /// Limits the domain's memory.
    ///
    /// # Errors
    /// The error of write(2): `EBUSY` where the domain has more already.
    pub(crate) fn set_memory(&self, bytes: u64) -> io::Result<()> {
        if let Some((CgroupVersion::Two, used)) =
            self.read(GroupPurpose::Memory, "", "memory.current")
            && used.trim().parse::<u64>().is_ok_and(|used| used > bytes)
        {
            // Version 2 would accept the limit and kill processes until it holds.
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::BUSY.raw_os_error()));
        }
        let text = bytes.to_string();
        let two = ("memory.max", text.clone());
        self.write(GroupPurpose::Memory, ("memory.limit_in_bytes", text), two)?;
        if let Some((CgroupVersion::Two, swap)) =
            self.file(GroupPurpose::Memory, "", "memory.swap.max")
            && swap.exists()
        {
            // Swapped memory would not count against the limit. Without swap there is no such file.
            fs::write(swap, "0")?;
        }
        Ok(())
    }

    /// Limits the number of tasks.
    ///
    /// # Errors
    /// The error of write(2).
    pub(crate) fn set_tasks(&self, tasks: u32) -> io::Result<()> {
        let text = tasks.to_string();
        self.write(GroupPurpose::Tasks, ("pids.max", text.clone()), ("pids.max", text))
    }

    /// Sets the share of the processors: Xen's weight 256 is 1024 shares of version 1, and a weight
    /// of 100 of version 2. `cap` is in hundredths of a processor; 0 is no limit. `first` is the
    /// domain's first process, if there is one that has not ended.
    ///
    /// # Errors
    /// The error of write(2) or mkdir(2).
    pub(crate) fn set_cpu(&mut self, weight: u16, cap: u16, first: Option<Pid>) -> io::Result<()> {
        if (weight, cap) != USUAL
            && let Some(dir) = self.share_later.take()
        {
            fs::create_dir(&dir)?;
            self.dirs.push((CgroupVersion::One, dir.clone(), vec![GroupPurpose::Cpu]));
            if let Some(pid) = first {
                fs::write(dir.join("tasks"), pid.as_raw_nonzero().to_string())?;
            }
        }
        self.write_cpu(weight, cap)
    }

    fn write_cpu(&self, weight: u16, cap: u16) -> io::Result<()> {
        const PERIOD_US: u64 = 100_000;
        let shares = (u64::from(weight) * 4).max(2);
        let weight = (u64::from(weight) * 100 / 256).clamp(1, 10_000);
        self.write(
            GroupPurpose::Cpu,
            ("cpu.shares", shares.to_string()),
            ("cpu.weight", weight.to_string()),
        )?;
        let quota = u64::from(cap) * PERIOD_US / 100;
        let (one, two) = match quota {
            0 => ("-1".to_owned(), format!("max {PERIOD_US}")),
            quota => (quota.to_string(), format!("{quota} {PERIOD_US}")),
        };
        self.write(GroupPurpose::Cpu, ("cpu.cfs_quota_us", one), ("cpu.max", two))
    }

    /// Returns the processor time used, in ns.
    pub(crate) fn cpu_time_ns(&self) -> Option<u64> {
        let (version, text) = self.read(GroupPurpose::CpuTime, "cpuacct.usage", "cpu.stat")?;
        match version {
            CgroupVersion::One => text.trim().parse().ok(),
            CgroupVersion::Two => {
                let us = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                Some(us.trim().parse::<u64>().ok()?.saturating_mul(1000))
            }
        }
    }

    /// Returns the memory in use, in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        let (_, text) =
            self.read(GroupPurpose::Memory, "memory.usage_in_bytes", "memory.current")?;
        text.trim().parse().ok()
    }

    /// Returns the memory in use that the kernel cannot reclaim at once, in bytes: without inactive
    /// pages of files.
    pub(crate) fn memory_needed(&self) -> Option<u64> {
        let used = self.memory()?;
        let (_, text) = self.read(GroupPurpose::Memory, "memory.stat", "memory.stat")?;
        let inactive = |line: &str| {
            let name = ["total_inactive_file ", "inactive_file "];
            name.iter().find_map(|name| line.strip_prefix(name))?.trim().parse::<u64>().ok()
        };
        Some(used.saturating_sub(text.lines().filter_map(inactive).max().unwrap_or(0)))
    }

    /// Stops all processes, or lets them continue. Returns false where there is no freezer.
    ///
    /// # Errors
    /// The error of write(2).
    pub(crate) fn set_frozen(&self, frozen: bool) -> io::Result<bool> {
        let one = if frozen { "FROZEN" } else { "THAWED" };
        let two = if frozen { "1" } else { "0" };
        let two = ("cgroup.freeze", two.to_owned());
        self.write(GroupPurpose::Freeze, ("freezer.state", one.to_owned()), two)?;
        Ok(self.file(GroupPurpose::Freeze, "", "").is_some())
    }

    /// Removes the groups, which are empty once the domain's first process has been waited for.
    /// Returns the groups that are left.
    pub(crate) fn remove(&mut self) -> Vec<PathBuf> {
        self.join.clear();
        self.into = None;
        self.dirs.retain(|(_, dir, _)| {
            fs::remove_dir(dir).is_err_and(|error| error.kind() != ErrorKind::NotFound)
        });
        self.dirs.iter().map(|(_, dir, _)| dir.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_own_groups_are_read() {
        let line = "33 24 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        let mount = mounted(line).unwrap();
        assert!(mount.kind == CgroupVersion::One && mount.at == Path::new("/sys/fs/cgroup/memory"));
        assert!(mount.controllers.iter().any(|name| name == "memory"));
        let own = "4:cpu,cpuacct:/a\n3:memory:/b/c\n0::/u\n";
        assert_eq!(own_group(own, "memory"), Some("/b/c".into()));
        assert_eq!(own_group(own, "cpuacct"), Some("/a".into()));
        assert_eq!(own_group(own, ""), Some("/u".into()));
        let at = base(&mount, own_group(own, "memory").as_deref(), "x").unwrap();
        assert_eq!(at, Path::new("/sys/fs/cgroup/memory/b/c/x"));
        assert!(mounted("22 1 8:1 / / rw - ext4 /dev/vda rw").is_none());
    }

    /// Makes a folder with these files that stands for a group of version 2.
    fn group_of(files: &[(&str, &str)]) -> (tempfile::TempDir, Group) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let uses = USES.map(|row| row.0).to_vec();
        let dirs = vec![(CgroupVersion::Two, dir.path().to_owned(), uses)];
        (dir, Group { dirs, join: Vec::new(), into: None, share_later: None })
    }

    #[test]
    fn version_2_is_told_bounds_in_its_own_words() {
        let files = [
            ("memory.current", "4096\n"),
            ("memory.swap.max", "max\n"),
            ("cpu.stat", "usage_usec 7\nuser_usec 5\n"),
        ];
        let (dir, mut group) = group_of(&files);
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        group.set_memory(8192).unwrap();
        assert_eq!((read("memory.max"), read("memory.swap.max")), ("8192".into(), "0".into()));
        // The kernel would kill processes until the limit holds.
        let busy = group.set_memory(4095).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::ResourceBusy);
        assert_eq!(read("memory.max"), "8192");
        group.set_tasks(3).unwrap();
        assert_eq!(read("pids.max"), "3");
        group.set_cpu(512, 50, None).unwrap();
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("200".into(), "50000 100000".into()));
        group.set_cpu(1, 0, None).unwrap();
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("1".into(), "max 100000".into()));
        assert_eq!(group.set_frozen(true).ok(), Some(true));
        assert_eq!(read("cgroup.freeze"), "1");
        assert_eq!((group.cpu_time_ns(), group.memory()), (Some(7000), Some(4096)));
    }

    #[test]
    fn one_task_with_the_usual_share_needs_no_group() {
        assert_eq!(Share::of(1, 256, 0), Share::OfTasks);
        for (tasks, weight, cap) in [(2, 256, 0), (1, 255, 0), (1, 256, 1)] {
            assert_eq!(Share::of(tasks, weight, cap), Share::OfGroup);
        }
    }
}
