//! The facts about a host, a guest and a device, as they were found at one moment.

use crate::devices::ReportedError;
use crate::devices::backend_domain::DriverDomainAnswer;
use crate::devices::disk::FileUser;
use crate::host::service::ServiceProcess;
use std::path::PathBuf;
use xen::DomId;
use xen::domctl::RunState;
use xen_io::xenbus::State;
use xenbus::toolstack::NewDevice;

/// A daemon of a hosted host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaemonFacts {
    /// Its name.
    pub name: &'static str,
    /// Its part in the host.
    pub part: &'static str,
    /// Its process.
    pub service: ServiceProcess,
    /// The path of its log.
    pub log: PathBuf,
}

/// The use of a quota of the store by a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuotaUse {
    /// The quota's name.
    pub name: String,
    /// The domain's use.
    pub used: u64,
    /// The most that it may use.
    pub limit: u64,
    /// The time since a request was last refused for it, in seconds.
    pub refused_s_ago: Option<u64>,
}

/// The time for which a refusal counts, in seconds: what it has stopped is still stopped.
const REFUSED_LATELY_S: u64 = 60;

impl QuotaUse {
    /// True if requests of the domain are refused for it.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        let refused = self.refused_s_ago.is_some_and(|ago| ago <= REFUSED_LATELY_S);
        self.limit > 0 && (refused || self.used >= self.limit)
    }
}

/// The facts about a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestFacts {
    /// Its number.
    pub domid: DomId,
    /// Its name, or its number where it has none.
    pub name: String,
    /// Its state; `None` where there is no such domain.
    pub state: Option<RunState>,
    /// The exit status of its program.
    pub status: Option<u8>,
    /// Its use of the store's quotas; empty where the store does not tell.
    pub quotas: Vec<QuotaUse>,
    /// Its event channels, and the most that it may have; `None` where the platform does not tell.
    pub ports: Option<(u64, u64)>,
    /// Pages that it grants; `None` where the platform does not tell.
    pub granted: Option<u64>,
    /// True if the host's kernel may mount its disks.
    pub kernel_block: bool,
    /// The process that serves its console.
    pub console: ServiceProcess,
}

/// A node that a domain needs and may not use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BarredNode {
    /// The node.
    pub path: String,
    /// The domain that needs it.
    pub domid: DomId,
    /// The access that it lacks, as a verb: `read`, `write`.
    pub access: &'static str,
    /// The permissions that both ends can work with, as the store writes them.
    pub perms: String,
}

/// The facts about one end of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndFacts {
    /// The path of its nodes.
    pub path: String,
    /// True if it has nodes.
    pub exists: bool,
    /// Its state.
    pub state: State,
    /// The error that it has reported.
    pub error: Option<ReportedError>,
    /// The first node that a domain needs and may not use.
    pub barred: Option<BarredNode>,
}

/// The hotplug script of a backend.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScriptFacts {
    /// The script, if the device has one.
    pub script: Option<String>,
    /// The value of `hotplug-status`.
    pub status: Option<String>,
    /// The value of `hotplug-error`.
    pub error: Option<String>,
}

/// The access to a target, as this process finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetAccess {
    /// It can be opened.
    Good,
    /// It does not exist.
    Missing,
    /// It cannot be opened, for this reason.
    Refused(String),
    /// It is no file of this domain.
    Unknown,
}

/// The target of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetFacts {
    /// Its name in the store.
    pub name: String,
    /// The file that it names, or its name.
    pub file: String,
    /// The access to the file.
    pub access: TargetAccess,
    /// The users of the file besides this device; only looked for where the backend reports it busy.
    pub users: Vec<FileUser>,
    /// True if the server of its data is away.
    pub server_gone: bool,
}

/// The limits of a device, and what they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitFacts {
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Requests a second.
    pub requests: Option<u64>,
    /// True if a request had to wait for them lately.
    pub throttled: bool,
    /// The number of connects lately, and the number at which the frontend has to wait.
    pub connects: Option<(u32, u32)>,
}

/// The facts about a device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// The device.
    pub device: NewDevice,
    /// Its name: `xvda`.
    pub name: String,
    /// The frontend.
    pub front: EndFacts,
    /// The backend.
    pub back: EndFacts,
    /// False if the device was asked for.
    pub wanted: bool,
    /// True if the frontend names rings.
    pub has_rings: bool,
    /// The hotplug script.
    pub script: ScriptFacts,
    /// The target; `None` for kinds that have none.
    pub target: Option<TargetFacts>,
    /// The limits.
    pub limits: LimitFacts,
    /// The answer of the supervisor of its backend's domain; `None` where there is none to ask.
    pub supervisor: Option<DriverDomainAnswer>,
    /// The process that serves it.
    pub service: ServiceProcess,
    /// The file or folder that shows that process.
    pub service_path: PathBuf,
    /// The log of that process.
    pub log: Option<PathBuf>,
    /// The last line about the device in that log.
    pub log_line: Option<String>,
}

impl DeviceFacts {
    /// True if both ends are connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        (self.front.state, self.back.state) == (State::Connected, State::Connected)
    }
}
