//! Guests' logs: the FIFO that a guest prints into, the file that the keeper makes of it, and waiting for a line.

use super::ANSWERS_WITHIN;
use crate::Error;
use crate::host::folder::Folder;
use crate::wait::Limit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstatvfs, inotify, mknodat, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::time::Timespec;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A log at this size is set aside, and the one that was set aside before is dropped.
pub(super) const LOG_MAX: u64 = 1 << 20;
/// Bytes of a file system that logs leave free, or an eighth of it where that is less.
const RESERVE: u64 = 16 << 20;
/// Bytes that are taken from a pipe at a time.
const READ_BYTES: usize = 16 << 10;
/// Bytes that a guest may print at once: what fills both of its logs.
pub const PRINT_BURST: u64 = 2 * LOG_MAX;
/// Bytes a second that a guest may print beyond that. Who prints more waits, as at a slow console.
pub const PRINT_RATE: u64 = 256 << 10;

/// A guest's log.
#[must_use]
pub fn log_of(folder: &Folder, name: &str) -> PathBuf {
    folder.guest(name).join("log")
}

/// Has the keeper write a new log of a guest; what is written into the answer goes there.
///
/// # Errors
/// A sentence where no keeper answers.
pub fn keep_log(folder: &Folder, name: &str) -> Result<OwnedFd, Error> {
    let path = folder.keeper();
    let said = |error: std::io::Error| {
        let cause = crate::text::cause(&error);
        let dir = folder.path().display();
        Error::Refused(format!(
            "the keeper at {} does not answer: {cause}; xb --host {dir} host up starts it",
            path.display()
        ))
    };
    let (read, write) = fifo(&output_of(folder, name))?;
    let mut stream = UnixStream::connect(&path).map_err(said)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN)).map_err(said)?;
    let fds = [read.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        &stream,
        &[IoSlice::new(name.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    sent.map_err(|errno| said(errno.into()))?;
    stream.read_exact(&mut [0]).map_err(said)?;
    Ok(write)
}

/// What a guest prints into.
fn output_of(folder: &Folder, name: &str) -> PathBuf {
    folder.guest(name).join("output")
}

/// Makes a FIFO anew: the keeper's end and the guest's, which reads as well.
fn fifo(path: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    let said = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
    // One of before has another guest's words in it, perhaps.
    let _ = std::fs::remove_file(path);
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(said)?;
    let read = open_output(path).map_err(said)?;
    let write = open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
    Ok((read, write.map_err(said)?))
}

/// The keeper's end of a FIFO; it is not waited for anybody at the other.
fn open_output(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    open(path, flags, Mode::empty())
}

/// Waits until a guest has printed a line of which `wanted` makes something; lines of before count.
///
/// # Errors
/// [`Error::Timeout`], [`Error::Interrupted`], or there is no such guest.
pub fn await_line<T>(
    folder: &Folder,
    name: &str,
    limit: Limit,
    wanted: &dyn Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    let path = log_of(folder, name);
    let failed = |errno: rustix::io::Errno| Error::io(path.display())(errno.into());
    let watch = watch_log(folder, name).map_err(failed)?;
    loop {
        let text = std::fs::read(&path).map_err(Error::io(path.display()))?;
        let text = String::from_utf8_lossy(&text);
        // A line without an end is not yet what it will be.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(found) = whole.lines().find_map(wanted) {
            return Ok(found);
        }
        await_log(&watch, limit, &|| {
            format!("{name} prints what is waited for ({})", path.display())
        })?;
    }
}

/// Watches a guest's log.
pub(crate) fn watch_log(folder: &Folder, name: &str) -> Result<OwnedFd, rustix::io::Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // The folder, as a full log is set aside, and its end is noted beside it.
    inotify::add_watch(
        &watch,
        folder.guest(name),
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
    )?;
    Ok(watch)
}

/// Waits until a log that is watched may have grown, or for a moment.
pub(crate) fn await_log(
    watch: &OwnedFd,
    limit: Limit,
    what: &dyn Fn() -> String,
) -> Result<(), Error> {
    let slice = Timespec::try_from(limit.slice(what)?).ok();
    // Whatever comes, the log is looked at again.
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], slice.as_ref());
    let _ = rustix::io::read(watch, &mut [0_u8; 4096]);
    Ok(())
}

fn new_credit() -> (u64, Instant) {
    (PRINT_BURST, Instant::now())
}

/// A guest's pipe and log.
pub(super) struct Log {
    pub(super) pipe: File,
    path: PathBuf,
    file: File,
    written: u64,
    /// Bytes that it may still take, as of that time.
    credit: (u64, Instant),
}

impl Log {
    pub(super) fn new(folder: &Folder, name: &str, pipe: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let path = log_of(folder, name);
        // What the guest before it printed is had once more.
        let _ = std::fs::rename(&path, path.with_extension("1"));
        let file = File::create(&path)?;
        Ok(Self { pipe: pipe.into(), path, file, written: 0, credit: new_credit() })
    }

    /// Those of the guests that print: what a keeper before this one has left.
    pub(super) fn left(folder: &Folder) -> Vec<Self> {
        folder.guest_folders().filter_map(|guest| Self::again(&guest).ok()).collect()
    }

    fn again(guest: &Path) -> std::io::Result<Self> {
        let pipe = File::from(open_output(&guest.join("output"))?);
        let path = guest.join("log");
        let file = File::options().append(true).create(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { pipe, path, file, written, credit: new_credit() })
    }

    /// The folder of its guest.
    pub(super) fn guest(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// The time for which nothing is taken, as the guest has printed too much.
    pub(super) fn rests(&mut self) -> Option<Duration> {
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

    /// Takes what there is and may be taken; false where nothing will come any more.
    pub(super) fn take(&mut self) -> bool {
        if self.rests().is_some() {
            return true;
        }
        let mut buffer = [0; READ_BYTES];
        match self.pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.credit.0 = self.credit.0.saturating_sub(count as u64);
                // A disk that is full costs the log, not the guest.
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
            // The records of disks are beside it, and matter more.
            return Ok(());
        }
        if self.written > LOG_MAX {
            std::fs::rename(&self.path, self.path.with_extension("1"))?;
            self.file = File::create(&self.path)?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}
