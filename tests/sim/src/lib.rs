//! A whole host in one thread: a simulated hypervisor, the real daemon, guests and a toolstack, under a
//! schedule and faults that one seed determines.
//!
//! The promise: a run is a function of its seed. A failure recurs under the same seed, and the last
//! steps are shown. The daemon is the very one that ships, stepped round by round
//! ([`xenstored::step::SteppedDaemon`]); the clock is a number.
//!
//! | module | contents |
//! |---|---|
//! | [`rng`] | the source of all choices |
//! | `page` | pages with several views; the only `unsafe` |
//! | [`hypervisor`] | domains, event channels, grants: all traits of `xen` |
//! | [`faults`] | the faults and their rates |
//! | `link`, `caller` | a connection to the daemon; a client that checks the replies |
//! | `model`, `watch_checker` | the possible replies to a guest; the events that its watches must get |
//! | `guest`, `hostile`, `toolstack` | the actors on the host |
//! | `plan` | the plan of a run, and its counts |
//! | `slot`, `life` | a domain's number; the next step of its life |
//! | `host`, `check` | the schedule; the checks |
//! | [`devices`] | the device model on such a host: backends, frontends, deaths at each call |
//! | `subject`, `verdict` | the kinds of runs; the verdict on one |
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
mod watch_checker;

pub use host::{NO_RING, config};
