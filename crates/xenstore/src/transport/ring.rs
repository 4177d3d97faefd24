//! A guest's own ring to the store: a page that it shares with the daemon, and an event channel.
//!
//! The event channel's descriptor reports events of all ports of the process. An event that is read
//! here is unmasked again at once, even if it is another port's. A caller that shares the
//! descriptor therefore checks its own rings after each call of the client, before it sleeps.

use super::wait::Wait;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use xen::Port;
use xen::evtchn::EventChannels;
use xen::shared::SharedPage;
use xen_io::xs_ring::ClientRing;
use xenstore_core::client::Client as ClientMachine;

/// The number of bytes in either half of the page (`XENSTORE_RING_SIZE`).
const HALF: usize = 1024;

/// A ring, and the bytes read from it that no caller has taken.
pub struct StoreRing {
    ring: ClientRing,
    port: Port,
    evtchn: Box<dyn EventChannels + Send>,
    input: Vec<u8>,
}

impl fmt::Debug for StoreRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreRing").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Returns the error for a ring that the daemon has broken, or a platform that is gone: the store
/// cannot be reached any more.
fn broken(_: impl fmt::Display) -> Errno {
    Errno::CONNRESET
}

impl StoreRing {
    /// Returns the ring in `page`. The store is notified through `port`.
    pub(crate) fn new(page: SharedPage, port: Port, evtchn: Box<dyn EventChannels + Send>) -> Self {
        Self { ring: ClientRing::new(page), port, evtchn, input: Vec::new() }
    }

    /// Writes until the output is empty or the ring is full.
    pub(crate) fn write(&mut self, machine: &mut ClientMachine) -> Result<(), Errno> {
        while !machine.output().is_empty() {
            let count = self.ring.write(machine.output()).map_err(broken)?;
            if count == 0 {
                return Ok(());
            }
            machine.consume_output(count);
            self.evtchn.notify(self.port).map_err(broken)?;
        }
        Ok(())
    }

    /// True if there is something to read, whatever the descriptor reports: the event may have been
    /// read before.
    pub(crate) fn has_input(&mut self) -> Result<bool, Errno> {
        if self.input.is_empty() {
            self.input.resize(HALF, 0);
            let read = self.ring.read(&mut self.input);
            self.input.truncate(*read.as_ref().unwrap_or(&0));
            if read.map_err(broken)? > 0 {
                // There is room again.
                self.evtchn.notify(self.port).map_err(broken)?;
            }
        }
        Ok(!self.input.is_empty())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], wait: Wait) -> Result<usize, Errno> {
        loop {
            if self.has_input()? {
                let count = self.input.len().min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(self.input.drain(..count)) {
                    *to = from;
                }
                return Ok(count);
            }
            if wait == Wait::Block {
                match poll(&mut [PollFd::new(&self.evtchn.fd(), PollFlags::IN)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            self.take_events()?;
            if wait == Wait::Poll && !self.has_input()? {
                return Err(Errno::AGAIN);
            }
        }
    }

    fn take_events(&mut self) -> Result<(), Errno> {
        while let Some(port) = self.evtchn.pending().map_err(broken)? {
            // The port may be another's, and closed meanwhile.
            let _ = self.evtchn.unmask(port);
        }
        Ok(())
    }
}

impl AsFd for StoreRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.evtchn.fd()
    }
}
