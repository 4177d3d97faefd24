//! The pid file. It exists only once the daemon serves, and is locked while it runs.
//!
//! The lock is the one that C xenstored takes (lockf(3), a record lock), so that neither daemon
//! starts over the other. The content is the pid in decimal and a line's end, which
//! `start-stop-daemon --pidfile` reads.

use crate::{Error, create_parents};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The pid file. Dropping it removes the path.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Checks that the program `name` may take the file. It is called early, before anything is set
    /// up.
    ///
    /// # Errors
    /// [`Error::Running`] if a running daemon holds it, [`Error::PidFile`] if it cannot be opened.
    pub fn check(path: &Path, name: &'static str) -> Result<(), Error> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(path, error)),
        };
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                Err(Error::Running { name, pid: pid.trim().to_owned(), path: path.to_owned() })
            }
            Err(error) => Err(failed(path, error.into())),
        }
    }

    /// Writes the pid of this process, a daemon of the program `name`. The file appears complete
    /// and locked. Missing directories are created.
    ///
    /// # Errors
    /// [`Error::Running`] if a running daemon holds it, [`Error::PidFile`] if it cannot be written.
    pub fn write(path: &Path, name: &'static str) -> Result<Self, Error> {
        let failed = |error: io::Error| failed(path, error);
        create_parents(path).map_err(failed)?;
        let pid = rustix::process::getpid().as_raw_nonzero();
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{pid}"));
        let temporary = PathBuf::from(temporary);
        // One starting daemon at a time checks and renames. The kernel releases the lock when the
        // directory is closed.
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(failed)?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Self::check(path, name)?;
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

fn failed(path: &Path, error: io::Error) -> Error {
    Error::PidFile { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_file_is_complete_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/d.pid");
        PidFile::check(&path, "d").unwrap();
        let file = PidFile::write(&path, "d").unwrap();
        let pid = format!("{}\n", std::process::id());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), pid);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        drop(file);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn an_old_longer_file_leaves_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.pid");
        std::fs::write(&path, "123456789012\nrest").unwrap();
        let _file = PidFile::write(&path, "d").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    /// A record lock of a process is no obstacle to the same process, so another one looks.
    #[test]
    fn another_process_sees_who_holds_the_file() {
        const PATH: &str = "DAEMON_TEST_PID_FILE";
        if let Some(path) = std::env::var_os(PATH) {
            println!("seen: {}", PidFile::check(Path::new(&path), "watchd").unwrap_err());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.pid");
        let _file = PidFile::write(&path, "watchd").unwrap();
        let test = "pid_file::tests::another_process_sees_who_holds_the_file";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(PATH, &path)
            .output()
            .unwrap();
        let expected = format!(
            "seen: a running watchd (pid {}) holds {} and goes on; to start another, choose another \
             --pid-file\n",
            std::process::id(),
            path.display()
        );
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&expected), "{said}");
    }
}
