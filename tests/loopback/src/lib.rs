//! A platform for tests within one process: both ends of a device in one thread, or in two.
//!
//! The promise: event channels and grants answer as Xen's do, for as many domains as a test wants, and
//! what a domain has mapped or offered can be counted.
//!
//! | module | what it is |
//! |---|---|
//! | [`evtchn`] | event channels: a table, and an eventfd for each holder |
//! | [`gnttab`] | grants of pages of this process |
//! | `host` | the hypervisor, with all that domains hold |
//! | `port`, `frame` | a port and its holder; a page that is granted, the only module with `unsafe` |

pub mod evtchn;
mod frame;
pub mod gnttab;
mod host;
mod port;

pub use host::Host;
