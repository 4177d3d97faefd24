//! A hotplug script that runs: its environment is libxl's, its time has an end.
//!
//! Source: `docs/misc/block-scripts.txt` of Xen, and the environment that libxl's debug output shows.

use crate::host::process::DaemonProcess;
use crate::host::signs;
use crate::{Error, text};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The occasion on which a script is run, which is its argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ScriptAction {
    /// The device has been added.
    Add,
    /// The device is about to go.
    Remove,
}

impl ScriptAction {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

/// A script that runs.
#[derive(Debug)]
pub(super) struct ScriptRun {
    action: ScriptAction,
    child: Child,
    /// Its handle; `None` if it has ended before there could be one.
    process: Option<DaemonProcess>,
    within: Duration,
    ends_at: Instant,
}

impl ScriptRun {
    /// Runs a script for the device `backend/KIND/DOMAIN/NUMBER`, for at most so long.
    ///
    /// # Errors
    /// It cannot be run.
    pub(super) fn start(
        script: &Path,
        action: ScriptAction,
        (kind, device): (&str, &str),
        within: Duration,
    ) -> Result<Self, Error> {
        let mut command = Command::new(script);
        command.arg(action.word()).env("script", script);
        command.env("XENBUS_TYPE", kind).env("XENBUS_PATH", device);
        command.env("XENBUS_BASE_PATH", "backend");
        // Signs of life are the supervisor's own.
        signs::ask_for(&mut command, None);
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(Error::io(script.display()))?;
        let process = DaemonProcess::of(&child);
        Ok(Self { action, child, process, within, ends_at: Instant::now() + within })
    }

    /// Returns the occasion.
    pub(super) fn action(&self) -> ScriptAction {
        self.action
    }

    /// Returns its process, whose handle polls readable when it has ended.
    pub(super) fn process(&self) -> Option<&DaemonProcess> {
        self.process.as_ref()
    }

    /// Returns the time at which it is ended.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// Returns its outcome once it has ended; it is ended, with all processes of its group, when its
    /// time is over.
    pub(super) fn take_outcome(&mut self, now: Instant) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(None) if now < self.ends_at => None,
            Ok(None) => {
                self.end();
                Some(Err(format!(
                    "it has not ended within {}, and was killed",
                    text::took(self.within)
                )))
            }
            Ok(Some(status)) if status.success() => Some(Ok(())),
            Ok(Some(status)) => Some(Err(status.to_string())),
            Err(error) => Some(Err(text::cause(&error))),
        }
    }

    /// Ends it with all processes of its group.
    fn end(&mut self) {
        // Its number is not reused before it is waited for.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for ScriptRun {
    /// A script whose device or supervisor is gone does not go on by itself.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}
