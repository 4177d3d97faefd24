//! Block devices: the frontend, the backend, and the disks behind it.
//!
//! The guarantee: whatever a guest puts into its rings and nodes harms that guest alone. Each
//! request is copied once, checked, and answered. Data whose flush was answered is on stable
//! storage. A backend that is killed and started again continues where it was.
//!
//! | module | what it is |
//! |---|---|
//! | [`back`] | the backend of one device: a [`xenbus::Driver`], and its rings |
//! | [`front`] | the frontend of one device: a [`xenbus::Driver`], and its rings |
//! | [`disk`] | the storage of sectors: files, qcow2 images, NBD servers, memory |
//! | [`filter`] | the system calls and capabilities that are left to a backend's process |
//! | [`stats`] | counters, and a histogram of latencies |
//! | [`vbd`] | a disk as a toolstack adds it |
//! | `bin/xen-blockd` | the program that serves the guests of a Xen host, or of a hosted one |
//! | `sys`, `vectors` | system calls on guests' pages; with `unsafe`, as the few others that `tidy`
//! lists |

pub mod back;
pub mod disk;
pub mod filter;
pub mod front;
pub mod stats;
mod sys;
pub mod vbd;
mod vectors;

pub use back::{BlockBackend, BlockServer};
pub use front::BlockFrontend;
pub use xen_driver::backend::pages::RequestPage;
