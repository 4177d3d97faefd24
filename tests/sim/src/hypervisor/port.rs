//! A port, its holder, and an event on its way to it.

use super::process::DomainProcess;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use xen::evtchn::Virq;
use xen::{DomId, Port};

/// One process that holds ports, as its driver sees it.
pub(crate) struct PortHolder {
    pub(super) process: DomainProcess,
    pub(super) fired: VecDeque<Port>,
    pub(super) fd: Rc<OwnedFd>,
    pub(super) raised: bool,
}

impl PortHolder {
    pub(super) fn fire(&mut self, port: Port) {
        self.fired.push_back(port);
        if !self.raised {
            self.raised = rustix::io::write(&*self.fd, &1_u64.to_ne_bytes()).is_ok();
        }
    }

    pub(super) fn lower(&mut self) {
        if std::mem::take(&mut self.raised) {
            let _ = rustix::io::read(&*self.fd, &mut [0_u8; 8][..]);
        }
    }
}

/// The other end of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PortEnd {
    Unbound(DomId),
    Interdomain { remote: DomId, remote_port: Port },
    Virq(Virq),
}

/// A port in use.
pub(crate) struct PortInUse {
    pub(super) bound: PortEnd,
    pub(super) holder: usize,
    /// The serial number, which no earlier port of its number had.
    pub(super) serial: u64,
    pub(super) pending: bool,
    pub(super) masked: bool,
}

/// An event on its way.
pub(crate) struct DelayedEvent {
    pub(super) due: u64,
    pub(super) domid: DomId,
    pub(super) port: Port,
    pub(super) serial: u64,
}
