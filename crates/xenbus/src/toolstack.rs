//! Adding and removing a device, as `xl` does: both ends in one transaction, with libxl's paths,
//! values and permissions.
//!
//! Source: `libxl__device_generic_add` and `libxl__initiate_device_generic_remove` in
//! `tools/libs/light/libxl_device.c`.

use crate::error::Error;
use crate::path::{self, Id};
use xen::DomId;
use xen_io::xenbus::State;
use xenstore::{Client, NodeAccess, Perm, Store};

/// A device to be added.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its frontend's domain and number.
    pub id: Id,
    /// The frontend's kind: `vbd`.
    pub kind: String,
    /// The backend's kind, where it is another: `qdisk` serves `vbd`.
    pub backend_kind: String,
    /// The domain that serves it: 0, or a driver domain.
    pub backend: DomId,
    /// The frontend's nodes besides `backend`, `backend-id` and `state`.
    pub frontend_nodes: Vec<(String, String)>,
    /// The frontend's nodes that the guest may read and not write.
    pub frontend_fixed: Vec<(String, String)>,
    /// The backend's nodes besides `frontend`, `frontend-id`, `online` and `state`.
    pub backend_nodes: Vec<(String, String)>,
}

impl NewDevice {
    /// A device of a kind, without nodes of its own.
    #[must_use]
    pub fn new(kind: &str, id: Id, backend: DomId) -> Self {
        Self {
            id,
            kind: kind.into(),
            backend_kind: kind.into(),
            backend,
            frontend_nodes: Vec::new(),
            frontend_fixed: Vec::new(),
            backend_nodes: Vec::new(),
        }
    }

    /// The frontend's path.
    #[must_use]
    pub fn frontend_path(&self) -> String {
        path::frontend(&self.kind, self.id)
    }

    /// The backend's path.
    #[must_use]
    pub fn backend_path(&self) -> String {
        path::backend(self.backend, &self.backend_kind, self.id)
    }
}

/// Returns `n<owner>,r<reader>`: the owner may do everything, the other end may read.
fn perms(owner: DomId, reader: DomId) -> [Perm; 2] {
    let perm = |access, domid: DomId| Perm { access, domid: domid.0.into() };
    [perm(NodeAccess::None, owner), perm(NodeAccess::Read, reader)]
}

/// The outcome of adding a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddOutcome {
    /// The device was added.
    New,
    /// A device of its number was there already, and is unchanged.
    WasThere,
    /// The frontend's domain has no nodes, or no longer; nothing is added.
    NoDomain,
}

/// Adds a device: all nodes of both ends appear at once. A device of its number is replaced.
///
/// # Errors
/// [`Error::Store`].
pub fn add(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    let nodes = DeviceNodes::of(device);
    Ok(store.transaction(|tx| nodes.write(tx))?)
}

/// Adds a device as [`add`] does, unless one of its number exists: of two callers that add at once,
/// one is told so. Adds none to a domain whose nodes were taken away: no frontend would look for
/// it.
///
/// # Errors
/// [`Error::Store`].
pub fn add_new(store: &mut Client, device: &NewDevice) -> Result<AddOutcome, Error> {
    let nodes = DeviceNodes::of(device);
    Ok(store.transaction(|tx| {
        if tx.exists(&nodes.front)? || tx.exists(&nodes.back)? {
            return Ok(AddOutcome::WasThere);
        }
        let frontend = device.id.frontend;
        if frontend != DomId::DOM0 && !tx.exists(path::home(frontend))? {
            return Ok(AddOutcome::NoDomain);
        }
        nodes.write(tx).map(|()| AddOutcome::New)
    })?)
}

/// All nodes of a device.
struct DeviceNodes<'a> {
    device: &'a NewDevice,
    libxl: String,
    front: String,
    back: String,
    front_nodes: Vec<(String, String)>,
    back_nodes: Vec<(String, String)>,
}

impl<'a> DeviceNodes<'a> {
    fn of(device: &'a NewDevice) -> Self {
        let pair = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        let mut front_nodes = vec![pair("backend-id", &device.backend), pair("state", &1)];
        front_nodes.extend_from_slice(&device.frontend_nodes);
        let mut back_nodes = vec![pair("frontend-id", &device.id.frontend), pair("online", &1)];
        back_nodes.extend_from_slice(&device.backend_nodes);
        back_nodes.push(pair("state", &1));
        let (front, back) = (device.frontend_path(), device.backend_path());
        let libxl = path::libxl(&device.kind, device.id);
        Self { device, libxl, front, back, front_nodes, back_nodes }
    }

    fn write(&self, tx: &mut impl Store) -> Result<(), xenstore::Error> {
        let Self { device, libxl, front, back, front_nodes, back_nodes } = self;
        let front_perms = perms(device.id.frontend, device.backend);
        let back_perms = perms(device.backend, device.id.frontend);
        tx.remove(libxl)?;
        tx.write(format!("{libxl}/frontend"), front)?;
        tx.write(format!("{libxl}/backend"), back)?;

        tx.remove(front)?;
        tx.mkdir(front)?;
        tx.set_perms(front, &front_perms)?;
        tx.write(format!("{front}/backend"), back)?;
        let open = front_nodes.iter().map(|node| (node, &front_perms));
        let fixed = device.frontend_fixed.iter().map(|node| (node, &back_perms));
        for ((name, value), perms) in open.chain(fixed) {
            tx.write(format!("{front}/{name}"), value)?;
            tx.set_perms(format!("{front}/{name}"), perms)?;
        }

        tx.remove(back)?;
        tx.mkdir(back)?;
        tx.set_perms(back, &back_perms)?;
        tx.write(format!("{back}/frontend"), front)?;
        for (name, value) in back_nodes {
            tx.write(format!("{back}/{name}"), value)?;
            tx.write(format!("{libxl}/{name}"), value)?;
        }
        Ok(())
    }
}

/// Asks for a device to go: the backend closes once the frontend has, and says so by state 6. Then
/// [`forget`] takes away the nodes.
///
/// # Errors
/// [`Error::Store`].
pub fn detach(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    let back = device.backend_path();
    store.transaction(|tx| {
        let Some(state) = tx.try_read(format!("{back}/state"))? else { return Ok(()) };
        tx.write(format!("{back}/online"), b"0")?;
        // A backend that is Closed already, as its frontend's domain is gone, need not say so once more; not all do.
        if State::parse(&state) != State::Closed {
            tx.write(format!("{back}/state"), b"5")?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Takes away all nodes of a device, and the directories above that are empty then (they would use up
/// the backend's quota one after the other).
///
/// # Errors
/// [`Error::Store`].
pub fn forget(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    store.transaction(|tx| remove(tx, device))?;
    Ok(())
}

/// Takes away all nodes of a device as [`forget`] does, unless another toolstack has taken them away
/// and made the device anew since it was asked to go.
///
/// # Errors
/// [`Error::Store`].
pub fn forget_detached(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    let back = device.backend_path();
    store.transaction(|tx| {
        let is_new = tx.try_read(format!("{back}/online"))?.as_deref() == Some(b"1")
            && tx.exists(format!("{back}/state"))?;
        if is_new { Ok(()) } else { remove(tx, device) }
    })?;
    Ok(())
}

fn remove(tx: &mut impl Store, device: &NewDevice) -> Result<(), xenstore::Error> {
    let (front, back) = (device.frontend_path(), device.backend_path());
    let libxl = path::libxl(&device.kind, device.id);
    for path in [&libxl, &front, &back] {
        tx.remove(path)?;
    }
    let above = path::above(&back);
    if tx.exists(above)? && tx.directory(above)?.is_empty() {
        tx.remove(above)?;
    }
    Ok(())
}
