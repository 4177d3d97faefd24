//! The packages of Debian's that the lab consists of, and the root that they are unpacked into.

use crate::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release of Debian; the lab is made for its Xen, its kernel and its QEMU.
pub(super) const SUITE: &str = "bookworm";
/// The version in the name of the folder of Xen's programs.
pub(super) const XEN: &str = "4.17";

/// Packages that are fetched with all their dependencies: QEMU, the tools that make and check
/// images, and the user space of dom0 and of guests.
pub(super) const WITH_DEPENDENCIES: &[&str] = &[
    "qemu-system-x86",
    "seabios",
    "xz-utils",
    "zstd",
    "e2fsprogs",
    "qemu-utils",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "busybox-static",
    "bash",
    "bsdutils",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "fio",
    "grep",
    "gzip",
    "iproute2",
    "kmod",
    "libc-bin",
    "mawk",
    "sed",
    "systemd",
    "sysvinit-utils",
    "util-linux",
];
/// Packages that are fetched alone: the lab does the work of their dependencies.
pub(super) const ALONE: &[&str] = &["xen-hypervisor-4.17-amd64"];
/// A package that depends on the current kernel's package.
pub(super) const KERNEL: &str = "linux-image-amd64";
/// The source package that has upstream's systemd units, which Debian does not ship.
pub(super) const SOURCE: &str = "xen";
/// The units, below `tools/hotplug/Linux/systemd` of that source, to be filled in as `configure`
/// does.
pub(super) const UNITS: &[&str] = &["xenstored.service.in", "proc-xen.mount.in"];

/// Returns a command for a program of the unpacked packages, run by their own loader with their own
/// libraries.
pub(super) fn program(root: &Path, path: &str) -> Command {
    let mut command = Command::new(root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(libraries(root)).arg(root.join(path));
    command
}

/// Returns the library path for `ld.so`: the folders of the packages' libraries.
pub(super) fn libraries(root: &Path) -> String {
    let main = root.join("usr/lib/x86_64-linux-gnu");
    let more = ["ceph", "pulseaudio", "systemd"];
    let all = std::iter::once(main.clone()).chain(more.iter().map(|name| main.join(name)));
    all.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

/// Returns the kernel's version, which is the name of its folder of modules.
pub(super) fn kernel_version(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/modules");
    let names = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => Err(format!("{} does not hold the modules of one kernel", folder.display()).into()),
    }
}

/// Returns the path of a file of the kernel or of Xen.
pub(super) fn boot_file(root: &Path, name: &str) -> PathBuf {
    root.join("boot").join(name)
}
