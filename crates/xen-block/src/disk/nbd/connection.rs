//! One connection to a server: its negotiation, and requests one after the other.
//!
//! A server may be faulty or hostile: its values determine sizes here only within bounds.

use super::super::DiskAccess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The most bytes of a negotiation's answer that are read; no known server sends so many.
const ANSWER_MAX: u32 = 65536;
/// The most bytes of a server's own message that are repeated.
const WORDS_MAX: usize = 256;
/// The most bytes of a request where the server gives no limit: the protocol's 32 MiB.
const REQUEST_MAX: u32 = 32 << 20;
/// The interval between two tries to connect while the server's queue is full.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The most answers of a negotiation; there are five kinds of information.
const ANSWERS_MAX: u32 = 16;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// `NBD_REP_ERR_SHUTDOWN`.
const SHUTTING_DOWN: u32 = 1 << 31 | 7;
/// The errors of a negotiation, `NBD_REP_ERR_*`, in words.
const REFUSALS: [(u32, &str); 7] = [
    (1 << 31 | 1, "it does not know NBD_OPT_GO"),
    (1 << 31 | 2, "its policy forbids it"),
    (1 << 31 | 3, "it calls our request invalid"),
    (1 << 31 | 5, "it asks for TLS, which is not supported"),
    (1 << 31 | 6, "there is no such export"),
    (SHUTTING_DOWN, "it is shutting down"),
    (1 << 31 | 8, "it insists on its block sizes"),
];

/// The errors of a request that the protocol has; any other counts as EIO.
const ERRORS: [Errno; 8] = [
    Errno::PERM,
    Errno::IO,
    Errno::NOMEM,
    Errno::INVAL,
    Errno::NOSPC,
    Errno::OVERFLOW,
    Errno::OPNOTSUPP,
    Errno::SHUTDOWN,
];

const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_FLUSH: u16 = 1 << 2;
const FLAG_TRIM: u16 = 1 << 5;
const FLAG_MULTI: u16 = 1 << 8;

/// The description that a server gives of an export.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct ExportInfo {
    bytes: u64,
    flags: u16,
    block_min: u32,
    block_max: u32,
}

/// Makes an error about a faulty answer of a server.
pub(super) fn protocol_error(what: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server {what}"))
}

impl ExportInfo {
    /// Returns the size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the size in bytes of the smallest piece that can be read or written.
    pub(super) fn sector_size(&self) -> u32 {
        self.block_min.max(512)
    }

    /// Returns the most bytes of one request, a multiple of the sector size.
    pub(super) fn request_max(&self) -> usize {
        let most = if self.block_max == 0 { REQUEST_MAX } else { self.block_max };
        (most / self.sector_size() * self.sector_size()) as usize
    }

    pub(super) fn can_flush(&self) -> bool {
        self.flags & FLAG_FLUSH != 0
    }

    pub(super) fn can_discard(&self) -> bool {
        self.flags & FLAG_TRIM != 0
    }

    /// True if all connections see each other's writes.
    pub(super) fn is_shared(&self) -> bool {
        self.flags & FLAG_MULTI != 0
    }

    /// Refuses an export that cannot be a disk with this access.
    pub(super) fn check(&self, access: DiskAccess) -> io::Result<()> {
        let (bytes, sector) = (self.bytes, self.sector_size());
        if !sector.is_power_of_two() || sector > 4096 {
            return Err(protocol_error(format_args!(
                "has sectors of {sector} bytes; 512 to 4096 are served"
            )));
        }
        if self.block_max != 0 && self.block_max < sector {
            let most = self.block_max;
            return Err(protocol_error(format_args!(
                "takes {most} bytes at most, and {sector} at least"
            )));
        }
        if bytes < u64::from(sector) || bytes > i64::MAX.unsigned_abs() {
            return Err(protocol_error(format_args!("says that the export has {bytes} bytes")));
        }
        if self.flags & FLAG_READ_ONLY != 0 && access == DiskAccess::ReadWrite {
            return Err(protocol_error(
                "has the export for reading only; attach it read-only (mode r)",
            ));
        }
        Ok(())
    }

    /// Refuses an export whose properties have changed since the disk was opened.
    pub(super) fn check_unchanged(&self, before: &Self) -> io::Result<()> {
        if self == before {
            Ok(())
        } else {
            Err(protocol_error("has come back with another export"))
        }
    }
}

/// The time limits of connecting to a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimits {
    /// The time until the server accepts the connection.
    pub(super) connected: Duration,
    /// The time for the negotiation.
    pub(super) answered: Duration,
}

/// Connects to the server at `path`; the stream has the time limit of the negotiation.
pub(super) fn stream(path: &Path, limits: TimeLimits) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let end = Instant::now() + limits.connected;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            // The server's queue of connections is full.
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
            Err(Errno::AGAIN) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, silent(limits.connected)));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(limits.answered))?;
    stream.set_write_timeout(Some(limits.answered))?;
    Ok(stream)
}

fn silent(within: Duration) -> String {
    format!("the NBD server does not answer within {} s", within.as_secs())
}

fn bytes<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// One request, with its memory.
pub(super) enum NbdRequest<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    Flush,
    Discard,
}

impl NbdRequest<'_> {
    fn code(&self) -> u16 {
        match self {
            Self::Read(_) => 0,
            Self::Write(_) => 1,
            Self::Flush => 3,
            Self::Discard => 4,
        }
    }
}

/// One connection.
pub(super) struct Connection {
    stream: UnixStream,
    export: ExportInfo,
    handle: u64,
    /// True if the request without an answer was sent as a whole.
    sent: bool,
    /// The longest time that a request may take.
    patience: Duration,
}

impl Connection {
    /// Negotiates for the export `name`. `patience` becomes the time limit of each request.
    ///
    /// # Errors
    /// The server does not answer in time, has no such export, or violates the protocol.
    pub(super) fn negotiate(
        mut stream: UnixStream,
        name: &str,
        patience: Duration,
    ) -> io::Result<Self> {
        let within = stream.read_timeout()?.unwrap_or(patience);
        let mut timed = TimedStream { stream: &mut stream, begin: Instant::now(), within };
        let export = Self::ask_for(&mut timed, name).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, silent(within))
            }
            kind @ io::ErrorKind::UnexpectedEof => {
                io::Error::new(kind, "the NBD server has closed the connection")
            }
            _ => error,
        })?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, export, handle: 0, sent: false, patience })
    }

    pub(super) fn export(&self) -> ExportInfo {
        self.export
    }

    /// True if the server has closed the connection.
    pub(super) fn is_lost(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    fn ask_for(stream: &mut TimedStream<'_>, name: &str) -> io::Result<ExportInfo> {
        if u64::from_be_bytes(bytes(stream)?) != MAGIC
            || u64::from_be_bytes(bytes(stream)?) != OPTION_MAGIC
        {
            return Err(protocol_error("does not speak the protocol"));
        }
        let [_, flags] = bytes(stream)?;
        // Fixed newstyle, without the zeroes that end an old negotiation.
        if flags & 1 == 0 {
            return Err(protocol_error("knows no fixed newstyle negotiation"));
        }
        stream.write_all(&u32::from(flags & 3).to_be_bytes())?;
        let len = u32::try_from(name.len())
            .map_err(|_| protocol_error("is asked for a name that long"))?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        option.extend((len + 8).to_be_bytes());
        option.extend(len.to_be_bytes());
        option.extend(name.as_bytes());
        option.extend(1_u16.to_be_bytes());
        option.extend(INFO_BLOCK_SIZE.to_be_bytes());
        stream.write_all(&option)?;
        Self::answers(stream, name)
    }

    /// Reads the server's answers about the export, up to the last.
    fn answers(stream: &mut TimedStream<'_>, name: &str) -> io::Result<ExportInfo> {
        let (mut export, mut has_size) = (ExportInfo::default(), false);
        for _ in 0..ANSWERS_MAX {
            let magic = u64::from_be_bytes(bytes(stream)?);
            let option = u32::from_be_bytes(bytes(stream)?);
            let kind = u32::from_be_bytes(bytes(stream)?);
            let len = u32::from_be_bytes(bytes(stream)?);
            if magic != REPLY_MAGIC || option != OPT_GO || len > ANSWER_MAX {
                return Err(protocol_error("gives an answer that makes no sense"));
            }
            let mut payload = vec![0; len as usize];
            stream.read_exact(&mut payload)?;
            let mut rest = payload.as_slice();
            match kind {
                REP_ACK if has_size => return Ok(export),
                REP_ACK => return Err(protocol_error("has not said how large the export is")),
                REP_INFO => match u16::from_be_bytes(bytes(&mut rest)?) {
                    INFO_EXPORT => {
                        export.bytes = u64::from_be_bytes(bytes(&mut rest)?);
                        export.flags = u16::from_be_bytes(bytes(&mut rest)?);
                        has_size = true;
                    }
                    INFO_BLOCK_SIZE => {
                        export.block_min = u32::from_be_bytes(bytes(&mut rest)?);
                        let _preferred: [u8; 4] = bytes(&mut rest)?;
                        export.block_max = u32::from_be_bytes(bytes(&mut rest)?);
                    }
                    _ => {}
                },
                kind => {
                    let known = REFUSALS.iter().find(|row| row.0 == kind).map(|row| row.1);
                    let said = payload.get(..payload.len().min(WORDS_MAX)).unwrap_or_default();
                    let said = String::from_utf8_lossy(said);
                    let why = match said.trim() {
                        "" => known.unwrap_or("it does not say why").to_owned(),
                        said => said.escape_debug().to_string(),
                    };
                    let refused = protocol_error(format_args!("refuses export \"{name}\": {why}"));
                    return Err(match kind {
                        SHUTTING_DOWN => io::Error::new(io::ErrorKind::ConnectionReset, refused),
                        _ => refused,
                    });
                }
            }
        }
        Err(protocol_error("does not come to an end"))
    }

    /// Does one request; returns the server's answer to it.
    ///
    /// # Errors
    /// The connection is lost, and cannot be used again.
    pub(super) fn exchange(
        &mut self,
        command: &mut NbdRequest<'_>,
        at: u64,
        len: u32,
    ) -> io::Result<Result<(), Errno>> {
        self.handle = self.handle.wrapping_add(1);
        let mut request = [0; 28];
        let mut rest = &mut request[..];
        for field in [
            &REQUEST.to_be_bytes()[..],
            &0_u16.to_be_bytes(),
            &command.code().to_be_bytes(),
            &self.handle.to_be_bytes(),
            &at.to_be_bytes(),
            &len.to_be_bytes(),
        ] {
            rest.write_all(field)?;
        }
        let (begin, within) = (Instant::now(), self.patience);
        let mut timed = TimedStream { stream: &mut self.stream, begin, within };
        self.sent = false;
        match command {
            NbdRequest::Write(data) => timed.send(&request, data)?,
            _ => timed.write_all(&request)?,
        }
        self.sent = true;
        let answer: [u8; 16] = bytes(&mut timed)?;
        let mut rest = answer.as_slice();
        let magic = u32::from_be_bytes(bytes(&mut rest)?);
        let error = u32::from_be_bytes(bytes(&mut rest)?);
        let handle = u64::from_be_bytes(bytes(&mut rest)?);
        if magic != SIMPLE_REPLY || handle != self.handle {
            return Err(protocol_error("gives an answer that makes no sense"));
        }
        if error != 0 {
            let known =
                ERRORS.iter().find(|errno| errno.raw_os_error().unsigned_abs() == error).copied();
            return Ok(Err(known.unwrap_or(Errno::IO)));
        }
        if let NbdRequest::Read(data) = command {
            timed.read_exact(data)?;
        }
        Ok(Ok(()))
    }

    /// Returns the stream of a request that the server may still do: the request has ended once the
    /// server answers or closes. `None` if the server did not get all of the request.
    pub(super) fn into_stale(self) -> Option<UnixStream> {
        let flags = fcntl_getfl(&self.stream).ok()?;
        fcntl_setfl(&self.stream, flags | OFlags::NONBLOCK).ok()?;
        self.sent.then_some(self.stream)
    }
}

/// A stream with a time limit for all reads and writes of one exchange, however small the parts
/// are.
struct TimedStream<'s> {
    stream: &'s mut UnixStream,
    begin: Instant,
    within: Duration,
}

impl TimedStream<'_> {
    /// Refuses a further part once the time is over.
    fn check(&self) -> io::Result<()> {
        if self.begin.elapsed() < self.within {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    /// Sends a request and its data, in one call where that is possible.
    fn send(&mut self, request: &[u8], data: &[u8]) -> io::Result<()> {
        let sent = self.stream.write_vectored(&[IoSlice::new(request), IoSlice::new(data)])?;
        if let Some(rest) = request.get(sent..).filter(|rest| !rest.is_empty()) {
            self.write_all(rest)?;
            return self.write_all(data);
        }
        let of_data = sent.saturating_sub(request.len());
        self.write_all(data.get(of_data..).unwrap_or_default())
    }
}

impl Read for TimedStream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(into)
    }
}

impl Write for TimedStream<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
