//! The surroundings of a daemon's loop: the start in the background, readiness, the pid file, and
//! signals.
//!
//! The promise: a starter that waits learns if the daemon serves, and a pid file names a process
//! that runs. The crate knows no daemon. Its user says the names, the paths and the order of the
//! steps.
//!
//! | module | contents |
//! |---|---|
//! | `background` | [`BackgroundStart`]: the child that serves, and the parent that waits for it |
//! | [`service`] | [`sd_notify`]: readiness, told to systemd; [`LifeSigns`]: signs of life |
//! | `log` | [`Log`]: lines on standard error or in syslog, so many about each domain |
//! | `pid_file` | [`PidFile`]: the pid of the running daemon, and its lock |
//! | `parents` | [`create_parents`]: the directories of its files |
//! | `signals` | [`SignalSockets`]: SIGTERM, SIGINT and SIGHUP as descriptors |
//! | `error` | [`Error`] |

mod background;
mod error;
mod log;
mod parents;
mod pid_file;
pub mod service;
mod signals;

pub use background::{BackgroundStart, leave_session};
pub use error::Error;
pub use log::{Level, Log, connect_syslog};
pub use parents::create_parents;
pub use pid_file::PidFile;
pub use service::{LifeSigns, sd_notify};
pub use signals::SignalSockets;
