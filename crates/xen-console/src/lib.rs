//! Consoles of domains: both ends, and the daemon that logs and serves them.
//!
//! The promise: the index of a guest's ring moves, and bytes leave its FIFO, only after they are in the
//! log and in the backlog, so a daemon that is killed has lost nothing. A full disk costs the log,
//! never the guest.
//!
//! | module | what it is |
//! |---|---|
//! | [`backlog`] | the newest output of a console, for readers that each have their own place |
//! | [`bus_front`] | the frontend of a guest's further consoles and channels |
//! | [`client`] | a client of a console, for programs that show it |
//! | [`feed`] | the way of output from the ring and the FIFO into the log and the backlog |
//! | [`fifo`] | the FIFO that a hosted guest prints into |
//! | [`filter`] | the system calls that the daemon keeps |
//! | [`front`] | the frontend: bytes between a guest's ring and a terminal of its own |
//! | [`hypervisor`] | the log of the hypervisor's own console, which another process reads |
//! | [`options`] | the command line of `xenconsoled` |
//! | [`program`] | the program `xenconsoled` |
//! | [`pty`] | the pseudoterminal of a console |
//! | [`record`] | how much of the ring is in the log, for a daemon that is started again |
//! | [`serve`] | the daemon's work: consoles found in the store, and each served |
//! | [`service`] | the socket for clients, each at its own place in the output |
//! | [`log`] | the log of a console, bounded in size, with an index of times and lives |

pub mod backlog;
pub mod bus_front;
pub mod client;
pub mod feed;
pub mod fifo;
pub mod filter;
pub mod front;
pub mod hypervisor;
pub mod log;
pub mod options;
pub mod program;
pub mod pty;
pub mod record;
pub mod serve;
pub mod service;
