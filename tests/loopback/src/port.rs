//! A port, and the process that holds it.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use xen::Port;
use xen::evtchn::PortStatus;

/// Ports with an event that their holder has not taken yet.
#[derive(Debug)]
pub(crate) struct PendingPorts {
    fd: OwnedFd,
    ports: Mutex<VecDeque<Port>>,
}

impl PendingPorts {
    pub(crate) fn new() -> Self {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let fd = eventfd(0, flags).unwrap_or_else(|errno| panic!("eventfd: {errno}"));
        Self { fd, ports: Mutex::default() }
    }

    /// Polls readable while a port waits.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn push(&self, port: Port) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push_back(port);
    }

    /// Wakes the holder. The caller releases its locks first, because the holder takes them.
    pub(crate) fn wake(&self) {
        // An eventfd takes 2^64 - 2 of these before it would block.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    pub(crate) fn pop(&self) -> Option<Port> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.pop_front();
        if ports.is_empty() {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        }
        port
    }

    /// Forgets the events of a port.
    pub(crate) fn forget(&self, port: Port) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|waiting| *waiting != port);
    }
}

/// One port.
#[derive(Debug)]
pub(crate) struct LoopbackChannel {
    pub(crate) status: PortStatus,
    holder: Arc<PendingPorts>,
    masked: bool,
    /// Raised while it was masked.
    raised_while_masked: bool,
}

impl LoopbackChannel {
    pub(crate) fn new(status: PortStatus, holder: Arc<PendingPorts>) -> Self {
        Self { status, holder, masked: false, raised_while_masked: false }
    }

    /// Raises an event. Returns the holder to wake once no lock is held.
    #[must_use]
    pub(crate) fn raise(&mut self, port: Port) -> Option<Arc<PendingPorts>> {
        if self.masked {
            self.raised_while_masked = true;
            return None;
        }
        self.masked = true;
        self.holder.push(port);
        Some(Arc::clone(&self.holder))
    }

    /// Unmasks the port. Returns the holder to wake if an event was kept meanwhile.
    #[must_use]
    pub(crate) fn unmask(&mut self, port: Port) -> Option<Arc<PendingPorts>> {
        self.masked = false;
        if std::mem::take(&mut self.raised_while_masked) { self.raise(port) } else { None }
    }
}
