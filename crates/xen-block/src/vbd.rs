//! A disk as a toolstack adds it: its number, and the nodes of both ends as libxl writes them.
//!
//! Source: `docs/misc/vbd-interface.txt`; `device_disk_add` in `tools/libs/light/libxl_disk.c`.

use crate::disk::DiskAccess;
use xen::DomId;
use xen_io::blkif::names;
use xenbus::Id;
use xenbus::toolstack::NewDevice;

pub use xen_driver::frontend::buffers::Trust;

/// A disk for a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vbd {
    /// The guest.
    pub frontend: DomId,
    /// The domain that serves it.
    pub backend: DomId,
    /// The backend's kind: `vbd` or `qdisk`.
    pub backend_kind: String,
    /// The device's name in the guest: `xvda`, `sda1`, `hdc`, `d0p1`.
    pub vdev: String,
    /// The disk that is served: [`crate::disk::target`].
    pub target: String,
    /// The guest's access.
    pub access: DiskAccess,
    /// The guest's trust in the backend.
    pub trust: Trust,
}

/// Returns the number of a virtual device: the value of `virtual-device`, and the last part of its
/// paths.
///
/// # Errors
/// The name is not valid.
pub fn number(vdev: &str) -> Result<u32, String> {
    let wrong = || format!("{vdev:?} is no virtual disk: xvda, xvda1, sda, hda or d0p1 are");
    let (kind, disk, partition) = split(vdev).ok_or_else(wrong)?;
    let number = match kind {
        "hd" if disk < 4 && partition < 64 => {
            let major = if disk < 2 { 3 } else { 22 };
            major << 8 | (disk & 1) << 6 | partition
        }
        "sd" if disk < 16 && partition < 16 => 8 << 8 | disk << 4 | partition,
        "xvd" | "d" if disk < 16 && partition < 16 => 202 << 8 | disk << 4 | partition,
        "xvd" | "d" if disk < 1 << 20 && partition < 256 => 1 << 28 | disk << 8 | partition,
        _ => return Err(wrong()),
    };
    Ok(number)
}

/// Returns the name of the virtual device with this number, as [`number`] reads it; `d0` and `xvda`
/// are one device.
#[must_use]
pub fn name(devid: u32) -> String {
    let (kind, disk, partition) = match (devid >> 28, devid >> 8) {
        (0, 3) => ("hd", devid >> 6 & 1, devid & 63),
        (0, 22) => ("hd", 2 + (devid >> 6 & 1), devid & 63),
        (0, 8) => ("sd", devid >> 4 & 15, devid & 15),
        (0, 202) => ("xvd", devid >> 4 & 15, devid & 15),
        (1, _) => ("xvd", devid >> 8 & 0xf_ffff, devid & 255),
        // A number of no known kind still gets a name of its own.
        _ => return format!("vbd{devid}"),
    };
    let mut letters = Vec::new();
    let mut left = disk + 1;
    while left > 0 {
        left -= 1;
        letters.insert(0, char::from(b'a' + (left % 26) as u8));
        left /= 26;
    }
    let letters: String = letters.into_iter().collect();
    if partition == 0 { format!("{kind}{letters}") } else { format!("{kind}{letters}{partition}") }
}

/// Splits a name into its kind and the numbers of the disk and of the partition, 0 for the whole
/// disk.
fn split(vdev: &str) -> Option<(&str, u32, u32)> {
    let decimal = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit())
            && text.len() <= 7
            && (text == "0" || !text.starts_with('0'));
        if plain { text.parse::<u32>().ok() } else { None }
    };
    for kind in ["xvd", "hd", "sd"] {
        let Some(rest) = vdev.strip_prefix(kind) else { continue };
        let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        let (letters, digits) = rest.split_at(end);
        if letters.is_empty() || letters.len() > 4 {
            return None;
        }
        // a to z, aa to zz: numbers to the base of 26 without a zero.
        let disk = letters.bytes().fold(0, |sum, byte| sum * 26 + u32::from(byte - b'a') + 1) - 1;
        let partition = if digits.is_empty() { 0 } else { decimal(digits).filter(|n| *n > 0)? };
        return Some((kind, disk, partition));
    }
    let rest = vdev.strip_prefix('d')?;
    let (disk, partition) = rest.split_once('p').unwrap_or((rest, "0"));
    Some(("d", decimal(disk)?, decimal(partition)?))
}

impl Vbd {
    /// Returns the device's nodes, for [`xenbus::toolstack::add`].
    ///
    /// # Errors
    /// `vdev` is not the name of a disk.
    pub fn device(&self) -> Result<NewDevice, String> {
        let devid = number(&self.vdev)?;
        let id = Id { frontend: self.frontend, devid };
        let mut device = NewDevice::new("vbd", id, self.backend);
        device.backend_kind.clone_from(&self.backend_kind);
        let nodes = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mode = if self.access == DiskAccess::ReadWrite { "w" } else { "r" };
        let kind = if self.backend_kind == "qdisk" { "qdisk" } else { "phy" };
        device.backend_nodes = nodes(&[
            ("params", &self.target),
            ("removable", "0"),
            ("bootable", "1"),
            ("dev", &self.vdev),
            ("type", kind),
            ("mode", mode),
            ("device-type", "disk"),
            ("discard-enable", "1"),
        ]);
        let trusted = if self.trust == Trust::Trusted { "1" } else { "0" };
        device.frontend_nodes = nodes(&[
            (names::VIRTUAL_DEVICE, &devid.to_string()),
            ("device-type", "disk"),
            ("trusted", trusted),
        ]);
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_document() {
        for (vdev, wanted) in [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("d0", 51712),
            ("d0p1", 51713),
            ("d16p2", 1 << 28 | 16 << 8 | 2),
            ("hda", 768),
            ("hdb1", 833),
            ("hdc", 5632),
            ("hdd", 5696),
            ("sda", 2048),
            ("sdb2", 2066),
        ] {
            assert_eq!(number(vdev), Ok(wanted), "{vdev}");
            let again = name(wanted);
            assert!(again == vdev || vdev.starts_with('d'), "{vdev} is {again}");
            assert_eq!(number(&again), Ok(wanted), "{vdev}");
        }
        for vdev in
            ["", "xvd", "xvdA", "xvda0", "xvda01", "hde", "sdq", "d", "dp1", "vda", "xvdazzzz"]
        {
            assert!(number(vdev).is_err(), "{vdev}");
        }
        assert_eq!(name(5), "vbd5");
    }

    #[test]
    fn nodes_are_those_that_libxl_writes() {
        let vbd = Vbd {
            frontend: DomId(3),
            backend: DomId::DOM0,
            backend_kind: "vbd".into(),
            vdev: "xvda".into(),
            target: "qcow2:/a".into(),
            access: DiskAccess::ReadOnly,
            trust: Trust::Untrusted,
        };
        let device = vbd.device().unwrap();
        assert_eq!(device.frontend_path(), "/local/domain/3/device/vbd/51712");
        let has = |nodes: &[(String, String)], name: &str, value: &str| {
            assert!(nodes.contains(&(name.into(), value.into())), "{name} {value}: {nodes:?}");
        };
        has(&device.backend_nodes, "mode", "r");
        has(&device.backend_nodes, "dev", "xvda");
        has(&device.backend_nodes, "params", "qcow2:/a");
        has(&device.frontend_nodes, "virtual-device", "51712");
        has(&device.frontend_nodes, "trusted", "0");
    }
}
