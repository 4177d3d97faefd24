//! The log of the hypervisor's own console: what Xen itself prints.
//!
//! Only the device that makes hypercalls can read it. So another process does, which does nothing
//! else ([`run_reader`]), and the daemon asks it for output over a socket and writes the log.
//! An index is recorded once the bytes before it are in the log; the next daemon goes on from it.

mod reader;
mod wire;

pub use reader::{READER_ROLE, reader_command, run_reader, run_reader_on};

use crate::log::{ConsoleLog, LogOutcome};
use crate::record::{ConsoleRecord, LoggedState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use wire::{AnswerBuffer, ReaderAnswer, Received, send_index};

/// The shortest time between two starts of the reader.
const START_INTERVAL: Duration = Duration::from_secs(1);

/// Changes output that came at a time, in microseconds since 1970, before it is logged.
pub type OutputRewrite = Box<dyn FnMut(&[u8], u64, &mut Vec<u8>)>;

/// The outcome of one look for output of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HypervisorOutcome {
    /// The number of bytes that came and were not in the log yet.
    pub moved: usize,
    /// The number of bytes before them that the ring no longer had.
    pub lost: u32,
    /// The fate of the bytes in the log; none if nothing was for it.
    pub logged: Option<LogOutcome>,
}

/// The reason why the reader does not run.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReaderError {
    /// It cannot be started.
    Start(io::Error),
    /// It has given this reason and ended.
    Refused(String),
    /// It was ended, because its socket cannot be used.
    Socket(io::Error),
    /// It has ended.
    Ended(ExitStatus),
}

impl fmt::Display for ReaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = "the reader of the hypervisor's console";
        match self {
            Self::Start(error) => write!(f, "{what} cannot be started: {error}"),
            Self::Refused(reason) => write!(f, "{what} cannot read it: {reason}"),
            Self::Socket(error) => write!(f, "{what} does not answer as it should: {error}"),
            Self::Ended(status) => write!(f, "{what} has ended: {status}"),
        }
    }
}

impl std::error::Error for ReaderError {}

/// The process that reads the hypervisor's console. It ends with this value.
#[derive(Debug)]
struct ReaderProcess {
    child: Child,
    /// Does not block.
    socket: OwnedFd,
    /// It has the console and has given up all else.
    is_ready: bool,
}

impl ReaderProcess {
    /// Starts the reader, which answers with the output from `index` on.
    fn start(command: &mut Command, index: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        send_index(&socket, index)?;
        command.stdin(Stdio::from(other));
        // Its reasons come over the socket; who waits for the end of these streams is not to wait for it.
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, socket, is_ready: false })
    }

    /// Ends the process if it still runs.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for ReaderProcess {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The log of the hypervisor's console, and the reader that it is read by.
pub struct HypervisorLog {
    log: ConsoleLog,
    record: Option<ConsoleRecord>,
    rewrite: Option<OutputRewrite>,
    rewritten: Vec<u8>,
    /// The life of the hypervisor.
    boot: u64,
    /// The index behind the last byte that is in the log.
    next: u32,
    /// The record of an earlier daemon, until the first output has come.
    earlier: Option<LoggedState>,
    command: Box<dyn Fn() -> Command>,
    reader: Option<ReaderProcess>,
    started: Option<Instant>,
    buffer: AnswerBuffer,
}

impl HypervisorLog {
    /// Goes on with a log from where `record` says that an earlier daemon has ended, if that was
    /// under the same `boot` ([`boot_life`]). `command` is that of the reader
    /// ([`reader_command`]), which the first [`HypervisorLog::take`] starts.
    #[must_use]
    pub fn new(
        log: ConsoleLog,
        record: ConsoleRecord,
        boot: u64,
        command: Box<dyn Fn() -> Command>,
    ) -> Self {
        let earlier = record.read().filter(|state| state.life == boot);
        Self {
            log,
            record: Some(record),
            rewrite: None,
            rewritten: Vec::new(),
            boot,
            next: earlier.map_or(0, |state| state.index),
            earlier,
            command,
            reader: None,
            started: None,
            buffer: AnswerBuffer::new(),
        }
    }

    /// Has all output changed before it is logged. A daemon that was killed between the writing of
    /// the log and that of the record then repeats the last piece, as its bytes cannot be compared.
    pub fn set_rewrite(&mut self, rewrite: OutputRewrite) {
        self.rewrite = Some(rewrite);
    }

    /// The descriptor that polls readable when [`HypervisorLog::take`] has something to do; none
    /// while there is no reader.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.reader.as_ref().map(|reader| reader.socket.as_fd())
    }

    /// True if there is a reader that can read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.is_ready)
    }

    /// The time at which [`HypervisorLog::take`] starts the reader; none while it runs.
    #[must_use]
    pub fn start_time(&self, now: Instant) -> Option<Instant> {
        let due = || self.started.map_or(now, |started| started + START_INTERVAL);
        self.reader.is_none().then(due)
    }

    /// Returns the reader's process number; none while it does not run.
    #[must_use]
    pub fn reader_id(&self) -> Option<u32> {
        self.reader.as_ref().map(|reader| reader.child.id())
    }

    /// Returns the log, to open it again.
    pub fn log(&mut self) -> &mut ConsoleLog {
        &mut self.log
    }

    /// Starts the reader if it is due, and moves what it has sent, at most 16 KiB, into the log.
    /// Never waits. The reader sends no more before that.
    ///
    /// # Errors
    /// [`ReaderError`]: there is no reader. The log can still be used, and a later call starts the
    /// reader again, a second after its last start.
    pub fn take(&mut self, now: Instant, time_us: u64) -> Result<HypervisorOutcome, ReaderError> {
        if self.reader.is_none() {
            if self.start_time(now).is_none_or(|due| now < due) {
                return Ok(HypervisorOutcome::default());
            }
            self.started = Some(now);
            let reader = ReaderProcess::start(&mut (self.command)(), self.next);
            self.reader = Some(reader.map_err(ReaderError::Start)?);
        }
        let outcome = self.move_answer(time_us);
        if outcome.is_err() {
            self.reader = None;
        }
        outcome
    }

    /// Moves the reader's answer into the log, and asks for the next.
    fn move_answer(&mut self, time_us: u64) -> Result<HypervisorOutcome, ReaderError> {
        let Some(reader) = &mut self.reader else { return Ok(HypervisorOutcome::default()) };
        let answer = self.buffer.receive(&reader.socket).map_err(ReaderError::Socket)?;
        let (next, lost, bytes) = match answer {
            Received::Message(ReaderAnswer::Output { next, lost, bytes }) => (next, lost, bytes),
            Received::Message(ReaderAnswer::Failure(reason)) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(ReaderError::Refused(reason));
            }
            Received::Message(ReaderAnswer::Ready) => {
                reader.is_ready = true;
                return Ok(HypervisorOutcome::default());
            }
            Received::Nothing => return Ok(HypervisorOutcome::default()),
            Received::Closed => {
                let status = reader.end().map_err(ReaderError::Socket)?;
                return Err(ReaderError::Ended(status));
            }
        };
        let skipped =
            self.earlier.take().map_or(0, |earlier| logged(&earlier, &self.log, lost, bytes));
        let bytes = bytes.get(skipped..).unwrap_or_default();
        if lost > 0 {
            // An index that cannot be written costs the mark, and no output.
            let _ = self.log.note_lost(lost.into(), time_us);
        }
        let mut outcome = HypervisorOutcome { moved: bytes.len(), lost, logged: None };
        if !bytes.is_empty() {
            let bytes = match &mut self.rewrite {
                Some(rewrite) => {
                    self.rewritten.clear();
                    rewrite(bytes, time_us, &mut self.rewritten);
                    &self.rewritten[..]
                }
                None => bytes,
            };
            outcome.logged = Some(self.log.append(bytes, time_us));
        }
        self.next = next;
        self.write_record();
        // If it cannot be sent, the next call finds the socket closed.
        if let Some(reader) = &self.reader {
            let _ = send_index(&reader.socket, next);
        }
        Ok(outcome)
    }

    fn write_record(&mut self) {
        let Some(record) = &self.record else { return };
        let (inode, log_len) = self.log.place();
        let state = LoggedState { life: self.boot, inode, log_len, index: self.next, fifo: 0 };
        if record.write(state).is_err() {
            // Without it a daemon that is started again repeats output.
            self.record = None;
        }
    }
}

/// Returns the number of bytes at the beginning of the first output that an earlier daemon had put
/// into the log when it was killed before it could record that. `lost` is the number of bytes
/// between its record and the output.
fn logged(earlier: &LoggedState, log: &ConsoleLog, lost: u32, bytes: &[u8]) -> usize {
    let (inode, log_len) = log.place();
    // The log may have been set aside in between: then all of the new one is later than the record.
    let recorded = if inode == earlier.inode { earlier.log_len } else { 0 };
    let more = log_len.checked_sub(recorded).and_then(|more| more.checked_sub(lost.into()));
    let more = more.and_then(|more| usize::try_from(more).ok());
    let Some(same) = more.and_then(|more| bytes.get(..more)) else { return 0 };
    match log.tail(same.len()) {
        Ok(tail) if tail == same => same.len(),
        _ => 0,
    }
}

impl fmt::Debug for HypervisorLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, boot, next, reader, .. } = self;
        let mut debug = f.debug_struct("HypervisorLog");
        debug.field("log", log).field("boot", boot).field("next", next).field("reader", reader);
        debug.finish_non_exhaustive()
    }
}

/// Returns a number that identifies the life of the hypervisor, which is that of the kernel of
/// domain 0: `/proc/sys/kernel/random/boot_id`, folded.
///
/// # Errors
/// There is no such file.
pub fn boot_life() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok((id >> 64) as u64 ^ id as u64)
}
