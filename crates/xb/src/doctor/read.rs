//! The gathering of facts: from the store, the hypervisor, processes and files.

use super::facts::{
    BarredNode, DaemonFacts, DeviceFacts, EndFacts, GuestFacts, LimitFacts, QuotaUse, ScriptFacts,
    TargetAccess, TargetFacts,
};
use super::subject::FaultSubject;
use crate::devices::backend_domain::{self, DriverDomainAnswer};
use crate::devices::disk::stats::{self, DiskStats};
use crate::devices::disk::users;
use crate::devices::{ReportedError, device_command};
use crate::domain::quota::QuotaLine;
use crate::host::daemons::{self, DAEMONS};
use crate::host::folder::Folder;
use crate::host::service::{self, ServiceProcess};
use crate::host::{Host, HostPlatform};
use crate::{Error, domain, text};
use rustix::fs::{Access, access};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::DomId;
use xen_block::back::{LIMIT_BYTES, LIMIT_REQUESTS, SERVER_GONE};
use xen_block::vbd;
use xen_driver::backend::rings::RingOptions;
use xen_hosted::limits::PORTS_MAX;
use xen_io::xenbus::{State, number};
use xenbus::toolstack::NewDevice;
use xenstore::transaction::Retry;
use xenstore::{Client, NodeAccess, Perm, Store, Transaction, TransactionId};

/// Reads the processes of a host's daemons.
pub(super) fn daemons(folder: &Folder) -> Vec<DaemonFacts> {
    let of = |daemon: &daemons::HostDaemon| DaemonFacts {
        name: daemon.name(),
        part: daemon.part(),
        service: daemon.service(folder),
        log: daemon.log(folder),
    };
    DAEMONS.iter().map(of).collect()
}

/// Returns the subject of a hosted host in a folder, or of the Xen host that this is.
pub(super) fn host_subject(folder: Option<&Folder>) -> FaultSubject {
    let xb = match folder {
        Some(folder) if *folder != Folder::default() => {
            format!("xb --host {}", text::shell_word(&folder.path().to_string_lossy()))
        }
        _ => "xb".into(),
    };
    FaultSubject { xb, hosted: folder.is_some(), ..FaultSubject::default() }
}

/// Returns the subject of a guest.
pub(super) fn guest_subject(host: &Host, guest: &GuestFacts) -> FaultSubject {
    let (domid, domain) = (Some(guest.domid), guest.name.clone());
    FaultSubject { domid, domain, ..host_subject(host.folder()) }
}

/// Reads the facts about a guest.
pub(super) fn guest(host: &mut Host, domid: DomId) -> Result<GuestFacts, Error> {
    let state = match host.control().info(domid) {
        Ok(info) => Some(info.state),
        Err(xen::Error::Srch) => None,
        Err(error) => return Err(Error::platform(format!("asking for domain {domid}"))(error)),
    };
    let name = host.store.try_read(format!("{}/name", domain::home(domid)))?.map(text::lossy);
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| domid.to_string());
    let (mut ports, mut granted) = (None, None);
    if let (HostPlatform::Hosted { control, .. }, true) = (&mut host.platform, domid != DomId::DOM0)
        && let Ok(used) = control.accounts(domid)
    {
        // Port 0 is never used.
        ports = Some((used.ports, u64::from(PORTS_MAX - 1)));
        granted = Some(used.granted);
    }
    let kernel_block = host.store.try_read(format!("/libxl/{domid}/kernel-block"))?;
    Ok(GuestFacts {
        domid,
        name,
        state,
        status: domain::exit_status(&mut host.store, domid)?,
        quotas: quotas(&mut host.store, domid),
        ports,
        granted,
        kernel_block: kernel_block.as_deref() == Some(b"1"),
        console: service::of_console(host),
    })
}

/// Reads a domain's use of quotas; nothing where the store does not tell it.
fn quotas(store: &mut Client, domid: DomId) -> Vec<QuotaUse> {
    let answer = store.control("quota", &[domid.to_string().as_bytes()]);
    let answer = answer.map(text::lossy).unwrap_or_default();
    answer.lines().filter_map(quota).collect()
}

/// Parses a line about a quota that has a limit.
fn quota(line: &str) -> Option<QuotaUse> {
    let QuotaLine { name, used, limit, refused } = QuotaLine::parse(line)?;
    let refused_s_ago = refused.map(|(_, ago)| ago);
    Some(QuotaUse { name: name.to_owned(), used, limit: limit?, refused_s_ago })
}

/// Returns a device's name: `xvda`, `vif 0`.
pub(crate) fn name_of(device: &NewDevice) -> String {
    let (kind, devid) = (&device.kind, device.id.devid);
    if kind == "vbd" { vbd::name(devid) } else { format!("{kind} {devid}") }
}

/// The attempts to read a device at one moment.
const READ_TRIES: Retry = Retry { attempts_max: 5, pause_max: Duration::from_millis(1) };

/// Reads the facts about a device; its nodes as they are at one moment, unless an end writes all
/// the time.
pub(super) fn device(
    host: &mut Host,
    device: &NewDevice,
    counted: &[DiskStats],
) -> Result<DeviceFacts, Error> {
    let (backend, kind) = (device.backend, &device.backend_kind);
    let daemon = daemons::backend(kind).filter(|_| backend == DomId::DOM0);
    let log = host.folder().zip(daemon).map(|(folder, daemon)| daemon.log(folder));
    let service = service::of_backend(host, backend, kind);
    let service_path = service::evidence_of(host, backend, kind);
    let log_line = log.as_deref().and_then(|log| last_line(log, &format!(" {}: ", device.id)));
    let supervisor = supervisor(host, backend, service)?;
    let read = host.store.transaction_retrying(READ_TRIES, |tx| nodes(tx, device));
    let mut facts = match read {
        Err(xenstore::Error::Conflict { .. }) => {
            nodes(&mut Transaction::within(&mut host.store, TransactionId::NONE), device)?
        }
        read => read?,
    };
    let is_busy = facts.back.error.as_ref().is_some_and(ReportedError::is_busy);
    if let Some(target) = facts.target.as_mut().filter(|_| is_busy && backend == DomId::DOM0) {
        target.users = users::find(&mut host.store, &target.name, device.id)?;
    }
    let is_counted = backend == DomId::DOM0 && device.kind == "vbd";
    if let Some(counts) = counted.iter().find(|counts| is_counted && counts.id == device.id) {
        let (most, _) = RingOptions::default().connects_max;
        facts.limits.throttled = counts.throttled;
        facts.limits.connects = Some((counts.connects, most));
    }
    Ok(DeviceFacts { supervisor, service, service_path, log, log_line, ..facts })
}

/// The longest time that a supervisor has to answer, if there is one.
const SUPERVISOR_ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// The longest time that a supervisor has which has answered before: its silence is a fault.
const SUPERVISOR_SILENT_AFTER: Duration = Duration::from_secs(1);

/// Asks the supervisor of a domain: of a driver domain that runs, and of domain 0 of a hosted host,
/// whose process is known otherwise.
fn supervisor(
    host: &mut Host,
    backend: DomId,
    service: ServiceProcess,
) -> Result<Option<DriverDomainAnswer>, Error> {
    match (backend, host.folder()) {
        (DomId::DOM0, Some(_)) => return backend_domain::told(&mut host.store, backend).map(Some),
        (DomId::DOM0, None) => return Ok(None),
        _ if service != ServiceProcess::Unknown => return Ok(None),
        _ => {}
    }
    let within = match backend_domain::told(&mut host.store, backend)?.has_answered {
        true => SUPERVISOR_SILENT_AFTER,
        false => SUPERVISOR_ANSWERS_WITHIN,
    };
    match backend_domain::ask(host, backend, within) {
        Ok(answer) => Ok(Some(answer)),
        // It has gone meanwhile, which the next look tells.
        Err(Error::Destroyed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the nodes of a device. Its process, and what is counted of it, are left unknown.
fn nodes(tx: &mut Transaction<'_>, device: &NewDevice) -> Result<DeviceFacts, xenstore::Error> {
    let (front, back) = (device.frontend_path(), device.backend_path());
    let (frontend, backend) = (device.id.frontend, device.backend);
    let mut text_of = |name: &str| -> Result<Option<String>, xenstore::Error> {
        Ok(tx.try_read(format!("{back}/{name}"))?.map(text::lossy))
    };
    let wanted = text_of("online")?.as_deref() != Some("0");
    let script = ScriptFacts {
        script: text_of("script")?,
        status: text_of("hotplug-status")?,
        error: text_of("hotplug-error")?,
    };
    let names_ring = |name: &String| name.contains("ring-ref") || name.starts_with("queue-");
    Ok(DeviceFacts {
        name: name_of(device),
        has_rings: tx.list(&front)?.iter().any(names_ring),
        front: end(tx, &front, [(frontend, "write"), (backend, "read")], (frontend, backend))?,
        back: end(tx, &back, [(frontend, "read"), (backend, "write")], (backend, frontend))?,
        wanted,
        script,
        target: target(tx, device, &back)?,
        limits: limits(tx, &back)?,
        supervisor: None,
        service: ServiceProcess::Unknown,
        service_path: PathBuf::new(),
        log: None,
        log_line: None,
        device: device.clone(),
    })
}

/// The bytes at the end of a log that are looked through.
const LOG_END: u64 = 64 << 10;

/// Returns the last line of a log with these words.
fn last_line(log: &Path, words: &str) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let from = file.metadata().ok()?.len().saturating_sub(LOG_END);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut end = Vec::new();
    file.take(LOG_END).read_to_end(&mut end).ok()?;
    let end = text::lossy(end);
    end.lines().rev().find(|line| line.contains(words)).map(str::to_owned)
}

/// Reads an end with its state node, which these domains need; its nodes are to belong to the first
/// of `owner_and_reader`, and to be readable for the other.
fn end(
    store: &mut impl Store,
    path: &str,
    needs: [(DomId, &'static str); 2],
    owner_and_reader: (DomId, DomId),
) -> Result<EndFacts, xenstore::Error> {
    let node = format!("{path}/state");
    let mut state = store.try_read(&node)?;
    let error = store.try_read(format!("{path}/error"))?.map(ReportedError::parse);
    let mut barred = None;
    let perms = if state.is_some() { perms_of(store, &node)? } else { None };
    // Whoever owns it may have removed it meanwhile.
    state = state.filter(|_| perms.is_some());
    if let Some(perms) = perms {
        let missing = needs.into_iter().find(|(domid, access)| !allows(&perms, *domid, access));
        barred = missing.map(|(domid, access)| {
            let (owner, reader) = owner_and_reader;
            let perms = format!("n{owner} r{reader}");
            BarredNode { path: node.clone(), domid, access, perms }
        });
    }
    Ok(EndFacts {
        path: path.to_owned(),
        exists: store.exists(path)?,
        state: state.map_or(State::Unknown, |state| State::parse(&state)),
        error,
        barred,
    })
}

/// Returns the permissions of a node; `None` if it does not exist.
fn perms_of(store: &mut impl Store, node: &str) -> Result<Option<Vec<Perm>>, xenstore::Error> {
    match store.get_perms(node) {
        Err(error) if domain::is_missing(&error) => Ok(None),
        perms => perms.map(Some),
    }
}

/// True if permissions let a domain `read` or `write`.
fn allows(perms: &[Perm], domid: DomId, access: &str) -> bool {
    let number = i32::from(domid.0);
    let own = perms.iter().skip(1).find(|perm| perm.domid == number);
    let Some(entry) = own.or(perms.first()) else { return false };
    let is_owner = perms.first().is_some_and(|owner| owner.domid == number);
    domid == DomId::DOM0
        || is_owner
        || match entry.access {
            NodeAccess::Both => true,
            NodeAccess::Read => access == "read",
            NodeAccess::Write => access == "write",
            NodeAccess::None => false,
        }
}

/// Reads the target of a disk, and looks at its file.
fn target(
    store: &mut impl Store,
    device: &NewDevice,
    back: &str,
) -> Result<Option<TargetFacts>, xenstore::Error> {
    if device_command(&device.kind).is_none() {
        return Ok(None);
    }
    let mut named = store.try_read(format!("{back}/target"))?;
    if named.is_none() {
        named = store.try_read(format!("{back}/params"))?;
    }
    let Some(name) = named.map(text::lossy) else { return Ok(None) };
    let writable = store.try_read(format!("{back}/mode"))?.is_some_and(|mode| mode.contains(&b'w'));
    let path = users::path_of(&name);
    let access = match &path {
        Some(path) if device.backend == DomId::DOM0 => file_access(path, writable),
        _ => TargetAccess::Unknown,
    };
    let file = path.map_or_else(|| name.clone(), |path| path.display().to_string());
    let server_gone = store.try_read(format!("{back}/{SERVER_GONE}"))?.as_deref() == Some(b"1");
    Ok(Some(TargetFacts { name, file, access, users: Vec::new(), server_gone }))
}

/// Looks at a file without opening it, which for a block device is an event to others.
fn file_access(path: &Path, writable: bool) -> TargetAccess {
    let refused = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => TargetAccess::Missing,
        _ => TargetAccess::Refused(text::cause(&error)),
    };
    use std::os::unix::fs::FileTypeExt;
    match std::fs::metadata(path) {
        Err(error) => return refused(error),
        Ok(data) if !data.is_file() && !data.file_type().is_block_device() => {
            return TargetAccess::Refused("it is no file and no block device".into());
        }
        Ok(_) => {}
    }
    let wanted = if writable { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
    match access(path, wanted) {
        Ok(()) => TargetAccess::Good,
        Err(errno) => refused(errno.into()),
    }
}

/// Reads the limits of a device.
fn limits(store: &mut impl Store, back: &str) -> Result<LimitFacts, xenstore::Error> {
    let mut limit = |name: &str| -> Result<Option<u64>, xenstore::Error> {
        let value = store.try_read(format!("{back}/{name}"))?;
        Ok(value.and_then(|value| number(&value)).filter(|limit| *limit > 0))
    };
    let (bytes, requests) = (limit(LIMIT_BYTES)?, limit(LIMIT_REQUESTS)?);
    Ok(LimitFacts { bytes, requests, ..LimitFacts::default() })
}

/// Reads what the backends of a host count of their disks; nothing where none has counted yet.
pub(super) fn counted(host: &mut Host) -> Vec<DiskStats> {
    stats::read(host).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_with_their_limits() {
        let line = "nodes            :       12 (max       14) limit     1000, refused 3 times, last 2 s ago";
        let read = quota(line).unwrap();
        assert_eq!((read.used, read.limit, read.refused_s_ago), (12, 1000, Some(2)));
        assert!(read.is_used_up());
        assert!(!quota("watches : 3 (max 4) limit 128").unwrap().is_used_up());
        assert!(quota("watches : 128 (max 128) limit 128").unwrap().is_used_up());
        assert!(!quota("memory : 3 (max 4) limit 0").unwrap().is_used_up());
        assert_eq!(quota("memory : 3 (max 4) no limit"), None);
        assert_eq!(quota("Domain 3:"), None);
    }

    #[test]
    fn permissions_are_those_of_the_store() {
        let perms = |text: &[&str]| -> Vec<Perm> {
            text.iter().map(|perm| Perm::parse(perm.as_bytes()).unwrap()).collect()
        };
        let (one, two) = (DomId(1), DomId(2));
        assert!(allows(&perms(&["n1", "r2"]), one, "write"));
        assert!(allows(&perms(&["n1", "r2"]), two, "read"));
        assert!(!allows(&perms(&["n1", "r2"]), two, "write"));
        assert!(!allows(&perms(&["r1", "n2"]), two, "read"));
        assert!(allows(&perms(&["b1"]), two, "write"));
        assert!(allows(&perms(&["n1"]), DomId::DOM0, "write"));
    }
}
