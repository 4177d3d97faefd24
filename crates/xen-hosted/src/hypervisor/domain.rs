//! A domain: its stage of life, its process, the requests to that.

use super::connections::{FuseConnection, FuseConnections};
use super::poll::PeerId;
use super::remains::ProcessIdentity;
use super::say::say;
use crate::domain::DomainConfig;
use crate::domain::cgroup::Group;
use crate::errno::from_errno;
use crate::proto::{self, BrokerMessage};
use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use std::os::fd::{AsFd, OwnedFd};
use xen::domctl::{DomainInfo, RunState, Scheduling};
use xen::domwatch::ShutdownReason;
use xen::{DomId, Error};

/// A stage of a domain's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Its process sets up the sandbox; its creator waits for the answer.
    Building { creator: PeerId },
    /// It has never run.
    Built,
    /// It runs, paused or not.
    Running,
    /// It has ended by itself, or was shut down.
    Shutdown(ShutdownReason),
    /// It was destroyed; its process has not ended yet.
    Dying,
    /// It is gone; its number waits for its successor ([`Domain::awaited_by`]).
    Vacant,
    /// It is gone; its number is not reused while somebody names it.
    Dead,
}

/// A domain's first process.
pub(super) struct Process {
    /// The process's number, which is not reused before it was waited for.
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// The socket of its set-up, until its program runs.
    pub(super) setup: Option<OwnedFd>,
    /// The identity by which it is noted, once it is.
    pub(super) process_identity: Option<ProcessIdentity>,
    /// Its connection to FUSE, if it serves files.
    pub(super) connection: Option<FuseConnection>,
}

/// One domain.
pub(super) struct Domain {
    /// The identity that differs from that of others of its number; never 0.
    pub(super) identity: u64,
    pub(super) config: DomainConfig,
    pub(super) scheduling: Scheduling,
    pub(super) stage: Stage,
    pub(super) paused: bool,
    /// The connection that it ends with.
    pub(super) holder: Option<PeerId>,
    /// The connection that is to create its successor. While there is one, others' arenas for it
    /// stay.
    pub(super) awaited_by: Option<PeerId>,
    /// The memory that its successor gets after it.
    pub(super) keepsake: Option<OwnedFd>,
    pub(super) process: Option<Process>,
    pub(super) group: Option<Group>,
    /// Its own connection; domain 0 has many, and none here.
    pub(super) peer: Option<PeerId>,
    /// The connections of its other processes.
    pub(super) processes: Vec<PeerId>,
    /// The number of ports of others that name it, and of mappings of its arenas. While there are
    /// any, its number is not given to another.
    pub(super) named: u64,
    /// The number of requests that it was refused.
    pub(super) refused: u64,
    /// The number of notifications that it sent over channels that are closed, as their receivers
    /// counted them.
    pub(super) notified_before: u64,
    pub(super) cpu_time_ns: u64,
}

impl Domain {
    pub(super) fn new(identity: u64, config: DomainConfig) -> Self {
        Self {
            identity,
            scheduling: Scheduling { weight: config.weight, cap: config.cap },
            config,
            stage: Stage::Running,
            paused: false,
            holder: None,
            awaited_by: None,
            keepsake: None,
            process: None,
            group: None,
            peer: None,
            processes: Vec::new(),
            named: 0,
            refused: 0,
            notified_before: 0,
            cpu_time_ns: 0,
        }
    }

    /// Returns all connections of a guest.
    pub(super) fn connections(&self) -> impl Iterator<Item = PeerId> {
        self.peer.iter().chain(&self.processes).copied()
    }

    pub(super) fn run_state(&self) -> RunState {
        match self.stage {
            Stage::Shutdown(reason) => RunState::Shutdown(reason),
            Stage::Dying | Stage::Vacant | Stage::Dead => RunState::Dying,
            Stage::Building { .. } | Stage::Built => RunState::Paused,
            Stage::Running if self.paused => RunState::Paused,
            Stage::Running => RunState::Running,
        }
    }

    /// Returns its state and its use of resources. Its arenas count in full: its group has counted
    /// all of them but `untouched`.
    pub(super) fn info(&self, domid: DomId, untouched: u64) -> DomainInfo {
        let group = self.group.as_ref();
        let memory = group.and_then(Group::memory).unwrap_or(0);
        DomainInfo {
            domid,
            handle: self.config.handle,
            state: self.run_state(),
            memory_kib: memory.saturating_add(untouched) / 1024,
            memory_max_kib: self.config.memory_max_kib,
            vcpus_online: 1,
            vcpus: 1,
            activity: None,
            ssid: None,
            cpu_time_ns: group.and_then(Group::cpu_time_ns).unwrap_or(self.cpu_time_ns),
        }
    }

    /// Returns the memory that it may have, in bytes.
    pub(super) fn memory_max(&self) -> u64 {
        self.config.memory_max_kib.saturating_mul(1024)
    }

    /// Pauses it.
    ///
    /// # Errors
    /// The error of its group or its process.
    pub(super) fn pause(&mut self) -> Result<(), Error> {
        if self.stage != Stage::Running {
            return Ok(());
        }
        self.paused = true;
        self.freeze(true)
    }

    /// Stops or continues all processes, or only the first where there is no freezer.
    fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let group = self.group.as_ref().ok_or(Error::Srch)?;
        if !group.set_frozen(frozen)?
            && let Some(process) = &self.process
        {
            let signal = if frozen { Signal::STOP } else { Signal::CONT };
            pidfd_send_signal(&process.pidfd, signal).map_err(from_errno)?;
        }
        Ok(())
    }

    /// Runs its program, or continues it.
    ///
    /// # Errors
    /// [`Error::Inval`] where it is neither new nor paused, or the error of its group or its
    /// process.
    pub(super) fn unpause(&mut self) -> Result<(), Error> {
        match self.stage {
            Stage::Built => {
                let setup = self.process.as_ref().and_then(|process| process.setup.as_ref());
                let setup = setup.ok_or(Error::Srch)?;
                proto::send(setup.as_fd(), &BrokerMessage::Run.encode(), &[], SendFlags::DONTWAIT)
                    .map_err(from_errno)?;
                self.stage = Stage::Running;
            }
            Stage::Running if self.paused => {
                self.paused = false;
                self.freeze(false)?;
            }
            _ => return Err(Error::Inval),
        }
        Ok(())
    }

    /// Sets its share of the processors.
    ///
    /// # Errors
    /// [`Error::Inval`] without a weight, or the error of its group.
    pub(super) fn set_scheduling(&mut self, scheduling: Scheduling) -> Result<(), Error> {
        let Scheduling { weight, cap } = scheduling;
        if weight == 0 {
            return Err(Error::Inval);
        }
        let first = self.process.as_ref().map(|process| process.pid);
        if let Some(group) = &mut self.group {
            group.set_cpu(weight, cap, first)?;
        }
        self.scheduling = scheduling;
        Ok(())
    }

    /// Ends all its processes: the first is the init of their namespace.
    pub(super) fn kill(&self, domid: DomId, connections: &FuseConnections) {
        let Some(process) = &self.process else { return };
        if let Some(connection) = &process.connection
            && let Err(errno) = connections.end(connection)
        {
            say(&format!("domain {domid}: its connection to FUSE does not end: {errno}"));
        }
        let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        if self.paused
            && let Some(group) = &self.group
        {
            // A frozen process of version 1 does not die.
            let _ = group.set_frozen(false);
        }
    }
}
