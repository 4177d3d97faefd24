//! Event channels: one bit from one domain to another, and a descriptor that signals its arrival.
//!
//! Source: `xen/include/public/event_channel.h`, Linux `include/uapi/xen/evtchn.h`.

use crate::{DomId, Error, Port};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A virtual interrupt that the hypervisor raises itself (`xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Virq {
    /// A domain has shut down, crashed or died (`VIRQ_DOM_EXC`).
    DomExc,
    /// The hypervisor has printed to its console ring (`VIRQ_CON_RING`).
    ConRing,
}

impl Virq {
    /// Its number in `xen.h`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::DomExc => 3,
            Self::ConRing => 8,
        }
    }
}

/// The binding of a port (`EVTCHNSTAT_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PortStatus {
    /// Nothing.
    Closed,
    /// Nobody yet: this domain may bind to it.
    Unbound(DomId),
    /// A port of another domain, or of this one.
    Interdomain {
        /// That domain.
        remote: DomId,
        /// Its port.
        remote_port: Port,
    },
    /// A virtual interrupt, by its number in `xen.h`.
    Virq(u32),
    /// A physical interrupt or one between processors, which these traits do not hand out.
    Other,
}

/// The event channels of this domain, as one process holds them.
///
/// A port that [`EventChannels::pending`] returned is masked: the peer's further notifications are
/// kept, as one, and are reported after [`EventChannels::unmask`].
pub trait EventChannels {
    /// The descriptor that polls readable when an event has come since [`EventChannels::pending`]
    /// last returned `None`.
    fn fd(&self) -> BorrowedFd<'_>;

    /// A new port of this domain that `remote` may bind to.
    ///
    /// # Errors
    /// [`Error::Srch`] no such domain, [`Error::NoSpc`] no free port.
    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error>;

    /// A new port of this domain, bound to `remote_port` of `remote`.
    ///
    /// # Errors
    /// [`Error::Srch`] no such domain, [`Error::Inval`] the remote port is not open to this domain,
    /// [`Error::NoSpc`] no free port.
    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error>;

    /// A new port on which the hypervisor raises `virq`.
    ///
    /// # Errors
    /// [`Error::Exist`] another holder has it, [`Error::NoSpc`] no free port, [`Error::Inval`] the
    /// platform does not raise it.
    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error>;

    /// Raises the event at the other end. Never blocks.
    ///
    /// # Errors
    /// [`Error::Inval`] the port is not bound.
    fn notify(&self, port: Port) -> Result<(), Error>;

    /// The next port with an event, which is masked from then on; `None` when there is none.
    ///
    /// # Errors
    /// The error of the driver; the channels cannot be used any further.
    fn pending(&mut self) -> Result<Option<Port>, Error>;

    /// Unmasks `port`: its events are reported again.
    ///
    /// # Errors
    /// [`Error::Inval`] the port is not bound.
    fn unmask(&self, port: Port) -> Result<(), Error>;

    /// True if the descriptor is a device like Linux's `/dev/xen/evtchn`. Reads return the ports
    /// that have fired, 4 bytes each; writing a port unmasks it; neither waits (`O_NONBLOCK`). A
    /// caller that sleeps in an io_uring may have the kernel do both there, and passes the bytes
    /// that it has read to [`EventChannels::take_read`].
    fn is_device(&self) -> bool {
        false
    }

    /// Takes bytes that were read from the device, for [`EventChannels::pending`] to return. `room`
    /// is the size of the buffer of that read, in bytes: if it is full, there may be more.
    fn take_read(&mut self, bytes: &[u8], room: usize) {
        let _ = (bytes, room);
    }

    /// Closes `port`. Events of it that were not taken yet are lost.
    ///
    /// # Errors
    /// [`Error::Inval`] the port is not bound.
    fn close(&mut self, port: Port) -> Result<(), Error>;

    /// Returns the binding of `port` of this domain, also if another process holds it.
    ///
    /// # Errors
    /// [`Error::Inval`] no such port; [`Error::NoSys`] or [`Error::NoDev`] where the platform does
    /// not tell (on Linux only privileged processes of domain 0 may ask).
    fn status(&mut self, port: Port) -> Result<PortStatus, Error>;
}

/// The event channels of a process, shared by several parts of it, such as the store's client and
/// the frontends of a guest. They share the descriptor and its events: the part that takes an event
/// unmasks its port ([`EventChannels::unmask`]), and each looks at its own rings before the process
/// sleeps.
#[derive(Debug)]
pub struct SharedEventChannels<T> {
    fd: Arc<OwnedFd>,
    channels: Arc<Mutex<T>>,
}

impl<T> Clone for SharedEventChannels<T> {
    fn clone(&self) -> Self {
        Self { fd: Arc::clone(&self.fd), channels: Arc::clone(&self.channels) }
    }
}

impl<T: EventChannels> SharedEventChannels<T> {
    /// Shares `channels`.
    ///
    /// # Errors
    /// The error of the system: there is no descriptor left.
    pub fn new(channels: T) -> Result<Self, Error> {
        let fd = Arc::new(channels.fd().try_clone_to_owned()?);
        Ok(Self { fd, channels: Arc::new(Mutex::new(channels)) })
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: EventChannels> EventChannels for SharedEventChannels<T> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        self.lock().alloc_unbound(remote)
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        self.lock().bind_interdomain(remote, remote_port)
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        self.lock().bind_virq(virq)
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        self.lock().notify(port)
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        self.lock().pending()
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        self.lock().unmask(port)
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        self.lock().close(port)
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        self.lock().status(port)
    }
}
