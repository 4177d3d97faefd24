//! The state of the loop besides the core. The core borrows it as its `Host` for each request.

use crate::connection::{ConnectionClass, Connections};
use crate::domain::DomainChannels;
use crate::fairness::{Demand, ReadyQueues};
use crate::stats::Stats;
use crate::trace::{MessagePeer, TraceFile};
use daemon::{Level, Log};
use rustix::fd::OwnedFd;
use std::path::PathBuf;
use xenstore_core::server::{ConnId, DomId};

/// Connections, queues, platform, counters, log and trace.
pub(crate) struct DaemonIo {
    pub(crate) connections: Connections,
    pub(crate) epoll: OwnedFd,
    pub(crate) ready: ReadyQueues,
    pub(crate) domains: Option<DomainChannels>,
    pub(crate) stats: Stats,
    pub(crate) trace: TraceFile,
    pub(crate) log: Log,
    pub(crate) root_dir: PathBuf,
    pub(crate) store_domain: DomId,
    pub(crate) priv_domain: DomId,
    /// The time of the current round in microseconds since the start.
    pub(crate) now: u64,
    /// True if the lack of descriptors was logged. It is logged once.
    pub(crate) exhaustion_logged: bool,
}

impl DaemonIo {
    /// Queues the connection for a turn.
    pub(crate) fn enqueue(&mut self, id: ConnId, demand: Demand) {
        if let Some(connection) = self.connections.get(id)
            && !connection.queued
        {
            connection.queued = true;
            let class: ConnectionClass = connection.class;
            self.ready.push(class, demand, id);
        }
    }

    /// Writes a line to the trace about a connection that opens or closes.
    pub(crate) fn trace_object(&mut self, what: &str, id: ConnId, detail: &str) {
        if let Some(connection) = self.connections.get(id) {
            let peer = MessagePeer { conn: id.0, domid: connection.domid };
            self.trace.object(what, peer, detail);
        }
    }

    /// Opens the trace file (again). If that fails the daemon goes on without it.
    pub(crate) fn reopen_trace(&mut self) {
        if let Err(error) = self.trace.reopen() {
            let path = self.trace.path().map(|path| path.display().to_string()).unwrap_or_default();
            let text =
                format!("the trace file {path} cannot be opened: {error}; nothing is traced");
            self.log.line(Level::Warn, "", &text);
        }
    }

    pub(crate) fn class_of(&self, domid: DomId) -> ConnectionClass {
        if domid == self.store_domain || domid == self.priv_domain {
            ConnectionClass::Privileged
        } else {
            ConnectionClass::Guest
        }
    }
}
