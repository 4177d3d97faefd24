//! The pid file. It exists only once the daemon accepts connections, and is locked while it runs.
//!
//! The lock is the one that C xenstored takes (lockf(3), a record lock), so that neither daemon
//! starts over the other.

use crate::Error;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The pid file. Dropping it removes the path.
pub(crate) struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Checks that the file may be taken. It is called early, before anything is set up.
    ///
    /// # Errors
    /// [`Error::Start`] if a running daemon holds it.
    pub(crate) fn check(path: &Path) -> Result<(), Error> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(path, &error)),
        };
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                Err(Error::start(format!(
                    "a running xenstored (pid {}) holds {}; stop it, or choose another --pid-file",
                    pid.trim(),
                    path.display()
                )))
            }
            Err(error) => Err(failed(path, &error.into())),
        }
    }

    /// Writes this process's pid. The file appears complete and locked.
    ///
    /// # Errors
    /// [`Error::Start`] if a running daemon holds it, or it cannot be written.
    pub(crate) fn write(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| failed(path, &error);
        crate::paths::create_parents(path).map_err(failed)?;
        let pid = rustix::process::getpid().as_raw_nonzero();
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{pid}"));
        let temporary = PathBuf::from(temporary);
        // One starting daemon at a time checks and renames. The kernel releases the lock when the
        // directory is closed.
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(failed)?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Self::check(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)
            .map_err(failed)?;
        let written = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(file, "{pid}"))
            .and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(failed(error));
        }
        Ok(Self { file, path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let mine = self.file.metadata().map(|file| file.ino());
        let there = std::fs::metadata(&self.path).map(|file| file.ino());
        if matches!((mine, there), (Ok(mine), Ok(there)) if mine == there) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::start(format!("pid file {}: {error}", path.display()))
}
