//! Event channels through `/dev/xen/evtchn`.
//!
//! The driver masks a port when it fires, and unmasks it when its number is written back. A process
//! sees its own ports only.
#![allow(unsafe_code)]

mod fired;

use crate::abi;
use crate::privcmd::Privcmd;
use crate::sys::{DeviceFile, errno};
use fired::{FiredPorts, ReadOutcome};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::{DomId, Error, Port};

/// `EFBIG`: the driver had no room left for ports that fired.
const OVERFLOW: i32 = 27;
/// `ENOTCONN`: the port is not bound by this process.
const NOT_BOUND: i32 = 107;

/// The event channels of this process.
#[derive(Debug)]
pub struct Evtchn {
    device: DeviceFile,
    /// For [`EventChannels::status`]; `None` where there is no `/dev/xen/privcmd`.
    privcmd: Option<Rc<Privcmd>>,
    bound: BTreeSet<u32>,
    fired: FiredPorts,
}

impl Evtchn {
    /// Opens the device. `privcmd` serves queries for the status of ports.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn open(privcmd: Option<Rc<Privcmd>>) -> Result<Self, crate::Error> {
        let device = DeviceFile::open("/dev/xen/evtchn")?;
        Ok(Self { device, privcmd, bound: BTreeSet::new(), fired: FiredPorts::default() })
    }

    /// A request that returns a new port.
    fn bind<T>(&mut self, request: u32, mut argument: T) -> Result<Port, Error> {
        // SAFETY: the callers below pass the structure of the request, which holds no pointer.
        let port = unsafe { self.device.call(request, &mut argument) }?;
        let port = u32::try_from(port).map_err(|_| Error::Inval)?;
        self.bound.insert(port);
        Ok(Port(port))
    }

    fn check(&self, port: Port) -> Result<(), Error> {
        if self.bound.contains(&port.0) { Ok(()) } else { Err(Error::Inval) }
    }
}

/// Reads the ports that have fired.
fn read(device: &DeviceFile, bound: &BTreeSet<u32>, into: &mut [u8]) -> Result<ReadOutcome, Error> {
    match rustix::io::read(device, into) {
        Ok(len) => Ok(ReadOutcome::Bytes(len)),
        Err(rustix::io::Errno::AGAIN) => Ok(ReadOutcome::Bytes(0)),
        Err(rustix::io::Errno::INTR) => Ok(ReadOutcome::Interrupted),
        Err(error) if error.raw_os_error() == OVERFLOW => {
            // The driver has dropped the list of fired ports. A spurious event is harmless, a lost
            // one is not. SAFETY: the request takes no argument.
            unsafe { device.call(abi::IOCTL_EVTCHN_RESET, &mut ()) }?;
            Ok(ReadOutcome::Ports(bound.iter().copied().collect()))
        }
        Err(error) => Err(errno(error)),
    }
}

impl EventChannels for Evtchn {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        self.bind(abi::IOCTL_EVTCHN_BIND_UNBOUND_PORT, u32::from(remote.0))
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        let argument = abi::ioctl_evtchn_bind_interdomain {
            remote_domain: remote.0.into(),
            remote_port: remote_port.0,
        };
        self.bind(abi::IOCTL_EVTCHN_BIND_INTERDOMAIN, argument)
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        self.bind(abi::IOCTL_EVTCHN_BIND_VIRQ, virq.number())
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        let mut argument = port.0;
        // SAFETY: the request takes one number.
        match unsafe { self.device.call(abi::IOCTL_EVTCHN_NOTIFY, &mut argument) } {
            Ok(_) => Ok(()),
            Err(Error::Other(NOT_BOUND)) => Err(Error::Inval),
            Err(error) => Err(error),
        }
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        let Self { device, bound, fired, .. } = self;
        loop {
            match fired.next(|into| read(device, bound, into))? {
                // Closed before it was read.
                Some(port) if !bound.contains(&port) => {}
                port => return Ok(port.map(Port)),
            }
        }
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        self.check(port)?;
        rustix::io::write(&self.device, &port.0.to_ne_bytes()).map_err(errno).map(drop)
    }

    fn is_device(&self) -> bool {
        true
    }

    fn take_read(&mut self, bytes: &[u8], room: usize) {
        self.fired.take_read(bytes, room);
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        if !self.bound.remove(&port.0) {
            return Err(Error::Inval);
        }
        self.fired.forget(port.0);
        let mut argument = port.0;
        // SAFETY: the request takes one number.
        match unsafe { self.device.call(abi::IOCTL_EVTCHN_UNBIND, &mut argument) } {
            Ok(_) => Ok(()),
            Err(Error::Other(NOT_BOUND)) => Err(Error::Inval),
            Err(error) => Err(error),
        }
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        let privcmd = self.privcmd.as_deref().ok_or(Error::NoDev)?;
        let asked = abi::evtchn_status { dom: DomId::SELF.0, port: port.0, ..Default::default() };
        let answer = privcmd.event_channel_op(abi::EVTCHNOP_STATUS, asked)?;
        let remote = DomId((answer.u[0] & 0xffff) as u16);
        Ok(match answer.status {
            abi::EVTCHNSTAT_CLOSED => PortStatus::Closed,
            abi::EVTCHNSTAT_UNBOUND => PortStatus::Unbound(remote),
            abi::EVTCHNSTAT_INTERDOMAIN => {
                PortStatus::Interdomain { remote, remote_port: Port(answer.u[1]) }
            }
            abi::EVTCHNSTAT_VIRQ => PortStatus::Virq(answer.u[0]),
            _ => PortStatus::Other,
        })
    }
}
