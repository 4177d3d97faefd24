//! The place where the output of a console is shown and its input comes from: a pseudoterminal, or the
//! socket of a channel.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::channel::{ChannelError, ChannelSocket};
use crate::backlog::Backlog;
use crate::options::Overflow;
use crate::pty::Pty;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use xen_driver::backend::DescriptorId;

/// The most bytes that a terminal gets in a turn; other consoles have theirs in between.
const TERMINAL_TURN: usize = 16 << 10;

/// The terminal of a console, and the place of its reader in the output.
#[derive(Debug)]
pub struct Terminal {
    end: TerminalEnd,
    reader: ReaderKind,
    /// The place behind the last byte that the terminal has.
    place: u64,
    /// It may have something that was typed.
    readable: bool,
    /// It may have room.
    writable: bool,
}

/// This end of a terminal.
#[derive(Debug)]
enum TerminalEnd {
    Pty(Pty, DescriptorId),
    Socket(ChannelSocket),
}

/// The kind of a terminal's reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReaderKind {
    /// People, who read words among the output.
    People,
    /// A program, which gets the bytes of the guest and no other.
    Program,
}

impl Terminal {
    /// Opens a terminal whose reader begins at `place`.
    ///
    /// # Errors
    /// No pseudoterminal can be had.
    pub fn open(reader: ReaderKind, place: u64) -> std::io::Result<Self> {
        let end = TerminalEnd::Pty(Pty::open()?, DescriptorId::new());
        Ok(Self { end, reader, place, readable: true, writable: true })
    }

    /// Listens at a path; the first client begins at `place`, and each other one where the one before
    /// has ended.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn listen(path: &Path, place: u64) -> Result<Self, ChannelError> {
        let end = TerminalEnd::Socket(ChannelSocket::bind(path)?);
        Ok(Self { end, reader: ReaderKind::Program, place, readable: true, writable: false })
    }

    /// Returns the pseudoterminal; none if it is a socket.
    #[must_use]
    pub fn pty(&self) -> Option<&Pty> {
        match &self.end {
            TerminalEnd::Pty(pty, _) => Some(pty),
            TerminalEnd::Socket(_) => None,
        }
    }

    /// Returns its descriptors, which are read and written until they block.
    pub fn streams(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let (pty, socket) = match &self.end {
            TerminalEnd::Pty(pty, name) => (Some((*name, pty.as_fd())), None),
            TerminalEnd::Socket(socket) => (None, Some(socket.streams())),
        };
        pty.into_iter().chain(socket.into_iter().flatten())
    }

    /// Takes the news that a descriptor can be read or written again.
    pub fn ready(&mut self) {
        (self.readable, self.writable) = (true, true);
        if let TerminalEnd::Socket(socket) = &mut self.end {
            socket.ready();
        }
    }

    /// True if descriptors have come or gone since the last [`Terminal::take_change`].
    #[must_use]
    pub fn is_changed(&self) -> bool {
        matches!(&self.end, TerminalEnd::Socket(socket) if socket.is_changed())
    }

    /// Takes the news that descriptors have come or gone.
    pub fn take_change(&mut self) -> bool {
        match &mut self.end {
            TerminalEnd::Pty(..) => false,
            TerminalEnd::Socket(socket) => socket.take_change(),
        }
    }

    /// True if it may have something that was typed.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// True if a chunk of that size may be added to the output. Otherwise its reader is to read before
    /// the guest may go on.
    #[must_use]
    pub fn has_room(&self, backlog: &Backlog, chunk: usize, overflow: Overflow) -> bool {
        let unread = backlog.end().saturating_sub(self.place);
        match &self.end {
            // Nothing that it has begun to read is dropped, and as little as can be waits for it here.
            TerminalEnd::Socket(socket) => !socket.is_connected() || unread == 0,
            TerminalEnd::Pty(..) => {
                overflow == Overflow::Discard
                    || unread.saturating_add(chunk as u64) <= backlog.capacity() as u64
            }
        }
    }

    /// Takes the next client of a channel that has none, while the guest has no room for what it sends.
    pub fn accept(&mut self) {
        if let TerminalEnd::Socket(socket) = &mut self.end {
            self.writable |= socket.accept();
        }
    }

    /// Reads what was typed; returns how many bytes.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        match &mut self.end {
            TerminalEnd::Pty(pty, _) => {
                let count = pty.read(into).unwrap_or(0);
                self.readable = count == into.len();
                count
            }
            TerminalEnd::Socket(socket) => {
                let count = socket.read(into);
                // That its client is gone is read behind the last bytes.
                self.readable = count > 0 || socket.may_accept();
                // A client that has just come has room.
                self.writable |= socket.is_changed();
                count
            }
        }
    }

    /// Writes output, as far as there is room. True if there is more that there may be room for.
    pub fn show(&mut self, backlog: &Backlog) -> bool {
        let mut left = TERMINAL_TURN;
        while self.writable && left > 0 {
            let slice = backlog.from(self.place);
            if slice.missed > 0 {
                self.tell_missed(slice.missed);
                continue;
            }
            let bytes = slice.bytes.get(..slice.bytes.len().min(left)).unwrap_or_default();
            if bytes.is_empty() {
                return false;
            }
            match self.write(bytes) {
                0 => self.writable = false,
                count => {
                    self.place = self.place.saturating_add(count as u64);
                    left = left.saturating_sub(count);
                }
            }
        }
        self.writable
    }

    /// Goes on behind output that is gone, and says so where people read.
    fn tell_missed(&mut self, missed: u64) {
        if self.reader == ReaderKind::People {
            let words = format!("\r\n[{missed} bytes of output were not read]\r\n");
            // Where there is no room for the words, they are due once there is.
            if self.write(words.as_bytes()) == 0 {
                self.writable = false;
                return;
            }
        }
        self.place = self.place.saturating_add(missed);
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match &mut self.end {
            TerminalEnd::Pty(pty, _) => pty.write(bytes).unwrap_or(0),
            TerminalEnd::Socket(socket) => {
                let count = socket.write(bytes);
                // The next client may wait already.
                self.readable |= socket.may_accept();
                count
            }
        }
    }
}
