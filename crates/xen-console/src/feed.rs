//! The way of a console's output: from the ring and the FIFO into the log and the backlog.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::backlog::Backlog;
use crate::fifo::{CHUNK_MAX, FifoState, OutputFifo};
use crate::log::{ConsoleLog, LineFormatter, LogOutcome};
use crate::record::{ConsoleRecord, LoggedState, begins_with_tail};
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

/// The places that a console's output comes from. Both may be missing.
#[derive(Debug, Default)]
pub struct ConsoleSources {
    /// The ring, which takes input as well.
    pub ring: Option<ConsoleBackRing>,
    /// The FIFO that the domain prints into, on a hosted host.
    pub fifo: Option<OutputFifo>,
}

/// The outcome of one move of output.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FeedOutcome {
    /// The number of bytes that have left their place. If it is not 0 and they were in the ring, the
    /// guest is to be notified.
    pub moved: usize,
    /// The fate of the bytes in the log; none if nothing was for it.
    pub logged: Option<LogOutcome>,
}

/// The output of one console.
#[derive(Debug)]
pub struct ConsoleFeed {
    sources: ConsoleSources,
    files: ConsoleFiles,
    backlog: Backlog,
    /// The identity of the domain's life.
    life: u64,
    /// The index of the ring behind the last byte that is in the log.
    index: u32,
    /// The inode of the FIFO, which is the same in all of the domain's life; 0 if it has none.
    inode: u64,
    buffer: Box<[u8; CHUNK_MAX]>,
}

// A chunk of either source fits.
const _: () = assert!(OUTPUT_SIZE <= CHUNK_MAX);

impl ConsoleFeed {
    /// The output of a console, of the domain's life `life`. Bytes that an earlier process has put
    /// into the log are not put there again. A ring that cannot be used is found so by the first
    /// [`ConsoleFeed::move_output`].
    #[must_use]
    pub fn new(sources: ConsoleSources, files: ConsoleFiles, backlog: Backlog, life: u64) -> Self {
        let buffer = Box::new([0; CHUNK_MAX]);
        let inode = sources.fifo.as_ref().map_or(0, OutputFifo::inode);
        let mut feed = Self { sources, files, backlog, life, index: 0, inode, buffer };
        feed.skip_logged();
        // Also for a guest that never writes: the next daemon knows that its life goes on.
        feed.write_record();
        if let Some(ring) = &feed.sources.ring {
            let _ = ring.set_connected();
        }
        feed
    }

    /// Returns the ring, for input.
    #[must_use]
    pub fn ring(&self) -> Option<&ConsoleBackRing> {
        self.sources.ring.as_ref()
    }

    /// Gives the ring back.
    pub fn end_ring(&mut self) {
        self.sources.ring = None;
    }

    /// Returns the FIFO.
    #[must_use]
    pub fn fifo(&self) -> Option<&OutputFifo> {
        self.sources.fifo.as_ref()
    }

    /// Returns the FIFO, to tell it that it can be read.
    pub fn fifo_mut(&mut self) -> Option<&mut OutputFifo> {
        self.sources.fifo.as_mut()
    }

    /// Ends the feed, and keeps the backlog and the FIFO.
    #[must_use]
    pub fn into_kept(self) -> (Backlog, Option<OutputFifo>) {
        (self.backlog, self.sources.fifo)
    }

    /// Closes all but the backlog.
    pub fn close(&mut self) {
        self.sources = ConsoleSources::default();
        self.files = ConsoleFiles::default();
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
        let Some(ring) = &self.sources.ring else { return Ok(FeedOutcome::default()) };
        let len = bytes_max.min(OUTPUT_SIZE);
        let chunk = ring.peek_output(self.buffer.get_mut(..len).unwrap_or_default())?;
        if chunk.len == 0 {
            return Ok(FeedOutcome::default());
        }
        let logged = self.keep(chunk.len, time_us);
        self.release(chunk)?;
        Ok(FeedOutcome { moved: chunk.len, logged })
    }

    /// Moves output that the FIFO holds at this moment, at most `bytes_max`, which came at this time.
    ///
    /// # Errors
    /// The FIFO cannot be read. Nothing was moved.
    pub fn move_printed(&mut self, bytes_max: usize, time_us: u64) -> std::io::Result<FeedOutcome> {
        let Some(fifo) = &mut self.sources.fifo else { return Ok(FeedOutcome::default()) };
        let len = bytes_max.min(CHUNK_MAX);
        let state = fifo.peek(self.buffer.get_mut(..len).unwrap_or_default())?;
        let FifoState::Bytes(moved) = state else { return Ok(FeedOutcome::default()) };
        let logged = self.keep(moved, time_us);
        self.write_record();
        if let Some(fifo) = &mut self.sources.fifo {
            fifo.consume(moved);
        }
        Ok(FeedOutcome { moved, logged })
    }

    /// Puts the first bytes of the buffer into the backlog and the log.
    fn keep(&mut self, count: usize, time_us: u64) -> Option<LogOutcome> {
        let bytes = self.buffer.get(..count).unwrap_or_default();
        self.backlog.push(bytes);
        let formatted = match &mut self.files.format {
            Some(format) => format.format(bytes, time_us),
            None => bytes,
        };
        self.files.log.as_mut().map(|log| log.append(formatted, time_us))
    }

    /// Records that a chunk is in the log, and gives its room to the guest.
    fn release(&mut self, chunk: StreamChunk) -> Result<(), RingError> {
        self.index = chunk.end();
        self.write_record();
        self.sources.ring.as_ref().map_or(Ok(()), |ring| ring.release_output(chunk))
    }

    /// Records what is in the log.
    fn write_record(&mut self) {
        if let ConsoleFiles { log: Some(log), record: Some(record), .. } = &self.files {
            let state = self.state(log);
            if record.write(state).is_err() {
                // Without it a daemon that is started again may repeat a chunk.
                self.files.record = None;
            }
        }
    }

    fn state(&self, log: &ConsoleLog) -> LoggedState {
        let (inode, log_len) = log.place();
        LoggedState { life: self.life, inode, log_len, index: self.index, fifo: self.inode }
    }

    /// Takes the bytes away that an earlier process has put into the log, and shows them to readers.
    fn skip_logged(&mut self) {
        if let Some(Ok(whole)) = self.ring().map(|ring| ring.peek_output(&mut [])) {
            self.index = whole.start;
        }
        let ConsoleFiles { log: Some(log), record: Some(record), .. } = &self.files else { return };
        let Some(earlier) = record.read().filter(|state| state.life == self.life) else { return };
        let now = self.state(log);
        if self.sources.fifo.is_none() {
            // It is not to be had now; the next daemon may find it.
            self.inode = earlier.fifo;
        }
        let tail = |len| log.tail(len).ok();
        let beyond = earlier.unrecorded(&now);
        let mut logged = 0;
        match self.sources.ring.as_ref().map(|ring| ring.peek_output(&mut self.buffer[..])) {
            Some(Ok(whole)) => {
                let output = self.buffer.get(..whole.len).unwrap_or_default();
                logged = earlier.logged(&now, output, tail);
            }
            // The ring may come later, or with its next daemon.
            _ => self.index = earlier.index,
        }
        if logged > 0 {
            self.skip_ring(logged);
        } else if let Some(fifo) = &mut self.sources.fifo
            && let Ok(FifoState::Bytes(count)) = fifo.peek(&mut self.buffer[..])
        {
            // What the log has beyond the record is of one source, and it is not the ring.
            let output = self.buffer.get(..count).unwrap_or_default();
            if let Some(count) = begins_with_tail(output, beyond, tail) {
                self.skip_printed(count);
            }
        }
    }

    /// Releases the first bytes of the ring, which are in the log.
    fn skip_ring(&mut self, count: usize) {
        let Some(ring) = &self.sources.ring else { return };
        let Ok(chunk) = ring.peek_output(self.buffer.get_mut(..count).unwrap_or_default()) else {
            return;
        };
        self.backlog.push(self.buffer.get(..chunk.len).unwrap_or_default());
        // A ring that is broken is found so by the next move.
        let _ = self.release(chunk);
    }

    /// Takes the first bytes of the FIFO away, which are in the log and in the buffer.
    fn skip_printed(&mut self, count: usize) {
        self.backlog.push(self.buffer.get(..count).unwrap_or_default());
        self.write_record();
        if let Some(fifo) = &mut self.sources.fifo {
            fifo.consume(count);
        }
    }
}
