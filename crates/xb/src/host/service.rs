//! The processes that serve devices: found by the records of daemons and by the locks of what is
//! served, and known to run, to be stopped, or to be down.

use super::daemons::{self, CONSOLE, HostDaemon};
use super::folder::Folder;
use super::process::state_of;
use super::{Host, HostPlatform};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xen::DomId;
use xen::domctl::RunState;

/// The folder of `xen-blockd` on a Xen host, with its locks.
const BLOCK_RUN: &str = "/run/xen-blockd";
/// The drivers of backends in Linux, by the kinds that they serve.
pub(crate) const KERNEL_BACKENDS: &str = "/sys/bus/xen-backend/drivers";
/// The pid file of the console daemon on a Xen host.
const CONSOLE_PID: &str = "/run/xen/xenconsoled.pid";
/// The lock of our console daemon on a Xen host.
const CONSOLE_LOCK: &str = "/run/xenconsoled/console.lock";
/// The unit of systemd that starts it.
pub(crate) const CONSOLE_UNIT: &str = "xenbus-xenconsoled";
/// The socket of the console daemon on a Xen host.
const CONSOLE_SOCKET: &str = "/run/xenconsoled/socket";
/// The locks of all processes, see proc_locks(5).
const LOCKS: &str = "/proc/locks";

/// A service of a host, by its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceProcess {
    /// A process serves.
    Runs,
    /// The process with this number would serve, and is stopped, by SIGSTOP or a debugger.
    Stopped(Pid),
    /// No process serves.
    Down,
    /// A driver of this domain's kernel serves.
    Kernel,
    /// The driver domain that would serve does not run.
    DomainAway(DomainAbsence),
    /// This platform does not tell.
    Unknown,
}

/// The reason why a driver domain does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainAbsence {
    /// It does not exist.
    Gone,
    /// It has ended, and was not destroyed yet.
    Ended,
    /// It is paused.
    Paused,
}

impl DomainAbsence {
    /// Returns the words for it, as a predicate.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Gone => "is gone",
            Self::Ended => "has ended",
            Self::Paused => "is paused",
        }
    }
}

impl ServiceProcess {
    /// True if it is known that requests are not served now.
    #[must_use]
    pub fn is_away(self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Down | Self::DomainAway(_))
    }

    /// Returns the reason why nothing is served, for lists; `None` where it is served, or where
    /// that is not known.
    #[must_use]
    pub fn absence(self) -> Option<&'static str> {
        match self {
            Self::Down => Some("its backend is down"),
            Self::Stopped(_) => Some("its backend is stopped"),
            Self::DomainAway(DomainAbsence::Gone) => Some("its backend's domain is gone"),
            Self::DomainAway(DomainAbsence::Ended) => Some("its backend's domain has ended"),
            Self::DomainAway(DomainAbsence::Paused) => Some("its backend's domain is paused"),
            Self::Runs | Self::Kernel | Self::Unknown => None,
        }
    }

    fn of_process(pid: Pid) -> Self {
        match state_of(pid) {
            Some('T' | 't') => Self::Stopped(pid),
            Some('Z' | 'X') => Self::Down,
            _ => Self::Runs,
        }
    }

    /// Finds the process that holds a lock.
    fn of_lock(path: &Path) -> Self {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::Down,
            Err(_) => return Self::Unknown,
        };
        // A backend that starts at this moment tries again.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Self::Down,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                holder(&file).map_or(Self::Runs, Self::of_process)
            }
            Err(_) => Self::Unknown,
        }
    }
}

/// True if a driver of this kernel serves a kind.
pub(crate) fn is_of_kernel(kind: &str) -> bool {
    kernel_backend(kind).exists()
}

/// Returns the path of the lock of whoever serves a kind in a domain of Xen.
pub(crate) fn kind_lock(kind: &str) -> PathBuf {
    Path::new(BLOCK_RUN).join(format!("{kind}.lock"))
}

/// Returns the process that has locked the file at a path.
pub(crate) fn lock_holder(path: &Path) -> Option<Pid> {
    holder(&File::open(path).ok()?)
}

/// Returns the process that has locked a file with flock(2).
fn holder(file: &File) -> Option<Pid> {
    let data = file.metadata().ok()?;
    let (dev, inode) = (data.dev(), data.ino());
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let locks = std::fs::read_to_string(LOCKS).ok()?;
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, pid, of) = (fields.next()?, fields.nth(2)?, fields.next()?);
        let pid = (kind == "FLOCK" && of == wanted).then(|| pid.parse().ok())??;
        Pid::from_raw(pid)
    })
}

impl HostDaemon {
    /// Returns the process of this daemon of a hosted host.
    #[must_use]
    pub fn service(&self, folder: &Folder) -> ServiceProcess {
        match self.running(folder) {
            Some(process) => ServiceProcess::of_process(process.pid),
            // One that was started by other means than xb holds the locks of what it serves.
            None => match self.kinds().first() {
                Some(kind) => ServiceProcess::of_lock(&hosted_lock(folder, kind)),
                None => ServiceProcess::Down,
            },
        }
    }
}

fn hosted_lock(folder: &Folder, kind: &str) -> PathBuf {
    folder.broker().path().join(format!("{kind}.lock"))
}

/// Returns the path of a file or node that shows what [`of_backend`] returns: a pid file, a lock, a
/// folder of a kernel's driver, or the nodes of a driver domain.
#[must_use]
pub fn evidence_of(host: &Host, domid: DomId, kind: &str) -> PathBuf {
    if domid != DomId::DOM0 {
        return xenbus::path::home(domid).into();
    }
    match host.folder() {
        Some(folder) => match daemons::backend(kind) {
            Some(daemon) if daemon.running(folder).is_some() => daemon.pid_file(folder),
            _ => hosted_lock(folder, kind),
        },
        None => {
            let driver = kernel_backend(kind);
            if driver.exists() { driver } else { kind_lock(kind) }
        }
    }
}

fn kernel_backend(kind: &str) -> PathBuf {
    Path::new(KERNEL_BACKENDS).join(kind)
}

/// Returns the process that serves a kind of devices in a domain. Of a driver domain it is only
/// known if the domain runs.
#[must_use]
pub fn of_backend(host: &mut Host, domid: DomId, kind: &str) -> ServiceProcess {
    if domid != DomId::DOM0 {
        return of_driver_domain(host, domid);
    }
    match (&host.platform, daemons::backend(kind)) {
        (HostPlatform::Hosted { folder, .. }, Some(daemon)) => daemon.service(folder),
        (HostPlatform::Hosted { .. }, None) => ServiceProcess::Unknown,
        (HostPlatform::Xen(_), _) if kernel_backend(kind).exists() => ServiceProcess::Kernel,
        (HostPlatform::Xen(_), Some(_)) => {
            match ServiceProcess::of_lock(&kind_lock(kind)) {
                // QEMU serves it too, without a lock.
                ServiceProcess::Down if kind != "vbd" => ServiceProcess::Unknown,
                service => service,
            }
        }
        (HostPlatform::Xen(_), None) => ServiceProcess::Unknown,
    }
}

fn of_driver_domain(host: &mut Host, domid: DomId) -> ServiceProcess {
    ServiceProcess::DomainAway(match host.control().info(domid).map(|info| info.state) {
        Ok(RunState::Paused) => DomainAbsence::Paused,
        Ok(RunState::Shutdown(_)) => DomainAbsence::Ended,
        Err(xen::Error::Srch) | Ok(RunState::Dying) => DomainAbsence::Gone,
        _ => return ServiceProcess::Unknown,
    })
}

/// Returns the process that serves the consoles of a host's guests.
#[must_use]
pub fn of_console(host: &Host) -> ServiceProcess {
    let Some(folder) = host.folder() else {
        match ServiceProcess::of_lock(CONSOLE_LOCK.as_ref()) {
            // It may be the C daemon.
            ServiceProcess::Down | ServiceProcess::Unknown => {}
            ours => return ours,
        }
        let pid = std::fs::read_to_string(CONSOLE_PID).ok();
        let pid = pid.and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        return match pid {
            Some(pid) if state_of(pid).is_none() => ServiceProcess::Down,
            Some(pid) => ServiceProcess::of_process(pid),
            // It may keep its number elsewhere.
            None => ServiceProcess::Unknown,
        };
    };
    CONSOLE.service(folder)
}

/// Returns the socket of the daemon that serves consoles, for its clients.
#[must_use]
pub fn console_socket(host: &Host) -> PathBuf {
    match host.folder() {
        Some(folder) => folder.broker().path().join("xenconsoled/socket"),
        None => CONSOLE_SOCKET.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vbd.lock");
        assert_eq!(ServiceProcess::of_lock(&path), ServiceProcess::Down);
        let file = File::create(&path).unwrap();
        assert_eq!(ServiceProcess::of_lock(&path), ServiceProcess::Down);
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(ServiceProcess::of_lock(&path), ServiceProcess::Runs);
        let holder = holder(&file).map(Pid::as_raw_nonzero);
        assert_eq!(holder, Some(rustix::process::getpid().as_raw_nonzero()));
    }
}
