//! A guest of the bench: its ring page is a file, its event channel a datagram socket.

use super::domains;
use crate::Result;
use crate::client::{Conn, PATIENCE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xenstore_core::wire::{MsgType, split_message};

/// The length of each of the two rings of the page (`xs_wire.h`).
const RING: u32 = 1024;
/// Offset of the response ring.
const RESPONSES: u64 = 1024;
/// Offsets of the four indices.
const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;

/// A guest.
pub(super) struct IntroducedGuest {
    page: File,
    event: UnixDatagram,
    daemon: PathBuf,
    domid: u32,
}

impl IntroducedGuest {
    /// Introduces a guest whose page is a file of `folder`.
    pub(super) fn introduce(conn: &mut Conn, folder: &Path, domid: u32) -> Result<Self> {
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

    /// Sends one request that fits the ring; returns its reply's payload.
    pub(super) fn call(&self, request: &[u8]) -> Result<Vec<u8>> {
        self.send(request)?;
        let (kind, payload) = self.answer()?;
        if kind == MsgType::Error.code() {
            return Err(crate::client::refusal(request, &payload).into());
        }
        Ok(payload)
    }

    /// Sends one request that fits the ring.
    pub(super) fn send(&self, request: &[u8]) -> Result<()> {
        let from = self.index(REQ_PROD)?;
        if from.wrapping_sub(self.index(REQ_CONS)?) + request.len() as u32 > RING {
            return Err("the request ring is full".into());
        }
        let at = from % RING;
        let (first, second) = request.split_at(request.len().min((RING - at) as usize));
        self.page.write_all_at(first, u64::from(at))?;
        self.page.write_all_at(second, 0)?;
        self.set_index(REQ_PROD, from.wrapping_add(request.len() as u32))
    }

    /// Returns the type and payload of the next message that is no event.
    pub(super) fn answer(&self) -> Result<(u32, Vec<u8>)> {
        let end = Instant::now() + PATIENCE;
        let mut input = Vec::new();
        while Instant::now() < end {
            self.receive(&mut input)?;
            while let Some((header, payload, behind)) = split_message(&input)? {
                if header.kind != MsgType::WatchEvent.code() {
                    return Ok((header.kind, payload.to_vec()));
                }
                input = behind.to_vec();
            }
            self.wait()?;
        }
        Err(format!("guest {} has had no answer within {PATIENCE:?}", self.domid).into())
    }

    /// Takes the bytes in the response ring.
    fn receive(&self, input: &mut Vec<u8>) -> Result<()> {
        let (from, to) = (self.index(RSP_CONS)?, self.index(RSP_PROD)?);
        let (at, len) = (from % RING, to.wrapping_sub(from).min(RING));
        let first = len.min(RING - at);
        for (offset, len) in [(at, first), (0, len - first)] {
            let start = input.len();
            input.resize(start + len as usize, 0);
            let into = input.get_mut(start..).unwrap_or_default();
            self.page.read_exact_at(into, RESPONSES + u64::from(offset))?;
        }
        if from == to { Ok(()) } else { self.set_index(RSP_CONS, to) }
    }

    /// Waits for a notification, at most a millisecond: the stand-in drops one where the queue of
    /// this guest's socket is full, so the ring itself must be looked at in any case.
    fn wait(&self) -> Result<()> {
        let longest = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        if poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&longest))? > 0 {
            self.event.recv(&mut [0; 4])?;
        }
        Ok(())
    }
}
