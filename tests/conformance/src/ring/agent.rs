//! A guest of a daemon on Xen: a domain that changes its ring by commands over its console.
//!
//! The program is `tests/xen/guest`; its first lines list the commands. Commands without an answer
//! are sent ahead; their errors come with the next answer.

use super::GuestRing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{QueueSelector, tcflush};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest time of the guest's answer, added to the time that the command tells it to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of one `put`: a line must fit into the guest's buffer.
const PUT_MAX: usize = 2048;

/// The ring of a domain that runs the guest program.
#[derive(Debug)]
pub struct AgentRing {
    console: File,
    heard: Vec<u8>,
    taken: Vec<u8>,
    introduction: (u64, u32),
}

impl AgentRing {
    /// Connects to the guest whose console is this terminal, and empties its page.
    ///
    /// # Errors
    /// Those of the terminal, and `TimedOut` if the guest does not answer.
    pub fn open(console: &Path) -> io::Result<Self> {
        let console = OpenOptions::new().read(true).write(true).open(console)?;
        tcflush(&console, QueueSelector::IFlush)?;
        let mut ring = Self { console, heard: vec![], taken: vec![], introduction: (0, 0) };
        ring.tell("hello")?;
        let end = Instant::now() + ANSWER_WITHIN;
        // Answers to an earlier program may still come.
        while ring.introduction.1 == 0 {
            let line = ring.line(end)?;
            let mut words = line.split(' ').skip_while(|word| *word != "hello").skip(1);
            if let (Some(Ok(mfn)), Some(Ok(port))) =
                (words.next().map(str::parse), words.next().map(str::parse))
            {
                ring.introduction = (mfn, port);
            }
        }
        ring.write(0, &[0; PUT_MAX])?;
        ring.write(PUT_MAX as u64, &[0; PUT_MAX])?;
        // The answer shows that the page is empty: domain 0 may introduce the guest next.
        ring.read(0, &mut [0; 4])?;
        Ok(ring)
    }

    /// Returns the ring in INTRODUCE's terms: its frame and its event channel.
    #[must_use]
    pub fn introduction(&self) -> (u64, u32) {
        self.introduction
    }

    /// Shuts the domain down, with a reason of Xen's `sched.h`.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn shut_down(&mut self, reason: u32) -> io::Result<()> {
        self.tell(&format!("shutdown {reason}"))
    }

    fn tell(&mut self, command: &str) -> io::Result<()> {
        self.console.write_all(format!("{command}\n").as_bytes())
    }

    /// Sends a command; returns the bytes of the guest's answer.
    fn ask(&mut self, command: &str, wait: Duration) -> io::Result<Vec<u8>> {
        self.tell(command)?;
        let line = self.line(Instant::now() + wait + ANSWER_WITHIN)?;
        let digits = match line.split_once(' ') {
            _ if line == "ok" => "",
            Some(("ok", digits)) => digits,
            _ => return Err(io::Error::other(format!("the guest, to `{command}`: {line}"))),
        };
        let byte = |at| digits.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        bytes.ok_or_else(|| io::Error::other(format!("the guest, to `{command}`: {line}")))
    }

    /// Returns the guest's next line.
    fn line(&mut self, end: Instant) -> io::Result<String> {
        loop {
            if let Some(at) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut ready = [PollFd::new(&self.console, PollFlags::IN)];
            if poll(&mut ready, Some(&left))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the guest does not answer on its console",
                ));
            }
            let mut buffer = [0; 4096];
            let count = self.console.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.heard.extend(buffer.get(..count).unwrap_or_default());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl GuestRing for AgentRing {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.ask(&format!("read {offset} {}", into.len()), Duration::ZERO)?;
        if bytes.len() != into.len() {
            return Err(io::Error::other(format!("the guest read {} bytes", bytes.len())));
        }
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.tell(&format!("write {offset} {}", hex(bytes)))
    }

    fn notify(&mut self) -> io::Result<()> {
        self.tell("notify")
    }

    fn wait(&mut self, end: Instant) -> io::Result<()> {
        self.wait_for(end, 1)
    }

    fn wait_for(&mut self, end: Instant, bytes: usize) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let taken = self.ask(&format!("take {} {bytes}", left.as_millis().max(1)), left)?;
        self.taken.extend(taken);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.get(..bytes.len().min(PUT_MAX)).unwrap_or_default();
        self.tell(&format!("put {}", hex(part)))?;
        Ok(part.len())
    }

    fn take(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let count = self.taken.len();
        into.append(&mut self.taken);
        Ok(count)
    }

    fn flip(&mut self, offset: u64, one: &[u8], other: &[u8], times: u32) -> io::Result<()> {
        let command = format!("flip {offset} {} {} {times}", hex(one), hex(other));
        self.ask(&command, Duration::from_secs(20)).map(drop)
    }

    fn adopt_indices(&mut self) -> io::Result<()> {
        Ok(())
    }
}
