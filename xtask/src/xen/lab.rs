//! The place of the lab, the daemon that it tries, and the way in which it tells its progress.

use crate::Result;
use crate::workspace::Workspace;
use std::path::PathBuf;

/// The daemon that is the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// This workspace's.
    Ours,
    /// Debian's, in C.
    C,
}

impl Store {
    /// As the command line and the results name it.
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
    /// The folder of what cargo builds for release.
    pub(crate) programs: PathBuf,
}

impl Lab {
    /// In the folder where cargo builds.
    pub(super) fn new() -> Result<Self> {
        let workspace = Workspace::load()?;
        Ok(Self {
            dir: workspace.target.join("xen-lab"),
            programs: workspace.target.join("release"),
            project: workspace.root,
        })
    }

    /// The unpacked packages.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The recipes, and what runs in dom0 and in guests.
    pub(crate) fn recipes(&self) -> PathBuf {
        self.project.join("tests/xen")
    }
}

/// Progress goes to standard error, so that `--json` has standard output for itself.
pub(crate) fn say(what: &str) {
    eprintln!("xen: {what}");
}
