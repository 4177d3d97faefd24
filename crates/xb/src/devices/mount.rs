//! A guest's disk mounted by the host's kernel, for guests whose configuration says `kernel_block=1`.
//!
//! Such a guest is trusted with the host's kernel: it chooses each byte that the kernel's file system reads. So
//! nobody but root can do it, and for no other guest.

use super::Attached;
use crate::Error;
use crate::domain::{Domain, read};
use crate::host::{Host, Platform};
use crate::wait::Limit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use xen_block::disk::DiskAccess;
use xen_block::front::kernel::{LoopDevice, unmount_in};
use xen_block::vbd;

/// Where a guest finds what was mounted for it.
pub const PLACE: &str = "/mnt";
/// Between two looks for a file that is about to be there.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Mounts a disk of a guest at [`PLACE`] in it.
///
/// # Errors
/// A sentence: not this guest, not this user, or what the kernel said.
pub fn mount(
    host: &mut Host,
    domain: &Domain,
    disk: &Attached,
    fs_type: &str,
    limit: Limit,
) -> Result<(), Error> {
    let process = process(host, domain)?;
    let file = format!("/dev/{}", vbd::name(disk.device.id.devid));
    let access =
        if disk.mode.starts_with('w') { DiskAccess::ReadWrite } else { DiskAccess::ReadOnly };
    let said = |error: std::io::Error| Error::Refused(format!("{}: {error}", domain.name));
    let device = loop {
        match LoopDevice::attach(process.as_fd(), &file, access) {
            // Its init is told of a disk at the same time as everybody else.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && !error.to_string().contains("loop-control") =>
            {
                let slice = limit.slice(&|| format!("{file} is there in {}", domain.name))?;
                std::thread::sleep(slice.min(LOOK_AGAIN));
            }
            attached => break attached.map_err(said)?,
        }
    };
    // The device goes with the last mount of it.
    device.mount(fs_type, access, PLACE).map_err(said)
}

/// Unmounts what was mounted in a guest, all of it written.
///
/// # Errors
/// As [`mount`]; busy, where the guest uses it.
pub fn unmount(host: &mut Host, domain: &Domain) -> Result<(), Error> {
    let process = process(host, domain)?;
    let said = |error: std::io::Error| Error::Refused(format!("{}: {error}", domain.name));
    unmount_in(process.as_fd(), PLACE).map_err(said)
}

/// The first process of a guest that may have it.
fn process(host: &mut Host, domain: &Domain) -> Result<OwnedFd, Error> {
    let (name, domid) = (&domain.name, domain.info.domid);
    let refused = |why: &str| Error::Refused(format!("{name}: {why}"));
    if !rustix::process::geteuid().is_root() {
        return Err(refused("only root may have the host's kernel mount a guest's disk"));
    }
    if read(&mut host.store, &format!("/libxl/{domid}/kernel-block"))?.as_deref() != Some("1") {
        let why =
            "its configuration does not say kernel_block=1, which trusts it with the host's kernel";
        return Err(refused(why));
    }
    let Platform::Hosted { control, .. } = &mut host.platform else {
        return Err(refused("a guest of Xen mounts its disks itself"));
    };
    control.process(domid).map_err(Error::platform(format!("the process of {name}")))
}
