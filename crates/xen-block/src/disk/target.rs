//! Names of disks, as a toolstack writes them into a backend's `params`.
//!
//! | name | disk |
//! |---|---|
//! | `/path`, `raw:/path`, `aio:/path` | a file or a block device |
//! | `qcow2:/path` | a qcow2 image |
//! | `nbd:unix:/socket`, `nbd:unix:/socket:exportname=NAME` | an export of an NBD server |
//! | `memory:BYTES` | memory, all zeroes at first and lost at the end |

use super::file::{Cache, FileDisk, IoMethod, Options};
use super::image_dirs::ImageDirs;
use super::memory::Memory;
use super::{Disk, DiskAccess, nbd, qcow2};
use crate::back::OpenJob;
use std::path::PathBuf;
use xen_io::blkif::names;
use xenbus::{Device, Error};

/// A disk by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskTarget {
    /// A file or a block device.
    Raw(PathBuf),
    /// A qcow2 image.
    Qcow2(PathBuf),
    /// An export of an NBD server.
    Nbd {
        /// Its Unix socket.
        socket: PathBuf,
        /// The export.
        name: String,
    },
    /// A disk of this many bytes of memory.
    Memory(u64),
}

impl DiskTarget {
    /// Parses the name of a disk.
    ///
    /// # Errors
    /// A description of the fault in the name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Raw(text.into()));
        }
        let (format, rest) = text.split_once(':').unwrap_or((text, ""));
        let absolute = |path: &str| {
            let wrong = || format!("\"{text}\": {path:?} is no absolute path");
            if path.starts_with('/') { Ok(PathBuf::from(path)) } else { Err(wrong()) }
        };
        match format {
            "raw" | "aio" => absolute(rest).map(Self::Raw),
            "qcow2" => absolute(rest).map(Self::Qcow2),
            "nbd" => {
                let rest = rest.strip_prefix("unix:").ok_or_else(|| {
                    format!("\"{text}\": NBD servers are reached as nbd:unix:/socket")
                })?;
                let (socket, name) = rest.split_once(":exportname=").unwrap_or((rest, ""));
                Ok(Self::Nbd { socket: absolute(socket)?, name: name.to_owned() })
            }
            "memory" => match rest.parse() {
                Ok(bytes) if bytes >= 512 => Ok(Self::Memory(bytes)),
                _ => Err(format!("\"{text}\": {rest:?} is no number of bytes from 512")),
            },
            _ => Err(format!("\"{text}\" is no disk: a path, raw:, qcow2:, nbd: or memory:")),
        }
    }

    /// Opens the disk, and the files that it names as far as `image_dirs` allow that. A thread
    /// other than the one that will use it may open it.
    ///
    /// # Errors
    /// [`Error::Busy`] if another device writes to it; [`Error::Away`] if its server is not there;
    /// else the reason.
    pub fn open(
        &self,
        access: DiskAccess,
        image_dirs: &ImageDirs,
    ) -> Result<Box<dyn Disk + Send>, Error> {
        Ok(match self {
            Self::Raw(path) => {
                let options = Options { access, cache: Cache::Direct, way: IoMethod::Best };
                Box::new(FileDisk::open(path, options)?)
            }
            Self::Qcow2(path) => Box::new(qcow2::open(path, access, image_dirs)?),
            Self::Nbd { socket, name } => {
                let disk = nbd::connect(socket, name, nbd::Options::new(access));
                Box::new(disk.map_err(|error| {
                    let text = format!("{}: {error}", socket.display());
                    if nbd::is_away(&error) { Error::Away(text) } else { Error::Driver(text) }
                })?)
            }
            Self::Memory(bytes) => {
                let disk = Memory::new(bytes / 512);
                Box::new(if access == DiskAccess::ReadOnly { disk.read_only() } else { disk })
            }
        })
    }
}

/// Returns the job that opens the disk which a backend's nodes name: in `target`, which this
/// project's hotplug script writes, else in `params`. It is opened for writing if `mode` says so.
/// Opening may take long: a server that does not answer, a chain of images.
///
/// # Errors
/// The fault in the name; [`Error::Missing`] if no disk is named.
pub fn job(device: &mut Device<'_>, image_dirs: &ImageDirs) -> Result<OpenJob, Error> {
    let named = match device.own("target")? {
        Some(target) => Some(target),
        None => device.own(names::PARAMS)?,
    };
    let path = format!("{}/{}", device.path(), names::PARAMS);
    let named = named.ok_or(Error::Missing { path })?;
    let access = match device.own(names::MODE)?.as_deref() {
        Some(mode) if mode.starts_with(b"w") => DiskAccess::ReadWrite,
        _ => DiskAccess::ReadOnly,
    };
    let text = String::from_utf8_lossy(&named);
    let target = DiskTarget::parse(&text).map_err(Error::Driver)?;
    let image_dirs = image_dirs.clone();
    Ok(Box::new(move || target.open(access, &image_dirs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let nbd =
            |socket: &str, name: &str| DiskTarget::Nbd { socket: socket.into(), name: name.into() };
        for (text, target) in [
            ("/dev/vg/lv", DiskTarget::Raw("/dev/vg/lv".into())),
            ("raw:/a:b", DiskTarget::Raw("/a:b".into())),
            ("aio:/a", DiskTarget::Raw("/a".into())),
            ("qcow2:/a", DiskTarget::Qcow2("/a".into())),
            ("nbd:unix:/s", nbd("/s", "")),
            ("nbd:unix:/s:exportname=x", nbd("/s", "x")),
            ("memory:4096", DiskTarget::Memory(4096)),
        ] {
            assert_eq!(DiskTarget::parse(text), Ok(target));
        }
        for text in ["", "a", "raw:a", "qcow2:", "nbd:host:1", "memory:x", "memory:1", "vhd:/a"] {
            assert!(
                DiskTarget::parse(text).unwrap_err().contains(&format!("\"{text}\"")),
                "{text}"
            );
        }
    }
}
