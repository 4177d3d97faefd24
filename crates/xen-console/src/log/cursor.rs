//! The records of an index, one after the other, also while they are being written.
//!
//! Whatever the file holds, it costs times alone: a record that is no record is passed over, and an
//! index that is too long for its log is not read to its end.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::index::{HEAD_LEN, IndexRecord, RECORD_LEN, encode_head};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The bytes of an index that are read at a time: a multiple of a record's.
const BLOCK: usize = 16 << 10;
/// The bytes of an index that are read, however small its log is; of a larger log as many more as
/// the log has.
const ALWAYS_READ: u64 = 1 << 20;

/// A place in the index of a log.
#[derive(Debug)]
pub(super) struct IndexCursor {
    file: File,
    /// The inode of the log.
    inode: u64,
    /// The place in the file behind the records that were read.
    next: u64,
    /// The place in the file behind which nothing is read.
    end: u64,
    /// Records that were read, the first one last.
    ready: Vec<IndexRecord>,
}

impl IndexCursor {
    /// Returns the first place of an index; none if it is of another log, or no index.
    pub(super) fn new(file: File, inode: u64) -> Option<Self> {
        let cursor = Self { file, inode, next: HEAD_LEN, end: ALWAYS_READ, ready: Vec::new() };
        cursor.is_of_log().then_some(cursor)
    }

    /// Returns the first place of the same index.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(super) fn restarted(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file, inode: self.inode, next: HEAD_LEN, end: self.end, ready: Vec::new() })
    }

    /// Takes the size that the log has now.
    pub(super) fn set_log_len(&mut self, len: u64) {
        self.end = ALWAYS_READ.saturating_add(len);
    }

    /// Returns the record at this place; none while there is no further one.
    pub(super) fn peek(&mut self) -> Option<IndexRecord> {
        while self.ready.is_empty() {
            self.fill()?;
        }
        self.ready.last().copied()
    }

    /// Goes on to the next record.
    pub(super) fn advance(&mut self) {
        self.ready.pop();
    }

    /// Reads further records, perhaps none that is known; none if there is no further one.
    fn fill(&mut self) -> Option<()> {
        // An index can be begun anew, for another log, while it is read.
        if self.next >= self.end || !self.is_of_log() {
            return None;
        }
        let mut block = [0; BLOCK];
        let count = self.file.read_at(&mut block, self.next).ok()?;
        let records = block.get(..count)?.chunks_exact(RECORD_LEN as usize);
        let read = (records.len() as u64).saturating_mul(RECORD_LEN);
        let known = records.rev().filter_map(|one| IndexRecord::decode(one.try_into().ok()?));
        self.ready.extend(known);
        self.next = self.next.saturating_add(read);
        (read > 0).then_some(())
    }

    fn is_of_log(&self) -> bool {
        let mut head = [0; HEAD_LEN as usize];
        self.file.read_exact_at(&mut head, 0).is_ok() && head == encode_head(self.inode)
    }
}
