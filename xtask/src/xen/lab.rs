//! The place of the lab, the daemon under test, and the progress messages.

use crate::Result;
use crate::workspace::Workspace;
use std::path::PathBuf;

/// The daemon that serves the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreDaemon {
    /// This workspace's.
    Ours,
    /// Debian's, in C.
    C,
}

impl StoreDaemon {
    /// Returns its name on the command line and in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::C => "c",
        }
    }
}

/// The places of the lab's files.
pub(crate) struct Lab {
    /// The workspace's root.
    pub(crate) project: PathBuf,
    /// `target/xen-lab`.
    pub(crate) dir: PathBuf,
    /// The folder of cargo's release builds.
    pub(crate) programs: PathBuf,
}

impl Lab {
    /// Returns the lab in the folder where cargo builds.
    pub(super) fn new() -> Result<Self> {
        let workspace = Workspace::load()?;
        Ok(Self {
            dir: workspace.target.join("xen-lab"),
            programs: workspace.target.join("release"),
            project: workspace.root,
        })
    }

    /// Returns the root of the unpacked packages.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Returns the folder of the recipes and of the scripts of dom0 and of guests.
    pub(crate) fn recipes(&self) -> PathBuf {
        self.project.join("tests/xen")
    }
}

/// Prints progress to standard error, so that `--json` has standard output for itself.
pub(crate) fn say(what: &str) {
    eprintln!("xen: {what}");
}
