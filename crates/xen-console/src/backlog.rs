//! The newest output of a console, for readers that each have their own place.
//!
//! A place is a number of bytes since the console's life began. A reader that is slow keeps nothing
//! alive: if its place has left the backlog, it goes on with the oldest byte, and learns how many it
//! has missed.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::VecDeque;

/// The newest bytes of a stream, at most so many.
#[derive(Debug)]
pub struct Backlog {
    /// The bytes, at most `capacity`; from `oldest` on, then from the start.
    bytes: Vec<u8>,
    capacity: usize,
    /// The number of bytes that the stream has had.
    end: u64,
}

/// Bytes from a reader's place on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BacklogSlice<'b> {
    /// The number of bytes between the reader's place and the first of these, which are gone.
    pub missed: u64,
    /// The bytes, contiguous in memory; not always all that there are.
    pub bytes: &'b [u8],
    /// The reader's place behind these bytes.
    pub place: u64,
}

impl Backlog {
    /// An empty backlog that keeps `capacity` bytes, at least 1. It takes up memory as it fills.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), capacity: capacity.max(1), end: 0 }
    }

    /// Returns the number of bytes that it keeps.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the place behind the newest byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Returns the place of the oldest byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    /// Adds bytes. The oldest ones go if there are too many.
    pub fn push(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(self.capacity) {
            self.push_part(part);
        }
    }

    fn push_part(&mut self, part: &[u8]) {
        let before_wrap = self.capacity.saturating_sub(self.offset());
        let (now, later) = part.split_at(part.len().min(before_wrap));
        for piece in [now, later] {
            let at = self.offset();
            let overwritten = self.bytes.len().saturating_sub(at).min(piece.len());
            let (over, new) = piece.split_at(overwritten);
            if let Some(place) = self.bytes.get_mut(at..at.saturating_add(overwritten)) {
                place.copy_from_slice(over);
            }
            self.bytes.extend_from_slice(new);
            self.end = self.end.saturating_add(piece.len() as u64);
        }
    }

    /// Returns the bytes from `place` on, as many as are contiguous. A place behind the end counts as
    /// the end.
    #[must_use]
    pub fn from(&self, place: u64) -> BacklogSlice<'_> {
        let begin = place.clamp(self.start(), self.end);
        let all = self.end.saturating_sub(begin);
        let at = self.offset_of(begin);
        let contiguous = self.bytes.get(at..).unwrap_or_default();
        let len = usize::try_from(all).unwrap_or(usize::MAX).min(contiguous.len());
        let bytes = contiguous.get(..len).unwrap_or_default();
        BacklogSlice {
            missed: begin.saturating_sub(place),
            bytes,
            place: begin.saturating_add(bytes.len() as u64),
        }
    }

    /// Returns the place where the last `lines` begin, or the last `bytes` if these are fewer. A line
    /// that has no end yet is one of them.
    #[must_use]
    pub fn last_lines(&self, lines: usize, bytes: usize) -> u64 {
        let oldest = self.end.saturating_sub(bytes as u64).max(self.start());
        let (mut place, mut starts) = (oldest, VecDeque::from([oldest]));
        loop {
            let slice = self.from(place);
            if slice.bytes.is_empty() {
                return starts.front().copied().unwrap_or(oldest);
            }
            for (at, byte) in slice.bytes.iter().enumerate() {
                let next = place.saturating_add(at as u64).saturating_add(1);
                if *byte == b'\n' && next < self.end {
                    starts.push_back(next);
                    if starts.len() > lines {
                        starts.pop_front();
                    }
                }
            }
            place = slice.place;
        }
    }

    /// Returns the offset of the next byte.
    fn offset(&self) -> usize {
        self.offset_of(self.end)
    }

    fn offset_of(&self, place: u64) -> usize {
        let offset = place.checked_rem(self.capacity as u64).unwrap_or(0);
        usize::try_from(offset).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_where_their_first_one_does() {
        let mut backlog = Backlog::new(64);
        backlog.push(b"one\ntwo\nthree\nlogin: ");
        assert_eq!(backlog.last_lines(1, 64), 14);
        assert_eq!(backlog.last_lines(2, 64), 8);
        assert_eq!(backlog.last_lines(9, 64), 0);
        assert_eq!(backlog.last_lines(9, 4), 17);
        // A line end at the very end begins no line.
        backlog.push(b"\n");
        assert_eq!(backlog.last_lines(1, 64), 14);
        // Behind the end of the memory.
        for _ in 0..9 {
            backlog.push(b"0123456789012345678\n");
        }
        assert_eq!(backlog.last_lines(2, 64), backlog.end() - 40);
        assert_eq!(Backlog::new(8).last_lines(3, 8), 0);
    }

    /// Reads all that is there from a place on.
    fn read(backlog: &Backlog, mut place: u64) -> (u64, Vec<u8>) {
        let (mut missed, mut all) = (0_u64, Vec::new());
        loop {
            let slice = backlog.from(place);
            missed = slice.missed.checked_add(missed).unwrap();
            if slice.bytes.is_empty() {
                return (missed, all);
            }
            all.extend_from_slice(slice.bytes);
            place = slice.place;
        }
    }

    #[test]
    fn a_reader_gets_what_came_since_its_place() {
        let mut backlog = Backlog::new(8);
        backlog.push(b"abc");
        assert_eq!(read(&backlog, 0), (0, b"abc".to_vec()));
        backlog.push(b"defgh");
        assert_eq!(read(&backlog, 3), (0, b"defgh".to_vec()));
        backlog.push(b"ij");
        assert_eq!((backlog.start(), backlog.end()), (2, 10));
        assert_eq!(read(&backlog, 8), (0, b"ij".to_vec()));
        assert_eq!(read(&backlog, 10), (0, Vec::new()));
    }

    #[test]
    fn a_slow_reader_is_told_how_many_bytes_it_has_missed() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"abcdefghij");
        assert_eq!(read(&backlog, 1), (5, b"ghij".to_vec()));
        backlog.push(&[b'x'; 1000]);
        assert_eq!(read(&backlog, 10), (996, b"xxxx".to_vec()));
    }

    #[test]
    fn every_size_of_chunk_and_of_backlog_keeps_the_newest_bytes() {
        let stream: Vec<u8> = (0..=250).collect();
        for capacity in 1..20 {
            for chunk in 1..25 {
                let mut backlog = Backlog::new(capacity);
                for (number, piece) in stream.chunks(chunk).enumerate() {
                    backlog.push(piece);
                    let end = number * chunk + piece.len();
                    let start = end.saturating_sub(capacity);
                    assert_eq!(read(&backlog, 0), (start as u64, stream[start..end].to_vec()));
                }
                assert!(backlog.bytes.capacity() < 64, "it has grown");
            }
        }
    }
}
