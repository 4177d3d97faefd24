//! One console: its ring, its FIFO, its log, its terminal.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::rate::GuestRate;
use super::terminal::Terminal;
use crate::backlog::Backlog;
use crate::feed::{ConsoleFeed, FeedOutcome};
use crate::fifo::{CHUNK_MAX, OutputFifo};
use crate::log::LogOutcome;
use crate::options::Overflow;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};
use xen::Port;
use xen_driver::Channel;
use xen_driver::backend::{Backend, TurnOutcome};
use xen_io::console::{INPUT_SIZE, OUTPUT_SIZE};
use xenbus::Error;

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
    rate: GuestRate,
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
        rate: GuestRate,
    ) -> Self {
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
        self.rate.leave();
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
        let (mut moved, mut waits) = (0_usize, false);
        let sources = match self.next {
            OutputSource::Ring => [OutputSource::Ring, OutputSource::Fifo],
            OutputSource::Fifo => [OutputSource::Fifo, OutputSource::Ring],
        };
        for source in sources {
            if !self.has_output_of(source)? {
                continue;
            }
            waits = !self.rate.admits(now);
            if waits {
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
        if !waits {
            self.rate.leave();
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
            self.rate.spend(outcome.moved, now);
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

    /// True if a source has output that can be taken, as far as the guest's rate allows it.
    fn has_output_of(&self, source: OutputSource) -> Result<bool, Error> {
        if source == OutputSource::Fifo {
            return Ok(self.prints());
        }
        let Some(ring) = self.feed.ring().filter(|_| self.has_room(OUTPUT_SIZE)) else {
            return Ok(false);
        };
        let output = ring.peek_output(&mut [0]).map_err(broken)?;
        Ok(output.len > 0)
    }

    /// True unless output is kept for its reader, who is to read before the guest may go on with a
    /// chunk of that size.
    fn has_room(&self, chunk: usize) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_none_or(|terminal| terminal.has_room(self.feed.backlog(), chunk, self.overflow))
    }

    /// Writes output to the terminal until it has all, or no room.
    fn show_all(&mut self) {
        while self.show_output() {}
    }

    /// Writes output to the terminal, as far as it has room. True if there is more that it may have room for.
    fn show_output(&mut self) -> bool {
        let Some(terminal) = &mut self.terminal else { return false };
        terminal.show(self.feed.backlog())
    }

    /// Gives the guest what was typed, as far as its ring has room. Returns the number of bytes.
    fn give_input(&mut self) -> Result<usize, Error> {
        let terminal = self.terminal.as_mut();
        let Some(terminal) = terminal.filter(|terminal| terminal.is_readable()) else {
            return Ok(0);
        };
        let (Some(channel), Some(ring)) = (&self.channel, self.feed.ring()) else { return Ok(0) };
        let room = ring.input_room().map_err(broken)?;
        let mut typed = [0; INPUT_SIZE];
        let Some(into) = typed.get_mut(..room).filter(|into| !into.is_empty()) else {
            // The guest notifies once it has read some.
            terminal.accept();
            return Ok(0);
        };
        let count = terminal.read(into);
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
        // Where a client of a channel has come, its descriptor is to be watched before the loop sleeps.
        let more = self.show_output() || self.terminal().is_some_and(Terminal::is_changed);
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        // What is wrong is told before the loop sleeps.
        let complains = self.complaint.is_some();
        let more = more || complains;
        Ok(TurnOutcome { moved, more, complains, ..TurnOutcome::default() })
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        Ok(self.has_output_of(OutputSource::Fifo)? || self.has_output_of(OutputSource::Ring)?)
    }

    fn ports(&self) -> impl Iterator<Item = Port> {
        self.channel.iter().map(Channel::port)
    }

    fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.rate.limited_until(now)
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
