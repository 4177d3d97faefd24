//! The daemons of the conformance suite's harness, and a folder for each test. If Debian's packages
//! are missing, a test prints one line and passes; with `CI=true` it fails. If their version is
//! unknown, a test prints one line and tests this project's daemon alone.

#![allow(dead_code, reason = "each test file uses a part of this")]

use conformance::{DaemonKind, PeersPurpose};
use std::path::PathBuf;
use std::time::Duration;
use xenstore::Client;

/// The longest wait for any action of a daemon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Debian's programs, unpacked but not installed, and the daemons.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DebianPeers(&'static conformance::Peers);

impl DebianPeers {
    /// Returns the peers to compare with, or `None` after a line on stderr.
    pub(crate) fn find() -> Option<Self> {
        conformance::Peers::find("Debian's packages", PeersPurpose::Comparison).map(Self)
    }

    /// Returns the folder of `xenstore-read` and so on.
    pub(crate) fn tools(&self) -> PathBuf {
        self.0.root().join("usr/bin")
    }

    /// Returns the folder of the daemons and of `xenstore-control`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.0.root().join("usr/lib/xen-4.17/bin")
    }

    /// Returns the value of LD_LIBRARY_PATH for Debian's programs.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.0.root().join("usr/lib/x86_64-linux-gnu")
    }
}

/// Starts each available daemon of these kinds, one after the other. For an unavailable one it
/// prints the reason on stderr.
pub(crate) fn each(kinds: &[DaemonKind]) -> impl Iterator<Item = Daemon> {
    kinds.iter().filter_map(|kind| Daemon::start(*kind))
}

/// A running daemon, which ends with the test.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Option<conformance::Daemon>,
    /// The path of its socket.
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts a daemon to which all domains exist; oxenstored runs without its access log.
    pub(crate) fn start(kind: DaemonKind) -> Option<Self> {
        let options = conformance::Options { everybody: true, ..Default::default() };
        let running = conformance::Daemon::start_with(kind, &options)?;
        let socket = running.socket();
        Some(Self { running: Some(running), socket })
    }

    /// Connects to the daemon.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    /// True if this is the project's own daemon, which has requests beyond Debian's.
    pub(crate) fn is_ours(&self) -> bool {
        self.running.as_ref().is_some_and(|daemon| daemon.kind() == DaemonKind::Ours)
    }

    /// Ends the daemon at once.
    pub(crate) fn kill(&mut self) {
        self.running = None;
    }
}
