//! The folder of a guest: the files that are kept under its name while it exists, and for long
//! after its end.
//!
//! | in it | what |
//! |---|---|
//! | `domid` | the number of the domain that last had the name, of the first one of its restarts, and their number |
//! | `config`, `directory` | its configuration, to start it again |
//! | `output` | the FIFO that it prints into |
//! | `ended` | how it ended: [`GuestEnd`](super::guest_end::GuestEnd) |

use super::files::{FileWatch, replace};
use crate::Error;
use crate::wait::Limit;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, flock, inotify, mknodat, open};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xen::DomId;
use xen_console::log::{LogPiece, LogReader};
use xen_console::serve::settings::log_name;

/// The bytes of a log that are read at a time.
const BLOCK: usize = 64 << 10;

/// The domains that a guest has been, over its restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lineage {
    /// The number of the last one.
    pub last: DomId,
    /// The number of the first one.
    pub origin: DomId,
    /// The number of restarts between them.
    pub restarts: u32,
}

impl Lineage {
    /// Returns the lineage of a guest that was not restarted yet.
    pub(crate) fn begin(domid: DomId) -> Self {
        Self { last: domid, origin: domid, restarts: 0 }
    }

    /// Returns the lineage after a restart as the domain with this number.
    pub(crate) fn restarted(self, domid: DomId) -> Self {
        Self { last: domid, origin: self.origin, restarts: self.restarts.saturating_add(1) }
    }
}

/// The folder of a guest, whether the guest exists or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestFolder {
    name: String,
    path: PathBuf,
    /// The folder of all guests' logs.
    logs: PathBuf,
}

impl GuestFolder {
    /// Names the folder of a guest in the folder of all guests, beside the folder of their logs.
    pub(super) fn new(guests: &Path, logs: PathBuf, name: &str) -> Self {
        Self { name: name.into(), path: guests.join(name), logs }
    }

    /// Returns the guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the guest's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.logs.join(log_name(self.name.as_bytes(), 0))
    }

    /// Watches the logs of all guests, one of which is replaced when it is full.
    ///
    /// # Errors
    /// The folder does not exist.
    pub(crate) fn watch_logs(&self) -> std::io::Result<FileWatch> {
        use inotify::WatchFlags;
        FileWatch::new(&self.logs, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    /// Watches the record of the guest's end.
    ///
    /// # Errors
    /// The folder does not exist.
    pub fn watch(&self) -> std::io::Result<FileWatch> {
        use inotify::WatchFlags;
        FileWatch::new(&self.path, WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    /// Returns the output of the guest's last life, as far as its logs have it.
    ///
    /// # Errors
    /// There is no log of it, or it cannot be read.
    pub fn printed(&self) -> std::io::Result<Vec<u8>> {
        let mut reader = LogReader::open(&self.logs, log_name(self.name.as_bytes(), 0).as_ref())?;
        let (mut bytes, mut block) = (Vec::new(), vec![0; BLOCK]);
        reader.seek(reader.lives()?.back().map_or(0, |life| life.place))?;
        while let Some(piece) = reader.next(&mut block, u64::MAX)? {
            if let LogPiece::Output { bytes: more, .. } = piece {
                bytes.extend_from_slice(more);
            }
        }
        Ok(bytes)
    }

    /// Waits until the guest has printed a line for which `wanted` returns a value; earlier lines of
    /// this life count.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Interrupted`], or there is no such guest.
    pub fn await_line<T>(
        &self,
        limit: Limit,
        wanted: &dyn Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let path = self.log();
        let watch = self.watch_logs().map_err(Error::io(path.display()))?;
        loop {
            let text = self.printed().map_err(Error::io(path.display()))?;
            let text = String::from_utf8_lossy(&text);
            // A line without an end is not complete yet.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(found) = whole.lines().find_map(wanted) {
                return Ok(found);
            }
            watch.wait(limit, &|| {
                format!("{} prints what is waited for ({})", self.name, path.display())
            })?;
        }
    }

    /// Makes a new FIFO for the output of the guest's first process, and returns the guest's end. It is
    /// open for reading as well: without a reader the guest waits once the FIFO is full, and is not
    /// killed by SIGPIPE. `xenconsoled` reads the other end.
    pub(crate) fn new_output(&self) -> Result<OwnedFd, Error> {
        let path = self.output();
        let said = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
        // An old FIFO may contain another guest's output.
        let _ = std::fs::remove_file(&path);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(said)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        open(&path, flags, Mode::empty()).map_err(said)
    }

    fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    /// Returns the number of the domain that last had the name.
    pub(crate) fn last(&self) -> Option<DomId> {
        Some(self.lineage()?.last)
    }

    /// Returns the domains that the last guest of the name has been.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        let text = std::fs::read_to_string(self.domid()).ok()?;
        let mut words = text.split_whitespace();
        let last = DomId(words.next()?.parse().ok()?);
        let origin = words.next().and_then(|word| word.parse().ok()).map_or(last, DomId);
        let restarts = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Some(Lineage { last, origin, restarts })
    }

    /// Returns the lineage that led to the domain with this number.
    pub(crate) fn lineage_of(&self, domid: DomId) -> Lineage {
        let noted = self.lineage().filter(|noted| noted.last == domid);
        noted.unwrap_or_else(|| Lineage::begin(domid))
    }

    /// Records the domain that has the name, for the next one that takes it. The record of the
    /// previous domain's end is removed, as it is not this one's, and numbers begin anew with each
    /// host.
    pub(crate) fn note(&self, lineage: Lineage) -> std::io::Result<()> {
        let Lineage { last, origin, restarts } = lineage;
        replace(&self.domid(), format!("{last} {origin} {restarts}"))?;
        match std::fs::remove_file(self.ended()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the path of the file with the domain's number; the file is as old as the domain.
    pub(crate) fn domid(&self) -> PathBuf {
        self.path.join("domid")
    }

    /// Returns the path of the record of the guest's end.
    pub(super) fn ended(&self) -> PathBuf {
        self.path.join("ended")
    }

    /// Makes the folder, and locks it for the creation of a domain of the name. Fails where another
    /// process has locked it.
    pub(crate) fn claim(&self) -> Result<File, Error> {
        let said = |error| Error::io(self.path.display())(error);
        loop {
            std::fs::create_dir_all(&self.path).map_err(said)?;
            let dir = File::open(&self.path).map_err(said)?;
            if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(Error::Refused(format!(
                    "another xb is creating {} at this moment",
                    self.name
                )));
            }
            // The keeper may have removed it meanwhile, as the folder of an old guest.
            let here = dir.metadata().map_err(said)?.ino();
            if std::fs::metadata(&self.path).is_ok_and(|now| now.ino() == here) {
                return Ok(dir);
            }
        }
    }

    /// Waits until no domain of the name is being created, and prevents further creations.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        let dir = File::open(&self.path).map_err(Error::io(self.path.display()))?;
        let locked = flock(&dir, FlockOperation::LockExclusive);
        locked.map_err(|errno| Error::io(self.path.display())(errno.into()))?;
        Ok(dir)
    }

    /// Locks the folder where it exists and is not locked.
    pub(crate) fn try_lock(&self) -> Option<File> {
        let dir = File::open(&self.path).ok()?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(dir)
    }
}
