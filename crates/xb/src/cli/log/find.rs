//! The log of a guest: its place on either platform.

use crate::cli::options::GlobalOptions;
use crate::host::HostChoice;
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
        let is_of_host = folder.is_some() && named.is_none();
        Self::of_console(&dir, &name, domid)?.ok_or_else(|| missing(which, &dir, is_of_host))
    }

    /// Opens the log that `xenconsoled` writes; where domains have had one name at once, that of the
    /// domain with this number.
    fn of_console(dir: &Path, name: &str, domid: Option<u16>) -> Result<Option<Self>, Error> {
        let plain = log_name(name.as_bytes(), 0);
        let open = |file: &str| Self::open(dir, file, name);
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

    /// Opens a log; none if it is not there.
    fn open(dir: &Path, file: &str, name: &str) -> Result<Option<Self>, Error> {
        let path = dir.join(file);
        match LogReader::open(dir, OsStr::new(file)) {
            Ok(reader) => Ok(Some(Self { name: text::clean(name), path, reader })),
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
        let start = self.reader.start();
        let mut begins = self.lives()?;
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

/// Returns the error that a guest has no log, of a hosted host or in a folder.
fn missing(which: &str, dir: &Path, is_of_host: bool) -> Error {
    let which = text::clean(which);
    Error::NotFound(if is_of_host {
        format!("there is no log of a guest {which}; xb list shows who is there")
    } else {
        format!(
            "there is no log of a guest {which} in {}; xenconsoled logs guests if it is started with \
             --log=guest, and --log-dir names another folder",
            dir.display()
        )
    })
}
