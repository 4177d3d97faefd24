//! The place where backends run: domain 0 of a hosted host, or a driver domain of Xen.

use super::refusal::SupervisorRefusal;
use crate::Error;
use crate::host::bring::StartLock;
use crate::host::daemons::HostDaemon;
use crate::host::folder::Folder;
use crate::host::process::DaemonProcess;
use crate::host::{programs, service, signs};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use xen_hosted::domain::PROGRAMS;
use xen_hosted::{PROCESS_BY_INPUT, PROCESS_VARIABLE};
use xen_linux::Machine;

/// The folder of the supervisor of a driver domain.
const RUN: &str = "/run/xb-devd";
/// The folder of the supervisor of a hosted guest, whose `/run` does not exist.
const GUEST_RUN: &str = "/tmp/devd";
/// The socket of the store in a hosted guest.
pub(crate) const GUEST_STORE: &str = "/tmp/store";
/// The variable by which a backend keeps its privileges.
const UNFILTERED: &str = "XEN_BLOCKD_UNFILTERED";
/// The program that tells the state of a unit.
const SYSTEMCTL: &str = "systemctl";
/// The states of a unit in which systemd starts its program again.
const HELD_STATES: [&str; 4] = ["active", "activating", "reloading", "deactivating"];

/// The place where backends run.
#[derive(Clone, Debug)]
pub(crate) enum BackendPlace {
    /// Domain 0 of a hosted host.
    Hosted(Folder),
    /// A driver domain of Xen: this machine.
    DriverDomain,
    /// A driver domain of a hosted host: the guest whose first process this is.
    HostedGuest(xen_hosted::Platform),
}

/// The result of an attempt to start a backend.
#[derive(Debug)]
pub(super) enum BackendStart {
    /// Another process starts daemons at this moment.
    Busy,
    /// Another process has started it.
    Found(DaemonProcess),
    /// It was started.
    Spawned(Child),
}

impl BackendPlace {
    /// Returns the place that a command means: the hosted host that it names, else this machine.
    ///
    /// # Errors
    /// This machine is no driver domain.
    pub(crate) fn of(named: Option<&Path>, machine: Machine) -> Result<Self, SupervisorRefusal> {
        match (named, machine) {
            (Some(folder), _) => Ok(Self::Hosted(Folder::new(folder))),
            (None, Machine::Guest) => Ok(Self::DriverDomain),
            (None, Machine::Control) => Err(SupervisorRefusal::ControlDomain),
            (None, _) => Err(SupervisorRefusal::NoDomain),
        }
    }

    /// Returns the folder of sockets and locks, which exists.
    fn run(&self) -> Result<PathBuf, Error> {
        match self {
            Self::Hosted(folder) => Ok(folder.run()),
            Self::DriverDomain => make(RUN),
            Self::HostedGuest(_) => make(GUEST_RUN),
        }
    }

    /// Makes this the only supervisor of the place, as long as the file is open.
    ///
    /// # Errors
    /// [`Error::Refused`]: there is another one.
    pub(super) fn claim(&self) -> Result<File, Error> {
        let path = self.run()?.join("devd.lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Refused(format!(
                "another xb devd runs here ({} is locked); end that one first",
                path.display()
            ))),
            Err(errno) => Err(Error::io(path.display())(errno.into())),
        }
    }

    /// Returns the path of the socket where a backend's signs of life are heard.
    pub(super) fn signs(&self, daemon: &HostDaemon) -> Result<PathBuf, Error> {
        match self {
            Self::Hosted(folder) => Ok(folder.signs(daemon.name())),
            Self::DriverDomain | Self::HostedGuest(_) => {
                Ok(self.run()?.join(format!("{}.notify", daemon.name())))
            }
        }
    }

    /// Returns the process of a backend, whoever has started it.
    pub(super) fn running(&self, daemon: &HostDaemon) -> Option<DaemonProcess> {
        match self {
            Self::Hosted(folder) => daemon.running(folder),
            Self::DriverDomain => {
                let locks = daemon.kinds().iter().map(|kind| service::kind_lock(kind));
                locks.filter_map(|lock| service::lock_holder(&lock)).find_map(DaemonProcess::open)
            }
            // Its first process starts all others.
            Self::HostedGuest(_) => None,
        }
    }

    /// True if systemd starts a backend again.
    pub(super) fn is_left_to_systemd(&self, daemon: &HostDaemon) -> bool {
        let Self::DriverDomain = self else { return false };
        is_held(Path::new(SYSTEMCTL), &format!("{}.service", daemon.name()))
    }

    /// Starts a backend, unless it runs.
    pub(super) fn start(&self, daemon: &HostDaemon) -> Result<BackendStart, Error> {
        if let Some(process) = self.running(daemon) {
            return Ok(BackendStart::Found(process));
        }
        let _lock = match self {
            Self::Hosted(folder) => match StartLock::try_take(folder)? {
                Some(lock) => Some(lock),
                None => return Ok(BackendStart::Busy),
            },
            Self::DriverDomain | Self::HostedGuest(_) => None,
        };
        // Whoever had the lock may have started it.
        if let Some(process) = self.running(daemon) {
            return Ok(BackendStart::Found(process));
        }
        match self {
            Self::Hosted(folder) => daemon.spawn(folder).map(BackendStart::Spawned),
            Self::DriverDomain => {
                let mut command = Command::new(programs::find(daemon.program())?);
                signs::ask_for(&mut command, Some(self.signs(daemon)?));
                command.current_dir("/").stdin(Stdio::null()).process_group(0);
                let spawned = command.spawn().map_err(Error::io(daemon.name()));
                spawned.map(BackendStart::Spawned)
            }
            Self::HostedGuest(platform) => {
                let connection = platform
                    .connect_process()
                    .map_err(Error::platform(format!("connecting {}", daemon.name())))?;
                let mut command = Command::new(Path::new(PROGRAMS).join(daemon.name()));
                signs::ask_for(&mut command, Some(self.signs(daemon)?));
                command.env(PROCESS_VARIABLE, PROCESS_BY_INPUT).env("XENSTORED_PATH", GUEST_STORE);
                // The sandbox has a filter of its own, and leaves it no privilege to give up.
                command.env(UNFILTERED, "1");
                for variable in xen_hosted::descriptors::VARIABLES {
                    command.env_remove(variable);
                }
                command.current_dir("/").stdin(connection).process_group(0);
                let spawned = command.spawn().map_err(Error::io(daemon.name()));
                spawned.map(BackendStart::Spawned)
            }
        }
    }

    /// Returns the words that lead to a backend's log.
    pub(super) fn log_words(&self, daemon: &HostDaemon) -> String {
        match self {
            Self::Hosted(folder) => format!("{} says more", daemon.log(folder).display()),
            Self::DriverDomain => "its journal says more (journalctl)".into(),
            Self::HostedGuest(_) => "what the domain prints says more".into(),
        }
    }

    /// Returns the kinds that are served here while `daemon` serves: its own that it has, and those
    /// of the kernel.
    pub(super) fn kinds(&self, daemon: &HostDaemon) -> Vec<String> {
        let own = daemon.kinds().iter().map(|kind| (*kind).to_owned());
        match self {
            Self::Hosted(_) | Self::HostedGuest(_) => own.collect(),
            Self::DriverDomain => own
                .filter(|kind| service::lock_holder(&service::kind_lock(kind)).is_some())
                .collect(),
        }
    }

    /// Returns the kinds that drivers of this kernel serve.
    pub(super) fn kernel_kinds(&self) -> Vec<String> {
        match self {
            Self::Hosted(_) | Self::HostedGuest(_) => Vec::new(),
            Self::DriverDomain => kernel_kinds(Path::new(service::KERNEL_BACKENDS)),
        }
    }
}

/// True if a unit is one that systemd starts again; without a systemd none is.
fn is_held(systemctl: &Path, unit: &str) -> bool {
    let mut command = Command::new(systemctl);
    command.args(["show", "--property=ActiveState", "--value", unit]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| {
        let state = String::from_utf8_lossy(&output.stdout);
        HELD_STATES.contains(&state.trim())
    })
}

/// Makes a folder for this user alone.
fn make(folder: &str) -> Result<PathBuf, Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map(|()| folder.into()).map_err(Error::io(folder))
}

/// Lists the drivers in a folder.
fn kernel_kinds(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut kinds: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    kinds.sort();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_no_driver_domain_is_told_what_to_do() {
        let of = |machine| BackendPlace::of(None, machine);
        assert!(matches!(of(Machine::Guest), Ok(BackendPlace::DriverDomain)));
        assert_eq!(of(Machine::Control).err(), Some(SupervisorRefusal::ControlDomain));
        assert_eq!(of(Machine::Bare).err(), Some(SupervisorRefusal::NoDomain));
        let said = SupervisorRefusal::ControlDomain.to_string();
        assert!(said.contains("this is domain 0 of a Xen host"), "{said}");
        let said = SupervisorRefusal::NoDomain.to_string();
        assert!(
            said.contains("this machine is no domain") && said.contains("xb host up"),
            "{said}"
        );
        // A named host is meant wherever this is.
        let named = BackendPlace::of(Some(Path::new("/h")), Machine::Control);
        assert!(matches!(named, Ok(BackendPlace::Hosted(folder)) if folder.path() == "/h"));
    }

    #[test]
    fn a_unit_that_systemd_starts_again_is_left_to_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let systemctl = folder.path().join("systemctl");
        let says = |state: &str| {
            let script = format!("#!/bin/sh\n[ \"$4\" = a.service ] && echo {state}\n");
            std::fs::write(&systemctl, script).unwrap();
            std::fs::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
            is_held(&systemctl, "a.service")
        };
        assert!(["active", "activating", "reloading"].into_iter().all(says));
        assert!(!["inactive", "failed", "\"\""].into_iter().any(says));
        assert!(!is_held(&folder.path().join("none"), "a.service"));
    }

    #[test]
    fn the_kernels_backends_are_its_drivers() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kernel_kinds(&folder.path().join("none")), [""; 0]);
        for kind in ["vif", "vbd"] {
            std::fs::create_dir(folder.path().join(kind)).unwrap();
        }
        assert_eq!(kernel_kinds(folder.path()), ["vbd", "vif"]);
    }
}
