//! The record of a console: how much of the ring is in the log, for a daemon that is started again.
//!
//! The daemon writes a chunk of the ring to the log, then this record, and then releases the chunk.
//! Killed at any moment, the record tells the next daemon which bytes of the ring are in the log.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use rustix::io::{pread, pwrite};
use std::fs::File;
use std::io;

/// The version of the layout, which is the first word.
const VERSION: u64 = 2;
const LEN: usize = 48;

/// The state of a console when its record was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoggedState {
    /// The identity of the domain's life: a number of a domain is used again.
    pub life: u64,
    /// The inode of the log.
    pub inode: u64,
    /// The size of the log.
    pub log_len: u64,
    /// The index of the ring behind the last byte that is in the log.
    pub index: u32,
    /// The inode of the FIFO that the domain prints into besides; 0 if there is none.
    pub fifo: u64,
}

/// The record of one console, in a file that outlives the process; best on tmpfs.
#[derive(Debug)]
pub struct ConsoleRecord {
    file: File,
}

impl ConsoleRecord {
    /// Takes the record that `file` has or will have.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file }
    }

    /// Writes the state, in one call.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state: LoggedState) -> io::Result<()> {
        let LoggedState { life, inode, log_len, index, fifo } = state;
        let words = [VERSION, life, inode, log_len, index.into(), fifo];
        let mut bytes = [0; LEN];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        match pwrite(&self.file, &bytes, 0)? {
            LEN => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Forgets the state.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Returns the state that an earlier process has written; none if there is none.
    #[must_use]
    pub fn read(&self) -> Option<LoggedState> {
        let mut bytes = [0; LEN];
        let count = pread(&self.file, &mut bytes, 0).ok()?;
        let mut words = bytes
            .get(..count)?
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        if words.len() < LEN / 8 || words.next() != Some(VERSION) {
            return None;
        }
        Some(LoggedState {
            life: words.next()?,
            inode: words.next()?,
            log_len: words.next()?,
            index: u32::try_from(words.next()?).ok()?,
            fifo: words.next()?,
        })
    }
}

impl LoggedState {
    /// Returns the number of bytes that the log has beyond those that the record says. They were
    /// written between the record and the end of that process: a chunk of one source, or a part of
    /// it.
    ///
    /// `now` is what holds now: the life and the log.
    #[must_use]
    pub fn unrecorded(&self, now: &Self) -> usize {
        if self.life != now.life {
            return 0;
        }
        // A log with another inode is a new one: that of the record was set aside.
        let recorded = if self.inode == now.inode { self.log_len } else { 0 };
        usize::try_from(now.log_len.saturating_sub(recorded)).unwrap_or(usize::MAX)
    }

    /// Returns the number of bytes at the beginning of the ring's output that are in the log already.
    ///
    /// `now` is what holds now: the life, the log, and the index of the ring's first byte. `output`
    /// is the ring's output, and `tail` reads so many bytes from the end of the log.
    ///
    /// Between the writing of the log and that of the record, the log has more bytes than the record
    /// says. They count if the ring has the same bytes at that place.
    pub fn logged(
        &self,
        now: &Self,
        output: &[u8],
        tail: impl FnOnce(usize) -> Option<Vec<u8>>,
    ) -> usize {
        if self.life != now.life {
            return 0;
        }
        // The bytes that the record knows to be in the log, and that are not released.
        let known = self.index.wrapping_sub(now.index) as usize;
        let Some(after) = output.get(known..) else { return 0 };
        match begins_with_tail(after, self.unrecorded(now), tail) {
            Some(more) => known.saturating_add(more),
            None => known,
        }
    }
}

/// Returns `more`, the number of bytes that a log has beyond its record, if there are any and
/// `output` begins with them: then these bytes of it are in the log already. `tail` reads so many
/// bytes from the end of the log.
pub fn begins_with_tail(
    output: &[u8],
    more: usize,
    tail: impl FnOnce(usize) -> Option<Vec<u8>>,
) -> Option<usize> {
    let bytes = output.get(..more).filter(|bytes| !bytes.is_empty())?;
    tail(more).is_some_and(|tail| tail == bytes).then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: LoggedState = LoggedState { life: 5, inode: 6, log_len: 100, index: 50, fifo: 9 };

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let file = tempfile::tempfile().unwrap();
        let record = ConsoleRecord::new(file.try_clone().unwrap());
        assert_eq!(record.read(), None);
        record.write(STATE).unwrap();
        assert_eq!(ConsoleRecord::new(file.try_clone().unwrap()).read(), Some(STATE));
        file.set_len(47).unwrap();
        assert_eq!(record.read(), None, "torn");
        file.set_len(48).unwrap();
        pwrite(&file, &[1], 0).unwrap();
        assert_eq!(record.read(), None, "of another version");
        record.write(STATE).unwrap();
        record.clear().unwrap();
        assert_eq!(record.read(), None);
    }

    #[test]
    fn the_bytes_that_are_in_the_log_are_known_after_a_kill_at_any_moment() {
        let no_tail = |_| panic!("the log has no more than the record says");
        let now = |log_len, index| LoggedState { log_len, index, ..STATE };
        // Killed before anything of the next chunk.
        assert_eq!(STATE.logged(&now(100, 50), b"next", no_tail), 0);
        // Between the log and the record: all of it, or a part.
        assert_eq!(STATE.logged(&now(104, 50), b"next", |len| Some(b"next"[..len].into())), 4);
        assert_eq!(STATE.logged(&now(102, 50), b"next", |len| Some(b"next"[..len].into())), 2);
        // Between the record and the release.
        assert_eq!(STATE.logged(&now(100, 46), b"next more", no_tail), 4);
        // Another has written to the log, or it was cut.
        assert_eq!(STATE.logged(&now(104, 50), b"next", |_| Some(b"else".to_vec())), 0);
        assert_eq!(STATE.logged(&now(104, 50), b"nex", |_| Some(b"next".to_vec())), 0);
        // It was cut: the bytes had been in it.
        assert_eq!(STATE.logged(&now(99, 46), b"next", no_tail), 4);
        // It was set aside between the record and the release, or before the bytes were written.
        let new = |log_len, index| LoggedState { inode: 1, ..now(log_len, index) };
        assert_eq!(STATE.logged(&new(0, 46), b"next more", no_tail), 4);
        assert_eq!(STATE.logged(&new(4, 50), b"next", |len| Some(b"next"[..len].into())), 4);
        assert_eq!(STATE.logged(&new(4, 50), b"next", |_| Some(b"else".to_vec())), 0);
        // Another life, indices that do not fit.
        assert_eq!(STATE.logged(&LoggedState { life: 1, ..now(100, 46) }, b"next", no_tail), 0);
        assert_eq!(STATE.logged(&now(100, 51), b"next", no_tail), 0);
        assert_eq!(STATE.logged(&now(100, u32::MAX), &[0; 51], no_tail), 51);
    }

    #[test]
    fn bytes_beyond_the_record_are_found_in_the_source_that_they_are_of() {
        let now = |log_len| LoggedState { log_len, ..STATE };
        assert_eq!(STATE.unrecorded(&now(104)), 4);
        assert_eq!(STATE.unrecorded(&now(100)), 0);
        assert_eq!(STATE.unrecorded(&LoggedState { inode: 1, ..now(7) }), 7, "of a new log");
        assert_eq!(STATE.unrecorded(&LoggedState { life: 1, ..now(104) }), 0);
        let tail = |len| Some(b"some"[4 - len..].to_vec());
        assert_eq!(begins_with_tail(b"some more", 4, tail), Some(4));
        assert_eq!(begins_with_tail(b"other", 4, tail), None);
        assert_eq!(begins_with_tail(b"som", 4, tail), None, "they have left it");
        assert_eq!(begins_with_tail(b"some more", 0, tail), None);
    }
}
