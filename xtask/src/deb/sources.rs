//! The origin of everything that goes into packages.

use super::notices::LicenseNotices;
use crate::Result;
use crate::command::output;
use crate::workspace::Workspace;
use std::path::PathBuf;
use std::process::Command;

/// The origin of everything that goes into packages.
pub(super) struct PackageSources {
    /// The workspace's root.
    pub(super) root: PathBuf,
    /// The folder of cargo's programs.
    pub(super) programs: PathBuf,
    /// The version of all packages.
    pub(super) version: String,
    /// Debian's name of this machine's architecture.
    pub(super) architecture: String,
    /// The licences.
    pub(super) notices: LicenseNotices,
}

impl PackageSources {
    /// Collects all but the programs, which cargo has built in `programs`.
    pub(super) fn collect(workspace: Workspace, programs: PathBuf) -> Result<Self> {
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        Ok(Self {
            programs,
            version: version(&workspace)?,
            architecture: architecture.trim().to_owned(),
            notices: LicenseNotices::collect()?,
            root: workspace.root,
        })
    }
}

/// Returns the version of the workspace with the time and the name of the commit, so that a package
/// of a later commit is an upgrade. An unpacked archive of the sources has no commit.
fn version(workspace: &Workspace) -> Result<String> {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%cd.%h", "--date=format-local:%Y%m%d%H%M%S"]);
    let version = &workspace.version;
    if !workspace.root.join(".git").exists() {
        return Ok(version.clone());
    }
    let commit = output(log.env("TZ", "UTC").current_dir(&workspace.root))?;
    Ok(format!("{version}+{}", commit.trim()))
}
