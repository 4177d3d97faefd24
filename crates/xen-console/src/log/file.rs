//! One file of a log that is read, with its index.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::cursor::IndexCursor;
use super::index::{IndexEvent, IndexRecord};
use super::{INDEX, with_ending};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// A piece of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogPiece<'a> {
    /// Output that came at that time, in microseconds since 1970, if it is known.
    Output {
        /// The bytes, at least one.
        bytes: &'a [u8],
        /// The time of the bytes.
        time_us: Option<u64>,
    },
    /// A life of the guest begins.
    Life,
    /// Output was lost here.
    Lost {
        /// The number of bytes, if it is known.
        bytes: Option<u64>,
        /// The time of the next byte, in microseconds since 1970, if it is known.
        time_us: Option<u64>,
    },
}

/// The names of a log and of the one that was set aside before it.
#[derive(Clone, Debug)]
pub(super) struct LogNames {
    pub(super) newest: OsString,
    pub(super) set_aside: OsString,
}

/// One file of the stream.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) file: File,
    inode: u64,
    device: u64,
    /// The place of its first byte.
    pub(super) start: u64,
    pub(super) index: Option<IndexCursor>,
    /// The time of the bytes at this place.
    pub(super) time_us: Option<u64>,
    /// Logs may be missing before it, and this was not told yet.
    pub(super) follows_gap: bool,
}

impl LogFile {
    /// Opens a file of a folder; none if there is none.
    pub(super) fn open(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Self>> {
        let Some(file) = open_file(folder, name)? else { return Ok(None) };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("it is no plain file"));
        }
        let (inode, device) = (about.ino(), about.dev());
        let (index, time_us) = (None, None);
        Ok(Some(Self { file, inode, device, start: 0, index, time_us, follows_gap: false }))
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    pub(super) fn has(&self, about: &Metadata) -> bool {
        (self.device, self.inode) == (about.dev(), about.ino())
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Opens its index, which is beside it or is being set aside. True if there is one.
    pub(super) fn find_index(&mut self, folder: &OwnedFd, names: &LogNames) -> bool {
        let of = |name: &OsStr| {
            let file = open_file(folder, &with_ending(name, INDEX)).ok().flatten()?;
            file.metadata().is_ok_and(|about| about.is_file()).then_some(file)
        };
        let mut files = [&names.newest, &names.set_aside].into_iter().filter_map(|name| of(name));
        self.index = files.find_map(|file| IndexCursor::new(file, self.inode));
        self.index.is_some()
    }

    /// Returns all records of the index, with the places of those that have one in the log.
    pub(super) fn records(&self) -> io::Result<impl Iterator<Item = (IndexRecord, Option<u64>)>> {
        let (start, len) = (self.start, self.len()?);
        let mut cursor = self.index.as_ref().map(IndexCursor::restarted).transpose()?;
        if let Some(cursor) = &mut cursor {
            cursor.set_log_len(len);
        }
        Ok(std::iter::from_fn(move || {
            let cursor = cursor.as_mut()?;
            let record = cursor.peek()?;
            cursor.advance();
            let offset = offset(record.event).filter(|offset| *offset <= len);
            Some((record, offset.map(|offset| start.saturating_add(offset))))
        }))
    }

    /// Goes to an offset: passes over the records before it.
    pub(super) fn rewind(&mut self, to: u64) -> io::Result<()> {
        self.time_us = None;
        self.index = self.index.as_ref().map(IndexCursor::restarted).transpose()?;
        let len = self.len()?;
        let Some(index) = &mut self.index else { return Ok(()) };
        index.set_log_len(len);
        while let Some(record) = index.peek() {
            match offset(record.event) {
                Some(offset) if offset >= to => break,
                Some(_) => self.time_us = Some(record.time_us),
                None => {}
            }
            index.advance();
        }
        Ok(())
    }

    /// Goes on with a file that was emptied meanwhile: its first byte is at `place`.
    pub(super) fn begin_anew(&mut self, place: u64) -> io::Result<()> {
        self.start = place;
        self.rewind(0)
    }

    /// Takes the records at an offset, until one is to be told.
    pub(super) fn event_at(&mut self, place: u64, len: u64) -> Option<LogPiece<'static>> {
        let index = self.index.as_mut()?;
        index.set_log_len(len);
        while let Some(record) = index.peek() {
            if offset(record.event).is_some_and(|offset| offset > place) {
                break;
            }
            index.advance();
            match record.event {
                IndexEvent::Life(_) => return Some(LogPiece::Life),
                IndexEvent::Lost(bytes) => {
                    let (bytes, time_us) = (Some(bytes), Some(record.time_us));
                    return Some(LogPiece::Lost { bytes, time_us });
                }
                IndexEvent::Output(_) => self.time_us = Some(record.time_us),
                IndexEvent::Domain(_) | IndexEvent::Resumed(_) => {}
            }
        }
        None
    }

    /// Returns the offset up to which bytes from `place` on have the same time: that of the next record,
    /// or the file's length.
    pub(super) fn bound(&mut self, place: u64, len: u64) -> u64 {
        let next = self.index.as_mut().and_then(IndexCursor::peek);
        let next = next.and_then(|record| offset(record.event)).filter(|next| *next > place);
        next.map_or(len, |next| next.min(len))
    }
}

/// Returns the offset that an event has.
fn offset(event: IndexEvent) -> Option<u64> {
    match event {
        IndexEvent::Output(offset) | IndexEvent::Life(offset) | IndexEvent::Resumed(offset) => {
            Some(offset)
        }
        IndexEvent::Domain(_) | IndexEvent::Lost(_) => None,
    }
}

/// Opens a log and the one that was set aside before it; none for one that is not there.
pub(super) fn open_both(
    folder: &OwnedFd,
    names: &LogNames,
) -> io::Result<(Option<LogFile>, Option<LogFile>)> {
    Ok((LogFile::open(folder, &names.newest)?, LogFile::open(folder, &names.set_aside)?))
}

/// Opens a file for reading, never through a link and without waiting for a writer of a FIFO; none if
/// there is none.
fn open_file(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// True if both are the same file, or none is there.
pub(super) fn is_same(one: Option<&LogFile>, other: Option<&LogFile>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is_same(other),
        (None, None) => true,
        _ => false,
    }
}
