//! The toolstack: domains and their devices, as a library and as the command line `xb` over it.
//!
//! The guarantee: every operation is finished or undone, and every refusal is a sentence that names
//! the next step. A hosted host (domains are processes) and a Xen host have the same calls, as far
//! as the latter allows them: domains of Xen are created by `xl`.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | `xl.cfg`, TOML, disk strings, and the description of a domain that they lead to |
//! | [`host`] | the host that is worked on; the folder and the daemons of a hosted one |
//! | [`domain`] | domains: found, listed, asked to end |
//! | [`devices`] | their devices, of any kind; disks |
//! | [`doctor`] | the diagnosis of devices that do not work |
//! | [`lifecycle`] | guests: created with their devices, followed over restarts, taken down |
//! | [`top`] | what domains do, turn after turn |
//! | [`devd`] | the supervisor of backends: they are started again, and their devices' scripts are run |
//! | [`keeper`] | the process that acts when guests end |
//! | [`guest`] | the built-in guest init |
//! | [`wait`] | waiting, with an end and with Ctrl-C |
//! | [`cli`] | the command line |
//! | [`text`] | words for people |

pub mod cli;
pub mod config;
pub mod devd;
pub mod devices;
pub mod doctor;
pub mod domain;
mod error;
pub mod guest;
pub mod host;
pub mod keeper;
pub mod lifecycle;
mod terminal;
pub mod text;
pub mod top;
pub mod wait;

pub use error::Error;
