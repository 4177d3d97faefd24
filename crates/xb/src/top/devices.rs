//! The devices and rings of one domain, read while somebody looks at them.
//!
//! The nodes that a guest writes about its rings are foreign text: names are bounded in number, and
//! values are read as numbers or not shown.

use crate::Error;
use crate::devices;
use crate::doctor;
use crate::text;
use xen::DomId;
use xen_io::xenbus::{State, number};
use xenbus::toolstack::NewDevice;
use xenstore::{Client, Store};

/// The most queues of a device that are shown.
const QUEUES_MAX: usize = 16;
/// The most nodes of a queue that are looked at.
const NODES_MAX: usize = 64;
/// The longest name of an interface of requests that is shown.
const PROTOCOL_MAX: usize = 16;

/// A device of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceDetails {
    /// Its kind: `vbd`.
    pub kind: String,
    /// Its number.
    pub devid: u32,
    /// Its name: `xvda`, `vif 0`.
    pub name: String,
    /// The domain of its backend.
    pub backend: DomId,
    /// The kind of its backend.
    pub backend_kind: String,
    /// The state of the frontend.
    pub front: State,
    /// The state of the backend.
    pub back: State,
    /// The layout of its requests, where the frontend names one.
    pub protocol: Option<String>,
    /// Its rings.
    pub rings: Vec<RingDetails>,
}

/// The rings of one queue of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingDetails {
    /// The number of the queue; `None` of a device without queues.
    pub queue: Option<u32>,
    /// The grants of its rings' pages.
    pub grants: Vec<u32>,
    /// The ports of its event channels.
    pub ports: Vec<u32>,
}

/// Reads the devices of a domain, with their rings.
///
/// # Errors
/// [`Error::Store`].
pub fn read(store: &mut Client, domid: DomId) -> Result<Vec<DeviceDetails>, Error> {
    let devices = devices::list(store, domid)?;
    devices.iter().map(|device| details(store, device)).collect()
}

fn details(store: &mut Client, device: &NewDevice) -> Result<DeviceDetails, Error> {
    let (front, back) = (device.frontend_path(), device.backend_path());
    let mut state = |end: &str| -> Result<State, Error> {
        let state = store.try_read(format!("{end}/state"))?;
        Ok(state.map_or(State::Unknown, |state| State::parse(&state)))
    };
    let (front_state, back_state) = (state(&front)?, state(&back)?);
    let protocol = store.try_read(format!("{front}/protocol"))?.map(text::lossy);
    Ok(DeviceDetails {
        kind: device.kind.clone(),
        devid: device.id.devid,
        name: doctor::name_of(device),
        backend: device.backend,
        backend_kind: device.backend_kind.clone(),
        front: front_state,
        back: back_state,
        protocol: protocol.map(|name| text::clean(&name).chars().take(PROTOCOL_MAX).collect()),
        rings: rings(store, &front)?,
    })
}

/// Reads the rings that a frontend names: its own, or those of its queues.
fn rings(store: &mut Client, front: &str) -> Result<Vec<RingDetails>, Error> {
    let names = store.list(front)?;
    let queue = |name: &String| name.strip_prefix("queue-")?.parse::<u32>().ok();
    let mut queues: Vec<u32> = names.iter().filter_map(queue).take(QUEUES_MAX).collect();
    queues.sort_unstable();
    let mut rings = vec![ring(store, front, None, &names)?];
    for queue in queues {
        let path = format!("{front}/queue-{queue}");
        let names = store.list(&path)?;
        rings.push(ring(store, &path, Some(queue), &names)?);
    }
    rings.retain(|ring| !ring.grants.is_empty() || !ring.ports.is_empty());
    Ok(rings)
}

fn ring(
    store: &mut Client,
    path: &str,
    queue: Option<u32>,
    names: &[String],
) -> Result<RingDetails, Error> {
    let mut ring = RingDetails { queue, ..RingDetails::default() };
    for name in names.iter().take(NODES_MAX) {
        let list = if name.contains("ring-ref") {
            &mut ring.grants
        } else if name.starts_with("event-channel") {
            &mut ring.ports
        } else {
            continue;
        };
        list.extend(
            store.try_read(format!("{path}/{name}"))?.and_then(|value| number::<u32>(&value)),
        );
    }
    Ok(ring)
}
