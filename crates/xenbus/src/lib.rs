//! The device model: frontends and backends find each other through the store, negotiate, connect,
//! close, and connect again.
//!
//! The promise: this crate knows no device type. What a peer writes into the store, in whatever order,
//! never makes it panic, work without an end, or do what [`state`]'s tables do not say; a move that
//! they do not allow becomes an error value in the device's `error` node.
//!
//! A driver implements [`Driver`], for either end; a [`Bus`] watches the store and calls it.
//! `docs/device-model.md` shows a whole device type, and is the tested example `tests/suite/greeter.rs`.
//!
//! | module | what it is |
//! |---|---|
//! | `side` | [`Side`]: the two ends of a device |
//! | [`state`] | the tables of legal moves: a pure function from states and event to action |
//! | [`path`] | where devices are in the store |
//! | [`driver`] | the trait of a driver |
//! | [`device`] | what a driver sees of its device: its nodes and the peer's |
//! | [`negotiate`] | rings, event channels, queues, as both ends name them |
//! | [`bus`] | finds devices by watches and takes them from state to state |
//! | [`toolstack`] | adding and removing a device, as `xl` does |
//! | [`error`] | [`Error`] |

pub mod bus;
pub mod device;
pub mod driver;
pub mod error;
pub mod negotiate;
pub mod path;
mod side;
pub mod state;
pub mod toolstack;

pub use bus::Bus;
pub use device::Device;
pub use driver::{Driver, Progress};
pub use error::Error;
pub use path::Id;
pub use side::Side;
pub use xen_io::xenbus::State;

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
