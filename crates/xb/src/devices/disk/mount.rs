//! A guest's disk mounted by the host's kernel, for guests whose configuration says `kernel_block=1`.
//!
//! Such a guest is trusted with the host's kernel: it chooses each byte that the kernel's file
//! system reads. Therefore only root can do it, and for no other guest.

use super::attached::AttachedDisk;
use crate::Error;
use crate::domain::Domain;
use crate::host::folder::Folder;
use crate::host::{Host, HostPlatform};
use crate::wait::Limit;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use xen::gnttab::PageAccess;
use xen_block::vbd;
use xen_hosted::domctl::process_number;
use xen_hosted::mount::{Error as MountError, LoopDevice, Step, unmount_in};
use xenstore::Store;

/// The folder in which a guest finds what was mounted for it.
pub const PLACE: &str = "/mnt";
/// The time between two looks for a file that is about to appear.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Mounts a disk of a guest at [`PLACE`] in it.
///
/// # Errors
/// A sentence: this guest or this user may not do it, or the kernel's error.
pub fn mount(
    host: &mut Host,
    domain: &Domain,
    disk: &AttachedDisk,
    fs_type: &str,
    limit: Limit,
) -> Result<(), Error> {
    let process = process(host, domain)?;
    // Two mounts at once would both find nothing mounted. The lock ends with this call.
    let _alone = host.folder().map(|folder| alone(folder, &domain.name)).transpose()?;
    unused(&process, &domain.name)?;
    let file = format!("/dev/{}", vbd::name(disk.number()));
    let access = if disk.mode.starts_with('w') { PageAccess::ReadWrite } else { PageAccess::Read };
    let said = |error: MountError| Error::Refused(format!("{}: {error}", domain.name));
    let device = loop {
        match LoopDevice::attach(process.as_fd(), &file, access) {
            // The guest's init is told of a disk at the same time as this process.
            Err(MountError { step: Step::File(_) | Step::Device(_), errno: Errno::NOENT }) => {
                let slice = limit.slice(&|| format!("{file} is there in {}", domain.name))?;
                std::thread::sleep(slice.min(LOOK_AGAIN));
            }
            attached => break attached.map_err(said)?,
        }
    };
    // The loop device goes with its last mount.
    device.mount(fs_type, access, PLACE).map_err(said)
}

/// Locks a guest against other mounts.
fn alone(folder: &Folder, name: &str) -> Result<File, Error> {
    let guest = folder.guest(name);
    let path = guest.path();
    let dir = File::open(path).map_err(Error::io(path.display()))?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(_) => Err(Error::Refused(format!(
            "another xb is creating {name} or mounting a disk in it at this moment; try again"
        ))),
    }
}

/// Refuses where something is mounted at [`PLACE`]: one disk mounted twice is two file systems on
/// the same bytes, each of which destroys the data of the other.
fn unused(process: &OwnedFd, name: &str) -> Result<(), Error> {
    let said = Error::io(format!("the mounts of {name}"));
    let mounts = process_number(process.as_fd()).map_err(std::io::Error::from).and_then(|pid| {
        std::fs::read_to_string(format!("/proc/{}/mountinfo", pid.as_raw_nonzero()))
    });
    // proc_pid_mountinfo(5): the fifth field is the path; the second behind the dash is the source.
    let mounts = mounts.map_err(said)?;
    let at = |line: &&str| line.split(' ').nth(4) == Some(PLACE);
    let Some(mounted) = mounts.lines().find(at) else { return Ok(()) };
    let source = mounted.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
    Err(Error::Refused(format!(
        "{name}: {} is mounted at {PLACE} in it already; xb disk unmount {name} unmounts it",
        source.unwrap_or("something")
    )))
}

/// Unmounts the disk that was mounted in a guest, after all of it was written.
///
/// # Errors
/// As [`mount`]; busy, where the guest uses the disk.
pub fn unmount(host: &mut Host, domain: &Domain) -> Result<(), Error> {
    let process = process(host, domain)?;
    let said = |error: MountError| Error::Refused(format!("{}: {error}", domain.name));
    unmount_in(process.as_fd(), PLACE).map_err(said)
}

/// Returns the first process of a guest that may have its disks mounted.
fn process(host: &mut Host, domain: &Domain) -> Result<OwnedFd, Error> {
    let (name, domid) = (&domain.name, domain.info.domid);
    let refused = |why: &str| Error::Refused(format!("{name}: {why}"));
    if !rustix::process::geteuid().is_root() {
        return Err(refused("only root may have the host's kernel mount a guest's disk"));
    }
    if host.store.try_read(format!("/libxl/{domid}/kernel-block"))?.as_deref() != Some(b"1") {
        let why =
            "its configuration does not say kernel_block=1, which trusts it with the host's kernel";
        return Err(refused(why));
    }
    let HostPlatform::Hosted { control, .. } = &mut host.platform else {
        return Err(refused("a guest of Xen mounts its disks itself"));
    };
    control.process(domid).map_err(Error::platform(format!("the process of {name}")))
}
