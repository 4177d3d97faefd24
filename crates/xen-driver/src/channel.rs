//! An event channel of a device.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use xen::evtchn::EventChannels;
use xen::{DomId, Port};
use xenbus::Error;

/// This end of an event channel, which is closed when it is dropped.
pub struct Channel {
    evtchn: Rc<RefCell<dyn EventChannels>>,
    port: Port,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel that the other end, in domain `peer`, is to bind: a frontend's.
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub fn offer(evtchn: &Rc<RefCell<dyn EventChannels>>, peer: DomId) -> Result<Self, Error> {
        let port = evtchn.borrow_mut().alloc_unbound(peer);
        let port = port.map_err(Error::platform("a port for the backend"))?;
        Ok(Self { evtchn: Rc::clone(evtchn), port })
    }

    /// The channel that the other end has offered as its port `theirs`: a backend's.
    ///
    /// # Errors
    /// [`Error::PortTaken`], [`Error::Platform`].
    pub fn bind(
        evtchn: &Rc<RefCell<dyn EventChannels>>,
        peer: DomId,
        theirs: Port,
    ) -> Result<Self, Error> {
        let port = evtchn.borrow_mut().bind_interdomain(peer, theirs);
        let port = port.map_err(|error| match error {
            xen::Error::Inval => Error::PortTaken(theirs),
            error => Error::platform("binding the frontend's event channel")(error),
        })?;
        Ok(Self { evtchn: Rc::clone(evtchn), port })
    }

    /// This end's port.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }

    /// Tells the other end.
    ///
    /// # Errors
    /// [`Error::Platform`]: the event channel is gone.
    pub fn notify(&self) -> Result<(), Error> {
        let told = self.evtchn.borrow().notify(self.port);
        told.map_err(Error::platform("notifying the other end"))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The other end may have closed its own before, or be gone.
        let _ = self.evtchn.borrow_mut().close(self.port);
    }
}
