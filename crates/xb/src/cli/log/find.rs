//! The log of a guest: its place on either platform.

use crate::cli::options::GlobalOptions;
use crate::host::HostChoice;
use crate::host::folder::Folder;
use crate::{Error, domain, text};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use xen_console::log::LogReader;
use xen_console::options::LOG_DIR;
use xen_console::serve::settings::{log_name, numbered_log_name};

/// A log that is there.
#[derive(Debug)]
pub(super) struct FoundLog {
    /// The guest's name, cleaned.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) reader: LogReader,
    pub(super) lives: LifeMarks,
}

/// The way by which a guest's lives are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LifeMarks {
    /// The index has them.
    Index,
    /// A life begins with a log: the keeper's.
    Files,
}

/// The bytes of a log that are shown, as places. There is no end where all that comes is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogRange {
    pub(super) from: u64,
    pub(super) to: Option<u64>,
}

impl FoundLog {
    /// Finds the log of a guest by its name or number, also of one that has ended by its name; in the
    /// folder `named`, if there is one.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn find(
        options: &GlobalOptions,
        which: &str,
        named: Option<&Path>,
    ) -> Result<Self, Error> {
        let folder = match options.choice() {
            HostChoice::Hosted(folder) => Some(folder),
            HostChoice::Xen => None,
        };
        if let Some(folder) = &folder {
            folder.look()?;
        }
        let domid = which.parse::<u16>().ok();
        let name = match domid {
            Some(_) => domain::find(&mut options.open()?, which)?.name,
            None => which.to_owned(),
        };
        let dir = match (named, &folder) {
            (Some(dir), _) => dir.into(),
            (None, Some(folder)) => folder.console(),
            (None, None) => LOG_DIR.into(),
        };
        let of_keeper = folder.as_ref().filter(|_| named.is_none());
        let found = match Self::of_console(&dir, &name, domid)? {
            None => of_keeper.and_then(|folder| Self::of_keeper(folder, &name).transpose()),
            found => found.map(Ok),
        };
        found.unwrap_or_else(|| Err(missing(which, &dir, of_keeper)))
    }

    /// Opens the log that `xenconsoled` writes; where domains have had one name at once, that of the
    /// domain with this number.
    fn of_console(dir: &Path, name: &str, domid: Option<u16>) -> Result<Option<Self>, Error> {
        let plain = log_name(name.as_bytes());
        let open = |file: &str| Self::open(dir, file, name, LifeMarks::Index);
        let found = open(&plain)?;
        if let Some(domid) = domid
            && !found.as_ref().is_some_and(|found| found.is_of(domid))
            && let Some(numbered) = open(&numbered_log_name(&plain, domid))?
            && numbered.is_of(domid)
        {
            return Ok(Some(numbered));
        }
        Ok(found)
    }

    /// Opens the log that the keeper writes.
    fn of_keeper(folder: &Folder, name: &str) -> Result<Option<Self>, Error> {
        if name.contains('/') || name.starts_with('.') {
            return Ok(None);
        }
        let guest = folder.guest(name);
        Self::open(guest.path(), "log", name, LifeMarks::Files)
    }

    /// Opens a log; none if it is not there.
    fn open(dir: &Path, file: &str, name: &str, lives: LifeMarks) -> Result<Option<Self>, Error> {
        let path = dir.join(file);
        match LogReader::open(dir, OsStr::new(file)) {
            Ok(reader) => Ok(Some(Self { name: text::clean(name), path, reader, lives })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path.display())(error)),
        }
    }

    /// True if the last life in it is that of the domain with this number.
    fn is_of(&self, domid: u16) -> bool {
        let lives = self.reader.lives().unwrap_or_default();
        lives.back().is_some_and(|life| life.domid == Some(domid))
    }

    /// Returns the bytes of the guest's last life, or of the one before it.
    ///
    /// # Errors
    /// There is no earlier life, or the log cannot be read.
    pub(super) fn life(&self, which: WhichLife) -> Result<LogRange, Error> {
        let (start, newest) = (self.reader.start(), self.reader.newest_start());
        let mut begins: Vec<u64> = match self.lives {
            LifeMarks::Index => self.lives()?,
            LifeMarks::Files => vec![newest],
        };
        // What is before the first life that is known is of an earlier one.
        if begins.first().is_none_or(|first| *first > start) {
            begins.insert(0, start);
        }
        let last = begins.pop().unwrap_or(start);
        match (which, begins.pop()) {
            (WhichLife::Last, _) => Ok(LogRange { from: last, to: None }),
            (WhichLife::Previous, Some(from)) => Ok(LogRange { from, to: Some(last) }),
            (WhichLife::Previous, None) => Err(Error::NotFound(format!(
                "the log of {} has no life before the last one; leave --previous out",
                self.name
            ))),
        }
    }

    fn lives(&self) -> Result<Vec<u64>, Error> {
        let lives = self.reader.lives().map_err(Error::io(self.path.display()))?;
        Ok(lives.iter().map(|life| life.place).collect())
    }
}

/// The life of a guest whose output is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WhichLife {
    Last,
    Previous,
}

/// Returns the error that a guest has no log.
fn missing(which: &str, dir: &Path, of_keeper: Option<&Folder>) -> Error {
    let which = text::clean(which);
    Error::NotFound(match of_keeper {
        Some(_) => format!("there is no log of a guest {which}; xb list shows who is there"),
        None => format!(
            "there is no log of a guest {which} in {}; xenconsoled logs guests if it is started with \
             --log=guest, and --log-dir names another folder",
            dir.display()
        ),
    })
}
