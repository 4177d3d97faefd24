//! The disks of the boots `block`, `driver` and `speed`, made before the boot and checked after it,
//! with Debian's tools and without Xen. Each boot has its own, as two run at once.
//!
//! | disk of dom0 | contents |
//! |---|---|
//! | `/dev/vda` | `root.img`: the root file system of a guest, by the recipe `root.files` |
//! | `/dev/vdb` | `disks.img`: a file system for dom0's `/disks`, with the images of [`CHECKED`] and `second.qcow2` |

use super::image::Image;
use super::lab::{Lab, say};
use super::packages::program;
use crate::{Result, command};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The disks of dom0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BootDisks {
    /// Only its memory.
    None,
    /// The root file system of a guest.
    Root,
    /// The root file system of a guest, and a disk with images of others.
    Images,
}

impl BootDisks {
    /// Returns the images, in the order of dom0's disks.
    fn drives(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Root => &DRIVES[..1],
            Self::Images => DRIVES,
        }
    }
}

/// All images, in the order of dom0's disks.
const DRIVES: &[&str] = &["root.img", "disks.img"];
/// Images on `disks.img` that guests have as their root; the backing file of the second is the
/// first.
const CHECKED: &[&str] = &["root.qcow2", "over.qcow2"];
/// Sizes, in the format of mke2fs and qemu-img.
const ROOT: &str = "256M";
const DISKS: &str = "768M";
const SECOND: &str = "64M";

/// Returns the folder of a boot's images.
fn folder(lab: &Lab, boot: &str) -> PathBuf {
    lab.dir.join("images/disks").join(boot)
}

/// Returns the files of a boot's disks, in their order.
pub(super) fn files(lab: &Lab, boot: &str, disks: BootDisks) -> Vec<PathBuf> {
    disks.drives().iter().map(|name| folder(lab, boot).join(name)).collect()
}

/// Makes the disks of a boot anew.
pub(super) fn make(lab: &Lab, boot: &str, disks: BootDisks) -> Result<()> {
    let images = folder(lab, boot);
    if images.exists() {
        fs::remove_dir_all(&images)?;
    }
    if disks == BootDisks::None {
        return Ok(());
    }
    let system = images.join("root.d");
    fs::create_dir_all(&system)?;
    Image::read(lab, "root")?.tree.unpack(&system)?;
    let root = images.join("root.img");
    file_system(lab, &system, &root, ROOT)?;
    if disks == BootDisks::Images {
        make_images(lab, &images, &root)?;
    }
    say(&format!("disks of {boot}: {}", disks.drives().join(", ")));
    Ok(())
}

/// Makes the disk with images.
fn make_images(lab: &Lab, images: &Path, root: &Path) -> Result<()> {
    let disks = images.join("disks.d");
    fs::create_dir_all(&disks)?;
    let mut convert = tool(lab, "usr/bin/qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(root).arg(disks.join(CHECKED[0]));
    command::output(&mut convert)?;
    for arguments in [
        ["-b", CHECKED[0], "-F", "qcow2", CHECKED[1]].as_slice(),
        ["second.qcow2", SECOND].as_slice(),
    ] {
        let mut create = tool(lab, "usr/bin/qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(arguments).current_dir(&disks);
        command::output(&mut create)?;
    }
    file_system(lab, &disks, &images.join("disks.img"), DISKS)
}

/// The end of the guests that used the disks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestExit {
    /// All ended in order: their file systems are as after an unmount.
    Ended,
    /// One was lost: its file system's journal is written back first, and then all must be in
    /// order.
    Crashed,
}

/// Returns the faults of a boot's disks, which must no longer be in use.
pub(super) fn check(lab: &Lab, boot: &str, disks: BootDisks, guests: GuestExit) -> Vec<String> {
    let images = folder(lab, boot);
    let mut faults = Vec::new();
    let mut note = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            faults.push(format!("{name}: {error}"));
        }
    };
    for name in disks.drives() {
        note(name, fsck(lab, &images.join(name), guests));
    }
    for name in CHECKED.iter().filter(|_| disks == BootDisks::Images) {
        note(name, check_qcow2(lab, &images, name, guests));
    }
    faults
}

/// Takes an image out of `disks.img`, and checks it and its file system.
fn check_qcow2(lab: &Lab, images: &Path, name: &str, guests: GuestExit) -> Result<()> {
    let taken = images.join("taken");
    fs::create_dir_all(&taken)?;
    let mut dump = tool(lab, "usr/sbin/debugfs");
    dump.arg("-R").arg(format!("dump /{name} {name}")).arg(images.join("disks.img"));
    command::output(dump.current_dir(&taken))?;
    let mut check = tool(lab, "usr/bin/qemu-img");
    command::output(check.args(["check", "-q", "-f", "qcow2", name]).current_dir(&taken))?;
    let raw = taken.join("raw");
    let mut convert = tool(lab, "usr/bin/qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw", name]).arg(&raw).current_dir(&taken);
    command::output(&mut convert)?;
    fsck(lab, &raw, guests)
}

/// Runs `e2fsck -f`, which changes nothing: a file system that was unmounted needs no repair, not
/// even from its journal.
fn fsck(lab: &Lab, image: &Path, guests: GuestExit) -> Result<()> {
    if guests == GuestExit::Crashed {
        let mut replay = tool(lab, "usr/sbin/e2fsck");
        // No user is there to answer questions.
        command::output(replay.args(["-y", "-E", "journal_only"]).arg(image))?;
    }
    let output = tool(lab, "usr/sbin/e2fsck").arg("-fn").arg(image).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    if output.status.success() && !text.contains("skipping journal recovery") {
        return Ok(());
    }
    Err(format!("e2fsck -fn ends with {}: {text}", output.status).into())
}

/// Makes a file system with the contents of `folder`.
fn file_system(lab: &Lab, folder: &Path, image: &Path, size: &str) -> Result<()> {
    if image.exists() {
        fs::remove_file(image)?;
    }
    let mut make = tool(lab, "usr/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(folder).arg(image).arg(size);
    command::output(&mut make).map(drop)
}

/// Returns a command for a program of the packages, which runs on this machine.
fn tool(lab: &Lab, path: &str) -> Command {
    let root: PathBuf = lab.root();
    let mut command = program(&root, path);
    // The programs look for these, and work without them.
    command.env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf")).env_remove("LD_LIBRARY_PATH");
    command
}
