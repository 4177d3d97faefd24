//! Files: replacing one as a whole, and watching for changes.

use crate::Error;
use crate::wait::Limit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::time::Timespec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Replaces a file: at any time it has either its old or its new content.
pub(crate) fn replace(path: &Path, text: impl AsRef<[u8]>) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// A file or folder that is watched.
#[derive(Debug)]
pub struct FileWatch(OwnedFd);

impl FileWatch {
    /// Begins to watch for these changes.
    pub(super) fn new(path: &Path, changes: WatchFlags) -> std::io::Result<Self> {
        let watch = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        add_watch(&watch, path, changes)?;
        Ok(Self(watch))
    }

    /// Begins to watch what is written to a file.
    pub(crate) fn of_file(path: &Path) -> std::io::Result<Self> {
        Self::new(path, WatchFlags::MODIFY)
    }

    /// Takes the changes; true if there are any since the last call.
    pub(crate) fn take(&self) -> bool {
        matches!(rustix::io::read(&self.0, &mut [0_u8; 4096]), Ok(1..))
    }

    /// Waits until there may be a change, or for a moment: the caller looks again in both cases.
    pub(crate) fn wait(&self, limit: Limit, what: &dyn Fn() -> String) -> Result<(), Error> {
        let slice = Timespec::try_from(limit.slice(what)?).ok();
        let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], slice.as_ref());
        self.take();
        Ok(())
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
