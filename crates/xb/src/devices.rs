//! Devices of domains, of any kind: both ends written at once, awaited, and taken away.
//!
//! What is about one kind alone has a module of its own, which makes a [`Device`] of what is described, and knows what
//! the nodes of its backend say.

mod attach;
mod attached;
mod detach;
mod device;
pub mod disk;
mod ends;

pub use attach::{add, attach, await_connected};
pub use attached::{Attached, list, list_of_kind};
pub use detach::{CLOSES_WITHIN, Force, detach};
pub use device::Device;

pub(crate) use attached::backend_of;
pub(crate) use detach::{ask_all, release_all};
