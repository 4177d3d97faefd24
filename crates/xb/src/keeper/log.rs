//! Logs that the keeper writes: its own, and those of guests, each from the FIFO that its guest
//! prints into.

use crate::host::folder::Folder;
use crate::host::guest_folder::GuestFolder;
use rustix::fs::fstatvfs;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The size at which a log is replaced: it is kept as the old log, and the old log before it is
/// dropped.
pub(super) const LOG_MAX: u64 = 1 << 20;
/// The number of bytes of a file system that logs leave free, or an eighth of it where that is
/// less.
const RESERVE: u64 = 16 << 20;
/// The number of bytes that are read from a pipe at a time.
const READ_BYTES: usize = 16 << 10;
/// The number of bytes that a guest may print at once: both of its logs full.
pub const PRINT_BURST: u64 = 2 * LOG_MAX;
/// The number of bytes a second that a guest may print beyond that. A guest that prints more waits,
/// as at a slow console.
pub const PRINT_RATE: u64 = 256 << 10;

/// Writes a line of the keeper's own log; where the disk is full, it is lost.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "keeper: {line}");
}

fn new_credit() -> (u64, Instant) {
    (PRINT_BURST, Instant::now())
}

/// Returns the path of the old log.
fn set_aside(guest: &GuestFolder) -> PathBuf {
    guest.log().with_extension("1")
}

/// A guest's pipe and log.
pub(super) struct GuestLog {
    pub(super) pipe: File,
    guest: GuestFolder,
    file: File,
    written: u64,
    /// The number of bytes that may still be read, as of that time.
    credit: (u64, Instant),
}

impl GuestLog {
    pub(super) fn new(guest: GuestFolder, pipe: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let path = guest.log();
        // The output of the previous guest stays in the old log.
        let _ = std::fs::rename(&path, set_aside(&guest));
        let file = File::create(&path)?;
        Ok(Self { pipe: pipe.into(), guest, file, written: 0, credit: new_credit() })
    }

    /// Opens the logs of the guests that print, for a new keeper.
    pub(super) fn open_all(folder: &Folder) -> Vec<Self> {
        folder.guest_folders().filter_map(|guest| Self::reopen(guest).ok()).collect()
    }

    fn reopen(guest: GuestFolder) -> std::io::Result<Self> {
        let pipe = File::from(guest.open_output()?);
        let file = File::options().append(true).create(true).open(guest.log())?;
        let written = file.metadata()?.len();
        Ok(Self { pipe, guest, file, written, credit: new_credit() })
    }

    /// Returns the folder of its guest.
    pub(super) fn guest(&self) -> &GuestFolder {
        &self.guest
    }

    /// Returns the time for which nothing is read, as the guest has printed too much.
    pub(super) fn rest_time(&mut self) -> Option<Duration> {
        let (credit, since) = self.credit;
        let now = Instant::now();
        let earned = now.saturating_duration_since(since).as_micros() * u128::from(PRINT_RATE);
        let earned = u64::try_from(earned / 1_000_000).unwrap_or(PRINT_BURST);
        if earned > 0 {
            self.credit = (credit.saturating_add(earned).min(PRINT_BURST), now);
        }
        let missing = (READ_BYTES as u64).checked_sub(self.credit.0)?;
        (missing > 0).then(|| Duration::from_micros(missing * 1_000_000 / PRINT_RATE))
    }

    /// Reads the output that is there and may be read; false where no more will come.
    pub(super) fn take(&mut self) -> bool {
        if self.rest_time().is_some() {
            return true;
        }
        let mut buffer = [0; READ_BYTES];
        match self.pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.credit.0 = self.credit.0.saturating_sub(count as u64);
                // A full disk costs lines of the log, and does not stop the guest.
                let _ = self.write(buffer.get(..count).unwrap_or_default());
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let room = fstatvfs(&self.file)?;
        let reserve = RESERVE.min(room.f_blocks.saturating_mul(room.f_frsize) / 8);
        if room.f_bavail.saturating_mul(room.f_frsize) < reserve {
            // The records of disks are on the same file system, and are more important.
            return Ok(());
        }
        if self.written > LOG_MAX {
            std::fs::rename(self.guest.log(), set_aside(&self.guest))?;
            self.file = File::create(self.guest.log())?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}
