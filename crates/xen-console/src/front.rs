//! The frontend of a guest's first console: bytes between its ring and a terminal of the guest.
//!
//! The guest's program is behind the terminal's other end. Output waits in the terminal while the
//! ring is full, and input in the ring while the terminal is, so nothing is kept here but one chunk
//! of each.

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};
use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use xen::evtchn::EventChannels;
use xen::shared::SharedPage;
use xen::{DomId, Port};
use xen_driver::GuestDevices;
use xen_io::console::{ConsoleFrontRing, INPUT_SIZE, OUTPUT_SIZE, RingError};
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Error, Id};
use xenstore::{Client, Event, Store};

/// The guest's node with the size of its console's window, `COLUMNSxROWS`, in characters. The
/// backend writes it.
pub const WINDOW: &str = "console/window";

/// The first console of the guest whose program this is.
pub struct ConsoleFrontend {
    id: Id,
    ring: ConsoleFrontRing,
    port: Port,
    evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The end of the terminal that the program does not have.
    terminal: OwnedFd,
    /// The program's end. It is held open, as a terminal without one is always readable.
    peer: OwnedFd,
    input: PendingBytes<INPUT_SIZE>,
    output: PendingBytes<OUTPUT_SIZE>,
    /// The ring is broken, and not used any more.
    broken: bool,
    news: Vec<DeviceNews>,
}

impl fmt::Debug for ConsoleFrontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleFrontend").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ConsoleFrontend {
    /// Starts the console of `domid`, the caller's own domain. Its ring is in `page`, and its events
    /// come at `port`. The program has the other end of `terminal`, the master of a pseudoterminal
    /// that does not block.
    ///
    /// # Errors
    /// The store is gone; [`Error::Driver`] where the terminal's other end cannot be opened.
    pub fn start(
        store: &mut Client,
        domid: DomId,
        evtchn: Rc<RefCell<dyn EventChannels>>,
        (page, port): (SharedPage, Port),
        terminal: OwnedFd,
    ) -> Result<Self, Error> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&terminal, flags)
            .map_err(|errno| Error::Driver(format!("the other end of the terminal: {errno}")))?;
        store.watch(WINDOW, WINDOW)?;
        Ok(Self {
            id: Id { frontend: domid, devid: 0 },
            ring: ConsoleFrontRing::new(page),
            port,
            evtchn,
            terminal,
            peer,
            input: PendingBytes::default(),
            output: PendingBytes::default(),
            broken: false,
            news: Vec::new(),
        })
    }

    /// Returns the end of the terminal that is for the program.
    #[must_use]
    pub fn peer(&self) -> &OwnedFd {
        &self.peer
    }

    /// True if output of the program waits in the terminal or here.
    pub fn has_output(&mut self) -> bool {
        if self.output.is_empty() {
            self.read_terminal();
        }
        !self.output.is_empty() && !self.broken
    }

    /// Moves input from the ring to the terminal. Returns the number of bytes that have moved.
    fn give_input(&mut self) -> Result<usize, RingError> {
        let mut moved = 0;
        if self.input.is_empty() {
            moved = self.input.refill(|bytes| self.ring.read(bytes))?;
        }
        while !self.input.is_empty() {
            match rustix::io::write(&self.terminal, self.input.rest()) {
                Ok(count) if count > 0 => {
                    self.input.take(count);
                    moved += count;
                }
                // The program does not read.
                Ok(_) | Err(_) => break,
            }
        }
        Ok(moved)
    }

    /// Moves output from the terminal to the ring. Returns the number of bytes that have moved.
    fn take_output(&mut self) -> Result<usize, RingError> {
        if self.output.is_empty() {
            self.read_terminal();
        }
        if self.output.is_empty() {
            return Ok(0);
        }
        let count = self.ring.write(self.output.rest())?;
        self.output.take(count);
        Ok(count)
    }

    fn read_terminal(&mut self) {
        let read: Result<usize, Errno> =
            self.output.refill(|bytes| rustix::io::read(&self.terminal, bytes));
        // Without output it would block.
        let _ = read;
    }

    /// Sets the size of the terminal to that of the node. One that is not there, or no size, changes
    /// nothing.
    fn resize(&self, store: &mut Client) -> Result<(), Error> {
        let value = store.try_read(WINDOW)?.unwrap_or_default();
        let Some((columns, rows)) = window(&value) else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal that has no size is a terminal all the same.
        let _ = tcsetwinsize(&self.terminal, size);
        Ok(())
    }
}

/// Parses `COLUMNSxROWS`.
fn window(value: &[u8]) -> Option<(u16, u16)> {
    let (columns, rows) = std::str::from_utf8(value).ok()?.split_once('x')?;
    Some((columns.parse().ok()?, rows.parse().ok()?))
}

impl GuestDevices for ConsoleFrontend {
    fn note(&mut self, store: &mut Client, event: &Event) -> Result<bool, Error> {
        let ours = *event.token == *WINDOW.as_bytes();
        if ours {
            self.resize(store)?;
        }
        Ok(ours)
    }

    fn look_next(&mut self, _: &mut Client) -> Result<bool, Error> {
        Ok(false)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        std::mem::take(&mut self.news)
    }

    fn work(&mut self, _: &mut Client) -> Result<usize, Error> {
        if self.broken {
            return Ok(0);
        }
        let moved = self.give_input().and_then(|given| Ok(given + self.take_output()?));
        match moved {
            Ok(0) => Ok(0),
            Ok(moved) => {
                // Nobody has bound the port yet, or a daemon that was killed has left it: the next
                // one looks at the ring before it waits.
                let _ = self.evtchn.borrow().notify(self.port);
                Ok(moved)
            }
            Err(error) => {
                self.broken = true;
                let error = Error::Driver(format!("its ring: {error}"));
                self.news.push(DeviceNews { id: self.id, event: DeviceEvent::Error(error) });
                Ok(1)
            }
        }
    }

    fn final_check(&mut self, _: &mut Client) -> Result<bool, Error> {
        // Every move of an index is notified: nothing is to be asked for.
        Ok(false)
    }

    fn polled(&self) -> Vec<PollFd<'_>> {
        if self.broken {
            return Vec::new();
        }
        let mut flags = PollFlags::empty();
        // With a full ring, the port's event comes first.
        flags.set(PollFlags::IN, self.output.is_empty());
        flags.set(PollFlags::OUT, !self.input.is_empty());
        if flags.is_empty() {
            return Vec::new();
        }
        vec![PollFd::from_borrowed_fd(self.terminal.as_fd(), flags)]
    }
}

/// Bytes that were taken on one side, and wait for room on the other.
struct PendingBytes<const N: usize> {
    bytes: Box<[u8; N]>,
    start: usize,
    end: usize,
}

impl<const N: usize> Default for PendingBytes<N> {
    fn default() -> Self {
        Self { bytes: Box::new([0; N]), start: 0, end: 0 }
    }
}

impl<const N: usize> PendingBytes<N> {
    fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn take(&mut self, count: usize) {
        self.start = self.start.saturating_add(count);
    }

    /// Fills it anew by `read`, which returns the number of bytes.
    fn refill<E>(&mut self, read: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<usize, E> {
        let count = read(&mut self.bytes[..])?;
        (self.start, self.end) = (0, count.min(N));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_columns_and_rows() {
        assert_eq!(window(b"80x24"), Some((80, 24)));
        assert_eq!(window(b"65535x1"), Some((65535, 1)));
        for none in ["", "80", "x", "80x", "65536x1", "-1x1", "80x24x2", "80 x 24"] {
            assert_eq!(window(none.as_bytes()), None, "{none:?}");
        }
    }

    #[test]
    fn pending_bytes_are_taken_once() {
        let mut pending = PendingBytes::<4>::default();
        assert!(pending.is_empty());
        let filled = pending.refill(|bytes| {
            bytes.copy_from_slice(b"abcd");
            Ok::<_, ()>(3)
        });
        assert_eq!((filled, pending.rest()), (Ok(3), b"abc".as_slice()));
        pending.take(2);
        assert_eq!(pending.rest(), b"c");
        assert_eq!(pending.refill(|_| Err::<usize, _>(())), Err(()));
        assert_eq!(pending.rest(), b"c");
        pending.take(1);
        assert!(pending.is_empty());
    }
}
