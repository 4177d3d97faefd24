//! The way of a console's output: from the ring into the log and the backlog.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::backlog::Backlog;
use crate::log::{ConsoleLog, LineFormatter, LogOutcome};
use crate::record::{ConsoleRecord, LoggedState};
use xen_io::console::{ConsoleBackRing, OUTPUT_SIZE, RingError, StreamChunk};

/// The files of a console. Each may be missing: output is served all the same.
#[derive(Debug, Default)]
pub struct ConsoleFiles {
    /// The log.
    pub log: Option<ConsoleLog>,
    /// The record of what is in the log.
    pub record: Option<ConsoleRecord>,
    /// The format of the log; none if it has the guest's bytes as they come. With a format, a chunk
    /// that was being logged when the process was killed is logged again.
    pub format: Option<LineFormatter>,
}

/// The outcome of one move of output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedOutcome {
    /// The number of bytes that have left the ring. If it is not 0, the guest is to be notified.
    pub moved: usize,
    /// The fate of the bytes in the log; none if nothing was for it.
    pub logged: Option<LogOutcome>,
}

/// The output of one console.
#[derive(Debug)]
pub struct ConsoleFeed {
    ring: ConsoleBackRing,
    files: ConsoleFiles,
    backlog: Backlog,
    /// The identity of the domain's life.
    life: u64,
    buffer: Box<[u8; OUTPUT_SIZE]>,
}

impl ConsoleFeed {
    /// The output of the console in `ring`, of the domain's life `life`. Bytes in the ring that an
    /// earlier process has put into the log are not put there again.
    ///
    /// # Errors
    /// [`RingError`]: the ring cannot be used.
    pub fn new(
        ring: ConsoleBackRing,
        files: ConsoleFiles,
        backlog: Backlog,
        life: u64,
    ) -> Result<Self, RingError> {
        let mut feed = Self { ring, files, backlog, life, buffer: Box::new([0; OUTPUT_SIZE]) };
        feed.skip_logged()?;
        // Also for a guest that never writes: the next daemon knows that its life goes on.
        feed.write_record(feed.ring.peek_output(&mut [])?.start);
        feed.ring.set_connected()?;
        Ok(feed)
    }

    /// Returns the ring, for input.
    #[must_use]
    pub fn ring(&self) -> &ConsoleBackRing {
        &self.ring
    }

    /// Ends the feed, and keeps the backlog.
    #[must_use]
    pub fn into_backlog(self) -> Backlog {
        self.backlog
    }

    /// Returns the backlog, for readers.
    #[must_use]
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Closes the log's files and opens them by their names again, for whoever has renamed them.
    ///
    /// # Errors
    /// They cannot be opened; the files that were open stay in use.
    pub fn reopen_log(&mut self, time_us: u64) -> std::io::Result<()> {
        let Some(log) = &mut self.files.log else { return Ok(()) };
        log.reopen()?;
        if let Some(format) = &mut self.files.format {
            log.append(format.opened(time_us), time_us);
        }
        Ok(())
    }

    /// Moves output that the ring holds at this moment, at most `bytes_max`, which came at this time.
    ///
    /// # Errors
    /// [`RingError`]: the ring cannot be used. Nothing was moved.
    pub fn move_output(
        &mut self,
        bytes_max: usize,
        time_us: u64,
    ) -> Result<FeedOutcome, RingError> {
        let len = bytes_max.min(OUTPUT_SIZE);
        let chunk = self.ring.peek_output(self.buffer.get_mut(..len).unwrap_or_default())?;
        if chunk.len == 0 {
            return Ok(FeedOutcome { moved: 0, logged: None });
        }
        let bytes = self.buffer.get(..chunk.len).unwrap_or_default();
        self.backlog.push(bytes);
        let formatted = match &mut self.files.format {
            Some(format) => format.format(bytes, time_us),
            None => bytes,
        };
        let logged = self.files.log.as_mut().map(|log| log.append(formatted, time_us));
        self.release(chunk)?;
        Ok(FeedOutcome { moved: chunk.len, logged })
    }

    /// Records that a chunk is in the log, and gives its room to the guest.
    fn release(&mut self, chunk: StreamChunk) -> Result<(), RingError> {
        self.write_record(chunk.end());
        self.ring.release_output(chunk)
    }

    /// Records that the output before `index` is in the log.
    fn write_record(&mut self, index: u32) {
        if let ConsoleFiles { log: Some(log), record: Some(record), .. } = &self.files {
            let (inode, log_len) = log.place();
            let state = LoggedState { life: self.life, inode, log_len, index };
            if record.write(state).is_err() {
                // Without it a daemon that is started again may repeat a chunk.
                self.files.record = None;
            }
        }
    }

    /// Releases the bytes that an earlier process has put into the log, and shows them to readers.
    fn skip_logged(&mut self) -> Result<(), RingError> {
        let ConsoleFiles { log: Some(log), record: Some(record), .. } = &self.files else {
            return Ok(());
        };
        let Some(state) = record.read() else { return Ok(()) };
        let whole = self.ring.peek_output(&mut self.buffer[..])?;
        let output = self.buffer.get(..whole.len).unwrap_or_default();
        let (inode, log_len) = log.place();
        let now = LoggedState { life: self.life, inode, log_len, index: whole.start };
        let logged = state.logged(&now, output, |len| log.tail(len).ok());
        if logged > 0 {
            let chunk = self.ring.peek_output(self.buffer.get_mut(..logged).unwrap_or_default())?;
            self.backlog.push(self.buffer.get(..chunk.len).unwrap_or_default());
            self.release(chunk)?;
        }
        Ok(())
    }
}
