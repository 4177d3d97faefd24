//! A client of the network block device protocol, over a Unix socket.
//!
//! Source: the protocol's `doc/proto.md` (NetworkBlockDevice/nbd): fixed newstyle negotiation with
//! `NBD_OPT_GO`, simple replies. Each connection does one request at a time, on a thread of its own; there
//! are several where the server says that they see each other's writes (`NBD_FLAG_CAN_MULTI_CONN`).
//!
//! A lost connection is made again, and its requests are repeated, for as long as
//! [`Options::patience`] allows: a repeated write of the same bytes changes nothing. Meanwhile the
//! server is away ([`Disk::is_away`]).

mod connection;

use super::escaped_path::EscapedPath;
use super::pool::{Pool, PooledDisk};
use super::{Disk, DiskAccess, DiskIo, DiskOp, Finished, Geometry};
use connection::{Connection, ExportInfo, NbdRequest, TimeLimits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most connections.
const CONNECTIONS: usize = 4;
/// The longest times that a server may take when a disk is opened.
const FIRST_LIMITS: TimeLimits =
    TimeLimits { connected: Duration::from_secs(30), answered: Duration::from_secs(30) };
/// The longest times for each connection behind the first.
const FURTHER_LIMITS: TimeLimits =
    TimeLimits { connected: Duration::ZERO, answered: Duration::from_secs(2) };
/// The longest times when a connection is made again. A server that does not answer in time is
/// tried again.
const RECONNECT_LIMITS: TimeLimits =
    TimeLimits { connected: Duration::ZERO, answered: Duration::from_secs(5) };
/// The interval between two tries to connect again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// The longest time that a connected server may still take after the disk was given up.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of one discard; a multiple of every sector size.
const DISCARD_MAX: u64 = 1 << 30;
/// The tag of a request that only checks if the server is there. No queue uses it.
const PROBE: u64 = u64::MAX;

/// The options for a connection to a server.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The access to the export.
    pub access: DiskAccess,
    /// The longest time that a server may be silent, and that a lost server is waited for, before
    /// requests fail.
    pub patience: Duration,
}

impl Options {
    /// Creates options with the usual patience, 60 s.
    #[must_use]
    pub fn new(access: DiskAccess) -> Self {
        Self { access, patience: Duration::from_secs(60) }
    }
}

/// Connects to the server at `path`, for its export `name`.
///
/// # Errors
/// Nobody listens there, or the peer does not speak this protocol; it has no such export, or
/// describes one that cannot be a disk; the export is read-only, and was to be written.
pub fn connect(path: &Path, name: &str, options: Options) -> io::Result<Nbd> {
    let server = NbdServer {
        path: path.to_owned(),
        name: name.to_owned(),
        options,
        streams: Mutex::new((0..CONNECTIONS).map(|_| None).collect()),
        lost_at: Mutex::new(None),
        stale: Mutex::new(Vec::new()),
        trouble: Mutex::new(None),
        leaving: Condvar::new(),
        left: AtomicBool::new(false),
    };
    let first = server.open(0, FIRST_LIMITS)?;
    let export = first.export();
    export.check(options.access)?;
    let mut connections = vec![first];
    while export.is_shared() && connections.len() < CONNECTIONS {
        // A server may accept only a limited number of connections, and leave the next one waiting.
        let Ok(next) = server.open(connections.len(), FURTHER_LIMITS) else { break };
        connections.push(next);
    }
    let server = Arc::new(server);
    let worker = |(slot, connection)| {
        let (server, connection) = (Arc::clone(&server), Some(connection));
        let mut worker = Worker { server, slot, export, connection, buffer: Vec::new() };
        move |io: &mut DiskIo| worker.run(io)
    };
    let pool = Pool::new(connections.into_iter().enumerate().map(worker).collect())?;
    let sector_size = export.sector_size();
    let geometry = Geometry {
        sectors: export.bytes() / u64::from(sector_size) * u64::from(sector_size / 512),
        sector_size,
        physical_sector_size: sector_size,
        access: options.access,
        discard_granularity: export.can_discard().then_some(4096),
    };
    let pooled = PooledDisk::new(pool, geometry, path, None);
    Ok(Nbd { server, pooled, probing: false, leave_until: None })
}

/// True if nobody listens at the socket, or the server has gone or fallen silent during the
/// exchange: such a server may come back.
pub(super) fn is_away(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | TimedOut | UnexpectedEof
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of a server that its threads share.
struct NbdServer {
    path: PathBuf,
    name: String,
    options: Options,
    /// Each thread's stream, also during its negotiation, so that a blocked thread can be ended.
    streams: Mutex<Vec<Option<UnixStream>>>,
    /// The time of the first loss since the server was last connected.
    lost_at: Mutex<Option<Instant>>,
    /// Streams of servers that fell silent, each with a write that the server may still do.
    stale: Mutex<Vec<UnixStream>>,
    /// The reason why the last try to connect again failed.
    trouble: Mutex<Option<String>>,
    /// Notified when the disk is given up.
    leaving: Condvar,
    /// True once the disk is given up, and no thread waits any more.
    left: AtomicBool,
}

impl NbdServer {
    fn open(&self, slot: usize, limits: TimeLimits) -> io::Result<Connection> {
        let stream = connection::stream(&self.path, limits)?;
        self.set_stream(slot, Some(stream.try_clone()?));
        // `leave` may have shut down the streams before this one was there.
        let opened = if self.has_left() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Connection::negotiate(stream, &self.name, self.options.patience)
        };
        opened.inspect_err(|_| self.set_stream(slot, None))
    }

    fn set_stream(&self, slot: usize, stream: Option<UnixStream>) {
        if let Some(place) = lock(&self.streams).get_mut(slot) {
            *place = stream;
        }
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// True if no write is pending on a stale stream: each was answered, or its stream was closed.
    fn is_settled(&self) -> bool {
        let mut stale = lock(&self.stale);
        let waits = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        stale.retain_mut(|stream| stream.read(&mut [0]).is_err_and(|error| waits(&error)));
        stale.is_empty()
    }

    /// Notes that a connection is lost or cannot be made; returns the time of the first such loss.
    fn mark_lost(&self) -> Instant {
        *lock(&self.lost_at).get_or_insert_with(Instant::now)
    }

    /// Notes that the server is connected again.
    fn mark_back(&self) {
        *lock(&self.lost_at) = None;
        *lock(&self.trouble) = None;
    }

    fn is_lost(&self) -> bool {
        lock(&self.lost_at).is_some()
    }

    /// True if the server has closed all connections that there were.
    fn has_hung_up(&self) -> bool {
        let streams = lock(&self.streams);
        let mut fds: Vec<PollFd<'_>> =
            streams.iter().flatten().map(|stream| PollFd::new(stream, PollFlags::RDHUP)).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        !fds.is_empty()
            && poll(&mut fds, Some(&now)).is_ok()
            && fds.iter().all(|fd| fd.revents().intersects(ended))
    }

    /// True if the patience since `begin` is used up, or the disk is given up.
    fn has_waited(&self, begin: Instant) -> bool {
        begin.elapsed() >= self.options.patience || self.has_left()
    }

    /// Waits before the next try; ends early if the disk is given up.
    fn wait_to_retry(&self) {
        let lost_at = lock(&self.lost_at);
        if !self.has_left() {
            drop(self.leaving.wait_timeout(lost_at, RETRY_INTERVAL));
        }
    }

    /// Ends all waiting for the server to come back; with `streams`, also all waiting for answers.
    fn leave(&self, streams: bool) {
        {
            // A thread that is about to rest has seen the flag, or is woken.
            let _lost_at = lock(&self.lost_at);
            self.left.store(true, Ordering::SeqCst);
            self.leaving.notify_all();
        }
        if streams {
            for stream in lock(&self.streams).iter().flatten() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// The state of one thread.
struct Worker {
    server: Arc<NbdServer>,
    slot: usize,
    /// The export as it was when the disk was opened.
    export: ExportInfo,
    connection: Option<Connection>,
    buffer: Vec<u8>,
}

impl Worker {
    fn run(&mut self, io: &mut DiskIo) -> Result<(), Errno> {
        if self.server.has_left() && self.connection.is_none() {
            return Err(Errno::IO);
        }
        if io.tag == PROBE {
            return self.probe();
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.run_with(io, &mut buffer);
        self.buffer = buffer;
        done
    }

    fn run_with(&mut self, io: &DiskIo, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        if buffer.len() < io.bytes() {
            buffer.resize(io.bytes(), 0);
        }
        let bytes = buffer.get_mut(..io.bytes()).unwrap_or_default();
        let at_once = self.export.request_max();
        match io.op {
            // A server without flush does not cache writes.
            DiskOp::Flush if !self.export.can_flush() => Ok(()),
            DiskOp::Flush => self.request(NbdRequest::Flush, 0, 0),
            DiskOp::Discard => {
                let (mut at, mut left) = (io.offset(), io.sectors.saturating_mul(512));
                while left > 0 {
                    let part = left.min(DISCARD_MAX);
                    self.request(NbdRequest::Discard, at, part as u32)?;
                    (at, left) = (at + part, left - part);
                }
                Ok(())
            }
            DiskOp::Read => {
                let mut at = io.offset();
                for part in bytes.chunks_mut(at_once) {
                    let len = part.len();
                    self.request(NbdRequest::Read(part), at, len as u32)?;
                    at += len as u64;
                }
                io.scatter(bytes)
            }
            DiskOp::Write => {
                io.gather(bytes)?;
                let mut at = io.offset();
                for part in bytes.chunks(at_once) {
                    self.request(NbdRequest::Write(part), at, part.len() as u32)?;
                    at += part.len() as u64;
                }
                Ok(())
            }
        }
    }

    /// Sends a request and waits for the answer. If the connection is lost, another one is made,
    /// within the patience of the options.
    fn request(&mut self, mut command: NbdRequest<'_>, at: u64, len: u32) -> Result<(), Errno> {
        let begin = Instant::now();
        loop {
            let Some(connection) = self.connected(begin) else { return Err(Errno::IO) };
            match connection.exchange(&mut command, at, len) {
                // The server shuts down, and may come back.
                Ok(Err(Errno::SHUTDOWN)) => self.drop_connection(),
                Ok(answer) => {
                    if self.server.is_lost() {
                        self.server.mark_back();
                    }
                    return answer;
                }
                Err(error) => self.drop_after_error(&error, &command),
            }
            // A server may be alive and end the connection at every try of this request.
            if self.server.has_waited(begin) {
                return Err(Errno::IO);
            }
            self.server.wait_to_retry();
        }
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.server.set_stream(self.slot, None);
        self.server.mark_lost();
    }

    /// Drops the connection because of an error. A server that has fallen silent may still do a
    /// write, and so overwrite a later one of the guest: no further request is sent until that
    /// write has ended.
    fn drop_after_error(&mut self, error: &io::Error, command: &NbdRequest<'_>) {
        let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let changes = matches!(command, NbdRequest::Write(_) | NbdRequest::Discard);
        let connection = self.connection.take().filter(|_| silent && changes);
        if let Some(stream) = connection.and_then(Connection::into_stale) {
            lock(&self.server.stale).push(stream);
        }
        self.drop_connection();
    }

    /// Returns the connection, made again if there is none; `None` once the patience is used up.
    fn connected(&mut self, begin: Instant) -> Option<&mut Connection> {
        while !self.server.is_settled() || (self.connection.is_none() && !self.reconnect()) {
            // Each request has at least one try, however long the server has been away.
            let first = self.server.mark_lost().min(begin);
            if self.server.has_waited(first) {
                return None;
            }
            self.server.wait_to_retry();
        }
        self.connection.as_mut()
    }

    /// Connects again; on failure, notes the reason and returns false.
    fn reconnect(&mut self) -> bool {
        let opened = self.server.open(self.slot, RECONNECT_LIMITS);
        // A different export under the same name is not this disk.
        let checked = opened.and_then(|it| it.export().check_unchanged(&self.export).map(|()| it));
        match checked {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => {
                self.server.set_stream(self.slot, None);
                *lock(&self.server.trouble) = Some(error.to_string());
            }
        }
        self.connection.is_some()
    }

    /// Checks if the server is there again.
    fn probe(&mut self) -> Result<(), Errno> {
        if self.connection.as_ref().is_some_and(Connection::is_lost) {
            self.drop_connection();
        }
        if self.server.is_settled() && (self.connection.is_some() || self.reconnect()) {
            self.server.mark_back();
        }
        Ok(())
    }
}

/// A disk that is an export of a server.
pub struct Nbd {
    server: Arc<NbdServer>,
    pooled: PooledDisk,
    /// True while a probe is under way.
    probing: bool,
    /// The end of waiting for a connected server, set once the disk is given up.
    leave_until: Option<Instant>,
}

impl fmt::Debug for Nbd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NbdServer { path, name, trouble, .. } = &*self.server;
        let mut shown = f.debug_struct("Nbd");
        shown.field("path", path).field("name", name);
        if let Some(trouble) = &*lock(trouble) {
            shown.field("trouble", trouble);
        }
        shown.finish_non_exhaustive()
    }
}

impl Disk for Nbd {
    fn geometry(&self) -> Geometry {
        self.pooled.geometry()
    }

    fn describe(&self) -> String {
        let NbdServer { path, name, trouble, .. } = &*self.server;
        let trouble = lock(trouble).as_ref().map(|trouble| format!(", {trouble}"));
        let (path, name) = (EscapedPath(path), name.escape_debug());
        format!("export \"{name}\" of {path}{}", trouble.unwrap_or_default())
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        self.pooled.submit(io)
    }

    fn finished(&mut self) -> Option<Finished> {
        loop {
            match self.pooled.finished()? {
                (io, _) if io.tag == PROBE => self.probing = false,
                finished => return Some(finished),
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.pooled.in_flight().saturating_sub(usize::from(self.probing))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pooled.fd()
    }

    fn is_away(&mut self) -> Option<bool> {
        if self.server.has_hung_up() {
            self.server.mark_lost();
        }
        let is_lost = self.server.is_lost();
        if is_lost && !self.probing && self.pooled.in_flight() == 0 {
            let mut probe = DiskIo::empty();
            probe.tag = PROBE;
            self.probing = matches!(self.pooled.submit(probe), Ok(None));
        }
        Some(is_lost)
    }

    fn give_up(&mut self) {
        let end = *self.leave_until.get_or_insert_with(|| Instant::now() + LEAVE_TIMEOUT);
        let silent = self.server.is_lost() || Instant::now() >= end;
        self.server.leave(silent);
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        // The drop of the pool waits for its threads.
        self.server.leave(true);
    }
}
