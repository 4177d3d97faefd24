//! The platform, and the event channels bound on it.

use crate::Platform;
use xen::domwatch::OwnRing;
use xen::evtchn::Virq;
use xen::gnttab::PageAccess;
use xen::shared::SharedPage;
use xen::{GrantRef, Port};
use xenstore_core::server::{ConnId, DomId};

/// The platform and its bound event channels.
pub(crate) struct DomainChannels {
    pub(crate) platform: Platform,
    /// The port of `VIRQ_DOM_EXC`.
    pub(crate) virq: Port,
    /// The connection of each bound port.
    ports: Vec<Option<ConnId>>,
    /// The own domain's ring, until it is attached.
    pub(crate) own_ring: Option<OwnRing>,
}

impl DomainChannels {
    /// Binds the virtual interrupt.
    pub(crate) fn new(mut platform: Platform) -> Result<Self, xen::Error> {
        let virq = platform.evtchn.bind_virq(Virq::DomExc)?;
        Ok(Self { platform, virq, ports: Vec::new(), own_ring: None })
    }

    /// Returns the connection of this port.
    pub(crate) fn connection_of(&self, port: Port) -> Option<ConnId> {
        *self.ports.get(port.0 as usize)?
    }

    pub(crate) fn bind(
        &mut self,
        domid: DomId,
        port: Port,
        conn: ConnId,
    ) -> Result<Port, xen::Error> {
        let local = self.platform.evtchn.bind_interdomain(xen::DomId(domid.0), port)?;
        let at = local.0 as usize;
        if self.ports.len() <= at {
            self.ports.resize(at + 1, None);
        }
        self.ports[at] = Some(conn);
        Ok(local)
    }

    pub(crate) fn unbind(&mut self, port: Port) {
        if let Some(slot) = self.ports.get_mut(port.0 as usize) {
            *slot = None;
        }
        // The port may have been closed by the peer's end.
        let _ = self.platform.evtchn.close(port);
    }

    pub(crate) fn map(&mut self, domid: DomId) -> Result<SharedPage, xen::Error> {
        let grants = &mut self.platform.grants;
        let mapping = grants.map(xen::DomId(domid.0), GrantRef::XENSTORE, PageAccess::ReadWrite)?;
        Ok(mapping.into_page())
    }

    pub(crate) fn notify(&self, port: Port) -> Result<(), xen::Error> {
        self.platform.evtchn.notify(port)
    }
}
