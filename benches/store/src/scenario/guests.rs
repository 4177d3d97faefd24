//! A hundred guests that each leave ten transactions open, beside domain 0's own work.

use super::{Context, domains};
use crate::Result;
use crate::client::{Conn, PATIENCE, put, request, write, writes};
use crate::daemon::{Daemon, Guests, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xenstore_core::wire::{MsgType, split_message};

/// Transactions that a guest may have open by default.
const OPEN: usize = 10;
/// Both rings of the page are this long (`xs_wire.h`).
const RING: u32 = 1024;
/// Offset of the response ring.
const RESPONSES: u64 = 1024;
/// Offsets of the four indices.
const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;

/// A guest: its ring page as a file, its event channel as a datagram socket.
struct Guest {
    page: File,
    event: UnixDatagram,
    daemon: PathBuf,
    domid: u32,
}

impl Guest {
    fn introduce(conn: &mut Conn, folder: &Path, domid: u32) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let page = options.open(folder.join(format!("{domid}.page")))?;
        page.set_len(4096)?;
        let event = UnixDatagram::bind(folder.join(format!("{domid}.evt")))?;
        domains::introduce(conn, domid as usize)?;
        Ok(Self { page, event, daemon: folder.join("evtchn"), domid })
    }

    fn index(&self, at: u64) -> Result<u32> {
        let mut word = [0; 4];
        self.page.read_exact_at(&mut word, at)?;
        Ok(u32::from_ne_bytes(word))
    }

    fn set_index(&self, at: u64, value: u32) -> Result<()> {
        self.page.write_all_at(&value.to_ne_bytes(), at)?;
        self.event.send_to(&self.domid.to_ne_bytes(), &self.daemon)?;
        Ok(())
    }

    /// One request that fits the ring; its reply's payload.
    fn call(&self, request: &[u8]) -> Result<Vec<u8>> {
        let from = self.index(REQ_PROD)?;
        if from.wrapping_sub(self.index(REQ_CONS)?) + request.len() as u32 > RING {
            return Err("the request ring is full".into());
        }
        for (at, byte) in (from..).zip(request) {
            self.page.write_all_at(&[*byte], u64::from(at % RING))?;
        }
        self.set_index(REQ_PROD, from.wrapping_add(request.len() as u32))?;
        let end = Instant::now() + PATIENCE;
        let mut input = Vec::new();
        while Instant::now() < end {
            self.receive(&mut input)?;
            if let Some((header, payload, _)) = split_message(&input)? {
                if header.kind == MsgType::Error.code() {
                    return Err(crate::client::refusal(request, payload).into());
                }
                return Ok(payload.to_vec());
            }
            self.wait()?;
        }
        Err(format!("guest {} has had no answer within {PATIENCE:?}", self.domid).into())
    }

    /// Takes what is in the response ring.
    fn receive(&self, input: &mut Vec<u8>) -> Result<()> {
        let (from, to) = (self.index(RSP_CONS)?, self.index(RSP_PROD)?);
        for at in 0..to.wrapping_sub(from).min(RING) {
            let mut byte = [0];
            let offset = u64::from(from.wrapping_add(at) % RING);
            self.page.read_exact_at(&mut byte, RESPONSES + offset)?;
            input.push(byte[0]);
        }
        if from == to { Ok(()) } else { self.set_index(RSP_CONS, to) }
    }

    /// Waits for a notification, at most a millisecond: the stand-in drops one where the queue of
    /// this guest's socket is full, and the ring says in any case what there is.
    fn wait(&self) -> Result<()> {
        let longest = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        if poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&longest))? > 0 {
            self.event.recv(&mut [0; 4])?;
        }
        Ok(())
    }
}

/// Domain 0's latency before the guests open their transactions, and with them open.
pub(super) fn run(context: &mut Context<'_>, kind: Kind) -> Result<()> {
    let folder = context.places.scratch.join("guests");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let guests_max = context.size(100, 5) as u32;
    // The stand-in takes the folder as it is when the daemon starts; the pages come one by one.
    let daemon = Daemon::start(context.places, kind, context.cpu, Guests::In(&folder))?;
    let mut conn = Conn::open(&daemon.socket)?;
    const SHARED: &str = "/bench/shared";
    conn.call(&write(SHARED, crate::VALUE))?;
    conn.call(&request(MsgType::SetPerms, &[SHARED.as_bytes(), b"\0b0\0"]))?;
    let mut guests = Vec::new();
    for domid in 1..=guests_max {
        guests.push(Guest::introduce(&mut conn, &folder, domid)?);
    }
    let one = writes(SHARED);
    context.one_at_a_time(&daemon, &mut conn, "before", &one)?;
    for guest in &guests {
        for _ in 0..OPEN {
            let reply = guest.call(&request(MsgType::TransactionStart, &[b"\0"]))?;
            let text = std::str::from_utf8(reply.strip_suffix(b"\0").unwrap_or(&reply))?;
            let tx_id = text.parse()?;
            // Each has read and written what domain 0 goes on to write.
            for (kind, value) in [(MsgType::Read, &b""[..]), (MsgType::Write, b"guest")] {
                let mut bytes = Vec::new();
                put(&mut bytes, kind, tx_id, &[SHARED.as_bytes(), b"\0", value]);
                guest.call(&bytes)?;
            }
        }
    }
    context.one_at_a_time(&daemon, &mut conn, "open", &one)
}
