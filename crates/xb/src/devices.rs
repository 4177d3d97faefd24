//! Devices of domains, of any kind: both ends written at once, awaited, and taken away.
//!
//! Each kind has a module of its own, which makes a [`AttachableDevice`] of a description, and reads the
//! nodes of a backend that are of that kind alone.

mod attach;
mod attached;
mod backend_choice;
pub mod backend_domain;
mod detach;
mod device;
pub mod disk;
mod ends;
mod reported;

pub use attach::{add, attach, await_connected};
pub use attached::{AttachedDevice, list, list_of_kind};
pub use backend_choice::BackendChoiceError;
pub use detach::{CLOSES_WITHIN, Force, detach};
pub use device::AttachableDevice;
pub use reported::ReportedError;

pub(crate) use attached::backend_of;
pub(crate) use detach::{ask_all, is_detached, release_all};
pub(crate) use device::command as device_command;
