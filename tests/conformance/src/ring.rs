//! A guest's side of XenStore: a ring page and an event channel, over files.
//!
//! The page is a file that the daemon maps shared; reading and writing the file is reading and
//! writing that same page. Each index is moved together with its 8-byte neighbourhood in one call,
//! as the kernel copies 8 bytes at once but may copy 4 bytes one by one. The event channel is a
//! datagram of the domain's number to `evtchn` in the folder; the daemon sends one to `N.evt`.
//!
//! Source: `xen/include/public/io/xs_wire.h`, `docs/misc/xenstore-ring.txt`.

use rustix::net::{RecvFlags, recv};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of the ring in each direction.
pub const RING_SIZE: u32 = 1024;
const PAGE_SIZE: u64 = 4096;
const RESPONSES: u64 = 1024;
const REQUEST_INDICES: u64 = 2048;
const GUEST_INDICES: u64 = 2052;
const RESPONSE_INDICES: u64 = 2056;
const FEATURES: u64 = 2064;
const CONNECTION: u64 = 2068;
const ERROR: u64 = 2072;

/// A guest's ring page and event channel.
#[derive(Debug)]
pub struct Ring {
    folder: PathBuf,
    domid: u16,
    page: File,
    events: UnixDatagram,
    req_prod: u32,
    rsp_cons: u32,
}

/// Signals the daemon: a domain's number, or `u32::MAX` for VIRQ_DOM_EXC.
///
/// # Errors
/// Where the daemon does not take it within 5 s.
pub fn signal(folder: &Path, number: u32) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&number.to_ne_bytes(), folder.join("evtchn")).map(drop)
}

impl Ring {
    /// A new domain in this folder, with an empty page.
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
        Ok(Self { folder: folder.into(), domid, page, events, req_prod: 0, rsp_cons: 0 })
    }

    /// The domain's number.
    #[must_use]
    pub fn domid(&self) -> u16 {
        self.domid
    }

    /// Two neighbouring words of the page, read at once.
    fn words(&self, at: u64) -> io::Result<[u32; 2]> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, at)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    /// Writes the two indices that are the guest's, `req_prod` and `rsp_cons`, at once.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_indices(&mut self, req_prod: u32, rsp_cons: u32) -> io::Result<()> {
        (self.req_prod, self.rsp_cons) = (req_prod, rsp_cons);
        let mut bytes = [0; 8];
        let (low, high) = bytes.split_at_mut(4);
        low.copy_from_slice(&req_prod.to_ne_bytes());
        high.copy_from_slice(&rsp_cons.to_ne_bytes());
        self.page.write_all_at(&bytes, GUEST_INDICES)
    }

    /// The indices as the page has them: `req_cons`, `req_prod`, `rsp_cons`, `rsp_prod`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn indices(&self) -> io::Result<[u32; 4]> {
        let [req_cons, req_prod] = self.words(REQUEST_INDICES)?;
        let [rsp_cons, rsp_prod] = self.words(RESPONSE_INDICES)?;
        Ok([req_cons, req_prod, rsp_cons, rsp_prod])
    }

    /// Takes the indices over from the page, as a guest does that starts on a used page.
    ///
    /// # Errors
    /// Those of the file.
    pub fn adopt_indices(&mut self) -> io::Result<()> {
        let [_, req_prod, rsp_cons, _] = self.indices()?;
        (self.req_prod, self.rsp_cons) = (req_prod, rsp_cons);
        Ok(())
    }

    /// The daemon's feature bits.
    ///
    /// # Errors
    /// Those of the file.
    pub fn features(&self) -> io::Result<u32> {
        self.words(FEATURES).map(|[features, _]| features)
    }

    /// The error word: 0 none, 1 communication, 2 ring index, 3 protocol.
    ///
    /// # Errors
    /// Those of the file.
    pub fn error(&self) -> io::Result<u32> {
        self.words(ERROR).map(|[error, _]| error)
    }

    /// The connection word: 0 connected, 1 reconnect asked for.
    ///
    /// # Errors
    /// Those of the file.
    pub fn connection(&self) -> io::Result<u32> {
        self.words(CONNECTION).map(|[connection, _]| connection)
    }

    /// Asks for the ring to be reset, and waits until the daemon has done it.
    ///
    /// # Errors
    /// Those of the file, and `TimedOut` where the daemon does not answer.
    pub fn reconnect(&mut self, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        self.page.write_all_at(&1_u32.to_ne_bytes(), CONNECTION)?;
        self.notify()?;
        while self.connection()? != 0 {
            self.wait(end)?;
        }
        self.adopt_indices()
    }

    /// Signals the event channel.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn notify(&self) -> io::Result<()> {
        signal(&self.folder, u32::from(self.domid))
    }

    /// Waits for the event channel; `TimedOut` at the end.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn wait(&self, end: Instant) -> io::Result<()> {
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

    /// Takes the signals that have come: what lies in many guests' queues fills the send buffer of the
    /// one socket that signals them all, and the next signal would be lost.
    fn drain(&self) {
        let mut word = [0; 4];
        while recv(&self.events, &mut word[..], RecvFlags::DONTWAIT).is_ok() {}
    }

    /// Puts as much of `bytes` into the ring as fits; says how much.
    ///
    /// # Errors
    /// Those of the file.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let [req_cons, _] = self.words(REQUEST_INDICES)?;
        let free = RING_SIZE.saturating_sub(self.req_prod.wrapping_sub(req_cons));
        let count = bytes.len().min(free as usize);
        let part = bytes.get(..count).unwrap_or_default();
        let start = self.req_prod % RING_SIZE;
        let (first, second) = part.split_at(count.min((RING_SIZE - start) as usize));
        self.page.write_all_at(first, u64::from(start))?;
        self.page.write_all_at(second, 0)?;
        if count > 0 {
            let moved = self.req_prod.wrapping_add(u32::try_from(count).unwrap_or(0));
            self.set_indices(moved, self.rsp_cons)?;
            self.notify()?;
        }
        Ok(count)
    }

    /// Takes what the daemon has put into the ring.
    ///
    /// # Errors
    /// Those of the file.
    pub fn take(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
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
        self.set_indices(self.req_prod, self.rsp_cons.wrapping_add(count))?;
        self.notify()?;
        Ok(count as usize)
    }
}
