//! One console: its ring, its log, its terminal.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::settings::{MOVES_RATE, OUTPUT_BURST, OUTPUT_RATE};
use crate::backlog::Backlog;
use crate::feed::ConsoleFeed;
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

/// A served console.
pub struct ServedConsole {
    channel: Channel,
    feed: ConsoleFeed,
    terminal: Option<Terminal>,
    overflow: Overflow,
    rate: Throttle,
    /// Sentences for the daemon's log.
    complaint: Option<String>,
}

impl fmt::Debug for ServedConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedConsole").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl ServedConsole {
    /// Serves a ring's output and input, over this event channel.
    #[must_use]
    pub fn new(
        channel: Channel,
        feed: ConsoleFeed,
        terminal: Option<Terminal>,
        overflow: Overflow,
    ) -> Self {
        let limits = RateLimits {
            bytes_per_second: Some(OUTPUT_RATE),
            requests_per_second: Some(MOVES_RATE),
        };
        let rate = Throttle::with_burst(limits, OUTPUT_BURST, Instant::now());
        Self { channel, feed, terminal, overflow, rate, complaint: None }
    }

    /// Returns the terminal, if one could be had.
    #[must_use]
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Returns the terminal, to tell it that it is ready.
    pub fn terminal_mut(&mut self) -> Option<&mut Terminal> {
        self.terminal.as_mut()
    }

    /// Returns the output, to open its log again.
    pub fn feed(&mut self) -> &mut ConsoleFeed {
        &mut self.feed
    }

    /// Ends the console, and keeps its terminal and its output for a ring that follows.
    #[must_use]
    pub fn into_kept(self) -> (Option<Terminal>, Backlog) {
        let mut terminal = self.terminal;
        if let Some(terminal) = &mut terminal {
            // What is typed meanwhile is for the ring that follows.
            terminal.ready();
        }
        (terminal, self.feed.into_backlog())
    }

    /// Returns the newest output.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        self.feed.backlog()
    }

    /// Types bytes. Returns the number that the guest has room for; a ring that is broken has none,
    /// and is found so by the next turn.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let put = self.feed.ring().write_input(bytes).unwrap_or(0);
        if put > 0 {
            // That the channel is gone is found by the next turn, too.
            let _ = self.channel.notify();
        }
        put
    }

    /// Moves the last output of a domain that has ended: into the log, and to whoever reads now.
    pub fn drain(&mut self) {
        // A ring that is broken, or has more than it holds, is given up.
        for _ in 0..2 {
            let moved = self.feed.move_output(OUTPUT_SIZE, time_us());
            if moved.is_ok_and(|outcome| outcome.moved == 0) {
                break;
            }
        }
        self.show_output();
    }

    /// Moves output from the ring into the log and the backlog. Returns the number of bytes.
    fn take_output(&mut self, now: Instant) -> Result<usize, Error> {
        if self.rate.ready(now).is_err() || self.waits_for_reader() {
            return Ok(0);
        }
        let outcome = self.feed.move_output(OUTPUT_SIZE, time_us()).map_err(broken)?;
        if outcome.moved > 0 {
            self.rate.spend(outcome.moved as u64, now);
            self.channel.notify()?;
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
        Ok(outcome.moved)
    }

    /// True where output is kept for its reader, who is to read before the guest may go on.
    fn waits_for_reader(&self) -> bool {
        let Some(terminal) = &self.terminal else { return false };
        let backlog = self.feed.backlog();
        let unread = backlog.end().saturating_sub(terminal.place);
        self.overflow == Overflow::Keep
            && unread.saturating_add(OUTPUT_SIZE as u64) > backlog.capacity() as u64
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
        let Some(terminal) = &mut self.terminal else { return Ok(0) };
        if !terminal.readable {
            return Ok(0);
        }
        let room = self.feed.ring().input_room().map_err(broken)?;
        let mut typed = [0; INPUT_SIZE];
        let Some(into) = typed.get_mut(..room).filter(|into| !into.is_empty()) else {
            // The guest notifies once it has read some.
            return Ok(0);
        };
        let count = terminal.pty.read(into).unwrap_or(0);
        if count < room {
            terminal.readable = false;
        }
        let put =
            self.feed.ring().write_input(typed.get(..count).unwrap_or_default()).map_err(broken)?;
        if put > 0 {
            self.channel.notify()?;
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
        if self.waits_for_reader() {
            return Ok(false);
        }
        let output = self.feed.ring().peek_output(&mut [0]).map_err(broken)?;
        Ok(output.len > 0)
    }

    fn ports(&self) -> impl Iterator<Item = Port> {
        std::iter::once(self.channel.port())
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
