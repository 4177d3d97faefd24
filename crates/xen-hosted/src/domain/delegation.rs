//! The group above those of domains, in version 2 of control groups: its children get controllers
//! only while no process is in the group itself. The broker therefore moves to a leaf of it, and
//! moves the group's other processes there too where the group was delegated to them: systemd's
//! `Delegate=yes`, or a container's.

use rustix::fs::getxattr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The group that the broker moves to, with the processes of the group that it was started in.
const LEAF: &str = "xenbus-broker";
/// The prefix of the names of a broker's own groups, which no other group has.
const HOSTS: &str = "xenbus-";
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Returns the group to divide, given the group that a process is in. A process that was started by
/// another one in a leaf is in the leaf, too.
pub(super) fn group_to_divide(own: &Path) -> &Path {
    match own.parent() {
        Some(above) if own.file_name().is_some_and(|name| name == LEAF) => above,
        _ => own,
    }
}

/// True if the group that `base` is to be in can be given a controller for domains.
pub(super) fn has_controllers(base: &Path) -> bool {
    let file = base.with_file_name("cgroup.controllers");
    let have = fs::read_to_string(file).unwrap_or_default();
    have.split_whitespace().any(|name| CONTROLLERS.contains(&name))
}

/// Enables all available controllers for the groups below a host's `base`. Returns those that are
/// enabled.
pub(super) fn enable(base: &Path) -> Vec<String> {
    let own = base.parent().unwrap_or(base);
    for controller in CONTROLLERS {
        let enable = |group: &Path| {
            fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))
        };
        if enable(own).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy) {
            vacate(own);
            let _ = enable(own);
        }
        let _ = enable(base);
    }
    let have = fs::read_to_string(base.join("cgroup.subtree_control")).unwrap_or_default();
    have.split_whitespace().map(str::to_owned).collect()
}

/// Moves this process to the leaf, and all others of a delegated group too.
fn vacate(own: &Path) {
    let leaf = own.join(LEAF);
    let _ = fs::create_dir(&leaf);
    if is_delegated(own) {
        move_all(own, &leaf);
    } else {
        let _ = fs::write(leaf.join("cgroup.procs"), "0");
    }
}

/// True if its users may move everything in a group: systemd says so, or it is all that a container
/// has.
fn is_delegated(own: &Path) -> bool {
    let says = |name| {
        let mut value = [0; 2];
        getxattr(own, name, &mut value).is_ok_and(|len| value.get(..len) == Some(b"1"))
    };
    // The root of all groups has no type.
    let is_containers = || {
        let above = own.parent().is_some_and(|above| above.join("cgroup.procs").exists());
        own.join("cgroup.type").exists() && !above
    };
    says("user.delegate") || says("trusted.delegate") || is_containers()
}

/// Moves the processes of one group to another, also those that are created meanwhile.
fn move_all(from: &Path, to: &Path) {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        let inside = fs::read_to_string(from.join("cgroup.procs")).unwrap_or_default();
        if inside.trim().is_empty() {
            return;
        }
        for pid in inside.lines() {
            // The process may have ended.
            let _ = fs::write(to.join("cgroup.procs"), pid);
        }
    }
}

/// Undoes [`enable`] when a broker's own groups are gone: all processes that had to leave `own` are
/// moved back. While another broker has groups there, nothing is changed.
pub(super) fn leave(own: &Path) {
    let leaf = own.join(LEAF);
    if !leaf.exists() || has_hosts(own).unwrap_or(true) {
        return;
    }
    // A group with controllers for its children takes no processes.
    for controller in CONTROLLERS {
        let _ = fs::write(own.join("cgroup.subtree_control"), format!("-{controller}"));
    }
    move_all(&leaf, own);
    let _ = fs::remove_dir(&leaf);
}

/// True if a broker has groups in `own`.
fn has_hosts(own: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(own)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(HOSTS.as_bytes()) && name != LEAF {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_a_leaf_divides_the_group_above() {
        assert_eq!(group_to_divide(Path::new("/a/b")), Path::new("/a/b"));
        assert_eq!(group_to_divide(Path::new("/a/xenbus-broker")), Path::new("/a"));
        assert_eq!(group_to_divide(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn the_last_broker_alone_undoes_the_leaf() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path();
        fs::create_dir(own.join(LEAF)).unwrap();
        fs::create_dir(own.join("xenbus-1-2")).unwrap();
        leave(own);
        assert!(own.join(LEAF).exists(), "another host is left");
        fs::remove_dir(own.join("xenbus-1-2")).unwrap();
        leave(own);
        assert!(!own.join(LEAF).exists());
        let told = fs::read_to_string(own.join("cgroup.subtree_control")).unwrap();
        assert_eq!(told, "-pids", "its controllers are off");
    }
}
