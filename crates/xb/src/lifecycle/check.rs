//! The checks of a guest's description, before anything of the guest is created.

use super::program;
use crate::config::disk::name_all;
use crate::config::{Description, Setting};
use crate::devices::BackendChoiceError;
use crate::devices::disk::{self, AttachableDisk};
use crate::host::saved_config;
use crate::{Error, text};
use xen_hosted::gnttab::MEMORY_MIN;

/// Checks all that can be checked without a host. Returns the disks that can be served, and each
/// reason for which [`create`](super::create::create) refuses the guest.
#[must_use]
pub fn check(description: &Description, settings: &[Setting]) -> (Vec<AttachableDisk>, Vec<Error>) {
    let (mut disks, mut faults) = (Vec::new(), Vec::new());
    if let Some(ramdisk) = &description.ramdisk {
        let why = "hosted guests have no ramdisk; leave the key out";
        faults.push(Error::Refused(format!("ramdisk = \"{}\": {why}", text::clean(ramdisk))));
    }
    faults.extend(memory(description).err());
    if let Some(kernel) = &description.kernel {
        faults.extend(program::open(kernel).err());
    }
    let mut specs = description.disks.clone();
    name_all(&mut specs);
    for spec in &specs {
        if spec.backend.as_ref() == Some(&description.name) {
            let domain = description.name.clone();
            faults.push(BackendChoiceError::Itself { domain }.into());
        }
        match disk::prepare(spec, disk::HostKind::Hosted, &description.directory) {
            Ok(disk) => disks.push(disk),
            Err(fault) => faults.push(fault),
        }
    }
    faults.extend(saved_config::check(description, settings).err());
    (disks, faults)
}

/// Refuses more memory than this machine has, and less than a guest needs.
fn memory(description: &Description) -> Result<(), Error> {
    let needed = MEMORY_MIN.div_ceil(1 << 20);
    if description.memory_mib < needed {
        let has = description.memory_mib;
        return Err(Error::Refused(format!("memory = {has}: a hosted guest needs {needed} MiB")));
    }
    let machine = rustix::system::sysinfo();
    let bytes = machine.totalram.saturating_mul(u64::from(machine.mem_unit));
    // Zero where the system does not say it.
    if bytes == 0 || description.memory_mib <= bytes >> 20 {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "memory = {}: this machine has {} MiB",
        description.memory_mib,
        bytes >> 20
    )))
}
