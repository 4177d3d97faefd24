//! A server of the network block device protocol, over a Unix socket.
//!
//! Source: the protocol's `doc/proto.md` (NetworkBlockDevice/nbd): fixed newstyle negotiation with
//! `NBD_OPT_GO`, simple replies. Each connection does one request at a time, on a thread of its own; there
//! are several where the server says that they see each other's writes (`NBD_FLAG_CAN_MULTI_CONN`).

use super::pool::{Pool, Pooled};
use super::{DiskAccess, Geometry, Io, Op};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Most connections.
const CONNECTIONS: usize = 4;
/// How long a server may be silent before the disk is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may be silent while it is asked for an export: other devices wait meanwhile.
const NEGOTIATION: Duration = Duration::from_secs(5);
/// Most bytes of a negotiation's answer that are looked at; no server sends so many.
const ANSWER_MAX: u32 = 65536;

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

const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_FLUSH: u16 = 1 << 2;
const FLAG_TRIM: u16 = 1 << 5;
const FLAG_MULTI: u16 = 1 << 8;

/// What a server says of an export.
#[derive(Clone, Copy, Default)]
struct Export {
    bytes: u64,
    flags: u16,
    block_min: u32,
}

/// One connection.
struct Connection {
    stream: UnixStream,
    export: Export,
    buffer: Vec<u8>,
    handle: u64,
    broken: bool,
}

/// Connects to the server at `path`, for its export `name`.
///
/// # Errors
/// Where nobody listens, or what listens does not speak the protocol or has no such export.
pub fn connect(path: &Path, name: &str, access: DiskAccess) -> io::Result<Pooled> {
    let first = Connection::open(path, name)?;
    let Export { bytes, flags, block_min } = first.export;
    let access = if flags & FLAG_READ_ONLY != 0 { DiskAccess::ReadOnly } else { access };
    let sector_size = block_min.max(512);
    if !sector_size.is_power_of_two() || sector_size > 4096 {
        let what = format!("{}: sectors of {sector_size} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let sectors = bytes / u64::from(sector_size) * u64::from(sector_size / 512);
    let mut connections = vec![first];
    while flags & FLAG_MULTI != 0 && connections.len() < CONNECTIONS {
        // Servers may let only so many in.
        let Ok(next) = Connection::open(path, name) else { break };
        connections.push(next);
    }
    let worker = |mut connection: Connection| move |io: &mut Io| connection.run(io);
    let pool = Pool::new(connections.into_iter().map(worker).collect())?;
    let geometry = Geometry {
        sectors,
        sector_size,
        physical_sector_size: sector_size,
        access,
        discard_granularity: (flags & FLAG_TRIM != 0).then_some(4096),
    };
    Ok(Pooled::new(pool, geometry, path, None))
}
fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server: {what}"))
}

fn bytes<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Connection {
    fn open(path: &Path, name: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(NEGOTIATION))?;
        stream.set_write_timeout(Some(NEGOTIATION))?;
        if u64::from_be_bytes(bytes(&mut stream)?) != MAGIC
            || u64::from_be_bytes(bytes(&mut stream)?) != OPTION_MAGIC
        {
            return Err(wrong("does not speak the protocol"));
        }
        let [_, flags] = bytes(&mut stream)?;
        // Fixed newstyle, and no zeroes behind the negotiation of old.
        if flags & 1 == 0 {
            return Err(wrong("knows no fixed newstyle negotiation"));
        }
        stream.write_all(&u32::from(flags & 3).to_be_bytes())?;
        let len = u32::try_from(name.len()).map_err(|_| wrong("a name that long"))?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        option.extend((len + 8).to_be_bytes());
        option.extend(len.to_be_bytes());
        option.extend(name.as_bytes());
        option.extend(1_u16.to_be_bytes());
        option.extend(INFO_BLOCK_SIZE.to_be_bytes());
        stream.write_all(&option)?;
        let export = Self::answer(&mut stream, name)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (buffer, handle, broken) = (Vec::new(), 0, false);
        Ok(Self { stream, export, buffer, handle, broken })
    }

    /// What the server says of the export.
    fn answer(stream: &mut UnixStream, name: &str) -> io::Result<Export> {
        let mut export = None::<Export>;
        let mut block_min = 0;
        // There are five kinds of information.
        for _ in 0..16 {
            let magic = u64::from_be_bytes(bytes(stream)?);
            let option = u32::from_be_bytes(bytes(stream)?);
            let kind = u32::from_be_bytes(bytes(stream)?);
            let len = u32::from_be_bytes(bytes(stream)?);
            if magic != REPLY_MAGIC || option != OPT_GO || len > ANSWER_MAX {
                return Err(wrong("an answer that makes no sense"));
            }
            let mut payload = vec![0; len as usize];
            stream.read_exact(&mut payload)?;
            match kind {
                REP_ACK => {
                    let export = export.ok_or_else(|| wrong("has not said how large it is"))?;
                    return Ok(Export { block_min, ..export });
                }
                REP_INFO => {
                    let mut rest = &payload[..];
                    match u16::from_be_bytes(bytes(&mut rest)?) {
                        INFO_EXPORT => {
                            let size = u64::from_be_bytes(bytes(&mut rest)?);
                            let flags = u16::from_be_bytes(bytes(&mut rest)?);
                            export = Some(Export { bytes: size, flags, block_min: 0 });
                        }
                        INFO_BLOCK_SIZE => block_min = u32::from_be_bytes(bytes(&mut rest)?),
                        _ => {}
                    }
                }
                _ => {
                    let why = String::from_utf8_lossy(&payload);
                    return Err(wrong(&format!("refuses export \"{name}\": {why}")));
                }
            }
        }
        Err(wrong("does not come to an end"))
    }

    /// Does one request. After an error of the connection every further one fails at once.
    fn run(&mut self, io: &mut Io) -> Result<(), Errno> {
        if self.broken {
            return Err(Errno::IO);
        }
        if io.op == Op::Flush && self.export.flags & FLAG_FLUSH == 0 {
            // There is nothing that a server without flush keeps back.
            return Ok(());
        }
        self.exchange(io).map_err(|error| {
            self.broken = true;
            Errno::from_io_error(&error).unwrap_or(Errno::IO)
        })?
    }

    fn exchange(&mut self, io: &Io) -> io::Result<Result<(), Errno>> {
        let len = match io.op {
            Op::Flush => 0,
            Op::Discard => u32::try_from(io.sectors * 512).unwrap_or(u32::MAX / 4096 * 4096),
            Op::Read | Op::Write => u32::try_from(io.bytes()).map_err(|_| wrong("too much"))?,
        };
        let command: u16 = match io.op {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 3,
            Op::Discard => 4,
        };
        self.handle += 1;
        self.buffer.clear();
        self.buffer.extend(REQUEST.to_be_bytes());
        self.buffer.extend(0_u16.to_be_bytes());
        self.buffer.extend(command.to_be_bytes());
        self.buffer.extend(self.handle.to_be_bytes());
        self.buffer.extend(io.offset().to_be_bytes());
        self.buffer.extend(len.to_be_bytes());
        if io.op == Op::Write {
            let at = self.buffer.len();
            self.buffer.resize(at + len as usize, 0);
            io.gather(&mut self.buffer[at..])?;
        }
        self.stream.write_all(&self.buffer)?;
        let magic = u32::from_be_bytes(bytes(&mut self.stream)?);
        let error = u32::from_be_bytes(bytes(&mut self.stream)?);
        let handle = u64::from_be_bytes(bytes(&mut self.stream)?);
        if magic != SIMPLE_REPLY || handle != self.handle {
            return Err(wrong("an answer that makes no sense"));
        }
        if error != 0 {
            return Ok(Err(Errno::from_raw_os_error(error.min(4095).cast_signed())));
        }
        if io.op == Op::Read {
            self.buffer.resize(len as usize, 0);
            self.stream.read_exact(&mut self.buffer)?;
            io.scatter(&self.buffer)?;
        }
        Ok(Ok(()))
    }
}
