//! One client of the network block device protocol for all servers, and `qemu-nbd`.
//!
//! Source: the protocol's `doc/proto.md` (NetworkBlockDevice/nbd). The client keeps 32 reads in
//! flight over one connection. It sends all new requests in one write, and takes as many answers as
//! one read returns.

use crate::Result;
use crate::load::{DEPTH, Load, Meter, Sectors, Throughput};
use crate::table::Format;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The longest time that a server may take to answer.
const WITHIN: Duration = crate::ring::WITHIN;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const REPLY_HEAD: usize = 16;

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Connects to the unnamed export; returns its size in bytes.
fn connect(socket: &Path) -> Result<(UnixStream, u64)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    take::<18>(&mut stream)?;
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(OPT_GO.to_be_bytes());
    hello.extend(6_u32.to_be_bytes());
    hello.extend([0; 6]);
    stream.write_all(&hello)?;
    let mut size = None;
    loop {
        let magic = u64::from_be_bytes(take(&mut stream)?);
        take::<4>(&mut stream)?;
        let kind = u32::from_be_bytes(take(&mut stream)?);
        let len = u32::from_be_bytes(take(&mut stream)?).min(4096);
        let mut payload = vec![0; len as usize];
        stream.read_exact(&mut payload)?;
        match (magic, kind, payload.as_slice()) {
            (REPLY_MAGIC, REP_ACK, _) => break,
            (REPLY_MAGIC, REP_INFO, [0, 0, rest @ ..]) => {
                size = rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            }
            (REPLY_MAGIC, REP_INFO, _) => {}
            _ => return Err(format!("the NBD server answers {kind:#x}").into()),
        }
    }
    Ok((stream, size.ok_or("the NBD server does not say how large its export is")?))
}

/// Reads for the given time. The processor time is that of this process alone.
pub(crate) fn read(socket: &Path, load: Load, time: Duration) -> Result<Throughput> {
    let (mut stream, size) = connect(socket)?;
    let mut sectors = Sectors::new(load, size / 512);
    let (mut out, mut input) = (Vec::new(), vec![0; DEPTH * (load.bytes() + REPLY_HEAD)]);
    let mut idle = DEPTH;
    let (mut handle, mut filled, mut count) = (0_u64, 0, 0);
    let meter = Meter::start(time);
    while meter.running() {
        out.clear();
        for _ in 0..std::mem::take(&mut idle) {
            handle += 1;
            out.extend(REQUEST.to_be_bytes());
            out.extend([0; 4]);
            out.extend(handle.to_be_bytes());
            out.extend((sectors.next() * 512).to_be_bytes());
            out.extend(u32::try_from(load.bytes())?.to_be_bytes());
        }
        stream.write_all(&out)?;
        let got = stream.read(&mut input[filled..])?;
        if got == 0 {
            return Err("the NBD server has hung up".into());
        }
        filled += got;
        let whole = REPLY_HEAD + load.bytes();
        let mut answers = input[..filled].chunks_exact(whole);
        for answer in &mut answers {
            if answer[..4] != SIMPLE_REPLY.to_be_bytes() || answer[4..8] != [0; 4] {
                return Err(format!("the NBD server answers {:?}", &answer[..REPLY_HEAD]).into());
            }
            idle += 1;
            count += 1;
        }
        let rest = answers.remainder().len();
        input.copy_within(filled - rest..filled, 0);
        filled = rest;
    }
    Ok(meter.throughput(count))
}

/// A running `qemu-nbd`, ended when dropped.
struct QemuNbd {
    child: Child,
    socket: PathBuf,
}

impl QemuNbd {
    fn start(format: Format, image: &Path, socket: PathBuf) -> Result<Self> {
        // As in our backend: a raw file is read past the page cache, an image through it.
        let cache = if format == Format::Raw { "--cache=none" } else { "--cache=writeback" };
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--persistent", cache, "--aio=io_uring", "-f", format.name()])
            .arg("-k")
            .arg(&socket)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("qemu-nbd (Debian: qemu-utils): {error}"))?;
        let mut server = Self { child, socket };
        let end = Instant::now() + WITHIN;
        while UnixStream::connect(&server.socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("qemu-nbd of {}: {status}", image.display()).into());
            }
            if Instant::now() > end {
                return Err(format!("waited {WITHIN:?} for qemu-nbd to listen").into());
            }
            // qemu-nbd does not report when it listens, so the socket is tried again.
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// Returns the processor time that it has used, in seconds.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let words = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect::<Vec<_>>();
        let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
            return Err(format!("/proc/{}/stat is {stat:?}", self.child.id()).into());
        };
        Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Reads from `image` through `qemu-nbd`, whose processor time counts too.
pub(crate) fn through_qemu(
    format: Format,
    image: &Path,
    socket: PathBuf,
    load: Load,
    time: Duration,
) -> Result<Throughput> {
    let server = QemuNbd::start(format, image, socket)?;
    let (before, begin) = (server.cpu()?, Instant::now());
    let mut throughput = read(&server.socket, load, time)?;
    let theirs = server.cpu()? - before;
    throughput.cpu += theirs / (throughput.rate * begin.elapsed().as_secs_f64());
    Ok(throughput)
}
