//! Devices as they are in the store.

use super::ends::state;
use super::reported::ReportedError;
use crate::{Error, text};
use xen::DomId;
use xen_io::xenbus::State;
use xenbus::Id;
use xenbus::toolstack::NewDevice;
use xenstore::{Client, Store};

/// A device as it is in the store.
#[derive(Clone, Debug)]
pub struct AttachedDevice {
    /// The device, with the paths of its nodes.
    pub device: NewDevice,
    /// The frontend's state.
    pub front: State,
    /// The backend's state.
    pub back: State,
    /// The error that its backend tells.
    pub error: Option<ReportedError>,
}

impl AttachedDevice {
    fn read(store: &mut Client, device: NewDevice) -> Result<Self, Error> {
        let back = device.backend_path();
        let error = store.try_read(format!("{back}/error"))?.map(ReportedError::parse);
        let (front, back) = (state(store, &device.frontend_path())?, state(store, &back)?);
        Ok(Self { device, front, back, error })
    }

    /// Returns the text of a node of its backend.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn backend_node(&self, store: &mut Client, name: &str) -> Result<Option<String>, Error> {
        let path = format!("{}/{name}", self.device.backend_path());
        Ok(store.try_read(path)?.map(text::lossy))
    }
}

/// Lists all devices of a domain that the toolstack has recorded, of every kind.
///
/// # Errors
/// [`Error::Store`].
pub fn list(store: &mut Client, domid: DomId) -> Result<Vec<NewDevice>, Error> {
    let mut devices = Vec::new();
    for kind in store.list(format!("/libxl/{domid}/device"))? {
        for devid in store.list(format!("/libxl/{domid}/device/{kind}"))? {
            let Ok(devid) = devid.parse() else { continue };
            let id = Id { frontend: domid, devid };
            let noted = store.try_read(format!("/libxl/{domid}/device/{kind}/{devid}/backend"))?;
            let noted = text::lossy(noted.unwrap_or_default());
            let Some((backend, backend_kind)) = backend_of(&noted) else { continue };
            let mut device = NewDevice::new(&kind, id, backend);
            device.backend_kind = backend_kind.into();
            devices.push(device);
        }
    }
    Ok(devices)
}

/// Lists the devices of a domain that are of a kind, with their states.
///
/// # Errors
/// [`Error::Store`].
pub fn list_of_kind(
    store: &mut Client,
    domid: DomId,
    kind: &str,
) -> Result<Vec<AttachedDevice>, Error> {
    let mut devices = list(store, domid)?;
    devices.retain(|device| device.kind == kind);
    devices.into_iter().map(|device| AttachedDevice::read(store, device)).collect()
}

/// Returns the domain and kind of a backend, by its path: `/local/domain/0/backend/vbd/3/51712`.
pub(crate) fn backend_of(path: &str) -> Option<(DomId, &str)> {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "local", "domain", backend, "backend", kind, ..] = parts[..] else { return None };
    Some((DomId(backend.parse().ok()?), kind))
}
