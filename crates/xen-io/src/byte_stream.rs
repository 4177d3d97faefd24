//! A stream of bytes in a shared page: a ring of bytes with a consumer's and a producer's index.
//!
//! The ring of the store and that of a console each have two of them. The indices run freely modulo
//! 2^32. Both lie where the peer can write them, so each is read once, and the pair is checked.

use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;
use xen::shared::{PageError, SharedPage};

/// The indices or the page of a ring are unusable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RingError {
    /// More bytes between the two indices than the ring holds.
    Index {
        /// Consumer index as read.
        cons: u32,
        /// Producer index as read.
        prod: u32,
    },
    /// An access outside the page; the layout in this crate would be wrong.
    Page(PageError),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index { cons, prod } => {
                write!(f, "impossible ring indices: consumed {cons}, produced {prod}")
            }
            Self::Page(out) => out.fmt(f),
        }
    }
}

impl std::error::Error for RingError {}

impl From<PageError> for RingError {
    fn from(out: PageError) -> Self {
        Self::Page(out)
    }
}

/// The place of a stream in its page.
#[derive(Clone, Copy)]
pub(crate) struct ByteStream {
    /// The offset of the bytes.
    pub(crate) data: usize,
    /// The number of bytes that the stream holds, a power of two.
    pub(crate) size: u32,
    /// The offset of the consumer's index.
    pub(crate) cons: usize,
    /// The offset of the producer's index.
    pub(crate) prod: usize,
}

/// Bytes of a stream that were copied and are still in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamChunk {
    /// The index of the first byte.
    pub start: u32,
    /// The number of bytes.
    pub len: usize,
    /// The index behind the last byte.
    end: u32,
}

impl StreamChunk {
    /// Returns the index behind the last byte.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// The two indices of a stream, read once and checked.
struct Indices {
    cons: u32,
    prod: u32,
    /// The bytes between them, at most the stream's size.
    used: usize,
}

impl ByteStream {
    /// Takes bytes off the stream until it is seen empty or `into` is full; returns their number.
    ///
    /// Linux signals new bytes only if it finds all earlier ones taken. Therefore the stream is
    /// looked at again once the own index has moved: bytes added in between come without a signal.
    pub(crate) fn consume(self, page: &SharedPage, into: &mut [u8]) -> Result<usize, RingError> {
        let mut taken: usize = 0;
        while let Some(left) = into.get_mut(taken..)
            && let count @ 1.. = self.consume_some(page, left)?
        {
            taken = taken.saturating_add(count);
            fence(SeqCst);
        }
        Ok(taken)
    }

    /// Takes the bytes that the stream holds at one moment.
    fn consume_some(self, page: &SharedPage, into: &mut [u8]) -> Result<usize, RingError> {
        let chunk = self.peek(page, into)?;
        if chunk.len > 0 {
            self.release(page, chunk)?;
        }
        Ok(chunk.len)
    }

    /// Copies the bytes that the stream holds at one moment, at most `into.len()`, and leaves them
    /// in the stream.
    pub(crate) fn peek(self, page: &SharedPage, into: &mut [u8]) -> Result<StreamChunk, RingError> {
        let at = self.indices(page)?;
        let len = at.used.min(into.len());
        let start = self.position(at.cons);
        let first = len.min(self.len().saturating_sub(start));
        if let Some((head, rest)) = into.split_at_mut_checked(first) {
            page.copy_out(self.data.saturating_add(start), head)?;
            if let Some(tail) = rest.get_mut(..len.saturating_sub(first)) {
                page.copy_out(self.data, tail)?;
            }
        }
        Ok(StreamChunk { start: at.cons, len, end: at.cons.wrapping_add(self.low_u32(len)) })
    }

    /// Gives the producer the room of the bytes that [`ByteStream::peek`] has copied.
    pub(crate) fn release(self, page: &SharedPage, chunk: StreamChunk) -> Result<(), RingError> {
        Ok(page.store_u32(self.cons, chunk.end)?)
    }

    /// Puts bytes onto the stream until all are there or it is seen full; returns the number put.
    ///
    /// Linux signals new space only if it finds the stream full. Therefore, if not all bytes fitted,
    /// the stream is looked at again once the own index has moved.
    pub(crate) fn produce(self, page: &SharedPage, from: &[u8]) -> Result<usize, RingError> {
        let mut put: usize = 0;
        while let Some(left) = from.get(put..)
            && let count @ 1.. = self.produce_some(page, left)?
        {
            put = put.saturating_add(count);
            fence(SeqCst);
        }
        Ok(put)
    }

    /// Puts as many bytes as fit at one moment.
    fn produce_some(self, page: &SharedPage, from: &[u8]) -> Result<usize, RingError> {
        let at = self.indices(page)?;
        let count = self.len().saturating_sub(at.used).min(from.len());
        if count == 0 {
            return Ok(0);
        }
        let start = self.position(at.prod);
        let first = count.min(self.len().saturating_sub(start));
        let Some((head, rest)) = from.split_at_checked(first) else { return Ok(0) };
        page.copy_in(self.data.saturating_add(start), head)?;
        if let Some(tail) = rest.get(..count.saturating_sub(first)) {
            page.copy_in(self.data, tail)?;
        }
        page.store_u32(self.prod, at.prod.wrapping_add(self.low_u32(count)))?;
        Ok(count)
    }

    /// Returns the room for bytes at one moment.
    pub(crate) fn room(self, page: &SharedPage) -> Result<usize, RingError> {
        Ok(self.len().saturating_sub(self.indices(page)?.used))
    }

    fn indices(self, page: &SharedPage) -> Result<Indices, RingError> {
        let cons = page.load_u32(self.cons)?;
        let prod = page.load_u32(self.prod)?;
        let used = prod.wrapping_sub(cons);
        if used > self.size {
            return Err(RingError::Index { cons, prod });
        }
        Ok(Indices { cons, prod, used: used as usize })
    }

    /// Returns the offset of `index` in the stream's bytes.
    fn position(self, index: u32) -> usize {
        (index & self.size.wrapping_sub(1)) as usize
    }

    /// Returns the number of bytes that the stream holds.
    fn len(self) -> usize {
        self.size as usize
    }

    /// A count of at most the stream's size as an index counts it.
    fn low_u32(self, count: usize) -> u32 {
        u32::try_from(count).unwrap_or(self.size).min(self.size)
    }
}
