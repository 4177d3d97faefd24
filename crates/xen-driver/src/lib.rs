//! The skeleton of split drivers: all of a backend and of its process that is not its device type.
//!
//! The promise: this crate knows no device type. One guest's rings, nodes and events cost that guest alone, whatever
//! is in them; a backend that is killed and started again goes on where it was.
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | the trait of a backend, the loop that serves all devices of a domain, rings and their takeover, guests' pages, limits of rates, times |
//! | [`frontend`] | all devices of a guest over one store connection, their rings and the pages for their data |
//! | [`channel`] | an event channel of a device, of either end |
//! | [`process`] | the program of a backend: the platform, locks, the log, the statistics |

pub mod backend;
pub mod channel;
pub mod frontend;
pub mod process;

pub use backend::{Backend, BackendServer};
pub use channel::Channel;
pub use frontend::{Guest, GuestDevices};
