//! News of devices.

use crate::error::Error;
use crate::path::Id;
use xen_io::xenbus::State;

/// Something that happened to a device, for the log and for whoever waits.
#[derive(Debug)]
pub struct DeviceNews {
    /// Which device.
    pub id: Id,
    /// The event.
    pub event: DeviceEvent,
}

/// An event of a device.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// It is in this state now.
    State(State),
    /// Something went wrong with it; its `error` node says so too.
    Error(Error),
    /// It is forgotten.
    Removed,
}
