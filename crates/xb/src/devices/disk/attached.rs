//! Disks as they are in the store.

use crate::devices::{AttachedDevice, list_of_kind};
use crate::host::Host;
use crate::host::service::{self, ServiceProcess};
use crate::{Error, config};
use xen::DomId;
use xen_block::vbd;
use xen_io::xenbus::State;
use xenstore::Client;

/// The kind of disks.
const KIND: &str = "vbd";

/// A disk as it is in the store.
#[derive(Clone, Debug)]
pub struct AttachedDisk {
    /// Its device.
    pub attached: AttachedDevice,
    /// Its name in the guest.
    pub vdev: String,
    /// The target that is served.
    pub target: String,
    /// `w` or `r`.
    pub mode: String,
    /// Its size in bytes, once the backend has reported it.
    pub bytes: Option<u64>,
    /// True if the server of its sectors is away; requests wait for it.
    pub server_gone: bool,
    /// The process of its backend; [`ServiceProcess::Unknown`] but for [`list_served`].
    pub service: ServiceProcess,
}

impl AttachedDisk {
    fn read(store: &mut Client, attached: AttachedDevice) -> Result<Self, Error> {
        let mut of = |name: &str| attached.backend_node(store, name);
        let target = match of("target")? {
            Some(target) => target,
            None => of("params")?.unwrap_or_default(),
        };
        let sectors = of("sectors")?.and_then(|text| text.parse::<u64>().ok());
        Ok(Self {
            // The nodes of a backend go with its domain.
            vdev: of("dev")?.unwrap_or_else(|| vbd::name(attached.device.id.devid)),
            target,
            mode: of("mode")?.unwrap_or_default(),
            bytes: sectors.and_then(|sectors| sectors.checked_mul(512)),
            // The backend reports it for a disk in use, and nobody does for a closed one.
            server_gone: attached.back == State::Connected
                && of(xen_block::back::SERVER_GONE)?.as_deref() == Some("1"),
            service: ServiceProcess::Unknown,
            attached,
        })
    }

    /// Returns its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.attached.device.id.devid
    }

    /// Returns the backend's state in words; if its process or its server is away, says that: what
    /// the state says is of no use then.
    #[must_use]
    pub fn backend_state(&self) -> String {
        match self.service.absence() {
            Some(absence) => absence.into(),
            None if self.server_gone => "its server is gone".into(),
            None => self.attached.back.to_string(),
        }
    }

    /// True if both ends are connected and requests are served, as far as that is known.
    #[must_use]
    pub fn is_served(&self) -> bool {
        let both = (self.attached.front, self.attached.back);
        both == (State::Connected, State::Connected) && !self.server_gone && !self.service.is_away()
    }

    /// Returns true if its backend runs, and `None` if that is not known.
    #[must_use]
    pub fn backend_runs(&self) -> Option<bool> {
        match self.service {
            ServiceProcess::Unknown => None,
            service => Some(!service.is_away()),
        }
    }
}

/// Lists the disks of a domain.
///
/// # Errors
/// [`Error::Store`].
pub fn list(store: &mut Client, domid: DomId) -> Result<Vec<AttachedDisk>, Error> {
    let disks = list_of_kind(store, domid, KIND)?;
    disks.into_iter().map(|disk| AttachedDisk::read(store, disk)).collect()
}

/// Finds a disk as [`find`] does, with the process of its backend.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find_served(host: &mut Host, domid: DomId, which: &str) -> Result<AttachedDisk, Error> {
    let disk = find(&mut host.store, domid, which)?;
    let device = &disk.attached.device;
    let service = service::of_backend(host, device.backend, &device.backend_kind);
    Ok(AttachedDisk { service, ..disk })
}

/// Lists the disks of a domain as [`list`] does, with the processes of their backends.
///
/// # Errors
/// [`Error::Store`].
pub fn list_served(host: &mut Host, domid: DomId) -> Result<Vec<AttachedDisk>, Error> {
    let mut disks = list(&mut host.store, domid)?;
    for disk in &mut disks {
        let device = &disk.attached.device;
        disk.service = service::of_backend(host, device.backend, &device.backend_kind);
    }
    Ok(disks)
}

/// Finds the disk with this name or number in a domain.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find(store: &mut Client, domid: DomId, which: &str) -> Result<AttachedDisk, Error> {
    let number = config::disk::number(which).ok();
    let found = list(store, domid)?
        .into_iter()
        .find(|disk| Some(disk.number()) == number || disk.vdev == which);
    found.ok_or_else(|| {
        Error::NotFound(format!(
            "domain {domid} has no disk {which}; xb disk list {domid} shows all"
        ))
    })
}
