//! A guest's side of XenStore: a ring page and an event channel.
//!
//! This module has the page's layout and the operations on it. Each [`GuestRing`] has its own access to
//! the page: over files ([`files`]), or by a guest on Xen that takes commands ([`agent`]).
//!
//! Source: `xen/include/public/io/xs_wire.h`, `docs/misc/xenstore-ring.txt`.

pub mod agent;
pub mod files;

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of the ring in each direction.
pub const RING_SIZE: u32 = 1024;
/// The offset of the responses; the requests begin at 0.
pub const RESPONSES: u64 = 1024;
/// The offset of `req_cons` and `req_prod`.
pub const REQUEST_INDICES: u64 = 2048;
/// The offset of `req_prod` and `rsp_cons`, the two indices that the guest writes.
pub const GUEST_INDICES: u64 = 2052;
/// The offset of `rsp_cons` and `rsp_prod`.
pub const RESPONSE_INDICES: u64 = 2056;
const FEATURES: u64 = 2064;
/// The offset of the connection word.
pub const CONNECTION: u64 = 2068;
const ERROR: u64 = 2072;

/// The interval of looks at the page: a signal that came before the wait is missed for so long at
/// most.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A guest's ring page and event channel.
pub trait GuestRing: Debug + Send {
    /// Reads the page.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes into the page.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Signals the event channel.
    ///
    /// # Errors
    /// If the event channel cannot be reached.
    fn notify(&mut self) -> io::Result<()>;

    /// Waits for an action of the daemon; returns `TimedOut` at the end.
    ///
    /// # Errors
    /// If the guest cannot be reached.
    fn wait(&mut self, end: Instant) -> io::Result<()>;

    /// Waits as [`GuestRing::wait`] does, but for `bytes` bytes to [`GuestRing::take`], if the guest supports
    /// that.
    ///
    /// # Errors
    /// As [`GuestRing::wait`].
    fn wait_for(&mut self, end: Instant, _bytes: usize) -> io::Result<()> {
        self.wait(end)
    }

    /// Puts as much of `bytes` into the ring as fits, and signals; returns the number of bytes.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Takes the bytes that the daemon has put into the ring, and signals; returns their number. It
    /// may be 0 as long as [`GuestRing::wait`] was not called.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn take(&mut self, into: &mut Vec<u8>) -> io::Result<usize>;

    /// Writes `one` and `other` in turn at `offset`, as fast as possible, and signals each time.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn flip(&mut self, offset: u64, one: &[u8], other: &[u8], times: u32) -> io::Result<()>;

    /// Signals from now on only where the daemon may wait for it, as Linux does. A guest that does
    /// not support this goes on signalling always.
    fn signal_where_needed(&mut self) {}

    /// Takes over the indices from the page, like a guest that starts on a used page.
    ///
    /// # Errors
    /// If the page cannot be reached.
    fn adopt_indices(&mut self) -> io::Result<()>;
}

impl dyn GuestRing + '_ {
    /// Reads two neighbouring words of the page at once.
    fn words(&mut self, offset: u64) -> io::Result<[u32; 2]> {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    /// Writes the two indices of the guest, `req_prod` and `rsp_cons`.
    ///
    /// # Errors
    /// If the page cannot be reached.
    pub fn set_indices(&mut self, req_prod: u32, rsp_cons: u32) -> io::Result<()> {
        let bytes = [req_prod.to_ne_bytes(), rsp_cons.to_ne_bytes()].concat();
        self.write(GUEST_INDICES, &bytes)?;
        self.adopt_indices()
    }

    /// Returns the indices in the page: `req_cons`, `req_prod`, `rsp_cons`, `rsp_prod`.
    ///
    /// # Errors
    /// If the page cannot be reached.
    pub fn indices(&mut self) -> io::Result<[u32; 4]> {
        let [req_cons, req_prod] = self.words(REQUEST_INDICES)?;
        let [rsp_cons, rsp_prod] = self.words(RESPONSE_INDICES)?;
        Ok([req_cons, req_prod, rsp_cons, rsp_prod])
    }

    /// Returns the daemon's feature bits.
    ///
    /// # Errors
    /// If the page cannot be reached.
    pub fn features(&mut self) -> io::Result<u32> {
        self.words(FEATURES).map(|[features, _]| features)
    }

    /// Returns the error word: 0 none, 1 communication, 2 ring index, 3 protocol.
    ///
    /// # Errors
    /// If the page cannot be reached.
    pub fn error(&mut self) -> io::Result<u32> {
        self.words(ERROR).map(|[error, _]| error)
    }

    /// Returns the connection word: 0 connected, 1 reconnect requested.
    ///
    /// # Errors
    /// If the page cannot be reached.
    pub fn connection(&mut self) -> io::Result<u32> {
        self.words(CONNECTION).map(|[connection, _]| connection)
    }

    /// Requests a reset of the ring, and waits until the daemon has done it.
    ///
    /// # Errors
    /// If the page cannot be reached, and `TimedOut` if the daemon does not answer.
    pub fn reconnect(&mut self, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        self.write(CONNECTION, &1_u32.to_ne_bytes())?;
        self.notify()?;
        while self.connection()? != 0 {
            // The daemon may reset it, and signal, before the wait begins.
            match self.wait(end.min(Instant::now() + LOOK_AGAIN)) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
                Err(error) if Instant::now() > end => return Err(error),
                _ => {}
            }
        }
        self.adopt_indices()
    }
}
