//! The traces that a host leaves on a machine while it is up, found from outside without asking
//! `xb`.
//!
//! A guest lives in namespaces of its own, and the things that it has made there name nothing of
//! the host. Things that can be of any host (loop devices, interfaces, control groups) are
//! therefore compared as a whole. Other tests run on the same machine: their traces go while this
//! test waits, and those of its own host do not.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest time that traces which are about to go, or of another test, may be seen.
const WITHIN: Duration = Duration::from_secs(60);

/// The traces on a machine: a line for each, which another one never has again.
pub(crate) type Traces = BTreeSet<String>;

/// Returns the traces that were not there before and do not go.
pub(crate) fn remaining(folder: &Path, before: &Traces) -> Traces {
    let end = Instant::now() + WITHIN;
    let mut left: Traces = of(folder).difference(before).cloned().collect();
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
        let now = of(folder);
        left.retain(|trace| now.contains(trace));
    }
    left
}

/// Lists everything that names this folder, and everything that could be of a host in it.
pub(crate) fn of(folder: &Path) -> Traces {
    let mut traces = Traces::new();
    let name = folder.to_str().unwrap();
    let mut namespaces = BTreeSet::new();
    let mut others = BTreeSet::new();
    for process in entries(Path::new("/proc")) {
        let Some(Ok(pid)) = process.file_name().map(|pid| pid.to_string_lossy().parse::<u32>())
        else {
            continue;
        };
        let command = text(&process.join("cmdline")).replace('\0', " ");
        if is_of(&process, name) && pid != std::process::id() && !command.contains("host down") {
            traces.insert(format!("process {pid}, begun at {}: {command}", start_time(&process)));
        } else {
            let paths = command.split(' ').filter(|word| word.starts_with('/'));
            others.extend(paths.filter_map(|path| group_of(Path::new(path))));
        }
        if namespaces.insert(std::fs::read_link(process.join("ns/mnt")).ok()) {
            let mounts = text(&process.join("mountinfo"));
            let of_folder = mounts.lines().filter(|line| line.contains(name));
            traces.extend(of_folder.map(|line| format!("mount {line}")));
        }
    }
    for device in entries(Path::new("/sys/block")) {
        if device.join("loop").exists() {
            // A counter that increases at each attach: the same device is not the same trace.
            let times = text(&device.join("diskseq"));
            traces.insert(format!("loop device {} {}", device.display(), times.trim()));
        }
    }
    for interface in entries(Path::new("/sys/class/net")) {
        let number = text(&interface.join("ifindex"));
        traces.insert(format!("interface {} {}", interface.display(), number.trim()));
    }
    groups(&others, &mut traces);
    traces
}

/// True if a process is of this folder: by its arguments, or by its open files, as guests print
/// into the folder.
fn is_of(process: &Path, name: &str) -> bool {
    let names = |file: &str| text(&process.join(file)).contains(name);
    let opened = || {
        let links = entries(&process.join("fd")).into_iter();
        let mut links = links.filter_map(|link| std::fs::read_link(link).ok());
        links.any(|link| link.to_string_lossy().contains(name))
    };
    names("cmdline") || text(&process.join("environ")).contains(&format!("={name}/h")) || opened()
}

/// Returns the start of a process, in clock ticks: its number may be reused.
fn start_time(process: &Path) -> String {
    let stat = text(&process.join("stat"));
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(19).unwrap_or_default().to_owned()
}

/// Returns the name of a broker's control groups, from its directory.
fn group_of(host: &Path) -> Option<String> {
    let meta = std::fs::metadata(host).ok().filter(std::fs::Metadata::is_dir)?;
    Some(format!("xenbus-{:x}-{:x}", meta.dev(), meta.ino()))
}

/// Lists brokers' control groups, except those of other hosts: hosts that are up, and hosts that
/// were started in another place than this test, as brokers make theirs below their own group.
fn groups(others: &BTreeSet<String>, traces: &mut Traces) {
    let mounts = Path::new("/sys/fs/cgroup");
    let mut found = Vec::new();
    groups_below(mounts, &mut found);
    let text = text(Path::new("/proc/self/cgroup"));
    let own: Vec<&str> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let is_here = |above: &Path| {
        above == mounts
            || above.parent() == Some(mounts)
            || own.iter().any(|own| *own != "/" && above.to_string_lossy().ends_with(own))
    };
    let elsewhere: BTreeSet<_> = found
        .iter()
        .filter(|path| !path.parent().is_some_and(is_here))
        .filter_map(|path| path.file_name().map(std::ffi::OsStr::to_owned))
        .collect();
    for path in found {
        let Some(name) = path.file_name() else { continue };
        if !elsewhere.contains(name) && !others.contains(name.to_string_lossy().as_ref()) {
            let number = std::fs::metadata(&path).map_or(0, |meta| meta.ino());
            traces.insert(format!("control group {} {number}", path.display()));
        }
    }
}

/// Finds the groups of brokers below one.
fn groups_below(group: &Path, found: &mut Vec<PathBuf>) {
    for path in entries(group).into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The group with all brokers of a group, on version 2, is no host's.
        if name.starts_with("xenbus-") && name != "xenbus-broker" {
            found.push(path);
        } else {
            groups_below(&path, found);
        }
    }
}

/// Reads a file; empty where it cannot be read.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The paths in a folder.
pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A planted trace, removed when it is dropped.
struct PlantedTrace<'a>(&'a str, Vec<&'a str>);

impl Drop for PlantedTrace<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new(self.0).args(&self.1).output();
    }
}

#[test]
fn what_is_left_behind_is_found() {
    use std::process::{Command, Stdio};
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let found = |kind: &str, before: &Traces| {
        let now = of(folder);
        assert!(
            now.difference(before).any(|trace| trace.starts_with(kind)),
            "{kind}: {now:#?}, before {before:#?}"
        );
    };
    let before = of(folder);
    let output = std::fs::File::create(folder.join("output")).unwrap();
    let mut guest = Command::new("sleep").arg("1000").stdout(output).spawn().unwrap();
    found("process", &before);
    guest.kill().unwrap();
    guest.wait().unwrap();
    if !rustix::process::geteuid().is_root() {
        return conformance::skip("what_is_left_behind_is_found", "only root can plant the rest");
    }
    let at = folder.to_str().unwrap();
    let mounted = format!("mkdir {at}/m && mount -t tmpfs none {at}/m && echo done && exec cat");
    let mut apart = Command::new("unshare");
    apart.args(["-m", "sh", "-c", &mounted]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut apart = apart.spawn().unwrap();
    std::io::Read::read_exact(apart.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    found("mount", &before);
    drop(apart.stdin.take());
    apart.wait().unwrap();
    let group = Path::new("/sys/fs/cgroup/xenbus-0-planted");
    if std::fs::create_dir(group).is_ok() {
        found("control group", &before);
        std::fs::remove_dir(group).unwrap();
    }
    let image = folder.join("image");
    std::fs::write(&image, [0; 4096]).unwrap();
    let looped = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
    let device = String::from_utf8(looped.stdout).unwrap();
    if looped.status.success() {
        let _planted = PlantedTrace("losetup", vec!["-d", device.trim()]);
        found("loop device", &before);
    }
    let link = ["link", "add", "xbplanted", "type", "veth", "peer", "name", "xbplanted1"];
    if Command::new("ip").args(link).status().is_ok_and(|status| status.success()) {
        let _planted = PlantedTrace("ip", vec!["link", "del", "xbplanted"]);
        found("interface", &before);
    }
    assert_eq!(remaining(folder, &before), Traces::new());
}
