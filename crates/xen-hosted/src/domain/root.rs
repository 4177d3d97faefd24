//! A domain's root: an empty file system with mounts of all that the domain may see.

use super::config::{Devices, DomainConfig, Files, PROGRAMS};
use super::script::Script;
use crate::sys;
use rustix::fs::{Mode, OFlags, mkdir, open, symlink};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount,
    open_tree,
};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The path at which the new root is assembled, inside the domain's own mount namespace.
pub(super) const ROOT: &str = "/tmp";
/// Folders of the host that hold programs and libraries, or links that select between them.
pub(super) const SYSTEM: [&str; 7] =
    ["usr", "bin", "sbin", "lib", "lib64", "lib32", "etc/alternatives"];

/// Assembles the domain's root at [`ROOT`]: an empty file system with the files that the domain may
/// see, and its program, if that is a script.
pub(super) fn build(config: &DomainConfig, script: Option<&OwnedFd>) -> Result<(), Errno> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    // Kept open: the files to be mounted may lie below the path of the new root.
    let host = open("/", OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    let programs = open_programs(config)?;
    let script = script.map(Script::text).transpose()?;
    let size = 16 + script.as_ref().map_or(0, |text| text.len().div_ceil(4096) * 4);
    let options = CString::new(format!("size={size}k,nr_inodes=64,mode=0755"));
    let options = options.map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("domain", ROOT, "tmpfs", flags, options.as_c_str())?;
    if config.devices != Devices::None {
        for name in ["dev", "mnt", "tmp"] {
            mkdir(format!("{ROOT}/{name}"), Mode::from_raw_mode(0o755))?;
        }
    }
    if config.files == Files::System {
        mkdir(format!("{ROOT}/etc"), Mode::from_raw_mode(0o755))?;
        for name in SYSTEM {
            let (from, to) = (format!("/{name}"), format!("{ROOT}/{name}"));
            match rustix::fs::readlink(&from, Vec::new()) {
                Ok(target) => symlink(target, &to)?,
                Err(Errno::INVAL) => {
                    mkdir(&to, Mode::from_raw_mode(0o755))?;
                    rustix::mount::mount_bind_recursive(&from, &to)?;
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    if !programs.is_empty() {
        mkdir(format!("{ROOT}{PROGRAMS}"), Mode::from_raw_mode(0o755))?;
    }
    for (name, program) in &programs {
        let to = format!("{ROOT}{PROGRAMS}/{name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(open(&to, flags, Mode::from_raw_mode(0o755))?);
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(program, "", rustix::fs::CWD, &to, empty)?;
    }
    if let Some(text) = &script {
        Script::put(ROOT, text)?;
    }
    drop(host);
    let root = CString::new(ROOT).map_err(|_| Errno::INVAL)?;
    sys::add_mount_attributes(
        &root,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    )
}

/// Opens the further programs of a domain, each as a mount of its own, by their names.
fn open_programs(config: &DomainConfig) -> Result<Vec<(String, OwnedFd)>, Errno> {
    if config.files != Files::System {
        return Ok(Vec::new());
    }
    let open = |path: &OsString| {
        let name = Path::new(path).file_name().and_then(OsStr::to_str).ok_or(Errno::INVAL)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok((name.to_owned(), open_tree(rustix::fs::CWD, path, flags)?))
    };
    config.programs.iter().map(open).collect()
}

/// Mounts the writable file system for the sockets of the domain's devices and for its programs'
/// files.
pub(super) fn mount_tmp() -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = c"size=16m,nr_inodes=1024,mode=1777";
    rustix::mount::mount("domain", format!("{ROOT}/tmp"), "tmpfs", flags, options)
}

/// Makes [`ROOT`] the root, and detaches the host's.
pub(super) fn enter() -> Result<(), Errno> {
    rustix::process::chdir(ROOT)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
        // The host's root is the first root of its kernel, which cannot be unmounted: it is
        // covered, as switch_root(8) does. No path leads out of the covering mount, and a process
        // without capabilities can neither uncover it nor leave by another chroot(2).
        Err(Errno::INVAL) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(errno) => return Err(errno),
    }
    rustix::process::chdir("/")
}
