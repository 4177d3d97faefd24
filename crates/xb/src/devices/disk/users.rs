//! The users of a disk's file, for the message that it is in use.

use super::attached::list;
use crate::{Error, domain, text};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xen::DomId;
use xen_block::disk::target::DiskTarget;
use xen_block::vbd;
use xenbus::Id;
use xenstore::{Client, Store};

/// A user of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileUser {
    /// A disk of a domain.
    Disk {
        /// The domain's name.
        domain: String,
        /// The disk's name in it.
        vdev: String,
    },
    /// A process that has the file open.
    Process {
        /// Its number.
        pid: u32,
        /// The name of its program.
        name: String,
    },
}

impl FileUser {
    /// Returns the words for it: `web, as its disk xvda`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Disk { domain, vdev } => format!("{domain}, as its disk {vdev}"),
            Self::Process { pid, name } => format!("{name} (process {pid})"),
        }
    }
}

impl fmt::Display for FileUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())?;
        match self {
            Self::Disk { domain, vdev } => {
                write!(f, " (xb disk detach {domain} {vdev} takes it away there)")
            }
            Self::Process { .. } => Ok(()),
        }
    }
}

/// A file by its device and inode, which are the same for all its names.
type FileId = (u64, u64);

/// Finds the users of the file that a target names, without the disk `own`: disks of this host's
/// domains, else processes that this user may look into.
///
/// # Errors
/// [`Error::Store`].
pub(crate) fn find(store: &mut Client, target: &str, own: Id) -> Result<Vec<FileUser>, Error> {
    let Some(file) = file_of(target) else { return Ok(Vec::new()) };
    let mut users = Vec::new();
    for child in store.list("/libxl")? {
        let Some(domid) = child.parse().ok().map(DomId) else { continue };
        for disk in list(store, domid)? {
            if disk.attached.device.id != own && file_of(&disk.target) == Some(file) {
                let name = store.try_read(format!("{}/name", domain::home(domid)))?;
                let domain = name.map_or_else(|| domid.to_string(), text::lossy);
                users.push(FileUser::Disk { domain, vdev: vbd::name(disk.number()) });
            }
        }
    }
    Ok(if users.is_empty() { processes(file) } else { users })
}

fn file_of(target: &str) -> Option<FileId> {
    path_of(target).and_then(|path| id(&path))
}

/// Returns the file that a target names.
pub(crate) fn path_of(target: &str) -> Option<PathBuf> {
    match DiskTarget::parse(target) {
        Ok(DiskTarget::Raw(path) | DiskTarget::Qcow2(path)) => Some(path),
        _ => None,
    }
}

fn id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// Lists the processes that have a file open.
fn processes(file: FileId) -> Vec<FileUser> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut users = Vec::new();
    for process in entries(Path::new("/proc")) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = process.path();
        let holds = entries(&path.join("fd")).any(|fd| id(&fd.path()) == Some(file));
        if holds && pid != std::process::id() {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            users.push(FileUser::Process { pid, name: text::clean(name.trim()) });
        }
    }
    users
}
