//! A guest of a daemon that runs without Xen: its ring page is a file, its event channel datagrams.
//!
//! The page is a file that the daemon maps shared; reading and writing the file is reading and
//! writing that same page. Each index is moved together with its 8-byte neighbourhood in one call,
//! because the kernel copies 8 bytes at once but may copy 4 bytes one by one. The event channel is
//! a datagram of the domain's number to `evtchn` in the folder; the daemon sends one to `N.evt`.

use super::{GUEST_INDICES, GuestRing, REQUEST_INDICES, RESPONSE_INDICES, RESPONSES, RING_SIZE};
use rustix::net::{RecvFlags, recv};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE_SIZE: u64 = 4096;

/// A ring of files in the folder that stands for the hypervisor.
#[derive(Debug)]
pub struct FileRing {
    folder: PathBuf,
    domid: u16,
    page: File,
    events: UnixDatagram,
    req_prod: u32,
    rsp_cons: u32,
    signals: SignalPolicy,
}

/// The condition on which a guest signals that it has moved an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SignalPolicy {
    Always,
    /// After requests, if the daemon had taken all before them; after taking responses, if the ring
    /// was full. The daemon must see all other moves without a signal.
    WhereNeeded,
}

/// Signals the daemon: a domain's number, or `u32::MAX` for VIRQ_DOM_EXC.
///
/// # Errors
/// If the daemon does not take it within 5 s.
pub fn signal(folder: &Path, number: u32) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&number.to_ne_bytes(), folder.join("evtchn")).map(drop)
}

impl FileRing {
    /// Creates a domain in this folder, with an empty page.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(folder: &Path, domid: u16) -> io::Result<Self> {
        let at = folder.join(format!("{domid}.page"));
        let _ = fs::remove_file(&at);
        let page = OpenOptions::new().read(true).write(true).create_new(true).open(&at)?;
        page.set_len(PAGE_SIZE)?;
        let address = folder.join(format!("{domid}.evt"));
        let _ = fs::remove_file(&address);
        let events = UnixDatagram::bind(&address)?;
        let (folder, signals) = (folder.into(), SignalPolicy::Always);
        Ok(Self { folder, domid, page, events, req_prod: 0, rsp_cons: 0, signals })
    }

    /// Reads two neighbouring words of the page at once.
    fn words(&self, at: u64) -> io::Result<[u32; 2]> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, at)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    /// Moves the two indices of the guest, and signals.
    fn moved(&mut self, req_prod: u32, rsp_cons: u32) -> io::Result<()> {
        let before = (self.req_prod, self.rsp_cons);
        (self.req_prod, self.rsp_cons) = (req_prod, rsp_cons);
        self.write(GUEST_INDICES, &[req_prod.to_ne_bytes(), rsp_cons.to_ne_bytes()].concat())?;
        if self.signals == SignalPolicy::WhereNeeded && !self.waited_for(before)? {
            return Ok(());
        }
        self.notify()
    }

    /// True if the daemon may wait for a move of the indices from `before`.
    fn waited_for(&self, (req_prod, rsp_cons): (u32, u32)) -> io::Result<bool> {
        let [req_cons, _] = self.words(REQUEST_INDICES)?;
        let [_, rsp_prod] = self.words(RESPONSE_INDICES)?;
        let all_taken = self.req_prod != req_prod && req_cons == req_prod;
        let was_full = self.rsp_cons != rsp_cons && rsp_prod.wrapping_sub(rsp_cons) >= RING_SIZE;
        Ok(all_taken || was_full)
    }

    /// Takes the signals that have come. If many guests left theirs in their queues, these would
    /// fill the send buffer of the one socket that signals them all, and the next signal would be
    /// lost.
    fn drain(&self) {
        let mut word = [0; 4];
        while recv(&self.events, &mut word[..], RecvFlags::DONTWAIT).is_ok() {}
    }
}

impl GuestRing for FileRing {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.page.read_exact_at(into, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.page.write_all_at(bytes, offset)
    }

    fn notify(&mut self) -> io::Result<()> {
        signal(&self.folder, u32::from(self.domid))
    }

    fn wait(&mut self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.events.set_read_timeout(Some(left))?;
        match self.events.recv(&mut [0; 4]) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let [req_cons, _] = self.words(REQUEST_INDICES)?;
        let free = RING_SIZE.saturating_sub(self.req_prod.wrapping_sub(req_cons));
        let count = bytes.len().min(free as usize);
        let part = bytes.get(..count).unwrap_or_default();
        let start = self.req_prod % RING_SIZE;
        let (first, second) = part.split_at(count.min((RING_SIZE - start) as usize));
        self.page.write_all_at(first, u64::from(start))?;
        self.page.write_all_at(second, 0)?;
        if count > 0 {
            let count = u32::try_from(count).unwrap_or(0);
            self.moved(self.req_prod.wrapping_add(count), self.rsp_cons)?;
        }
        Ok(count)
    }

    fn take(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        self.drain();
        let [_, rsp_prod] = self.words(RESPONSE_INDICES)?;
        let count = rsp_prod.wrapping_sub(self.rsp_cons).min(RING_SIZE);
        if count == 0 {
            return Ok(0);
        }
        let mut ring = [0; RING_SIZE as usize];
        self.page.read_exact_at(&mut ring, RESPONSES)?;
        for step in 0..count {
            let at = self.rsp_cons.wrapping_add(step) % RING_SIZE;
            into.extend(ring.get(at as usize));
        }
        self.moved(self.req_prod, self.rsp_cons.wrapping_add(count))?;
        Ok(count as usize)
    }

    fn flip(&mut self, offset: u64, one: &[u8], other: &[u8], times: u32) -> io::Result<()> {
        for _ in 0..times {
            self.write(offset, one)?;
            self.notify()?;
            self.write(offset, other)?;
        }
        Ok(())
    }

    fn signal_where_needed(&mut self) {
        self.signals = SignalPolicy::WhereNeeded;
    }

    fn adopt_indices(&mut self) -> io::Result<()> {
        let [_, req_prod] = self.words(REQUEST_INDICES)?;
        let [rsp_cons, _] = self.words(RESPONSE_INDICES)?;
        (self.req_prod, self.rsp_cons) = (req_prod, rsp_cons);
        Ok(())
    }
}
