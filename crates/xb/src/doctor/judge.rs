//! The causes that facts show: pure functions, which look at the parts of a device in a fixed order
//! and stop at the first that explains it.

use super::cause::{BackendFault, FaultCause, GuestFault, HostFault, NodeFault, TargetFault};
use super::facts::{DaemonFacts, DeviceFacts, EndFacts, GuestFacts, TargetAccess, TargetFacts};
use super::subject::{FaultSubject, Remedy};
use crate::devices::{ReportedError, device_command};
use crate::domain;
use crate::host::service::ServiceProcess;
use std::path::Path;
use xen::DomId;
use xen::domctl::RunState;
use xen_io::xenbus::State;
use xenbus::Side;
use xenbus::state::{DeviceUse, PeerState, react};

/// The program that the hotplug script of this project names.
const OUR_SCRIPT: &str = "/block-xenbus";

/// A cause that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The subject of the cause.
    pub subject: FaultSubject,
    /// The cause.
    pub cause: FaultCause,
    /// The paths of nodes and files that show it, each with its value.
    pub evidence: Vec<(String, String)>,
}

impl Finding {
    /// Returns what is wrong, as a clause: `xvdb waits: nothing serves vbd in domain 0`.
    #[must_use]
    pub fn sentence(&self) -> String {
        let text = self.cause.text(&self.subject);
        match &self.subject.device {
            Some(device) => format!("{device} {}: {text}", self.cause.effect()),
            None => text,
        }
    }

    /// Returns the command that helps.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        self.cause.remedy(&self.subject)
    }

    /// Returns the sentence with the remedy.
    #[must_use]
    pub fn advice(&self) -> String {
        let Remedy { effect, command } = self.remedy();
        format!("{}; {effect}: {command}", self.sentence())
    }
}

/// Judges the daemons of a hosted host.
#[must_use]
pub fn daemons(subject: &FaultSubject, folder: &Path, daemons: &[DaemonFacts]) -> Vec<Finding> {
    let found = |cause, path: String, value: &str| Finding {
        subject: subject.clone(),
        cause: FaultCause::Host(cause),
        evidence: vec![(path, value.to_owned())],
    };
    if daemons.iter().all(|daemon| daemon.service == ServiceProcess::Down) {
        let cause = HostFault::Down { folder: folder.into() };
        return vec![found(cause, folder.display().to_string(), "no daemon runs")];
    }
    let mut findings = Vec::new();
    for DaemonFacts { name, part, service, log } in daemons {
        let daemon = (*name).to_owned();
        match *service {
            ServiceProcess::Down => {
                let cause = HostFault::DaemonDown { daemon, part: (*part).to_owned() };
                findings.push(found(cause, log.display().to_string(), "its log"));
            }
            ServiceProcess::Stopped(pid) => {
                let pid = pid.as_raw_nonzero().get();
                let cause = HostFault::DaemonStopped { daemon, pid };
                findings.push(found(cause, format!("/proc/{pid}/stat"), "T"));
            }
            _ => {}
        }
    }
    findings
}

/// Judges a guest by itself.
#[must_use]
pub fn guest(subject: &FaultSubject, guest: &GuestFacts) -> Option<Finding> {
    let cause = standing(guest).or_else(|| quota(guest)).or_else(|| match guest.console {
        _ if guest.domid == DomId::DOM0 => None,
        ServiceProcess::Down => Some(GuestFault::ConsoleUnserved),
        ServiceProcess::Stopped(pid) => {
            Some(GuestFault::ConsoleStopped { pid: pid.as_raw_nonzero().get() })
        }
        _ => None,
    })?;
    let evidence = guest_evidence(guest, &cause);
    Some(Finding { subject: subject.clone(), cause: FaultCause::Guest(cause), evidence })
}

/// Returns the reason for which a guest does not run.
fn standing(guest: &GuestFacts) -> Option<GuestFault> {
    match guest.state? {
        RunState::Paused => Some(GuestFault::Paused),
        RunState::Dying => Some(GuestFault::Dying { granted: guest.granted }),
        RunState::Shutdown(reason) => Some(GuestFault::Ended {
            reason: domain::reason_word(reason).to_owned(),
            status: guest.status,
        }),
        _ => None,
    }
}

fn quota(guest: &GuestFacts) -> Option<GuestFault> {
    let used_up = guest.quotas.iter().find(|quota| quota.is_used_up())?;
    Some(GuestFault::QuotaUsedUp(used_up.clone()))
}

fn guest_evidence(guest: &GuestFacts, cause: &GuestFault) -> Vec<(String, String)> {
    let home = domain::home(guest.domid);
    let value = match cause {
        GuestFault::QuotaUsedUp(quota) => format!("{}: {}", quota.name, quota.used),
        cause => cause_word(cause),
    };
    vec![(home, value)]
}

fn cause_word(cause: &GuestFault) -> String {
    match cause {
        GuestFault::Ended { reason, .. } => reason.clone(),
        GuestFault::Paused => "paused".into(),
        GuestFault::Dying { .. } => "dying".into(),
        _ => String::new(),
    }
}

/// Judges a device; `None` if it is well.
#[must_use]
pub fn device(subject: &FaultSubject, device: &DeviceFacts, guest: &GuestFacts) -> Option<Finding> {
    let cause = served(device)
        .or_else(|| connected(device, guest))
        .or_else(|| illegal(device))
        .or_else(|| given_up(device))
        .or_else(|| held_by_guest(device, guest))
        .or_else(|| unfinished(device, guest))?;
    let subject = FaultSubject {
        device: Some(device.name.clone()),
        command: device_command(&device.device.kind),
        backend: device.back.path.clone(),
        log: device.log.clone(),
        ..subject.clone()
    };
    Some(Finding { subject, cause, evidence: evidence(device) })
}

/// Finds a fault of what serves the device, or of its nodes: it counts whatever the states say.
fn served(device: &DeviceFacts) -> Option<FaultCause> {
    let (kind, domid) = (device.device.backend_kind.clone(), device.device.backend);
    // Its nodes go with it.
    if let ServiceProcess::DomainAway(absence) = device.service {
        return Some(FaultCause::Backend(BackendFault::DomainAway { domid, absence }));
    }
    for (side, end) in [(Side::Frontend, &device.front), (Side::Backend, &device.back)] {
        if !end.exists {
            let path = end.path.clone();
            return Some(FaultCause::Nodes(NodeFault::EndMissing { side, path }));
        }
    }
    let supervised = device.supervisor.as_ref();
    // Nodes still say that it is connected where its backend has been killed.
    let is_bare = supervised.is_some_and(|answer| answer.answers && !answer.serves(&kind));
    if let Some(fault) = supervised.and_then(|answer| answer.faults.first())
        && (domid == DomId::DOM0 || is_bare || !device.is_connected())
    {
        let fault = fault.clone();
        return Some(FaultCause::Backend(BackendFault::KeepsEnding { domid, fault }));
    }
    let is_silent = supervised.is_some_and(|answer| answer.has_answered && !answer.answers);
    let idle = matches!(device.back.state, State::Unknown | State::Initialising);
    Some(FaultCause::Backend(match device.service {
        ServiceProcess::Stopped(pid) => {
            BackendFault::Stopped { kind, pid: pid.as_raw_nonzero().get() }
        }
        ServiceProcess::Down => BackendFault::Down { kind, domid },
        ServiceProcess::Kernel if is_ours(device) => BackendFault::TakenByKernel { kind },
        _ if is_silent && domid != DomId::DOM0 => BackendFault::SupervisorSilent { domid },
        _ if (idle || is_bare) && domid != DomId::DOM0 => {
            BackendFault::NoneInDomain { kind, domid }
        }
        _ => {
            let target = device.target.as_ref().filter(|target| target.server_gone)?;
            BackendFault::ServerGone { target: target.name.clone() }
        }
    }))
}

/// True if a device is for `xen-blockd` by its script.
fn is_ours(device: &DeviceFacts) -> bool {
    device.script.script.as_deref().is_some_and(|script| script.ends_with(OUR_SCRIPT))
}

/// Finds a fault of a device whose ends are connected, or that was asked for.
fn connected(device: &DeviceFacts, guest: &GuestFacts) -> Option<FaultCause> {
    let is_busy = device.front.error.as_ref().is_some_and(ReportedError::is_busy);
    let uses = is_busy && standing(guest).is_none() && device.front.state != State::Closed;
    if !device.wanted && uses {
        let mounted = guest.kernel_block;
        return Some(FaultCause::Guest(GuestFault::InUse { mounted }));
    }
    if !device.is_connected() {
        return None;
    }
    if device.limits.throttled {
        let (bytes, requests) = (device.limits.bytes, device.limits.requests);
        return Some(FaultCause::Backend(BackendFault::Throttled { bytes, requests }));
    }
    barred(device)
}

fn barred(device: &DeviceFacts) -> Option<FaultCause> {
    let barred = device.front.barred.clone().or_else(|| device.back.barred.clone())?;
    Some(FaultCause::Nodes(NodeFault::Barred(barred)))
}

/// Finds states of the ends that no step can have led to.
fn illegal(device: &DeviceFacts) -> Option<FaultCause> {
    let (front, back) = (device.front.state, device.back.state);
    let in_use = if device.wanted { DeviceUse::Wanted } else { DeviceUse::Leaving };
    let fits = |side, own, peer| react(side, own, PeerState::Is(peer), in_use).is_ok();
    let both = fits(Side::Frontend, front, back) && fits(Side::Backend, back, front);
    (!both).then_some(FaultCause::Nodes(NodeFault::States { front, back }))
}

/// Finds the reason for which an end has given the device up.
fn given_up(device: &DeviceFacts) -> Option<FaultCause> {
    if device.is_connected() {
        return None;
    }
    if device.script.status.as_deref() == Some("error") {
        let text = device.script.error.clone();
        return Some(FaultCause::Target(TargetFault::ScriptFailed { text }));
    }
    let error = device.back.error.as_ref()?;
    let target = device.target.as_ref();
    // The users of a file of another domain are not known here.
    let is_busy = error.is_busy() && device.device.backend == DomId::DOM0;
    if let Some(TargetFacts { name, users, .. }) = target.filter(|_| is_busy) {
        let (target, users) = (name.clone(), users.clone());
        return Some(FaultCause::Target(TargetFault::Busy { target, users }));
    }
    // Others write the number of any call that has failed.
    let is_own = device.service == ServiceProcess::Runs;
    let file = || target.map(|target| target.file.clone()).unwrap_or_default();
    Some(match target.map(|target| &target.access) {
        Some(TargetAccess::Missing) => FaultCause::Target(TargetFault::Missing { file: file() }),
        // This user may be refused a file that the backend may open.
        Some(TargetAccess::Refused(why)) if is_own || error.is_of_access() => {
            FaultCause::Target(TargetFault::Refused { file: file(), why: why.clone() })
        }
        _ if is_own && device.has_rings && error.is_of_offer() => {
            FaultCause::Nodes(NodeFault::Ring { text: error.text.clone() })
        }
        _ => FaultCause::Target(TargetFault::Failed { text: error.text.clone() }),
    })
}

/// Finds the reason for which the guest does not do its part. Its own words count after what others
/// know of it: they may be old, or chosen.
fn held_by_guest(device: &DeviceFacts, guest: &GuestFacts) -> Option<FaultCause> {
    let standing = standing(guest).map(FaultCause::Guest);
    if device.is_connected() || standing.is_some() {
        return standing;
    }
    if let Some(fault) = device.front.error.as_ref().map(|error| {
        let text = error.text.clone();
        match guest.ports {
            Some((used, limit)) if error.is_out_of_pages() && used >= limit => {
                GuestFault::OutOfPorts { used, limit }
            }
            _ if error.is_out_of_pages() => GuestFault::OutOfPages { text },
            _ if error.is_out_of_memory() => GuestFault::OutOfMemory { text },
            _ => GuestFault::Refuses { text },
        }
    }) {
        return Some(FaultCause::Guest(fault));
    }
    quota(guest).map(FaultCause::Guest).or_else(|| barred(device))
}

/// Finds the step that a device which is not connected has not done.
fn unfinished(device: &DeviceFacts, guest: &GuestFacts) -> Option<FaultCause> {
    if device.is_connected() {
        return None;
    }
    let (front, back) = (device.front.state, device.back.state);
    // A device that was asked for and closed waits for nothing.
    if !device.wanted && back == State::Closed {
        return None;
    }
    if !device.wanted && front != State::Closed {
        return Some(FaultCause::Guest(GuestFault::Keeps));
    }
    // What a driver domain is to run is its own matter, and its words are no commands for here.
    if let (Some(script), None, State::InitWait, DomId::DOM0) =
        (&device.script.script, &device.script.status, back, device.device.backend)
    {
        let script = script.clone();
        return Some(FaultCause::Target(TargetFault::ScriptNeverRan { script }));
    }
    if let (State::Initialised, Some((connects, most))) = (front, device.limits.connects)
        && connects >= most
    {
        return Some(FaultCause::Guest(GuestFault::TooManyConnects { connects }));
    }
    if (front, back) == (State::Closed, State::Closed) {
        return Some(FaultCause::Nodes(NodeFault::States { front, back }));
    }
    let is_offered = matches!(back, State::InitWait | State::Initialised | State::Connected);
    if is_offered && front == State::Initialising && guest.state.is_some() {
        return Some(FaultCause::Guest(GuestFault::NoDriver));
    }
    Some(FaultCause::Backend(BackendFault::Undecided))
}

/// Returns what shows the cause of a device.
fn evidence(device: &DeviceFacts) -> Vec<(String, String)> {
    let mut evidence = Vec::new();
    let mut add = |path: String, value: Option<String>| {
        evidence.extend(value.map(|value| (path, value)));
    };
    for EndFacts { path, exists, state, error, .. } in [&device.front, &device.back] {
        let state = if *exists { state.to_string() } else { "not there".into() };
        add(format!("{path}/state"), Some(state));
        add(format!("{path}/error"), error.as_ref().map(ToString::to_string));
    }
    let back = &device.back.path;
    add(format!("{back}/hotplug-status"), device.script.status.clone());
    add(format!("{back}/hotplug-error"), device.script.error.clone());
    if let Some(target) = &device.target {
        add(format!("{back}/target"), Some(target.name.clone()));
    }
    let service = match device.service {
        ServiceProcess::Runs => Some("runs"),
        ServiceProcess::Stopped(_) => Some("stopped"),
        ServiceProcess::Down => Some("down"),
        ServiceProcess::Kernel => Some("the kernel's driver"),
        ServiceProcess::DomainAway(absence) => Some(absence.words()),
        ServiceProcess::Unknown => None,
    };
    add(device.service_path.display().to_string(), service.map(str::to_owned));
    if let Some(log) = &device.log {
        add(log.display().to_string(), device.log_line.clone());
    }
    evidence
}

#[cfg(test)]
mod tests;
