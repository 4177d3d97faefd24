//! The disks of the boots `block` and `speed`: made before it, checked after it, both with Debian's tools outside of Xen.
//!
//! | disk of dom0 | what is on it |
//! |---|---|
//! | `/dev/vda` | `root.img`: the root file system of a guest, by the recipe `root.files` |
//! | `/dev/vdb` | `disks.img`: a file system for dom0's `/disks`, with the images of [`CHECKED`] and `second.qcow2` |

use super::fetch;
use super::image::Image;
use super::lab::{Lab, say};
use super::packages::program;
use crate::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In the order of dom0's disks.
pub(super) const DRIVES: &[&str] = &["root.img", "disks.img"];
/// Images on `disks.img` that guests have as their root; the second one has the first one behind it.
const CHECKED: &[&str] = &["root.qcow2", "over.qcow2"];
/// Sizes, as mke2fs and qemu-img take them.
const ROOT: &str = "256M";
const DISKS: &str = "768M";
const SECOND: &str = "64M";

/// Makes the disks anew.
pub(super) fn make(lab: &Lab) -> Result<()> {
    let images = lab.dir.join("images");
    let (system, disks) = (images.join("root.d"), images.join("disks.d"));
    for folder in [&system, &disks] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    Image::read(lab, "root")?.tree.unpack(&system)?;
    let root = images.join("root.img");
    file_system(lab, &system, &root, ROOT)?;
    let mut convert = tool(lab, "usr/bin/qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&root).arg(disks.join(CHECKED[0]));
    fetch::output(&mut convert)?;
    for arguments in [
        ["-b", CHECKED[0], "-F", "qcow2", CHECKED[1]].as_slice(),
        ["second.qcow2", SECOND].as_slice(),
    ] {
        let mut create = tool(lab, "usr/bin/qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(arguments).current_dir(&disks);
        fetch::output(&mut create)?;
    }
    file_system(lab, &disks, &images.join("disks.img"), DISKS)?;
    say(&format!("disks: {}", DRIVES.join(", ")));
    Ok(())
}

/// How the guests that used the disks have ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Guests {
    /// In order: their file systems are as after an unmount.
    Ended,
    /// One was lost: its file system's journal is written back first, and then all must be in order.
    Crashed,
}

/// What is wrong with the disks, now that nobody uses them any more.
pub(super) fn check(lab: &Lab, guests: Guests) -> Vec<String> {
    let images = lab.dir.join("images");
    let mut faults = Vec::new();
    let mut note = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            faults.push(format!("{name}: {error}"));
        }
    };
    for name in DRIVES {
        note(name, fsck(lab, &images.join(name), guests));
    }
    for name in CHECKED {
        note(name, check_qcow2(lab, &images, name, guests));
    }
    faults
}

/// Takes an image out of `disks.img`, and checks it and the file system in it.
fn check_qcow2(lab: &Lab, images: &Path, name: &str, guests: Guests) -> Result<()> {
    let taken = images.join("taken");
    fs::create_dir_all(&taken)?;
    let mut dump = tool(lab, "usr/sbin/debugfs");
    dump.arg("-R").arg(format!("dump /{name} {name}")).arg(images.join("disks.img"));
    fetch::output(dump.current_dir(&taken))?;
    let mut check = tool(lab, "usr/bin/qemu-img");
    fetch::output(check.args(["check", "-q", "-f", "qcow2", name]).current_dir(&taken))?;
    let raw = taken.join("raw");
    let mut convert = tool(lab, "usr/bin/qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw", name]).arg(&raw).current_dir(&taken);
    fetch::output(&mut convert)?;
    fsck(lab, &raw, guests)
}

/// `e2fsck -f`, which changes nothing: a file system that was unmounted needs nothing, not even its journal.
fn fsck(lab: &Lab, image: &Path, guests: Guests) -> Result<()> {
    if guests == Guests::Crashed {
        let mut replay = tool(lab, "usr/sbin/e2fsck");
        // Nobody is there to be asked.
        fetch::output(replay.args(["-y", "-E", "journal_only"]).arg(image))?;
    }
    let output = tool(lab, "usr/sbin/e2fsck").arg("-fn").arg(image).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    if output.status.success() && !text.contains("skipping journal recovery") {
        return Ok(());
    }
    Err(format!("e2fsck -fn ends with {}: {text}", output.status).into())
}

/// A file system with what is in `folder`.
fn file_system(lab: &Lab, folder: &Path, image: &Path, size: &str) -> Result<()> {
    if image.exists() {
        fs::remove_file(image)?;
    }
    let mut make = tool(lab, "usr/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(folder).arg(image).arg(size);
    fetch::output(&mut make).map(drop)
}

/// A program of the packages, run here.
fn tool(lab: &Lab, path: &str) -> Command {
    let root: PathBuf = lab.root();
    let mut command = program(&root, path);
    // They look there, and do without.
    command.env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf")).env_remove("LD_LIBRARY_PATH");
    command
}
