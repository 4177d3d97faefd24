//! Many clients in one thread: each has a script that provides its next request, mostly one request
//! for each reply.

use crate::Result;
use crate::client::{self, PATIENCE, put};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;
use xenstore_core::wire::{Header, MsgType, split_message};

/// The behaviour of one client.
pub(crate) trait ClientScript {
    /// Appends the next request to `out`, or nothing to stop. Called once with `None`, then with
    /// each reply.
    fn next(&mut self, reply: Option<(Header, &[u8])>, out: &mut Vec<u8>) -> Result<()>;

    /// True while more replies must come before it goes on.
    fn waits(&self) -> bool {
        false
    }
}

struct SwarmClient {
    socket: UnixStream,
    input: Vec<u8>,
    running: bool,
}

/// Clients that stay connected.
pub(crate) struct Swarm {
    poll: rustix::fd::OwnedFd,
    clients: Vec<SwarmClient>,
}

impl Swarm {
    /// Connects `count` clients.
    pub(crate) fn connect(path: &Path, count: usize) -> Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(count);
        for index in 0..count {
            let socket = UnixStream::connect(path)?;
            let mark = epoll::EventData::new_u64(index as u64);
            epoll::add(&poll, &socket, mark, epoll::EventFlags::IN)?;
            clients.push(SwarmClient { socket, input: Vec::new(), running: false });
        }
        Ok(Self { poll, clients })
    }

    /// Runs one script for each client until all have stopped.
    pub(crate) fn run<S: ClientScript>(&mut self, scripts: &mut [S]) -> Result<()> {
        let mut out = Vec::new();
        let mut running = 0;
        for (client, script) in self.clients.iter_mut().zip(scripts.iter_mut()) {
            out.clear();
            script.next(None, &mut out)?;
            client.running = client.send(&out)?;
            running += usize::from(client.running);
        }
        let mut buffer = vec![0; 64 * 1024];
        let mut events = Vec::with_capacity(1024);
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        while running > 0 {
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&patience)) {
                Ok(0) => return Err(format!("no answer within {PATIENCE:?}").into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                if self.clients[index].serve(&mut scripts[index], &mut buffer, &mut out)? {
                    running -= 1;
                }
            }
        }
        Ok(())
    }
}

impl SwarmClient {
    /// Sends the script's next request; returns false if there is none.
    fn send(&self, out: &[u8]) -> Result<bool> {
        if !out.is_empty() && net::send(&self.socket, out, SendFlags::NOSIGNAL)? != out.len() {
            return Err("a request was sent in part only".into());
        }
        Ok(!out.is_empty())
    }

    /// Takes the bytes that have come and goes on; returns true if the script has just stopped.
    fn serve(
        &mut self,
        script: &mut impl ClientScript,
        buffer: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        let got = net::recv(&self.socket, &mut *buffer, RecvFlags::empty())?.1;
        if got == 0 {
            return Err("the daemon closed a connection".into());
        }
        self.input.extend_from_slice(&buffer[..got]);
        let mut stopped = false;
        let mut used = 0;
        while let Some((header, payload, _)) = split_message(&self.input[used..])? {
            used += 16 + payload.len();
            if header.kind == MsgType::WatchEvent.code() {
                continue;
            }
            out.clear();
            script.next(Some((header, payload)), out)?;
            if !self.send(out)? && self.running && !script.waits() {
                self.running = false;
                stopped = true;
            }
        }
        self.input.drain(..used);
        Ok(stopped)
    }
}

/// A script of four reads of its own node to each write, until a point in time.
pub(crate) struct MixedScript {
    read: Vec<u8>,
    write: Vec<u8>,
    end: Instant,
    /// The number of requests answered.
    pub(crate) done: u64,
}

impl MixedScript {
    /// Makes a script that works on `path` until `end`.
    pub(crate) fn new(path: &str, end: Instant) -> Self {
        let (read, write) = (client::read(path), client::write(path, client::VALUE));
        Self { read, write, end, done: 0 }
    }
}

impl ClientScript for MixedScript {
    fn next(&mut self, reply: Option<(Header, &[u8])>, out: &mut Vec<u8>) -> Result<()> {
        if let Some((header, payload)) = reply {
            if header.kind == MsgType::Error.code() {
                return Err(client::refusal(b"", payload).into());
            }
            self.done += 1;
        }
        // Reading the clock on each request would cost more than the request does.
        if !self.done.is_multiple_of(16) || Instant::now() < self.end {
            let write = self.done % 5 == 4;
            out.extend_from_slice(if write { &self.write } else { &self.read });
        }
        Ok(())
    }
}

/// Counts of one client's transactions.
#[derive(Clone, Copy, Default)]
pub(crate) struct TransactionCounts {
    /// Transactions committed.
    pub(crate) commits: u64,
    /// Commits refused with EAGAIN.
    pub(crate) again: u64,
    /// Most tries that one transaction needed.
    pub(crate) tries_max: u64,
}

/// The way to send the requests between start and end of a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendMode {
    /// Each after the reply to the one before.
    OneByOne,
    /// All at once. None may be refused.
    Together,
}

/// A script that repeats a transaction, again after each EAGAIN, until a time or a number of
/// commits.
pub(crate) struct TransactionScript<F> {
    /// A function that returns the requests of transaction number `n` with its id, one `Vec` a
    /// request.
    steps: F,
    requests: Vec<Vec<u8>>,
    at: usize,
    mode: SendMode,
    /// The replies that must come before the next request is sent, without the last one.
    awaited: usize,
    tx_id: u32,
    tries: u64,
    stop: StopCondition,
    /// The counts up to now.
    pub(crate) counts: TransactionCounts,
}

/// The condition on which a client stops.
#[derive(Clone, Copy)]
pub(crate) enum StopCondition {
    /// At this time, after the transaction that is running then.
    Time(Instant),
    /// After this number of commits.
    Commits(u64),
}

impl<F: FnMut(u64, u32) -> Vec<Vec<u8>>> TransactionScript<F> {
    /// Makes a script; `steps(number, tx_id)` returns the requests between start and commit.
    pub(crate) fn new(steps: F, stop: StopCondition) -> Self {
        let counts = TransactionCounts::default();
        let (mode, requests) = (SendMode::OneByOne, Vec::new());
        Self { steps, requests, at: 0, mode, awaited: 0, tx_id: 0, tries: 0, stop, counts }
    }

    /// Returns this script with another mode.
    pub(crate) fn with_mode(self, mode: SendMode) -> Self {
        Self { mode, ..self }
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        let more = match self.stop {
            StopCondition::Time(end) => Instant::now() < end,
            StopCondition::Commits(count) => self.counts.commits < count,
        };
        if more || self.tries > 0 {
            self.tries += 1;
            self.tx_id = 0;
            put(out, MsgType::TransactionStart, 0, &[b"\0"]);
        }
    }
}

impl<F: FnMut(u64, u32) -> Vec<Vec<u8>>> ClientScript for TransactionScript<F> {
    fn next(&mut self, reply: Option<(Header, &[u8])>, out: &mut Vec<u8>) -> Result<()> {
        let Some((header, payload)) = reply else {
            self.start(out);
            return Ok(());
        };
        let failed = header.kind == MsgType::Error.code();
        if failed && payload != b"EAGAIN\0" {
            return Err(client::refusal(b"", payload).into());
        }
        if self.awaited > 0 {
            if failed {
                return Err("a request of a transaction that is sent at once was refused".into());
            }
            self.awaited -= 1;
            if self.awaited > 0 {
                return Ok(());
            }
        }
        if self.tx_id == 0 && !failed {
            let text = std::str::from_utf8(payload.strip_suffix(b"\0").unwrap_or(payload))?;
            self.tx_id = text.parse()?;
            self.requests = (self.steps)(self.counts.commits, self.tx_id);
            put_end(&mut self.requests, self.tx_id);
            self.at = 0;
            if self.mode == SendMode::Together {
                self.at = self.requests.len() - 1;
                self.awaited = self.at;
                out.extend(self.requests[..self.at].iter().flatten());
                return Ok(());
            }
        } else if failed && self.at < self.requests.len() {
            // Refused in the middle: nothing to commit, so the transaction is abandoned and started
            // again.
            self.counts.again += 1;
            self.requests = vec![client_end(self.tx_id, b"F\0")];
            self.at = 0;
        } else if self.at == self.requests.len() {
            let committed = !failed && header.kind == MsgType::TransactionEnd.code();
            let gave_up = self.requests.len() == 1;
            if committed && !gave_up {
                self.counts.commits += 1;
                self.counts.tries_max = self.counts.tries_max.max(self.tries);
                self.tries = 0;
            } else if !gave_up {
                self.counts.again += 1;
            }
            self.start(out);
            return Ok(());
        }
        out.extend_from_slice(&self.requests[self.at]);
        self.at += 1;
        Ok(())
    }

    fn waits(&self) -> bool {
        self.awaited > 0
    }
}

fn client_end(tx_id: u32, how: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, MsgType::TransactionEnd, tx_id, &[how]);
    bytes
}

fn put_end(requests: &mut Vec<Vec<u8>>, tx_id: u32) {
    requests.push(client_end(tx_id, b"T\0"));
}

/// Returns the sum of all clients' counts.
pub(crate) fn total(counts: impl Iterator<Item = TransactionCounts>) -> TransactionCounts {
    counts.fold(TransactionCounts::default(), |sum, one| TransactionCounts {
        commits: sum.commits + one.commits,
        again: sum.again + one.again,
        tries_max: sum.tries_max.max(one.tries_max),
    })
}
