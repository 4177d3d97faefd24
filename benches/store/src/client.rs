//! The load generator's connection: requests as bytes, one at a time or many in flight.

use crate::Result;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use xenstore_core::wire::{Header, MsgType, split_message};

/// The longest wait for any answer; a daemon that needs longer is reported, not waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The value of every node that is written: 32 bytes.
pub(crate) const VALUE: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The value that takes turns with [`VALUE`].
pub(crate) const OTHER_VALUE: &[u8] = b"fedcba9876543210fedcba9876543210";

/// Appends a request to `out`.
pub(crate) fn put(out: &mut Vec<u8>, kind: MsgType, tx_id: u32, parts: &[&[u8]]) {
    let len = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    out.extend_from_slice(&Header { kind: kind.code(), req_id: 0, tx_id, len }.to_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Returns the bytes of one request.
pub(crate) fn request(kind: MsgType, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, 0, parts);
    bytes
}

/// Returns a READ of `path`.
pub(crate) fn read(path: &str) -> Vec<u8> {
    request(MsgType::Read, &[path.as_bytes(), b"\0"])
}

/// Returns a WRITE of `value` to `path`.
pub(crate) fn write(path: &str, value: &[u8]) -> Vec<u8> {
    request(MsgType::Write, &[path.as_bytes(), b"\0", value])
}

/// Two requests of the same length that are sent in turn. Writes alternate between two values, so
/// that no daemon can take a write for one that changes nothing.
pub(crate) type Pair = [Vec<u8>; 2];

/// Returns two reads of `path`.
pub(crate) fn reads(path: &str) -> Pair {
    [read(path), read(path)]
}

/// Returns two writes to `path`.
pub(crate) fn writes(path: &str) -> Pair {
    [write(path, VALUE), write(path, OTHER_VALUE)]
}

/// A connection that blocks, with a bound.
pub(crate) struct Conn {
    /// The socket, for callers that poll it.
    pub(crate) socket: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Conn {
    /// Connects to the daemon's socket.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, buffer: vec![0; 64 * 1024].into(), start: 0, end: 0 })
    }

    /// Sends bytes, all of them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).map_err(|error| format!("send to the daemon: {error}"))?;
        Ok(())
    }

    /// Receives at least one more byte.
    fn fill(&mut self) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.socket.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err("the daemon closed the connection".into()),
            Ok(got) => {
                self.end += got;
                Ok(())
            }
            Err(error) => Err(format!("no answer within {PATIENCE:?}: {error}").into()),
        }
    }

    /// Returns the next message: its header and payload.
    pub(crate) fn message(&mut self) -> Result<(Header, &[u8])> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some((header, payload, _)) = split_message(bytes)? {
                let from = self.start + 16;
                self.start = from + payload.len();
                return Ok((header, &self.buffer[from..self.start]));
            }
            self.fill()?;
        }
    }

    /// Sends one request and returns its reply; watch events that come first are skipped.
    ///
    /// # Errors
    /// An ERROR reply, with the name that the daemon gave.
    pub(crate) fn call(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.send(request)?;
        loop {
            let (header, payload) = self.message()?;
            if header.kind == MsgType::WatchEvent.code() {
                continue;
            }
            if header.kind == MsgType::Error.code() {
                return Err(refusal(request, payload).into());
            }
            return Ok(payload.to_vec());
        }
    }

    /// Counts the complete replies received so far and drops them.
    fn take_replies(&mut self) -> Result<usize> {
        let mut replies = 0;
        while let Some((header, payload, _)) = split_message(&self.buffer[self.start..self.end])? {
            if header.kind == MsgType::Error.code() {
                return Err(refusal(b"", payload).into());
            }
            self.start += 16 + payload.len();
            replies += usize::from(header.kind != MsgType::WatchEvent.code());
        }
        Ok(replies)
    }

    /// Keeps `depth` requests in flight for `time`, taken from `pair` in turn; returns the number
    /// of replies.
    pub(crate) fn pipeline(&mut self, pair: &Pair, depth: usize, time: Duration) -> Result<u64> {
        let batch = pair.concat().repeat(depth.div_ceil(2));
        let len = pair[0].len();
        let end = Instant::now() + time;
        let (mut done, mut flying) = (0, depth);
        self.send(&batch[..depth * len])?;
        while flying > 0 {
            self.fill()?;
            let replies = self.take_replies()?;
            done += replies as u64;
            flying -= replies;
            if replies > 0 && Instant::now() < end {
                self.send(&batch[..replies * len])?;
                flying += replies;
            }
        }
        Ok(done)
    }

    /// Sends each request of `all` once, at most `depth` in flight; the caller measures the time.
    pub(crate) fn stream(
        &mut self,
        depth: usize,
        all: &mut impl Iterator<Item = Vec<u8>>,
    ) -> Result<()> {
        let mut flying = 0;
        let mut out = Vec::new();
        loop {
            out.clear();
            for request in all.by_ref().take(depth - flying) {
                out.extend_from_slice(&request);
                flying += 1;
            }
            if flying == 0 {
                return Ok(());
            }
            self.send(&out)?;
            self.fill()?;
            flying -= self.take_replies()?;
        }
    }

    /// Sends one request at a time for `time`, taken from `pair` in turn; returns the time of each.
    pub(crate) fn one_at_a_time(&mut self, pair: &Pair, time: Duration) -> Result<Vec<Duration>> {
        let start = Instant::now();
        let mut last = start;
        let mut waits = Vec::with_capacity(1 << 17);
        while last - start < time {
            self.send(&pair[waits.len() % 2])?;
            loop {
                self.fill()?;
                if self.take_replies()? > 0 {
                    break;
                }
            }
            let now = Instant::now();
            waits.push(now - last);
            last = now;
        }
        Ok(waits)
    }
}

/// Returns the sentence for a request that the daemon refused.
pub(crate) fn refusal(request: &[u8], payload: &[u8]) -> String {
    let name = String::from_utf8_lossy(payload.strip_suffix(b"\0").unwrap_or(payload)).into_owned();
    let what = Header::parse(request)
        .and_then(|header| MsgType::from_code(header.kind))
        .map_or("a request", MsgType::name);
    let body = request.get(16..).unwrap_or_default();
    let path = String::from_utf8_lossy(body.split(|byte| *byte == 0).next().unwrap_or_default());
    format!("the daemon refused {what} {path}: {name}")
}
