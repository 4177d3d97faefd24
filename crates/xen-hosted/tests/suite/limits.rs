//! The limits set in control groups, and their effect, in version 1 and in version 2, whichever the
//! machine has. `cargo xtask xen` runs these tests where there is version 2 alone.

use crate::support::puppet::Puppet;
use crate::support::{self, BrokerHost, ended, playing, until};
use std::fs;
use std::path::{Path, PathBuf};
use xen::domctl::{DomainControl, RunState, Scheduling};
use xen::domwatch::ShutdownReason;
use xen::{DomId, Error};
use xen_hosted::domain::MissingFeature;
use xen_hosted::domctl::Control;

/// The groups of one domain.
struct Groups {
    /// Those of version 1, by controller.
    one: Vec<(String, PathBuf)>,
    two: Option<PathBuf>,
}

impl Groups {
    fn of(control: &mut Control, domid: DomId) -> Self {
        let pid = support::pid_of(&control.process(domid).unwrap());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let mounted = |kind: &str, option: &str| {
            let mount = mounts.iter().find(|mount| {
                mount[2] == kind && (kind == "cgroup2" || mount[3].split(',').any(|o| o == option))
            });
            mount.map(|mount| PathBuf::from(mount[1]))
        };
        let mut groups = Self { one: Vec::new(), two: None };
        for line in fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().lines() {
            let fields: Vec<&str> = line.splitn(3, ':').collect();
            let at = |mount: PathBuf| mount.join(fields[2].trim_start_matches('/'));
            if fields[1].is_empty() {
                groups.two = mounted("cgroup2", "").map(at);
                continue;
            }
            for controller in fields[1].split(',') {
                let dir = mounted("cgroup", controller).map(at);
                groups.one.extend(dir.map(|dir| (controller.to_owned(), dir)));
            }
        }
        groups
    }

    /// Returns the file `two` of version 2 where the controller is there, or else `one` of a
    /// controller of version 1.
    fn file(&self, controller: &str, one: &str, two: &str) -> (u32, PathBuf) {
        let file = self.two.as_ref().map(|dir| dir.join(two)).filter(|file| file.exists());
        let older = self.one.iter().find(|(name, _)| name == controller);
        let older = older.map(|(_, dir)| (1, dir.join(one)));
        file.map(|file| (2, file)).or(older).expect("there is some version")
    }

    /// Reads that file.
    fn read(&self, controller: &str, one: &str, two: &str) -> (u32, String) {
        let (version, file) = self.file(controller, one, two);
        let said = fs::read_to_string(&file);
        let said = said.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (version, said.trim().to_owned())
    }

    /// Reads a number in a list of `name number`.
    fn counted(&self, controller: &str, one: (&str, &str), two: (&str, &str)) -> u64 {
        let (version, said) = self.read(controller, one.0, two.0);
        let name = if version == 1 { one.1 } else { two.1 };
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{controller}: no {name} in {said}")).parse().unwrap()
    }

    /// Returns the folders of the domain's groups, and of its host's above them.
    fn folders(&self) -> Vec<PathBuf> {
        let dirs = self.one.iter().map(|(_, dir)| dir).chain(&self.two);
        let of_host = |dir: &&PathBuf| dir.parent().is_some_and(is_a_hosts);
        dirs.filter(of_host).flat_map(|dir| [dir.clone(), dir.parent().unwrap().into()]).collect()
    }
}

fn is_a_hosts(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("xenbus-"))
}

/// Makes a host and a domain with limits of its own; `None` where the machine has no groups for
/// them.
fn bounded(
    config: impl FnOnce(&mut xen_hosted::domain::DomainConfig),
) -> Option<(BrokerHost, Puppet)> {
    let host = BrokerHost::start();
    let mut asked = playing("puppet");
    config(&mut asked);
    let guest = Puppet::start_with(&mut host.control(), &asked);
    let needed = [
        MissingFeature::MemoryLimit,
        MissingFeature::CpuLimit,
        MissingFeature::TaskLimit,
        MissingFeature::Freezer,
        MissingFeature::Accounting,
    ];
    let lacks: Vec<MissingFeature> =
        needed.into_iter().filter(|lack| guest.created.lacks.contains(lack)).collect();
    if !lacks.is_empty() {
        conformance::skip("control groups", &format!("this broker may make none: {lacks:?}"));
        return None;
    }
    Some((host, guest))
}

/// Returns the limit of a group for a domain of `mib` MiB: the domain's first arena is charged to
/// it in full, with three pages of entries.
fn beside_its_arena(mib: u64) -> String {
    ((mib << 20) - (4 << 20) - 3 * 4096).to_string()
}

#[test]
fn what_is_asked_for_is_in_the_groups() {
    let Some((host, mut guest)) = bounded(|config| {
        config.memory_max_kib = 32 * 1024;
        config.tasks_max = 7;
        config.weight = 512;
        config.cap = 50;
    }) else {
        return;
    };
    let (mut control, domid) = (host.control(), guest.domid());
    let groups = Groups::of(&mut control, domid);
    let memory = || groups.read("memory", "memory.limit_in_bytes", "memory.max").1;
    let weight = || groups.read("cpu", "cpu.shares", "cpu.weight");
    let cap = || groups.read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(memory(), beside_its_arena(32));
    assert_eq!(groups.read("pids", "pids.max", "pids.max").1, "7");
    let (version, said) = weight();
    assert_eq!(said, ["2048", "200"][version as usize - 1]);
    let (version, said) = cap();
    assert_eq!(said, ["50000", "50000 100000"][version as usize - 1]);
    control.set_memory_max(domid, 48 * 1024).unwrap();
    assert_eq!(memory(), beside_its_arena(48));
    control.set_scheduling(domid, Scheduling { weight: 128, cap: 0 }).unwrap();
    let (version, said) = weight();
    assert_eq!(said, ["512", "50"][version as usize - 1]);
    let (version, said) = cap();
    assert_eq!(said, ["-1", "max 100000"][version as usize - 1]);
    // Less than it has is refused, and kills nobody.
    assert_eq!(guest.ask("hold 16"), "done");
    assert_eq!(control.set_memory_max(domid, 12 * 1024), Err(Error::Busy));
    assert_eq!(memory(), beside_its_arena(48));
    control.pause(domid).unwrap();
    until("it is frozen", || {
        let (version, said) = groups.read("freezer", "freezer.state", "cgroup.events");
        if version == 1 { said == "FROZEN" } else { said.contains("frozen 1") }
    });
    control.unpause(domid).unwrap();
    assert_eq!(guest.ask("alloc 0"), "3", "it goes on");
}

#[test]
fn who_needs_more_memory_than_it_may_have_is_killed_and_the_groups_go() {
    let Some((host, mut guest)) = bounded(|config| config.memory_max_kib = 32 * 1024) else {
        return;
    };
    let (mut control, domid) = (host.control(), guest.domid());
    let groups = Groups::of(&mut control, domid);
    let kills = || {
        let (one, two) = (("memory.oom_control", "oom_kill"), ("memory.events", "oom_kill"));
        groups.counted("memory", one, two)
    };
    assert_eq!(guest.ask("memory 16"), "all of it");
    assert_eq!(kills(), 0);
    guest.tell("memory 64");
    assert_eq!(guest.hear(), None);
    let state = ended(&mut control, domid).state;
    assert_eq!(state, RunState::Shutdown(ShutdownReason::Crash));
    assert_eq!(kills(), 1, "by the bound of its group");
    control.destroy(domid).unwrap();
    let folders = groups.folders();
    assert!(!folders.is_empty());
    until("it is gone", || control.list().unwrap().len() == 1);
    for own in folders.iter().step_by(2) {
        assert!(!own.exists(), "{} is left", own.display());
    }
    drop(host);
    for folder in folders {
        assert!(!folder.exists(), "{} is left", folder.display());
        let leaf = folder.parent().unwrap().join("xenbus-broker");
        assert!(!leaf.exists(), "{} is left", leaf.display());
    }
}

#[test]
fn who_forks_without_end_has_as_many_tasks_as_it_may_have() {
    let Some((host, mut guest)) = bounded(|config| config.tasks_max = 20) else { return };
    let (mut control, domid) = (host.control(), guest.domid());
    let groups = Groups::of(&mut control, domid);
    // It has two by itself: the test's thread and that of the runner.
    let forks = guest.ask("fork-all");
    assert_eq!(forks, "18 WouldBlock");
    let tasks = groups.read("pids", "pids.current", "pids.current").1;
    assert_eq!(tasks, "20");
    control.destroy(domid).unwrap();
    until("they are gone, all twenty", || control.list().unwrap().len() == 1);
}
