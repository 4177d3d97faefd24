//! A whole host in one thread: a simulated hypervisor, the real daemon, guests and a toolstack, under a
//! schedule and faults that one seed determines.
//!
//! The promise: a run is a function of its seed. What fails, fails again under the same seed, and
//! what was done last is shown. The daemon is the very one that ships, stepped round by round
//! ([`xenstored::step::Daemon`]); the clock is a number.
//!
//! | module | what it is |
//! |---|---|
//! | [`rng`] | where all choices come from |
//! | `page` | pages with several views; the only `unsafe` |
//! | [`hypervisor`] | domains, event channels, grants: all traits of `xen` |
//! | [`faults`] | what goes wrong, how often |
//! | `link`, `caller` | the way to the daemon; a client machine that checks the order of its replies |
//! | `model`, `watching` | what a guest may be answered; what its watches must be told |
//! | `guest`, `hostile`, `toolstack` | who runs on the host |
//! | `plan` | what a run is to be, and what came of it |
//! | `slot`, `life` | a domain's number; what becomes of it next |
//! | `host`, `check` | the schedule; what must hold |
//! | [`devices`] | the device model on such a host: backends, frontends, deaths at each call |
//! | `subject`, `verdict` | the kinds of runs; whether one holds |
//! | [`run`](mod@run) | one run, from its seed to its verdict |

mod caller;
mod check;
pub mod devices;
pub mod faults;
mod guest;
mod host;
mod hostile;
pub mod hypervisor;
mod life;
mod link;
mod model;
mod page;
mod plan;
pub mod rng;
pub mod run;
mod slot;
mod subject;
mod toolstack;
mod verdict;
mod watching;

pub use host::{NO_RING, config};
