//! The messages between the daemon and the reader, over a socket that keeps their bounds.
//!
//! The daemon sends an index, 4 bytes: the reader answers with one message once Xen has printed
//! something from there on. The next index says that the bytes before it are in the log.
//!
//! | bytes of an answer | contents, little-endian |
//! |---|---|
//! | 0 to 4 | 0: output, 1: the reader cannot go on, 2: it can read (its first answer, before any index) |
//! | 4 to 8 | the index behind the output |
//! | 8 to 12 | the number of bytes before it that the ring no longer had |
//! | then, at most 16 KiB | the output, or the reason as a text |

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::AsFd;

/// The largest output in one answer, in bytes.
pub(super) const OUTPUT_MAX: usize = 16 << 10;
const HEAD_LEN: usize = 12;
const OUTPUT: u32 = 0;
const FAILURE: u32 = 1;
const READY: u32 = 2;

/// The room for one answer.
#[derive(Debug)]
pub(super) struct AnswerBuffer(Box<[u8; HEAD_LEN + OUTPUT_MAX]>);

/// An answer of the reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReaderAnswer<'b> {
    /// Output of the hypervisor.
    Output {
        /// The index behind the bytes.
        next: u32,
        /// The number of bytes before them that the ring no longer had.
        lost: u32,
        /// The bytes.
        bytes: &'b [u8],
    },
    /// The reader ends, for this reason.
    Failure(&'b [u8]),
    /// The reader has the console; output follows.
    Ready,
}

/// The outcome of an attempt to receive.
#[derive(Debug)]
pub(super) enum Received<T> {
    /// A message.
    Message(T),
    /// None has come, and the socket does not block.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl AnswerBuffer {
    pub(super) fn new() -> Self {
        Self(Box::new([0; HEAD_LEN + OUTPUT_MAX]))
    }

    /// The place for output, which [`AnswerBuffer::send_output`] sends.
    pub(super) fn output(&mut self) -> &mut [u8] {
        self.0.get_mut(HEAD_LEN..).unwrap_or_default()
    }

    /// Sends the first `len` bytes of the output.
    pub(super) fn send_output(
        &mut self,
        socket: impl AsFd,
        len: usize,
        next: u32,
        lost: u32,
    ) -> io::Result<()> {
        self.send(socket, len, [OUTPUT, next, lost])
    }

    /// Says that the reader can read.
    pub(super) fn send_ready(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.send(socket, 0, [READY, 0, 0])
    }

    /// Sends the reason why the reader ends.
    pub(super) fn send_failure(&mut self, socket: impl AsFd, reason: &str) -> io::Result<()> {
        let place = self.output();
        let len = reason.len().min(place.len());
        for (to, from) in place.iter_mut().zip(reason.bytes()) {
            *to = from;
        }
        self.send(socket, len, [FAILURE, 0, 0])
    }

    fn send(&mut self, socket: impl AsFd, len: usize, head: [u32; 3]) -> io::Result<()> {
        for (place, word) in self.0.chunks_exact_mut(4).zip(head) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let message = self.0.get(..HEAD_LEN + len).unwrap_or_default();
        // A message is sent as a whole.
        rustix::net::send(socket, message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives an answer.
    ///
    /// # Errors
    /// The socket cannot be read, or the message is none of the above.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> io::Result<Received<ReaderAnswer<'_>>> {
        let len = match receive(socket, &mut self.0[..])? {
            Received::Message(len) => len,
            Received::Nothing => return Ok(Received::Nothing),
            Received::Closed => return Ok(Received::Closed),
        };
        let message = self.0.get(..len).unwrap_or_default();
        let (head, bytes) = message.split_at_checked(HEAD_LEN).ok_or(MALFORMED)?;
        let mut words =
            head.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
        let answer = match (words.next(), words.next(), words.next()) {
            (Some(OUTPUT), Some(next), Some(lost)) => ReaderAnswer::Output { next, lost, bytes },
            (Some(FAILURE), ..) => ReaderAnswer::Failure(bytes),
            (Some(READY), ..) => ReaderAnswer::Ready,
            _ => return Err(MALFORMED.into()),
        };
        Ok(Received::Message(answer))
    }
}

const MALFORMED: io::ErrorKind = io::ErrorKind::InvalidData;

/// Sends the index from which the reader is to read.
pub(super) fn send_index(socket: impl AsFd, index: u32) -> io::Result<()> {
    rustix::net::send(socket, &index.to_le_bytes(), SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the index from which to read.
///
/// # Errors
/// The socket cannot be read, or the message is no index.
pub(super) fn receive_index(socket: impl AsFd) -> io::Result<Received<u32>> {
    let mut bytes = [0; 4];
    Ok(match receive(socket, &mut bytes)? {
        Received::Message(4) => Received::Message(u32::from_le_bytes(bytes)),
        Received::Message(_) => return Err(MALFORMED.into()),
        Received::Nothing => Received::Nothing,
        Received::Closed => Received::Closed,
    })
}

/// Receives a message; returns its length.
fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<Received<usize>> {
    loop {
        return match rustix::io::read(&socket, &mut *into) {
            Ok(0) => Ok(Received::Closed),
            Ok(len) => Ok(Received::Message(len)),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            // Reset: the other end was closed with a message unread. Its own messages come after.
            Err(Errno::INTR | Errno::CONNRESET) => continue,
            Err(error) => Err(error.into()),
        };
    }
}
