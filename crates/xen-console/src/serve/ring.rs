//! The ring of a console: its page, its port.

use super::console::{BrokenRing, broken};
use xen::gnttab::PageAccess;
use xen::{DomId, GrantRef, Port};
use xen_driver::Channel;
use xen_driver::backend::Platform;
use xen_io::console::ConsoleBackRing;
use xenbus::Error;

/// The reason why a console is not connected.
pub(super) enum ConnectFailure {
    /// Its ring is broken.
    Ring(Error),
    /// Anything else: it may be over in a moment.
    Other(Error),
}

impl From<Error> for ConnectFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<ConnectFailure> for Error {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::Ring(error) | ConnectFailure::Other(error) => error,
        }
    }
}

impl From<BrokenRing> for ConnectFailure {
    fn from(BrokenRing(error): BrokenRing) -> Self {
        Self::Ring(error)
    }
}

/// Maps the page that a guest has granted, and binds its port.
pub(super) fn open_ring(
    platform: &Platform,
    domid: DomId,
    port: Port,
    grant: GrantRef,
) -> Result<(Channel, ConsoleBackRing), ConnectFailure> {
    let channel = Channel::bind(&platform.evtchn, domid, port)?;
    let mapped = platform.grants.borrow_mut().map(domid, grant, PageAccess::ReadWrite);
    let page = mapped.map_err(Error::platform("mapping the console's page"))?.into_page();
    let ring = ConsoleBackRing::new(page);
    // Before anything is written: a guest may have broken it while no daemon ran.
    ring.peek_output(&mut []).map_err(broken)?;
    Ok((channel, ring))
}

/// Notifies the guest of a ring that an earlier daemon has served: it may have been killed between the
/// move of an index and its event.
pub(super) fn wake_guest(channel: Option<&Channel>, ring: Option<&ConsoleBackRing>) {
    let was_served = ring.is_some_and(|ring| ring.was_served().unwrap_or(true));
    if let Some(channel) = channel.filter(|_| was_served) {
        // That the channel is gone is found by the first turn.
        let _ = channel.notify();
    }
}

/// True if the guest's port can be bound: no end of it is here.
pub(super) fn is_free(platform: &Platform, domid: DomId, port: Port) -> bool {
    // Dropped, it is free again.
    Channel::bind(&platform.evtchn, domid, port).is_ok()
}
