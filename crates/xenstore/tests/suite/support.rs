//! The daemons of the conformance suite's harness, and a folder for each test. Where Debian's packages
//! are not to be had a test says so in one line and passes; with `CI=true` it fails.

#![allow(dead_code, reason = "each test file uses a part of this")]

use conformance::Kind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use xenstore::Client;

/// Longest wait for anything that a daemon does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Debian's programs, unpacked but not installed, and the daemons.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peers(&'static conformance::Peers);

impl Peers {
    /// The peers, or `None` with a line on stderr.
    pub(crate) fn find() -> Option<Self> {
        match conformance::Peers::get() {
            Ok(peers) => Some(Self(peers)),
            Err(why) => {
                let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!ci, "Debian's packages are not to be had: {why}");
                eprintln!("skipped: Debian's packages are not to be had: {why}");
                None
            }
        }
    }

    /// The folder of `xenstore-read` and so on.
    pub(crate) fn tools(&self) -> PathBuf {
        self.0.root().join("usr/bin")
    }

    /// The folder of the daemons and of `xenstore-control`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.0.root().join("usr/lib/xen-4.17/bin")
    }

    /// What LD_LIBRARY_PATH must be for Debian's programs.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.0.root().join("usr/lib/x86_64-linux-gnu")
    }

    /// Starts C's daemon.
    pub(crate) fn c(&self) -> Daemon {
        self.c_with(&[])
    }

    /// Starts C's daemon with more arguments.
    pub(crate) fn c_with(&self, args: &[&str]) -> Daemon {
        let args = args.iter().map(Into::into).collect();
        Daemon::start(Kind::C, conformance::Options { args, ..Default::default() })
    }

    /// Starts oxenstored, without its access log.
    pub(crate) fn oxenstored(&self) -> Daemon {
        Daemon::start(Kind::OCaml, conformance::Options::default())
    }

    /// Starts our daemon.
    pub(crate) fn ours(&self) -> Daemon {
        Daemon::start(Kind::Ours, conformance::Options::default())
    }
}

/// A folder that goes with the test.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A fresh one; short, as the path of a socket must be.
    pub(crate) fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xs-{name}-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running daemon; ends with the test.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Option<conformance::Daemon>,
    /// Its socket.
    pub(crate) socket: PathBuf,
}

impl Daemon {
    fn start(kind: Kind, options: conformance::Options) -> Self {
        let options = conformance::Options { everybody: true, ..options };
        let running = conformance::Daemon::start_with(kind, &options).unwrap();
        let socket = running.socket();
        Self { running: Some(running), socket }
    }

    /// A connection to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    /// Whether this is ours, which knows more than Debian's.
    pub(crate) fn is_ours(&self) -> bool {
        self.running.as_ref().is_some_and(|daemon| daemon.kind() == Kind::Ours)
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.running = None;
    }
}
