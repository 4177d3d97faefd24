//! The remains of a boot.

use super::lab::StoreDaemon;
use std::path::PathBuf;
use std::time::Duration;

/// The extent of a boot that has run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BootExtent {
    /// All its steps.
    Whole,
    /// The steps that `--only` names.
    Part,
}

/// The remains of a boot.
pub(crate) struct Outcome {
    /// The daemon that it tried.
    pub(crate) store: StoreDaemon,
    /// The boot's name.
    pub(crate) boot: &'static str,
    /// The steps that should have run.
    pub(crate) expected: Vec<String>,
    /// Whole if these are all steps of the boot.
    pub(crate) extent: BootExtent,
    /// The folder of dom0's files, with the console's log.
    pub(crate) results: PathBuf,
    /// The duration, or none if it was not booted now.
    pub(crate) took: Option<Duration>,
    /// The failure of QEMU, if it did not end well.
    pub(crate) fault: Option<String>,
    /// The faults of the disks that guests have used.
    pub(crate) disk_faults: Vec<String>,
    /// The first try, if that lost a guest.
    pub(crate) first: Option<Box<FirstTry>>,
}

/// A try that lost a guest, and was followed by another.
pub(crate) struct FirstTry {
    /// The guest, and the step that missed it.
    pub(crate) lost: LostGuest,
    /// The folder of its remains.
    pub(crate) results: PathBuf,
}

impl Outcome {
    /// Returns the daemon and the boot, as in `ours-sysv`.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.store.name(), self.boot)
    }
}

/// A guest that did not start, crashed or fell silent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LostGuest {
    /// The step that missed it.
    pub(crate) step: String,
    /// The step's last words: the guest, and the action that is missing.
    pub(crate) why: String,
}
