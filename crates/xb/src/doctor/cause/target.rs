//! Causes of what a backend serves, and of its hotplug script.

use crate::devices::disk::FileUser;
use crate::doctor::subject::{FaultSubject, Remedy};
use crate::text;

/// A fault of the target or of the hotplug script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetFault {
    /// The target does not exist.
    Missing {
        /// The file.
        file: String,
    },
    /// The target cannot be opened.
    Refused {
        /// The file.
        file: String,
        /// The system's reason.
        why: String,
    },
    /// The target is in use.
    Busy {
        /// The target.
        target: String,
        /// Its users, as far as they are known.
        users: Vec<FileUser>,
    },
    /// The backend has given the device up for another reason.
    Failed {
        /// The backend's text.
        text: String,
    },
    /// The hotplug script has failed.
    ScriptFailed {
        /// The script's text, if there is one.
        text: Option<String>,
    },
    /// The hotplug script has not run.
    ScriptNeverRan {
        /// The script.
        script: String,
    },
}

impl TargetFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "target-missing",
            Self::Refused { .. } => "target-refused",
            Self::Busy { .. } => "target-busy",
            Self::Failed { .. } => "target-failed",
            Self::ScriptFailed { .. } => "script-failed",
            Self::ScriptNeverRan { .. } => "script-never-ran",
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Missing { file } => format!("{file} does not exist"),
            Self::Refused { file, why } => format!("{file} cannot be opened: {why}"),
            Self::Busy { target, users } if users.is_empty() => {
                let target = text::foreign(target);
                format!("{target} is in use by a process that this user may not see")
            }
            Self::Busy { target, users } => {
                let users: Vec<String> = users.iter().map(FileUser::words).collect();
                format!("{} is in use by {}", text::foreign(target), users.join(", "))
            }
            Self::Failed { text } => {
                format!("its backend has given it up: {}", text::foreign(text))
            }
            Self::ScriptFailed { text: None } => {
                "its hotplug script has failed, and does not say why".into()
            }
            Self::ScriptFailed { text: Some(text) } => {
                format!("its hotplug script has failed: {}", text::foreign(text))
            }
            Self::ScriptNeverRan { script } => format!("its hotplug script {script} has not run"),
        }
    }

    pub(super) fn remedy(&self, of: &FaultSubject) -> Remedy {
        match self {
            Self::Missing { .. } => of.detach("put it there, or take the device away with"),
            Self::Refused { file, .. } => {
                let file = text::shell_word(file);
                Remedy::new("see who may open it with", format!("ls -l {file}"))
            }
            Self::Busy { users, .. } => match users.first() {
                Some(FileUser::Disk { domain, vdev }) => {
                    let (domain, vdev) = (text::shell_word(domain), text::shell_word(vdev));
                    of.xb("take it away there with", &format!("disk detach {domain} {vdev}"))
                }
                Some(FileUser::Process { pid, .. }) => {
                    Remedy::new("see that process with", format!("ps -fp {pid}"))
                }
                None => Remedy::new("see all locks with", "sudo lslocks"),
            },
            Self::Failed { .. } => of.backend_log(),
            Self::ScriptFailed { .. } => of.detach("take it away and attach it again with"),
            Self::ScriptNeverRan { script } => {
                let (path, script) = (text::shell_word(&of.backend), text::shell_word(script));
                Remedy::new("run it with", format!("env XENBUS_PATH={path} {script} add"))
            }
        }
    }
}
