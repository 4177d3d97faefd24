//! Opens the files of disks.
//!
//! A name is resolved once, links included. Then the file with the resolved name is opened, with no
//! link on the way, and only if it is a regular file or a block device: a FIFO would block the
//! opener, and opening a device may have side effects.

use super::escaped_path::EscapedPath;
use super::image::ImageFault;
use super::lock::{FileUse, lock};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The file system type of tmpfs in `statfs` (`TMPFS_MAGIC`, `linux/magic.h`).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// The reason why a disk is not opened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else uses the file in a way that conflicts with this one.
    Busy(PathBuf),
    /// An error of the system.
    System(PathBuf, Errno),
    /// It is neither a file nor a block device, or it has no sector.
    NotADisk(PathBuf),
    /// An image that cannot be used, with its fault.
    Image(PathBuf, ImageFault),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(path) => write!(
                f,
                "{} is held for writing by another device, or kept as it is by another image or program; \
                 detach it there first; a raw one can be attached read-only here",
                EscapedPath(path)
            ),
            Self::System(path, errno) => write!(f, "{}: {errno}", EscapedPath(path)),
            Self::Image(path, fault) => {
                write!(f, "{}: ", EscapedPath(path))?;
                fault.describe(path, f)
            }
            Self::NotADisk(path) => {
                write!(f, "{} is no file or block device of 512 bytes or more", EscapedPath(path))
            }
        }
    }
}

impl std::error::Error for OpenError {}

impl From<OpenError> for xenbus::Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Busy(_) => Self::Busy(error.to_string()),
            _ => Self::Driver(error.to_string()),
        }
    }
}

/// True if the file is in memory, so that a read is a copy. A block device's node is on a tmpfs
/// too, but the device is not.
pub(super) fn in_memory(file: impl AsFd) -> Result<bool, Errno> {
    let regular =
        FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
    Ok(regular && rustix::fs::fstatfs(&file)?.f_type == TMPFS_MAGIC)
}

/// A file that is open.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: OwnedFd,
    /// The resolved name, without links.
    pub(super) path: PathBuf,
    /// The device and the inode, which are the same for all names of the file.
    pub(super) id: (u64, u64),
}

impl OpenFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`OpenError::NotADisk`] if it is neither a regular file nor a block device; else the error
    /// of the system.
    pub(super) fn open(path: &Path, flags: OFlags) -> Result<Self, OpenError> {
        let system = |errno| OpenError::System(path.to_owned(), errno);
        let real = std::fs::canonicalize(path)
            .map_err(|error| system(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        // First the type of the file: opening with `O_PATH` has no side effects.
        let there = at(&real, OFlags::PATH | OFlags::CLOEXEC).map_err(system)?;
        let stat = rustix::fs::fstat(&there).map_err(system)?;
        let patience = match FileType::from_raw_mode(stat.st_mode) {
            // `NONBLOCK` for the case that it becomes a FIFO in between.
            FileType::RegularFile => OFlags::NONBLOCK,
            FileType::BlockDevice => OFlags::empty(),
            _ => return Err(OpenError::NotADisk(path.to_owned())),
        };
        let file = at(&real, flags | patience | OFlags::CLOEXEC).map_err(system)?;
        let opened = rustix::fs::fstat(&file).map_err(system)?;
        if id(&opened) != id(&stat) || opened.st_mode != stat.st_mode {
            return Err(system(Errno::STALE));
        }
        if !patience.is_empty() {
            // With this flag io_uring would not wait for the file.
            let flags = rustix::fs::fcntl_getfl(&file).map_err(system)?;
            match rustix::fs::fcntl_setfl(&file, flags.difference(OFlags::NONBLOCK)) {
                // A hosted guest may not, and has no io_uring either; threads do not mind the flag.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(system(errno)),
            }
        }
        Ok(Self { file, path: real, id: id(&stat) })
    }

    /// Locks the file, until its last descriptor is closed.
    ///
    /// # Errors
    /// [`OpenError::Busy`].
    pub(super) fn lock(&self, usage: FileUse) -> Result<(), OpenError> {
        lock(self.file.as_fd(), usage).map_err(|errno| match errno {
            Errno::WOULDBLOCK => OpenError::Busy(self.path.clone()),
            errno => OpenError::System(self.path.clone(), errno),
        })
    }
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens a resolved name. A link that has since been put into it is not followed.
fn at(real: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat2(CWD, real, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // The kernel is older than 5.6, or a filter does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::open(real, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_block_devices_are_opened_and_a_fifo_keeps_nobody() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let (file, fifo, link) = (folder.join("file"), folder.join("fifo"), folder.join("link"));
        std::fs::write(&file, [0; 512]).unwrap();
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for flags in [OFlags::RDONLY, OFlags::RDWR] {
            for wrong in [fifo.as_path(), folder, Path::new("/dev/null")] {
                let opened = OpenFile::open(wrong, flags).map(|opened| opened.path);
                assert_eq!(opened, Err(OpenError::NotADisk(wrong.to_owned())));
            }
            let opened = OpenFile::open(&link, flags).unwrap();
            assert_eq!(opened.path, std::fs::canonicalize(&file).unwrap());
            let flags = rustix::fs::fcntl_getfl(&opened.file).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK));
        }
        let absent = folder.join("absent");
        let error = OpenFile::open(&absent, OFlags::RDONLY).map(|opened| opened.path);
        assert_eq!(error, Err(OpenError::System(absent, Errno::NOENT)));
    }
}
