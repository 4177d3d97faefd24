//! A reader of a log, for programs that show it: the log, and the one set aside before it, as one
//! stream of bytes with times, lives and lost bytes.
//!
//! It reads files and nothing else, beside the daemon that writes them. What an index says is not
//! trusted: at worst times, lives and lost bytes are wrong or missing, and every byte of the log is
//! shown once. Memory is bounded, whatever the files hold.
//!
//! A place is the number of bytes of the stream before it. Places stay what they are when the log is
//! set aside meanwhile.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::file::{LogFile, LogNames, LogPiece, is_same, open_both};
use super::index::IndexEvent;
use super::{SET_ASIDE, with_ending};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The most lives that are known: the newest ones.
const LIVES_MAX: usize = 1024;
/// The bytes that are searched for the ends of lines at a time.
const BLOCK: usize = 64 << 10;
/// The tries to open a log and the one before it while the log is set aside.
const OPEN_TRIES: usize = 8;

/// A life of a guest in its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLife {
    /// The place of its first byte.
    pub place: u64,
    /// The time of its beginning, in microseconds since 1970.
    pub time_us: u64,
    /// The number of the domain, if it is known.
    pub domid: Option<u16>,
}

/// A reader of the log of one console.
#[derive(Debug)]
pub struct LogReader {
    folder: OwnedFd,
    names: LogNames,
    /// The files of the stream, the oldest first; at least one.
    files: VecDeque<LogFile>,
    /// The number of the file that is being read.
    at: usize,
    /// The place of the next byte.
    place: u64,
    /// The log that was set aside when the reader last looked. It is held open, so that no other file
    /// has its inode.
    set_aside: Option<File>,
}

impl LogReader {
    /// Opens the log `name` in a folder, with the one that was set aside before it. The reader is at the
    /// first byte of the older one.
    ///
    /// # Errors
    /// There is no such log, or it cannot be read.
    pub fn open(folder: &Path, name: &OsStr) -> io::Result<Self> {
        Self::open_names(folder, name, &with_ending(name, SET_ASIDE))
    }

    /// Opens a log whose older one has another name than `NAME.1`.
    ///
    /// # Errors
    /// As [`LogReader::open`].
    pub fn open_names(folder: &Path, name: &OsStr, set_aside: &OsStr) -> io::Result<Self> {
        let folder = OwnedFd::from(File::open(folder)?);
        let names = LogNames { newest: name.to_owned(), set_aside: set_aside.to_owned() };
        let (mut newest, mut older) = open_both(&folder, &names)?;
        for _ in 0..OPEN_TRIES {
            let (again, older_again) = open_both(&folder, &names)?;
            let is_settled = is_same(newest.as_ref(), again.as_ref())
                && is_same(older.as_ref(), older_again.as_ref());
            (newest, older) = (again, older_again);
            if is_settled {
                break;
            }
        }
        let set_aside = older.as_ref().map(|older| older.file.try_clone()).transpose()?;
        if is_same(newest.as_ref(), older.as_ref()) {
            // It was set aside, and there is no newer one yet.
            newest = None;
        }
        let mut files: VecDeque<LogFile> = older.into_iter().chain(newest).collect();
        let mut start = 0_u64;
        for file in &mut files {
            file.start = start;
            file.find_index(&folder, &names);
            start = start.saturating_add(file.len()?);
        }
        if files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { folder, names, files, at: 0, place: 0, set_aside })
    }

    /// Returns the place of the first byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.files.front().map_or(0, |file| file.start)
    }

    /// Returns the place of the first byte of the log that is being written.
    #[must_use]
    pub fn newest_start(&self) -> u64 {
        self.files.back().map_or(0, |file| file.start)
    }

    /// Returns the place behind the last byte that is there now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn end(&self) -> io::Result<u64> {
        let Some(last) = self.files.back() else { return Ok(0) };
        Ok(last.start.saturating_add(last.len()?))
    }

    /// Returns the lives of the guest that begin in the stream, the newest last; at most 1024.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn lives(&self) -> io::Result<VecDeque<LogLife>> {
        let mut lives: VecDeque<LogLife> = VecDeque::new();
        for file in &self.files {
            let mut is_new = false;
            for (record, place) in file.records()? {
                match (record.event, place) {
                    (IndexEvent::Life(_), Some(place)) => {
                        // Places only grow; what else is said of lives is wrong.
                        is_new = lives.back().is_none_or(|life| life.place <= place);
                        if is_new {
                            if lives.len() >= LIVES_MAX {
                                lives.pop_front();
                            }
                            let time_us = record.time_us;
                            lives.push_back(LogLife { place, time_us, domid: None });
                        }
                    }
                    (IndexEvent::Domain(domid), _) if is_new => {
                        if let Some(life) = lives.back_mut() {
                            life.domid.get_or_insert(domid);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(lives)
    }

    /// True if the time of anything in the stream is known.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn has_times(&self) -> io::Result<bool> {
        for file in &self.files {
            if file.records()?.any(|(_, place)| place.is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the place of the first byte that came at a time or later, in microseconds since 1970;
    /// none if none is known to.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn place_since(&self, time_us: u64) -> io::Result<Option<u64>> {
        for file in &self.files {
            let end = file.start.saturating_add(file.len()?);
            let place = file.records()?.find_map(|(record, place)| {
                let is_output = matches!(record.event, IndexEvent::Output(_));
                place.filter(|place| is_output && record.time_us >= time_us && *place < end)
            });
            if place.is_some() {
                return Ok(place);
            }
        }
        Ok(None)
    }

    /// Returns the place where the last `lines` lines before `to` begin, but none before `from`. A line
    /// without an end counts. It reads from the end on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn last_lines(&self, from: u64, to: u64, lines: u64) -> io::Result<u64> {
        if lines == 0 {
            return Ok(to);
        }
        // The end of the last line begins none.
        let inside = to.saturating_sub(1).max(from);
        self.behind_line_end(from, inside, lines)
    }

    /// Returns the place where the line with the byte at `place` begins, but none before `from`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn line_start(&self, from: u64, place: u64) -> io::Result<u64> {
        self.behind_line_end(from, place, 1)
    }

    /// Returns the place behind the `count`th end of a line before `to`, in backward direction.
    fn behind_line_end(&self, from: u64, to: u64, mut count: u64) -> io::Result<u64> {
        let mut block = vec![0; BLOCK];
        let mut end = to;
        while end > from {
            let begin = end.saturating_sub(BLOCK as u64).max(from);
            let len = usize::try_from(end.saturating_sub(begin)).unwrap_or(BLOCK);
            let bytes = block.get_mut(..len).unwrap_or_default();
            self.read_at(begin, bytes)?;
            for (number, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                count = count.saturating_sub(1);
                if count == 0 {
                    return Ok(begin.saturating_add(number as u64).saturating_add(1));
                }
            }
            end = begin;
        }
        Ok(from)
    }

    /// Reads the bytes at a place; those that are gone meanwhile are 0.
    fn read_at(&self, mut place: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        bytes.fill(0);
        for (number, file) in self.files.iter().enumerate() {
            let next = self.files.get(number.saturating_add(1)).map_or(u64::MAX, |next| next.start);
            while place >= file.start && place < next && !bytes.is_empty() {
                let most = usize::try_from(next.saturating_sub(place)).unwrap_or(usize::MAX);
                let most = most.min(bytes.len());
                let into = bytes.get_mut(..most).unwrap_or_default();
                let count = match file.read_at(place.saturating_sub(file.start), into)? {
                    0 => most,
                    count => count,
                };
                place = place.saturating_add(count as u64);
                bytes = bytes.get_mut(count..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Goes to a place; what is told next is not before it.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn seek(&mut self, place: u64) -> io::Result<()> {
        let at = self.files.iter().rposition(|file| file.start <= place).unwrap_or(0);
        (self.at, self.place) = (at, place);
        for file in self.files.iter_mut().skip(at) {
            file.rewind(place.saturating_sub(file.start))?;
        }
        Ok(())
    }

    /// Returns the next piece before the place `end`, with output in `buffer`; none where there is no
    /// further one now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn next<'b>(&mut self, buffer: &'b mut [u8], end: u64) -> io::Result<Option<LogPiece<'b>>> {
        while self.place < end {
            let is_last = self.at.saturating_add(1) >= self.files.len();
            let Some(file) = self.files.get_mut(self.at) else { return Ok(None) };
            if std::mem::take(&mut file.follows_gap) {
                return Ok(Some(LogPiece::Lost { bytes: None, time_us: None }));
            }
            // Before the records: those of these bytes are there by then.
            let len = file.len()?;
            if is_last && self.place > file.start.saturating_add(len) {
                file.begin_anew(self.place)?;
                continue;
            }
            let offset = self.place.saturating_sub(file.start);
            // A log is made before its index, and the index before the log's first byte.
            if offset == 0 && len > 0 && file.index.is_none() {
                file.find_index(&self.folder, &self.names);
            }
            if let Some(piece) = file.event_at(offset, len) {
                return Ok(Some(piece));
            }
            let most =
                file.bound(offset, len).saturating_sub(offset).min(end.saturating_sub(self.place));
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read_at(offset, buffer.get_mut(..most).unwrap_or_default())?;
            if count > 0 {
                let time_us = file.time_us;
                self.place = self.place.saturating_add(count as u64);
                let bytes = buffer.get(..count).unwrap_or_default();
                return Ok(Some(LogPiece::Output { bytes, time_us }));
            }
            if is_last {
                return Ok(None);
            }
            self.next_file();
        }
        Ok(None)
    }

    /// Goes on to the next file, and closes those before it.
    fn next_file(&mut self) {
        let read = self.at.saturating_add(1);
        self.files.drain(..read.min(self.files.len()));
        self.at = 0;
        self.place = self.files.front().map_or(self.place, |file| file.start);
    }

    /// Looks for a log that has taken the place of the one that was being written. All of the earlier
    /// one is told first.
    ///
    /// # Errors
    /// The folder or the log cannot be read.
    pub fn look_again(&mut self) -> io::Result<()> {
        let (newest, older) = open_both(&self.folder, &self.names)?;
        let (place, Some(last)) = (self.place, self.files.back_mut()) else { return Ok(()) };
        if last.index.is_none() && last.find_index(&self.folder, &self.names) {
            last.rewind(place.saturating_sub(last.start))?;
        }
        let Some(mut newest) = newest.filter(|newest| !newest.is_same(last)) else {
            return Ok(());
        };
        let mut found = VecDeque::new();
        if let Some(mut older) = older.filter(|older| !older.is_same(last)) {
            if older.is_same(&newest) {
                // It was set aside at this moment: the next look finds both at their places.
                return Ok(());
            }
            let seen = self.set_aside.as_ref().and_then(|seen| seen.metadata().ok());
            if !seen.is_some_and(|seen| older.has(&seen)) {
                self.set_aside = Some(older.file.try_clone()?);
                older.follows_gap = true;
                found.push_back(older);
            }
        } else {
            self.set_aside = Some(last.file.try_clone()?);
        }
        newest.follows_gap = false;
        found.push_back(newest);
        // Nobody writes to the earlier one any more.
        let mut start = last.start.saturating_add(last.len()?);
        for mut file in found {
            file.start = start;
            file.find_index(&self.folder, &self.names);
            start = start.saturating_add(file.len()?);
            self.files.push_back(file);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
