//! The resizing of a disk.

use super::attached::AttachedDisk;
use crate::devices::ends::watched;
use crate::host::Host;
use crate::wait::Limit;
use crate::{Error, doctor, text};
use std::io::{Seek, SeekFrom};
use xenstore::Store;

/// Resizes a raw image, or tells the size that a block device has been given, and waits until the
/// guest has been told.
///
/// # Errors
/// A sentence: it is no raw image, it would become smaller, or the block device has another size.
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
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
    let is_file = file.metadata().map_err(Error::io(path))?.is_file();
    // The end of a block device is its size, too.
    let before = file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
    let why = match is_file {
        true if before > bytes => Some("a disk only grows"),
        false if before < bytes => {
            Some("enlarge the block device first, which the guest is told of then")
        }
        false if before > bytes => Some("a block device is passed on whole: give its own size"),
        _ => None,
    };
    if let Some(why) = why {
        let size = text::size(before);
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) has {size}, {before} bytes; {why}"
        )));
    }
    if is_file {
        file.set_len(bytes).map_err(Error::io(path))?;
    }
    let what = || format!("the backend tells the new size of disk {vdev}");
    let told = watched(host, &[&back], |host| {
        limit.until(&mut host.store, &what, |store| {
            let sectors = store.try_read(format!("{back}/sectors"))?;
            Ok((sectors == Some((bytes / 512).to_string().into_bytes())).then_some(()))
        })
    });
    told.map_err(|error| error.with_reason(|| doctor::reason(host, &disk.attached.device)))
}
