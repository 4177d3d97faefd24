//! A whole device type: the frontend shows a page, the backend writes a greeting into it.

use std::sync::{Arc, Mutex};
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer, Mapping, OfferedPage, PageAccess};
use xen::{GrantRef, Port};
use xenbus::{Device, Driver, Error, Progress};

/// The frontend: a page for the greeting, and a port on which to be told.
pub(crate) struct GreeterFrontend<E, G> {
    pub(crate) evtchn: Arc<Mutex<E>>,
    pub(crate) grants: G,
    pub(crate) page: Option<(OfferedPage, Port)>,
}

impl<E: EventChannels, G: GrantOffer> Driver for GreeterFrontend<E, G> {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let page = self.grants.offer(device.peer(), PageAccess::ReadWrite);
        let page = page.map_err(Error::platform("offering the page"))?;
        let port = self.evtchn.lock().unwrap().alloc_unbound(device.peer());
        let port = port.map_err(Error::platform("a port for the backend"))?;
        device.put("ring-ref", page.grant());
        device.put("event-channel", port);
        device.put("feature-shout", 1);
        self.page = Some((page, port));
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        if let Some((_, port)) = self.page.take() {
            let _ = self.evtchn.lock().unwrap().close(port);
        }
        Progress::Done
    }
}

/// The backend: maps the page, writes, notifies.
pub(crate) struct GreeterBackend<E, G> {
    pub(crate) evtchn: Arc<Mutex<E>>,
    pub(crate) grants: G,
    pub(crate) page: Option<(Mapping, Port)>,
}

impl<E: EventChannels, G: GrantMap> Driver for GreeterBackend<E, G> {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        device.put("feature-shout", 1);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let grant = GrantRef(device.their_needed("ring-ref")?);
        let port = Port(device.their_needed("event-channel")?);
        let shout = device.their_feature("feature-shout")?;
        let page = self.grants.map(device.peer(), grant, PageAccess::ReadWrite);
        let page = page.map_err(Error::platform("mapping the page"))?;
        let mut evtchn = self.evtchn.lock().unwrap();
        let port = evtchn.bind_interdomain(device.peer(), port);
        let port = port.map_err(Error::platform("binding the frontend's port"))?;
        let greeting = format!("hello, domain {}{}", device.peer(), if shout { "!" } else { "" });
        page.page().copy_in(0, greeting.as_bytes()).map_err(|e| Error::Driver(e.to_string()))?;
        evtchn.notify(port).map_err(Error::platform("telling the frontend"))?;
        self.page = Some((page, port));
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        if let Some((_, port)) = self.page.take() {
            let _ = self.evtchn.lock().unwrap().close(port);
        }
        Progress::Done
    }
}
