//! The log of a console: the guest's bytes as they came, bounded in size, with an index beside it.
//!
//! A log that has its full size is set aside as `.1`, and the one before is dropped. Where the disk
//! is full, bytes are lost and counted, and the guest goes on.

mod cursor;
mod file;
mod index;
mod reader;
mod stamps;

pub use file::LogPiece;
pub use index::{IndexEvent, IndexRecord, read_index};
pub use reader::{LogLife, LogReader};
pub use stamps::{LineFormat, LineFormatter, LocalZone};

use index::LogIndex;
use rustix::fs::{AtFlags, Mode, OFlags, fstatvfs, openat, renameat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;

/// The ending of the name of a log that was set aside.
const SET_ASIDE: &str = ".1";
/// The ending of the name of an index.
const INDEX: &str = ".index";

/// The bounds of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLimits {
    /// The size at which a log is set aside, in bytes. Two logs and their indices take up at most
    /// three times that, and 128 KiB.
    pub bytes_max: u64,
    /// The number of bytes of the file system that logs leave free, or an eighth of it if that is
    /// less.
    pub reserve: u64,
    /// The mode of new files.
    pub mode: u32,
}

/// The fate of bytes for a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogOutcome {
    /// They are in the log.
    Kept,
    /// They are in the log, the first after so many that were lost.
    KeptAgain {
        /// The number of lost bytes.
        lost: u64,
    },
    /// Some or all are lost; the first since the log was last written.
    FirstLost,
    /// Some or all are lost, as bytes before them.
    Lost,
}

/// The log of one console.
#[derive(Debug)]
pub struct ConsoleLog {
    folder: Rc<OwnedFd>,
    name: OsString,
    file: File,
    len: u64,
    index: LogIndex,
    limits: LogLimits,
    /// The number of bytes that are lost since the log was last written.
    lost: u64,
    /// The full log has its other name, and the new one could not be opened yet.
    is_set_aside: bool,
}

impl ConsoleLog {
    /// Opens the log `name` in a folder, which it goes on with, or makes it.
    ///
    /// # Errors
    /// The log or its index cannot be opened. Nothing has been written then.
    pub fn open(folder: Rc<OwnedFd>, name: &OsStr, limits: LogLimits) -> io::Result<Self> {
        let (file, index, len) = open_both(&folder, name, limits)?;
        let name = name.to_owned();
        Ok(Self { folder, name, file, len, index, limits, lost: 0, is_set_aside: false })
    }

    /// Notes that a life of the guest begins, as domain `domid`.
    ///
    /// # Errors
    /// The index cannot be written; the log can still be.
    pub fn begin_life(&mut self, domid: u16, time_us: u64) -> io::Result<()> {
        self.note(time_us, IndexEvent::Life(self.len))?;
        self.note(time_us, IndexEvent::Domain(domid))
    }

    /// Notes that a daemon that was started again goes on.
    ///
    /// # Errors
    /// The index cannot be written; the log can still be.
    pub fn resume(&mut self, time_us: u64) -> io::Result<()> {
        self.note(time_us, IndexEvent::Resumed(self.len))
    }

    /// Notes that so many bytes were lost before they came to the log.
    ///
    /// # Errors
    /// The index cannot be written; the log can still be.
    pub fn note_lost(&mut self, bytes: u64, time_us: u64) -> io::Result<()> {
        self.note_lost_before(self.len, bytes, time_us)
    }

    /// Returns the log's inode and size: the place of the next byte.
    #[must_use]
    pub fn place(&self) -> (u64, u64) {
        (self.file.metadata().map_or(0, |file| file.ino()), self.len)
    }

    /// Returns the last bytes of the log, at most `len`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn tail(&self, len: usize) -> io::Result<Vec<u8>> {
        let from = self.len.saturating_sub(len as u64);
        let mut bytes = vec![0; usize::try_from(self.len - from).unwrap_or(len)];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    /// Adds bytes that came at this time, and sets the log aside before if it has its full size.
    pub fn append(&mut self, bytes: &[u8], time_us: u64) -> LogOutcome {
        match self.write(bytes, time_us) {
            Ok(()) if self.lost == 0 => LogOutcome::Kept,
            Ok(()) => {
                let lost = std::mem::take(&mut self.lost);
                let begin = self.len.saturating_sub(bytes.len() as u64);
                let _ = self.note_lost_before(begin, lost, time_us);
                LogOutcome::KeptAgain { lost }
            }
            Err(missing) => {
                let first = self.lost == 0;
                self.lost = self.lost.saturating_add(missing);
                if first { LogOutcome::FirstLost } else { LogOutcome::Lost }
            }
        }
    }

    /// Closes the files and opens them by their names again, for whoever has renamed them.
    ///
    /// # Errors
    /// They cannot be opened; the files that were open stay in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        let (file, index, len) = open_both(&self.folder, &self.name, self.limits)?;
        (self.file, self.index, self.len) = (file, index, len);
        self.is_set_aside = false;
        Ok(())
    }

    /// Writes bytes; the error is the number of bytes that are not in the log.
    fn write(&mut self, bytes: &[u8], time_us: u64) -> Result<(), u64> {
        let all = bytes.len() as u64;
        if !self.has_room() {
            return Err(all);
        }
        if self.len >= self.limits.bytes_max {
            self.set_aside().map_err(|_| all)?;
        }
        // An index that cannot be written costs times, and no output.
        let _ = self.index.note_output(time_us, self.len);
        let mut left = bytes;
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(count) => {
                    self.len += count as u64;
                    left = left.get(count..).unwrap_or_default();
                    if count == 0 {
                        return Err(left.len() as u64);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(left.len() as u64),
            }
        }
        Ok(())
    }

    /// True if the file system has more free bytes than logs leave free.
    fn has_room(&self) -> bool {
        let Ok(room) = fstatvfs(&self.file) else { return true };
        let whole = room.f_blocks.saturating_mul(room.f_frsize);
        room.f_bavail.saturating_mul(room.f_frsize) >= self.limits.reserve.min(whole / 8)
    }

    fn set_aside(&mut self) -> io::Result<()> {
        // The index first: one that has no log beside it names the log's inode.
        let old = with_ending(&self.name, SET_ASIDE);
        for (from, to) in [
            (with_ending(&self.name, INDEX), with_ending(&old, INDEX)),
            (self.name.clone(), old.clone()),
        ] {
            // Once: to do it again would set an empty log aside, over the full one.
            if self.is_set_aside {
                break;
            }
            match renameat(&*self.folder, &from, &*self.folder, &to) {
                // Somebody has moved or removed it.
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.is_set_aside = true;
        self.reopen()
    }

    /// Notes that so many bytes were lost before those at an offset.
    fn note_lost_before(&mut self, offset: u64, bytes: u64, time_us: u64) -> io::Result<()> {
        // The place of the loss, also in an index that has no room for times.
        self.note(time_us, IndexEvent::Output(offset))?;
        self.note(time_us, IndexEvent::Lost(bytes))
    }

    fn note(&mut self, time_us: u64, event: IndexEvent) -> io::Result<()> {
        self.index.note(IndexRecord { time_us, event })
    }
}

/// Removes a log with its index, and those that were set aside.
///
/// # Errors
/// One of them is there and cannot be removed; the others are removed.
pub fn remove_log(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let old = with_ending(name, SET_ASIDE);
    let mut outcome = Ok(());
    for file in [name.to_owned(), with_ending(name, INDEX), with_ending(&old, INDEX), old] {
        match unlinkat(folder, &file, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => outcome = Err(error.into()),
        }
    }
    outcome
}

/// Opens a log and its index; returns them with the log's size.
fn open_both(
    folder: &OwnedFd,
    name: &OsStr,
    limits: LogLimits,
) -> io::Result<(File, LogIndex, u64)> {
    let mode = Mode::from_raw_mode(limits.mode);
    // Never through a link, nor into a FIFO that somebody else has put there.
    let common = OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::from(openat(folder, name, common | OFlags::RDWR | OFlags::APPEND, mode)?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let len = file.seek(SeekFrom::End(0))?;
    let index = openat(folder, with_ending(name, INDEX), common | OFlags::RDWR, mode)?;
    let index = LogIndex::open(index.into(), about.ino(), len)?;
    Ok((file, index, len))
}

fn with_ending(name: &OsStr, ending: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(ending);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;

    const LIMITS: LogLimits = LogLimits { bytes_max: 100, reserve: 0, mode: 0o640 };

    fn open(dir: &TempDir) -> ConsoleLog {
        let folder = Rc::new(File::open(dir.path()).unwrap().into());
        ConsoleLog::open(folder, OsStr::new("guest-a.log"), LIMITS).unwrap()
    }

    fn events(path: &Path) -> Vec<IndexEvent> {
        let inode = std::fs::metadata(path).unwrap().ino();
        let file = File::open(format!("{}.index", path.display())).unwrap();
        let records = read_index(file, inode).unwrap().expect("it is of this log");
        records.into_iter().map(|record| record.event).collect()
    }

    #[test]
    fn bytes_are_raw_and_lives_are_in_the_index() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("guest-a.log");
        let mut log = open(&dir);
        log.begin_life(3, 1).unwrap();
        assert_eq!(log.append(b"one\r\n\x1b[0m", 2), LogOutcome::Kept);
        drop(log);
        let mut log = open(&dir);
        log.resume(3).unwrap();
        assert_eq!(log.append(b"two\n", 4), LogOutcome::Kept);
        assert_eq!(std::fs::read(&path).unwrap(), b"one\r\n\x1b[0mtwo\n");
        let expected = [
            IndexEvent::Life(0),
            IndexEvent::Domain(3),
            IndexEvent::Output(0),
            IndexEvent::Resumed(9),
            IndexEvent::Output(9),
        ];
        // The first life began in an empty log, whose index a new start keeps once it has bytes.
        assert_eq!(events(&path), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640 & !umask());
    }

    fn umask() -> u32 {
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        umask.as_raw_mode()
    }

    #[test]
    fn a_full_log_is_set_aside_with_its_index() {
        let dir = TempDir::new().unwrap();
        let mut log = open(&dir);
        for round in 0..30_u8 {
            assert_eq!(log.append(&[b'a' + round; 20], round.into()), LogOutcome::Kept);
        }
        let old = dir.path().join("guest-a.log.1");
        let new = dir.path().join("guest-a.log");
        let old_bytes = std::fs::read(&old).unwrap();
        assert_eq!((old_bytes.len(), old_bytes[0]), (100, b'a' + 20));
        assert_eq!(std::fs::read(&new).unwrap()[0], b'a' + 25);
        assert_eq!((events(&old).len(), events(&new).len()), (5, 5));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        remove_log(&log.folder, OsStr::new("guest-a.log")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn whoever_renames_the_log_gets_a_new_one_by_reopen() {
        let dir = TempDir::new().unwrap();
        let mut log = open(&dir);
        log.append(b"before", 1);
        let path = dir.path().join("guest-a.log");
        std::fs::rename(&path, dir.path().join("kept")).unwrap();
        log.append(b" and after", 2);
        log.reopen().unwrap();
        log.append(b"new", 3);
        assert_eq!(std::fs::read(dir.path().join("kept")).unwrap(), b"before and after");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(events(&path), [IndexEvent::Output(0)]);
    }

    #[test]
    fn a_link_or_a_fifo_in_its_place_is_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("guest-a.log");
        let folder: Rc<OwnedFd> = Rc::new(File::open(dir.path()).unwrap().into());
        let open = || ConsoleLog::open(folder.clone(), OsStr::new("guest-a.log"), LIMITS);
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(open().is_err());
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(&*folder, "guest-a.log", rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        assert!(open().is_err());
    }

    #[test]
    fn lost_bytes_are_counted_and_said_once() {
        let dir = TempDir::new().unwrap();
        let mut log = open(&dir);
        log.append(b"kept", 1);
        // As on a full disk: no write of this descriptor succeeds.
        let whole =
            std::mem::replace(&mut log.file, File::open(dir.path().join("guest-a.log")).unwrap());
        assert_eq!(log.append(b"gone", 2), LogOutcome::FirstLost);
        assert_eq!(log.append(b"also gone", 3), LogOutcome::Lost);
        log.file = whole;
        assert_eq!(log.append(b"again", 4), LogOutcome::KeptAgain { lost: 13 });
        assert_eq!(log.append(b"!", 5), LogOutcome::Kept);
        assert_eq!(std::fs::read(dir.path().join("guest-a.log")).unwrap(), b"keptagain!");
        assert!(events(&dir.path().join("guest-a.log")).contains(&IndexEvent::Lost(13)));
    }
}
