//! The group above those of domains, in version 2 of control groups: its children get controllers only while no process
//! is in the group itself. So the broker moves on to a leaf of it, and takes the group's other processes
//! with it where the group was given to them to divide: systemd's `Delegate=yes`, or a container's.

use rustix::fs::getxattr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The group that those move to which the broker was started among.
const LEAF: &str = "xenbus-broker";
/// What a broker's own groups begin with, and no other's.
const HOSTS: &str = "xenbus-";
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The group to divide, of the one that a process is in: who was started by somebody in a leaf is there, too.
pub(super) fn group_to_divide(own: &Path) -> &Path {
    match own.parent() {
        Some(above) if own.file_name().is_some_and(|name| name == LEAF) => above,
        _ => own,
    }
}

/// Whether the group that `base` is to be in may be given any controller for domains.
pub(super) fn has_controllers(base: &Path) -> bool {
    let file = base.with_file_name("cgroup.controllers");
    let have = fs::read_to_string(file).unwrap_or_default();
    have.split_whitespace().any(|name| CONTROLLERS.contains(&name))
}

/// Enables what can be enabled for the groups below `base`, a host's; says what is.
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

/// Moves this process to the leaf, and all others of a group that was delegated.
fn vacate(own: &Path) {
    let leaf = own.join(LEAF);
    let _ = fs::create_dir(&leaf);
    if is_delegated(own) {
        move_all(own, &leaf);
    } else {
        let _ = fs::write(leaf.join("cgroup.procs"), "0");
    }
}

/// Whether all that is in a group is its users' to move: systemd says so, or it is all that a container has.
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

/// Moves the processes of one group to another, those included that are born meanwhile.
fn move_all(from: &Path, to: &Path) {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        let inside = fs::read_to_string(from.join("cgroup.procs")).unwrap_or_default();
        if inside.trim().is_empty() {
            return;
        }
        for pid in inside.lines() {
            // It may have ended.
            let _ = fs::write(to.join("cgroup.procs"), pid);
        }
    }
}

/// Undoes [`enable`] when a broker's own groups are gone: all who had to leave `own` are back in it. While another broker has
/// groups there, all stays as it is.
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

/// Whether a broker has groups in `own`.
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
        let own = std::env::temp_dir().join(format!("xen-hosted-leaf-{}", std::process::id()));
        let _ = fs::remove_dir_all(&own);
        fs::create_dir_all(own.join(LEAF)).unwrap();
        fs::create_dir(own.join("xenbus-1-2")).unwrap();
        leave(&own);
        assert!(own.join(LEAF).exists(), "another host is left");
        fs::remove_dir(own.join("xenbus-1-2")).unwrap();
        leave(&own);
        assert!(!own.join(LEAF).exists());
        let told = fs::read_to_string(own.join("cgroup.subtree_control")).unwrap();
        assert_eq!(told, "-pids", "its controllers are off");
        fs::remove_dir_all(own).unwrap();
    }
}
