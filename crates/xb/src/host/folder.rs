//! The folder of a hosted host.
//!
//! | in it | what |
//! |---|---|
//! | `host/` | the broker's sockets |
//! | `store` | the store's socket, which `xenstore` and every client find through `XENSTORED_PATH` |
//! | `run/` | pid files, the store's own files |
//! | `record/` | requests of disks in flight |
//! | `log/` | what the daemons say |
//! | `demo/` | what `xb demo` makes |
//! | `guests/NAME/` | each guest's configuration and log |
//! | `keeper` | the socket of the process that keeps guests' logs and acts when they end |

use crate::Error;
use std::path::{Path, PathBuf};
use xen_hosted::HostDir;

/// Names the folder to every `xb` of a shell.
pub const VARIABLE: &str = "XB_HOST";
/// Longest path of a folder: its sockets' paths have to fit into 108 bytes.
const PATH_MAX: usize = 80;

/// A folder, whether a host is up in it or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder(PathBuf);

impl Default for Folder {
    /// `/run/xb` for root, a folder below `XDG_RUNTIME_DIR` or `/tmp` for anybody else.
    fn default() -> Self {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Self("/run/xb".into());
        }
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
            Some(dir) => Self(PathBuf::from(dir).join("xb")),
            None => Self(format!("/tmp/xb-{}", uid.as_raw()).into()),
        }
    }
}

impl Folder {
    /// The folder at a path.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The broker's directory.
    #[must_use]
    pub fn broker(&self) -> HostDir {
        HostDir::new(self.0.join("host"))
    }

    /// The store's socket.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// Where pid files are.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Where requests of disks in flight are kept.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("record")
    }

    /// A daemon's log.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.0.join("log").join(format!("{daemon}.log"))
    }

    /// The keeper's socket.
    #[must_use]
    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// A guest's folder.
    #[must_use]
    pub fn guest(&self, name: &str) -> PathBuf {
        self.0.join("guests").join(name)
    }

    /// Makes it, for its user alone.
    ///
    /// # Errors
    /// A sentence: it cannot be made, is somebody else's, or its path is too long.
    pub fn make(&self) -> Result<(), Error> {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        let dir = self.0.display();
        if self.0.as_os_str().len() > PATH_MAX {
            let long = format!(
                "{dir}: over {PATH_MAX} bytes, too long for the sockets in it; name another with --host"
            );
            return Err(Error::Refused(long));
        }
        let mut builder = std::fs::DirBuilder::new();
        let builder = builder.recursive(true).mode(0o700);
        for below in ["run", "record", "log", "guests"] {
            let path = self.0.join(below);
            builder.create(&path).map_err(Error::io(path.display()))?;
        }
        let owner = std::fs::metadata(&self.0).map_err(Error::io(dir))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            let dir = self.0.display();
            return Err(Error::Refused(format!(
                "{dir} is user {owner}'s; name another with --host"
            )));
        }
        Ok(())
    }

    /// Removes what [`Folder::make`] and the daemons have made in it, and it if nothing else is there.
    pub fn remove(&self) {
        for below in ["host", "run", "record", "log", "guests", "demo"] {
            // What is not there need not be removed.
            let _ = std::fs::remove_dir_all(self.0.join(below));
        }
        for below in ["store", "store.lock", "keeper"] {
            let _ = std::fs::remove_file(self.0.join(below));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
