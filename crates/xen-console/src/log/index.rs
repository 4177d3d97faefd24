//! The index of a log: the times of lines, the beginnings of a guest's lives, and lost output.
//!
//! The log itself has the guest's bytes and nothing else. The index lies beside it:
//!
//! | bytes | contents, little-endian |
//! |---|---|
//! | 0 to 4 | `XBCI` |
//! | 4 to 8 | version: 1 |
//! | 8 to 16 | the inode of the log that it is of |
//! | then 16 each | a record: microseconds since 1970; kind in the upper 16 bits, value in the lower 48 |
//!
//! | kind | value |
//! |---|---|
//! | 1 | the offset in the log of bytes that came at that time |
//! | 2 | the offset in the log where a life of the guest begins |
//! | 3 | the domain's number in that life |
//! | 4 | the number of bytes that were lost: the log could not be written, or they were overwritten before; they came before those of the last record of kind 1 |
//! | 5 | the offset in the log where a daemon that was started again went on |

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;

/// The first bytes of an index, before the inode.
const MAGIC: [u8; 8] = *b"XBCI\x01\0\0\0";
pub(super) const HEAD_LEN: u64 = 16;
pub(super) const RECORD_LEN: u64 = 16;
const VALUE_BITS: u32 = 48;
/// The number of bytes that an index may have before it depends on the log's size.
const ALWAYS: u64 = 64 << 10;

/// One record of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexRecord {
    /// Microseconds since 1970.
    pub time_us: u64,
    /// The event at that time.
    pub event: IndexEvent,
}

/// The event of a record. Values have at most 48 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexEvent {
    /// Bytes came; the offset of the first in the log.
    Output(u64),
    /// A life of the guest begins; the offset of its first byte in the log.
    Life(u64),
    /// The number of the domain in the life that begins.
    Domain(u16),
    /// The number of bytes that were lost: the log could not be written, or they were overwritten.
    /// They came before those of the last `Output`.
    Lost(u64),
    /// A daemon that was started again went on at this offset in the log.
    Resumed(u64),
}

impl IndexRecord {
    fn encode(self) -> [u8; 16] {
        let (kind, value) = match self.event {
            IndexEvent::Output(offset) => (1, offset),
            IndexEvent::Life(offset) => (2, offset),
            IndexEvent::Domain(domid) => (3, domid.into()),
            IndexEvent::Lost(bytes) => (4, bytes),
            IndexEvent::Resumed(offset) => (5, offset),
        };
        let value = value.min((1 << VALUE_BITS) - 1);
        let mut bytes = [0; 16];
        let (time, word) = bytes.split_at_mut(8);
        time.copy_from_slice(&self.time_us.to_le_bytes());
        word.copy_from_slice(&(kind << VALUE_BITS | value).to_le_bytes());
        bytes
    }

    /// Decodes a record; none if its kind is unknown.
    pub(super) fn decode(bytes: [u8; 16]) -> Option<Self> {
        let [time_us, word] = [bytes.first_chunk(), bytes.last_chunk()];
        let (time_us, word) = (u64::from_le_bytes(*time_us?), u64::from_le_bytes(*word?));
        let value = word & ((1 << VALUE_BITS) - 1);
        let event = match word >> VALUE_BITS {
            1 => IndexEvent::Output(value),
            2 => IndexEvent::Life(value),
            3 => IndexEvent::Domain(u16::try_from(value).ok()?),
            4 => IndexEvent::Lost(value),
            5 => IndexEvent::Resumed(value),
            _ => return None,
        };
        Some(Self { time_us, event })
    }
}

/// The index of a log that is being written.
#[derive(Debug)]
pub(super) struct LogIndex {
    file: File,
    len: u64,
}

impl LogIndex {
    /// Takes over the index in `file`, if it is of the log with this inode and length; else begins
    /// anew. A record that a killed daemon wrote in part is removed.
    pub(super) fn open(mut file: File, inode: u64, log_len: u64) -> io::Result<Self> {
        let mut head = [0; HEAD_LEN as usize];
        let is_whole = file.read_exact(&mut head).is_ok();
        if log_len > 0 && is_whole && head == encode_head(inode) {
            let records = file.metadata()?.len().saturating_sub(HEAD_LEN) / RECORD_LEN;
            let len = HEAD_LEN + records * RECORD_LEN;
            file.set_len(len)?;
            return Ok(Self { file, len });
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&encode_head(inode))?;
        Ok(Self { file, len: HEAD_LEN })
    }

    /// Adds the time of output, if the index is not too large for its log: 64 KiB, and half of the
    /// log's size.
    pub(super) fn note_output(&mut self, time_us: u64, offset: u64) -> io::Result<()> {
        if self.len >= ALWAYS.saturating_add(offset / 2) {
            return Ok(());
        }
        self.note(IndexRecord { time_us, event: IndexEvent::Output(offset) })
    }

    /// Adds a record.
    pub(super) fn note(&mut self, record: IndexRecord) -> io::Result<()> {
        // At its place, so that one that a full disk has cut is written over.
        self.file.write_all_at(&record.encode(), self.len)?;
        self.len += RECORD_LEN;
        Ok(())
    }
}

/// Returns the head of the index of the log with this inode.
pub(super) fn encode_head(inode: u64) -> [u8; HEAD_LEN as usize] {
    let mut head = [0; HEAD_LEN as usize];
    let (magic, of) = head.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    of.copy_from_slice(&inode.to_le_bytes());
    head
}

/// Reads the index of the log with this inode: none if it is of another log, or no index.
///
/// # Errors
/// It cannot be read.
pub fn read_index(mut file: impl Read, inode: u64) -> io::Result<Option<Vec<IndexRecord>>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Some(records) = bytes.strip_prefix(&encode_head(inode)) else { return Ok(None) };
    let records = records.chunks_exact(RECORD_LEN as usize);
    Ok(Some(records.filter_map(|one| IndexRecord::decode(one.try_into().ok()?)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(file: &File, inode: u64) -> Option<Vec<IndexRecord>> {
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        read_index(file, inode).unwrap()
    }

    fn record(time_us: u64, event: IndexEvent) -> IndexRecord {
        IndexRecord { time_us, event }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let file = tempfile::tempfile().unwrap();
        let mut index = LogIndex::open(file.try_clone().unwrap(), 7, 0).unwrap();
        let all = [
            record(1, IndexEvent::Life(0)),
            record(1, IndexEvent::Domain(65_535)),
            record(2, IndexEvent::Lost((1 << 48) - 1)),
            record(u64::MAX, IndexEvent::Resumed(9)),
        ];
        for one in all {
            index.note(one).unwrap();
        }
        index.note_output(3, 9).unwrap();
        assert_eq!(records(&file, 7).unwrap()[..4], all);
        assert_eq!(records(&file, 7).unwrap()[4], record(3, IndexEvent::Output(9)));
        assert_eq!(records(&file, 8), None, "of another log");
    }

    #[test]
    fn a_torn_record_is_removed_and_another_logs_index_begins_anew() {
        let file = tempfile::tempfile().unwrap();
        let mut index = LogIndex::open(file.try_clone().unwrap(), 7, 0).unwrap();
        index.note_output(1, 0).unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(b"torn", end).unwrap();
        let again = |inode, log_len| {
            let mut other = file.try_clone().unwrap();
            other.rewind().unwrap();
            LogIndex::open(other, inode, log_len).unwrap()
        };
        again(7, 10).note_output(2, 10).unwrap();
        let outputs = [record(1, IndexEvent::Output(0)), record(2, IndexEvent::Output(10))];
        assert_eq!(records(&file, 7).unwrap(), outputs);
        again(8, 10);
        assert_eq!(records(&file, 8).unwrap(), []);
        // An empty log has no times yet, though a file of that inode had some.
        again(8, 10).note_output(3, 0).unwrap();
        again(8, 0);
        assert_eq!(records(&file, 8).unwrap(), []);
    }

    #[test]
    fn an_index_is_bounded_by_its_log() {
        let file = tempfile::tempfile().unwrap();
        let mut index = LogIndex::open(file.try_clone().unwrap(), 7, 0).unwrap();
        for byte in 0..100_000 {
            index.note_output(byte, byte).unwrap();
        }
        let len = file.metadata().unwrap().len();
        assert!(len > ALWAYS && len <= ALWAYS + 100_000 / 2 + RECORD_LEN, "{len}");
    }
}
