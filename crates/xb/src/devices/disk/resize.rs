//! The resizing of a disk.

use super::attached::AttachedDisk;
use crate::devices::ends::watched;
use crate::host::Host;
use crate::wait::Limit;
use crate::{Error, text};
use xenstore::Store;

/// Resizes a raw image, and waits until the guest has been told.
///
/// # Errors
/// A sentence: it is no raw image, or it would become smaller.
pub fn resize(host: &mut Host, disk: &AttachedDisk, bytes: u64, limit: Limit) -> Result<(), Error> {
    let vdev = &disk.vdev;
    let path = disk.target.trim_start_matches("raw:").trim_start_matches("aio:");
    if !path.starts_with('/') || !bytes.is_multiple_of(512) {
        let why = "only raw images are resized, to a multiple of 512 bytes";
        return Err(Error::Refused(format!("disk {vdev} ({}): {why}", disk.target)));
    }
    let back = disk.attached.device.backend_path();
    let physical = host.store.try_read(format!("{back}/physical-sector-size"))?;
    let physical = physical.and_then(|size| xen_io::xenbus::number(&size)).unwrap_or(512_u64);
    if physical > 0 && !bytes.is_multiple_of(physical) {
        let whole = bytes.next_multiple_of(physical);
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) is served in whole sectors of {physical} bytes: {bytes} is none, {whole} is"
        )));
    }
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
    let before = file.metadata().map_err(Error::io(path))?;
    if !before.is_file() || before.len() > bytes {
        let size = text::size(before.len());
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) has {size}; files alone are resized, and only grow"
        )));
    }
    file.set_len(bytes).map_err(Error::io(path))?;
    let what = || format!("the backend tells the new size of disk {vdev}");
    watched(host, &[&back], |host| {
        limit.until(&mut host.store, &what, |store| {
            let sectors = store.try_read(format!("{back}/sectors"))?;
            Ok((sectors == Some((bytes / 512).to_string().into_bytes())).then_some(()))
        })
    })
}
