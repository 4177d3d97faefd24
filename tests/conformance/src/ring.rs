//! A guest's side of XenStore: a ring page and an event channel.
//!
//! The page's layout and what can be done to it are here; how it is reached is a [`Ring`]'s own: over
//! files ([`files`]), or by a guest on Xen that takes commands ([`agent`]).
//!
//! Source: `xen/include/public/io/xs_wire.h`, `docs/misc/xenstore-ring.txt`.

pub mod agent;
pub mod files;

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of the ring in each direction.
pub const RING_SIZE: u32 = 1024;
/// Where the responses begin; the requests begin at 0.
pub const RESPONSES: u64 = 1024;
/// Where `req_cons` and `req_prod` are.
pub const REQUEST_INDICES: u64 = 2048;
/// Where `req_prod` and `rsp_cons` are, the two indices that are the guest's.
pub const GUEST_INDICES: u64 = 2052;
/// Where `rsp_cons` and `rsp_prod` are.
pub const RESPONSE_INDICES: u64 = 2056;
const FEATURES: u64 = 2064;
/// Where the connection word is.
pub const CONNECTION: u64 = 2068;
const ERROR: u64 = 2072;

/// How long a change in the page goes unnoticed whose signal came before the wait for it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A guest's ring page and event channel.
pub trait Ring: Debug + Send {
    /// Reads the page.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes into the page.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Signals the event channel.
    ///
    /// # Errors
    /// Where it cannot be reached.
    fn notify(&mut self) -> io::Result<()>;

    /// Waits for the daemon to do something; `TimedOut` at the end.
    ///
    /// # Errors
    /// Where the guest cannot be reached.
    fn wait(&mut self, end: Instant) -> io::Result<()>;

    /// The same, for so many bytes to [`Ring::take`], where the guest can tell that apart.
    ///
    /// # Errors
    /// As [`Ring::wait`].
    fn wait_for(&mut self, end: Instant, _bytes: usize) -> io::Result<()> {
        self.wait(end)
    }

    /// Puts as much of `bytes` into the ring as fits, and signals; says how much.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Takes what the daemon has put into the ring, and signals; says how much. It may be nothing
    /// as long as [`Ring::wait`] was not called.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn take(&mut self, into: &mut Vec<u8>) -> io::Result<usize>;

    /// Writes `one` and `other` in turn at `offset`, as fast as can be, and signals each time.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn flip(&mut self, offset: u64, one: &[u8], other: &[u8], times: u32) -> io::Result<()>;

    /// From now on signals only where the daemon may wait for it, as Linux does. Guests that cannot
    /// go on signalling always.
    fn signal_where_needed(&mut self) {}

    /// Takes the indices over from the page, as a guest does that starts on a used page.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    fn adopt_indices(&mut self) -> io::Result<()>;
}

impl dyn Ring + '_ {
    /// Two neighbouring words of the page, read at once.
    fn words(&mut self, offset: u64) -> io::Result<[u32; 2]> {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    /// Writes the two indices that are the guest's, `req_prod` and `rsp_cons`.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    pub fn set_indices(&mut self, req_prod: u32, rsp_cons: u32) -> io::Result<()> {
        let bytes = [req_prod.to_ne_bytes(), rsp_cons.to_ne_bytes()].concat();
        self.write(GUEST_INDICES, &bytes)?;
        self.adopt_indices()
    }

    /// The indices as the page has them: `req_cons`, `req_prod`, `rsp_cons`, `rsp_prod`.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    pub fn indices(&mut self) -> io::Result<[u32; 4]> {
        let [req_cons, req_prod] = self.words(REQUEST_INDICES)?;
        let [rsp_cons, rsp_prod] = self.words(RESPONSE_INDICES)?;
        Ok([req_cons, req_prod, rsp_cons, rsp_prod])
    }

    /// The daemon's feature bits.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    pub fn features(&mut self) -> io::Result<u32> {
        self.words(FEATURES).map(|[features, _]| features)
    }

    /// The error word: 0 none, 1 communication, 2 ring index, 3 protocol.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    pub fn error(&mut self) -> io::Result<u32> {
        self.words(ERROR).map(|[error, _]| error)
    }

    /// The connection word: 0 connected, 1 reconnect asked for.
    ///
    /// # Errors
    /// Where the page cannot be reached.
    pub fn connection(&mut self) -> io::Result<u32> {
        self.words(CONNECTION).map(|[connection, _]| connection)
    }

    /// Asks for the ring to be reset, and waits until the daemon has done it.
    ///
    /// # Errors
    /// Where the page cannot be reached, and `TimedOut` where the daemon does not answer.
    pub fn reconnect(&mut self, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        self.write(CONNECTION, &1_u32.to_ne_bytes())?;
        self.notify()?;
        while self.connection()? != 0 {
            // The daemon may do it, and signal, before the wait begins.
            match self.wait(end.min(Instant::now() + LOOK_AGAIN)) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
                Err(error) if Instant::now() > end => return Err(error),
                _ => {}
            }
        }
        self.adopt_indices()
    }
}
