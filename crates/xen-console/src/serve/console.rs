//! One console: its ring, its FIFO, its log, its terminal.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::settings::{MOVES_RATE, OUTPUT_BURST, OUTPUT_RATE};
use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, FeedOutcome};
use crate::fifo::{CHUNK_MAX, OutputFifo};
use crate::log::LogOutcome;
use crate::options::Overflow;
use crate::pty::Pty;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};
use xen::Port;
use xen_driver::Channel;
use xen_driver::backend::throttle::{RateLimits, Throttle};
use xen_driver::backend::{Backend, DescriptorId, TurnOutcome};
use xen_io::console::{INPUT_SIZE, OUTPUT_SIZE};
use xenbus::Error;

/// The most bytes that a terminal gets in a turn; other consoles have theirs in between.
const TERMINAL_TURN: usize = 16 << 10;

/// The terminal of a console, and the place of its reader in the output.
#[derive(Debug)]
pub struct Terminal {
    pty: Pty,
    name: DescriptorId,
    /// The place behind the last byte that the terminal has.
    place: u64,
    /// It may have something that was typed.
    readable: bool,
    /// It may have room.
    writable: bool,
}

impl Terminal {
    /// Opens a terminal whose reader begins at `place`.
    ///
    /// # Errors
    /// No pseudoterminal can be had.
    pub fn open(place: u64) -> std::io::Result<Self> {
        let (pty, name) = (Pty::open()?, DescriptorId::new());
        Ok(Self { pty, name, place, readable: true, writable: true })
    }

    /// Returns the pseudoterminal.
    #[must_use]
    pub fn pty(&self) -> &Pty {
        &self.pty
    }

    /// Returns its descriptor, which is read and written until it blocks.
    #[must_use]
    pub fn stream(&self) -> (DescriptorId, BorrowedFd<'_>) {
        (self.name, self.pty.as_fd())
    }

    /// Takes the news that the descriptor can be read or written again.
    pub fn ready(&mut self) {
        (self.readable, self.writable) = (true, true);
    }
}

/// The source of a chunk of output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OutputSource {
    Ring,
    Fifo,
}

/// A served console.
pub struct ServedConsole {
    /// The channel of the ring, while that is served.
    channel: Option<Channel>,
    feed: ConsoleFeed,
    terminal: Option<Terminal>,
    overflow: Overflow,
    rate: Throttle,
    /// The source whose turn it is.
    next: OutputSource,
    /// Sentences for the daemon's log.
    complaint: Option<String>,
}

impl fmt::Debug for ServedConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedConsole").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl ServedConsole {
    /// Serves a console's output, and input if it has a ring, over this event channel.
    #[must_use]
    pub fn new(
        channel: Option<Channel>,
        feed: ConsoleFeed,
        terminal: Option<Terminal>,
        overflow: Overflow,
    ) -> Self {
        let limits = RateLimits {
            bytes_per_second: Some(OUTPUT_RATE),
            requests_per_second: Some(MOVES_RATE),
        };
        let rate = Throttle::with_burst(limits, OUTPUT_BURST, Instant::now());
        let next = OutputSource::Ring;
        Self { channel, feed, terminal, overflow, rate, next, complaint: None }
    }

    /// Returns the terminal, if one could be had.
    #[must_use]
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Returns the FIFO, if there is one.
    #[must_use]
    pub fn fifo(&self) -> Option<&OutputFifo> {
        self.feed.fifo()
    }

    /// Returns the terminal, to tell it that it is ready.
    pub fn terminal_mut(&mut self) -> Option<&mut Terminal> {
        self.terminal.as_mut()
    }

    /// Returns the FIFO, to tell it that it is ready.
    pub fn fifo_mut(&mut self) -> Option<&mut OutputFifo> {
        self.feed.fifo_mut()
    }

    /// Returns the output, to open its log again.
    pub fn feed(&mut self) -> &mut ConsoleFeed {
        &mut self.feed
    }

    /// Ends the ring's service, with its last output. All else stays: what is typed meanwhile is for
    /// a ring that follows.
    pub fn end_ring(&mut self) {
        self.drain_ring();
        self.show_all();
        self.feed.end_ring();
        self.channel = None;
        if let Some(terminal) = &mut self.terminal {
            terminal.ready();
        }
    }

    /// Ends the console of a domain that is gone: its last output goes into the log, and to whoever
    /// reads now. What its processes print while they end is taken by [`ServedConsole::drain_fifo`].
    pub fn end(&mut self) {
        self.end_ring();
        self.drain_fifo();
        self.terminal = None;
    }

    /// Ends the console, and keeps its terminal, its output and its FIFO for one that follows.
    #[must_use]
    pub fn into_kept(self) -> (Option<Terminal>, Backlog, Option<OutputFifo>) {
        let (backlog, fifo) = self.feed.into_kept();
        (self.terminal, backlog, fifo)
    }

    /// Returns the newest output.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        self.feed.backlog()
    }

    /// Types bytes. Returns the number that the guest has room for; a ring that is broken has none,
    /// and is found so by the next turn.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let (Some(channel), Some(ring)) = (&self.channel, self.feed.ring()) else {
            // Nobody takes it any more.
            return bytes.len();
        };
        let put = ring.write_input(bytes).unwrap_or(0);
        if put > 0 {
            // That the channel is gone is found by the next turn, too.
            let _ = channel.notify();
        }
        put
    }

    /// Moves the last output of a ring that ends.
    fn drain_ring(&mut self) {
        // A ring that is broken, or has more than it holds, is given up.
        for _ in 0..2 {
            let moved = self.feed.move_output(OUTPUT_SIZE, time_us());
            if moved.is_ok_and(|outcome| outcome.moved == 0) {
                break;
            }
        }
    }

    /// Moves all that the FIFO of a domain that is gone holds, at most as much as it can hold. All
    /// files are closed once nobody can write into it any more.
    pub fn drain_fifo(&mut self) {
        let mut left = self.fifo().map_or(0, OutputFifo::capacity);
        while left > 0
            && let Ok(outcome) = self.feed.move_printed(CHUNK_MAX, time_us())
            && outcome.moved > 0
        {
            left = left.saturating_sub(outcome.moved);
        }
        self.show_all();
        if !self.fifo().is_some_and(OutputFifo::has_writer) {
            self.feed.close();
        }
    }

    /// Moves output into the log and the backlog, from both sources in turn. Returns the number of
    /// bytes.
    fn take_output(&mut self, now: Instant) -> Result<usize, Error> {
        let mut moved = 0_usize;
        let sources = match self.next {
            OutputSource::Ring => [OutputSource::Ring, OutputSource::Fifo],
            OutputSource::Fifo => [OutputSource::Fifo, OutputSource::Ring],
        };
        for source in sources {
            if self.rate.ready(now).is_err() {
                break;
            }
            let count = match source {
                OutputSource::Ring => self.take_ring(now)?,
                OutputSource::Fifo => self.take_printed(now),
            };
            if count > 0 {
                // The other one has the next turn, in which there may be no more than one chunk.
                self.next = match source {
                    OutputSource::Ring => OutputSource::Fifo,
                    OutputSource::Fifo => OutputSource::Ring,
                };
            }
            moved = moved.saturating_add(count);
        }
        Ok(moved)
    }

    fn take_ring(&mut self, now: Instant) -> Result<usize, Error> {
        let Some(channel) = self.channel.as_ref().filter(|_| self.has_room(OUTPUT_SIZE)) else {
            return Ok(0);
        };
        let outcome = self.feed.move_output(OUTPUT_SIZE, time_us()).map_err(broken)?;
        if outcome.moved > 0 {
            channel.notify()?;
        }
        Ok(self.note_moved(outcome, now))
    }

    fn take_printed(&mut self, now: Instant) -> usize {
        if !self.prints() {
            return 0;
        }
        match self.feed.move_printed(CHUNK_MAX, time_us()) {
            Ok(outcome) => self.note_moved(outcome, now),
            Err(error) => {
                self.complain(&format!("the FIFO that it prints into cannot be read: {error}"));
                0
            }
        }
    }

    /// Counts output that was moved. Returns the number of its bytes.
    fn note_moved(&mut self, outcome: FeedOutcome, now: Instant) -> usize {
        if outcome.moved > 0 {
            self.rate.spend(outcome.moved as u64, now);
        }
        match outcome.logged {
            Some(LogOutcome::FirstLost) => {
                self.complain("its log cannot be written, and output is lost for it");
            }
            Some(LogOutcome::KeptAgain { lost }) => {
                self.complain(&format!("its log is written again; it lacks {lost} bytes"));
            }
            _ => {}
        }
        outcome.moved
    }

    /// True if the FIFO may have output that can be taken.
    fn prints(&self) -> bool {
        self.fifo().is_some_and(OutputFifo::is_ready) && self.has_room(CHUNK_MAX)
    }

    /// True unless output is kept for its reader, who is to read before the guest may go on with a
    /// chunk of that size.
    fn has_room(&self, chunk: usize) -> bool {
        let Some(terminal) = &self.terminal else { return true };
        let backlog = self.feed.backlog();
        let unread = backlog.end().saturating_sub(terminal.place);
        self.overflow == Overflow::Discard
            || unread.saturating_add(chunk as u64) <= backlog.capacity() as u64
    }

    /// Writes output to the terminal until it has all, or no room.
    fn show_all(&mut self) {
        while self.show_output() {}
    }

    /// Writes output to the terminal, as far as it has room. True if there is more that it may have room for.
    fn show_output(&mut self) -> bool {
        let Some(terminal) = &mut self.terminal else { return false };
        let mut left = TERMINAL_TURN;
        while terminal.writable && left > 0 {
            let slice = self.feed.backlog().from(terminal.place);
            if slice.missed > 0 {
                let words = format!("\r\n[{} bytes of output were not read]\r\n", slice.missed);
                // Where there is no room for the words, they are due once there is.
                match terminal.pty.write(words.as_bytes()) {
                    Ok(0) => terminal.writable = false,
                    _ => terminal.place = terminal.place.saturating_add(slice.missed),
                }
                continue;
            }
            let bytes = slice.bytes.get(..slice.bytes.len().min(left)).unwrap_or_default();
            if bytes.is_empty() {
                return false;
            }
            match terminal.pty.write(bytes) {
                Ok(0) | Err(_) => terminal.writable = false,
                Ok(count) => {
                    terminal.place = terminal.place.saturating_add(count as u64);
                    left = left.saturating_sub(count);
                }
            }
        }
        terminal.writable
    }

    /// Gives the guest what was typed, as far as its ring has room. Returns the number of bytes.
    fn give_input(&mut self) -> Result<usize, Error> {
        let Some(terminal) = self.terminal.as_mut().filter(|terminal| terminal.readable) else {
            return Ok(0);
        };
        let (Some(channel), Some(ring)) = (&self.channel, self.feed.ring()) else { return Ok(0) };
        let room = ring.input_room().map_err(broken)?;
        let mut typed = [0; INPUT_SIZE];
        let Some(into) = typed.get_mut(..room).filter(|into| !into.is_empty()) else {
            // The guest notifies once it has read some.
            return Ok(0);
        };
        let count = terminal.pty.read(into).unwrap_or(0);
        if count < room {
            terminal.readable = false;
        }
        let put = ring.write_input(typed.get(..count).unwrap_or_default()).map_err(broken)?;
        if put > 0 {
            channel.notify()?;
        }
        Ok(put)
    }

    fn complain(&mut self, sentence: &str) {
        let complaint = self.complaint.get_or_insert_default();
        if !complaint.is_empty() {
            complaint.push_str("; ");
        }
        complaint.push_str(sentence);
    }
}

impl Backend for ServedConsole {
    fn work(&mut self, now: Instant, _: Option<Duration>) -> Result<TurnOutcome, Error> {
        let moved = self.take_output(now)?.saturating_add(self.give_input()?);
        let more = self.show_output();
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        let complains = self.complaint.is_some();
        Ok(TurnOutcome { moved, more, complains, ..TurnOutcome::default() })
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        if self.prints() {
            return Ok(true);
        }
        let Some(ring) = self.feed.ring().filter(|_| self.has_room(OUTPUT_SIZE)) else {
            return Ok(false);
        };
        let output = ring.peek_output(&mut [0]).map_err(broken)?;
        Ok(output.len > 0)
    }

    fn ports(&self) -> impl Iterator<Item = Port> {
        self.channel.iter().map(Channel::port)
    }

    fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.rate.ready(now).err()
    }

    fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }
}

/// The error of a ring that cannot be used.
#[derive(Debug)]
pub(super) struct BrokenRing(pub(super) Error);

impl From<BrokenRing> for Error {
    fn from(BrokenRing(error): BrokenRing) -> Self {
        error
    }
}

/// Returns the error of a ring that cannot be used.
pub(super) fn broken(error: xen_io::console::RingError) -> BrokenRing {
    BrokenRing(Error::Driver(format!("its ring: {error}")))
}

/// The time, in microseconds since 1970.
#[must_use]
pub fn time_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
