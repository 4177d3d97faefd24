//! The daemon as a value: the program's loop, run one round at a time with the clock of its owner.
//! It has no process of its own: no listening socket, no signals, no pid file, no filter.
//!
//! A simulation of a whole host in one thread needs it. The program itself does not use it.

use crate::config::{Config, Switch};
use crate::event_loop::EventLoop;
use crate::{Clock, Error, Platform, set_up};
use daemon::Log;
use rustix::event::Timespec;
use std::os::fd::OwnedFd;

/// A daemon that does nothing until it is stepped.
pub struct SteppedDaemon {
    event_loop: EventLoop,
}

impl SteppedDaemon {
    /// Sets the daemon up, and serves the own domain's ring if `config` selects that.
    ///
    /// # Errors
    /// [`Error::Start`], as for [`crate::run`].
    pub fn new(config: &Config, platform: Platform, clock: Clock, log: Log) -> Result<Self, Error> {
        let mut event_loop = set_up(config, Some(platform), log, None, clock)?;
        if config.own_ring == Switch::On {
            event_loop.introduce_own_domain()?;
        }
        Ok(Self { event_loop })
    }

    /// Adds a client of domain 0. `socket` is the daemon's end of a stream socket.
    pub fn connect(&mut self, socket: OwnedFd) {
        self.event_loop.add_client(socket);
    }

    /// Runs one round of the loop with the connections that are ready now. Never waits.
    ///
    /// # Errors
    /// [`Error::Run`] if the machine fails. The daemon must not be stepped any more then.
    pub fn step(&mut self) -> Result<(), Error> {
        self.event_loop.round(Some(Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// Returns the time of the clock at which the next round is due without any event: 0 for at
    /// once, `None` if nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.event_loop.deadline()
    }
}
