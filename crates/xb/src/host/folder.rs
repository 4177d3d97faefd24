//! The folder of a hosted host.
//!
//! | in it | what |
//! |---|---|
//! | `.xb-host` | says that the folder is a host's: without it nothing in a folder is used or removed |
//! | `host/` | the broker's sockets |
//! | `store` | the store's socket, which `xenstore` and every client find through `XENSTORED_PATH` |
//! | `run/` | pid files, the store's own files, the image folders that `xb host up` was given, what its user was told once |
//! | `record/` | requests of disks in flight |
//! | `log/` | what the daemons say |
//! | `console/` | what guests print, as `xenconsoled` logs it |
//! | `demo/` | what `xb demo` makes |
//! | `guests/NAME/` | what is kept of each guest: [`GuestFolder`] |
//! | `keeper` | the socket of the process that acts when guests end |

use super::files::{FileWatch, replace};
use super::guest_folder::GuestFolder;
use crate::Error;
use rustix::fs::inotify::WatchFlags;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xen_hosted::HostDir;

/// The variable that names the folder to every `xb` of a shell.
pub const VARIABLE: &str = "XB_HOST";
/// The longest path of a folder, in bytes: its sockets' paths have to fit into 108 bytes.
const PATH_MAX: usize = 80;
/// The file that says that a folder is a host's.
const MARKER: &str = ".xb-host";
/// The folders that are made in it.
const MADE: [&str; 5] = ["run", "record", "log", "console", "guests"];
/// The folder that `xb demo` makes.
const DEMO: &str = "demo";
/// The file that has the image folders, each behind a NUL.
const IMAGE_DIRS: &str = "image-dirs";
/// The file that has what the user of this host was told once, in lines.
const TOLD: &str = "told";
/// The bits of a mode with which others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// The content of a path where a folder is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FolderContent {
    /// Nothing.
    Nothing,
    /// A folder of this user with nothing in it.
    Empty,
    /// A host of this user, up or down.
    Host,
}

/// The folder of a host, whether the host is up or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder(PathBuf);

impl Default for Folder {
    /// Returns `/run/xb` for root, a folder below `XDG_RUNTIME_DIR` or `/tmp` for any other user.
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
    /// Names the folder at a path.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.into()))
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the broker's directory.
    #[must_use]
    pub fn broker(&self) -> HostDir {
        HostDir::new(self.0.join("host"))
    }

    /// Returns the path of the store's socket.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// Returns the folder of pid files.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Returns the path of the socket for the signs of life of a daemon.
    #[must_use]
    pub fn signs(&self, daemon: &str) -> PathBuf {
        self.run().join(format!("{daemon}.notify"))
    }

    /// Returns the path of the lock of whoever starts daemons.
    pub(crate) fn start_lock(&self) -> PathBuf {
        self.run().join("start.lock")
    }

    /// Returns the lines that no command has told a user of this host yet, and records them as told.
    pub(crate) fn untold<'a>(&self, lines: &'a [String]) -> Vec<&'a String> {
        let path = self.run().join(TOLD);
        let told = std::fs::read_to_string(&path).unwrap_or_default();
        let is_new = |line: &&String| !told.lines().any(|told| told == line.as_str());
        let new: Vec<&String> = lines.iter().filter(is_new).collect();
        let mut file = std::fs::File::options().append(true).create(true).open(&path).ok();
        for line in &new {
            // A line that cannot be recorded is told again.
            let _ = file.as_mut().map(|file| writeln!(file, "{line}"));
        }
        new
    }

    /// Returns what the user of this host was told once: what its guests do without.
    pub(crate) fn told(&self) -> Vec<String> {
        let told = std::fs::read_to_string(self.run().join(TOLD)).unwrap_or_default();
        told.lines().map(str::to_owned).collect()
    }

    /// Reads the folders that `xb host up --image-dir` has named.
    pub(crate) fn image_dirs(&self) -> Vec<PathBuf> {
        let text = std::fs::read(self.run().join(IMAGE_DIRS)).unwrap_or_default();
        let names = text.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
    }

    /// Adds to the image folders. Returns true if there is a new one.
    pub(crate) fn add_image_dirs(&self, more: &[PathBuf]) -> Result<bool, Error> {
        let mut dirs = self.image_dirs();
        let known = dirs.len();
        for dir in more {
            let dir = dir.canonicalize().map_err(Error::io(dir.display()))?;
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        if dirs.len() == known {
            return Ok(false);
        }
        let names: Vec<&[u8]> = dirs.iter().map(|dir| dir.as_os_str().as_bytes()).collect();
        let path = self.run().join(IMAGE_DIRS);
        replace(&path, names.join(&0)).map_err(Error::io(path.display()))?;
        Ok(true)
    }

    /// Returns the folder of records of disk requests in flight.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("record")
    }

    /// Watches the daemons' logs.
    ///
    /// # Errors
    /// The folder of the logs does not exist.
    pub(crate) fn watch_logs(&self) -> std::io::Result<FileWatch> {
        FileWatch::new(&self.logs(), WatchFlags::MODIFY)
    }

    /// Returns the path of a daemon's log.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.logs().join(format!("{daemon}.log"))
    }

    /// Returns the folder of the daemons' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Returns the folder of guests' logs.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    /// Returns the folder of `xb demo`.
    pub(crate) fn demo(&self) -> PathBuf {
        self.0.join(DEMO)
    }

    /// Returns the path of the keeper's socket.
    #[must_use]
    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// Returns the folder of guests' folders.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.0.join("guests")
    }

    /// Lists the folders of all guests, also of those that have ended.
    pub(crate) fn guest_folders(&self) -> impl Iterator<Item = GuestFolder> {
        let (guests, logs) = (self.guests(), self.console());
        let entries = std::fs::read_dir(&guests).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            Some(GuestFolder::new(&guests, logs.clone(), entry.file_name().to_str()?))
        })
    }

    /// Returns a guest's folder.
    #[must_use]
    pub fn guest(&self, name: &str) -> GuestFolder {
        GuestFolder::new(&self.guests(), self.console(), name)
    }

    /// Examines the folder before anything in it is used. A user who may write into the folder
    /// decides which processes are ended and which files are written, so only this user may.
    ///
    /// # Errors
    /// A sentence: it is another user's, others may write into it, or it is in use for something
    /// else.
    pub fn look(&self) -> Result<FolderContent, Error> {
        use std::os::unix::fs::MetadataExt;
        let dir = self.0.display();
        let refused =
            |why: String| Error::Refused(format!("{dir} {why}; name another with --host"));
        let data = match std::fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(FolderContent::Nothing);
            }
            data => data.map_err(Error::io(&dir))?,
        };
        let (owner, user) = (data.uid(), rustix::process::geteuid().as_raw());
        if !data.is_dir() {
            return Err(refused("is no folder".into()));
        }
        if owner != user {
            return Err(refused(format!("is user {owner}'s, and this is user {user}")));
        }
        if data.mode() & OTHERS_WRITE != 0 {
            return Err(refused("may be written into by others (chmod go-w)".into()));
        }
        let marked = || {
            let marker = std::fs::symlink_metadata(self.0.join(MARKER));
            marker.is_ok_and(|marker| marker.is_file())
        };
        if marked() {
            return Ok(FolderContent::Host);
        }
        let mut entries = std::fs::read_dir(&self.0).map_err(Error::io(&dir))?;
        match entries.next() {
            None => Ok(FolderContent::Empty),
            // Another xb may have made it a host meanwhile: the marker is the first file in it.
            Some(_) if marked() => Ok(FolderContent::Host),
            Some(_) => Err(refused("holds other things and no host of xb".into())),
        }
    }

    /// Makes the folder, for its user alone: where nothing exists, or an empty folder, or a host.
    ///
    /// # Errors
    /// The errors of [`Folder::look`]; it cannot be made, or its path is too long.
    pub fn make(&self) -> Result<(), Error> {
        let dir = self.0.display();
        if self.0.as_os_str().len() > PATH_MAX {
            let long = format!(
                "{dir}: over {PATH_MAX} bytes, too long for the sockets in it; name another with --host"
            );
            return Err(Error::Refused(long));
        }
        if self.look()? == FolderContent::Nothing {
            if let Some(above) = self.0.parent() {
                builder().recursive(true).create(above).map_err(Error::io(above.display()))?;
            }
            // Not recursive: only the last folder of the path may be made.
            match builder().create(&self.0) {
                // It was made by another xb meanwhile, or by another program.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.look()?;
                }
                made => made.map_err(Error::io(&dir))?,
            }
        }
        self.mark()
    }

    /// Makes a new folder with a random name, below the folder for temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn temporary() -> Result<Self, Error> {
        let above = std::env::temp_dir();
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::io("random numbers")(errno.into()))?;
        let folder = Self::new(&above.join(format!("xb-demo-{:016x}", u64::from_ne_bytes(random))));
        builder().create(&folder.0).map_err(Error::io(folder.0.display()))?;
        let made = folder.make();
        if made.is_err() {
            let _ = std::fs::remove_dir(&folder.0);
        }
        made.map(|()| folder)
    }

    /// Makes the files in it; the marker first, so that later files are known to be xb's.
    fn mark(&self) -> Result<(), Error> {
        let marker = self.0.join(MARKER);
        match std::fs::File::create_new(&marker) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => drop(made.map_err(Error::io(marker.display()))?),
        }
        for below in MADE {
            let path = self.0.join(below);
            builder().recursive(true).create(&path).map_err(Error::io(path.display()))?;
        }
        Ok(())
    }

    /// Removes the files that [`Folder::make`], the demo and the daemons (`left`) have made in it,
    /// and the folder if nothing else is in it. A folder without a host is not changed.
    pub(super) fn remove(&self, left: impl Iterator<Item = &'static str>) {
        if !matches!(self.look(), Ok(FolderContent::Host)) {
            return;
        }
        // The folder of the locks goes last: until then no other xb brings a host up here.
        for below in left.chain([DEMO]).chain(MADE.into_iter().rev()) {
            let path = self.0.join(below);
            // A file that does not exist needs no removal.
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
        // The marker goes last: after an interruption before that the rest can still be removed.
        let _ = std::fs::remove_file(self.0.join(MARKER));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Returns a builder of folders for their user alone.
fn builder() -> std::fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}
