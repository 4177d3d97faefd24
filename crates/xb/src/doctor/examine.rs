//! The diagnosis of a host, of a guest, or of one device.

use super::cause::{FaultCause, HostFault};
use super::judge::{self, Finding};
use super::read;
use crate::Error;
use crate::devices;
use crate::devices::disk::stats::DiskStats;
use crate::domain::Domain;
use crate::host::Host;
use crate::host::daemons::{BROKER, STORE};
use crate::host::folder::Folder;
use crate::host::service::ServiceProcess;
use crate::wait::Limit;
use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;
use xen::DomId;
use xenbus::toolstack::NewDevice;
use xenstore::Store;

/// The findings about a host, a guest or a device.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// The faults.
    pub findings: Vec<Finding>,
    /// Facts that this platform does not tell: clauses.
    pub unknown: Vec<String>,
    /// Parts that guests of this user do without: clauses. They are no faults.
    pub lacks: Vec<String>,
    /// The number of devices that were examined.
    pub devices: usize,
}

/// Examines the daemons of a hosted host. Returns what is wrong, and true if store and broker
/// answer, without which nothing else is known.
#[must_use]
pub fn examine_processes(folder: &Folder) -> (Vec<Finding>, bool) {
    let daemons = read::daemons(folder);
    let answers =
        |name: &str| daemons.iter().all(|daemon| daemon.name != name || !daemon.service.is_away());
    let both = answers(BROKER.name()) && answers(STORE.name());
    let subject = read::host_subject(Some(folder));
    (judge::daemons(&subject, folder.path(), &daemons), both)
}

/// Kinds of devices that libxl makes for guests that may have no use for them, or whose states
/// nobody writes. They are examined if they are named.
const UNUSED_KINDS: [&str; 3] = ["console", "vfb", "vkb"];

/// Examines one device of a domain, all devices of one, or without a domain all of the host.
///
/// # Errors
/// [`Error::NotFound`] if the domain has no such device; the errors of the store and the hypervisor.
pub fn examine(
    host: &mut Host,
    domains: &[Domain],
    device: Option<&str>,
) -> Result<Diagnosis, Error> {
    let mut diagnosis = look(host, domains, device)?;
    if diagnosis.findings.iter().any(|finding| finding.cause.is_of_progress()) {
        let first = diagnosis.findings;
        pause()?;
        diagnosis = look(host, domains, device)?;
        retain_agreed(&mut diagnosis.findings, &first);
    }
    Ok(diagnosis)
}

/// The least time between two looks at what may be about to come, to connect or to go.
pub(super) const SECOND_LOOK_AFTER: Duration = Duration::from_secs(1);

/// Sleeps until it is time for the second look.
fn pause() -> Result<(), Error> {
    let end = Limit::new(SECOND_LOOK_AFTER);
    loop {
        match end.slice(&|| "it is time for a second look".into()) {
            Ok(slice) => std::thread::sleep(slice),
            Err(Error::Timeout { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Keeps those findings about progress that the first look had, too: nothing has gone on meanwhile.
pub(super) fn retain_agreed(findings: &mut Vec<Finding>, first: &[Finding]) {
    let is_same =
        |one: &Finding, two: &Finding| one.subject == two.subject && one.cause == two.cause;
    findings.retain(|finding| {
        !finding.cause.is_of_progress() || first.iter().any(|before| is_same(before, finding))
    });
}

/// Examines domains as they are now.
fn look(host: &mut Host, domains: &[Domain], device: Option<&str>) -> Result<Diagnosis, Error> {
    let mut diagnosis = Diagnosis::default();
    let counted = read::counted(host);
    for domain in domains {
        let read = examine_domain(host, domain.info.domid, device, &counted, &mut diagnosis);
        let whole = || format!("domain {}", domain.info.domid);
        unless_of_one(read, whole, &mut diagnosis.unknown)?;
    }
    Ok(diagnosis)
}

/// Examines a domain as it is now, with the counts of disks that are known already. A finding about
/// progress is a fault only if a later look has it, too ([`retain_agreed`]).
pub(super) fn glance(
    host: &mut Host,
    domid: DomId,
    counted: &[DiskStats],
) -> Result<Vec<Finding>, Error> {
    let mut diagnosis = Diagnosis::default();
    let read = examine_domain(host, domid, None, counted, &mut diagnosis);
    unless_of_one(read, || format!("domain {domid}"), &mut diagnosis.unknown)?;
    Ok(diagnosis.findings)
}

/// Notes an error that is about one domain or device as unknown, so that the others are examined.
fn unless_of_one<T>(
    read: Result<T, Error>,
    what: impl FnOnce() -> String,
    unknown: &mut Vec<String>,
) -> Result<Option<T>, Error> {
    let error = match read {
        Ok(read) => return Ok(Some(read)),
        Err(error) => error,
    };
    let is_of_one = match &error {
        Error::Store(error) => !xenbus::Error::from(error.clone()).is_store_gone(),
        Error::Platform { .. } => !error.is_late(),
        _ => false,
    };
    if !is_of_one {
        return Err(error);
    }
    unknown.push(format!("if {} is well: {error}", what()));
    Ok(None)
}

/// Adds what is wrong with the host besides its domains, and what its guests do without.
///
/// # Errors
/// The errors of the store and the hypervisor.
pub fn examine_host(host: &mut Host, diagnosis: &mut Diagnosis) -> Result<(), Error> {
    let mut left = remains(host)?;
    if !left.is_empty() {
        let first = left;
        pause()?;
        left = remains(host)?;
        retain_agreed(&mut left, &first);
    }
    diagnosis.findings.extend(left);
    let Some(folder) = host.folder() else { return Ok(()) };
    diagnosis.lacks = folder.told();
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        let cause = crate::text::cause(&error);
        diagnosis.lacks.push(format!("guests have no files for their disks: /dev/fuse: {cause}"));
    }
    Ok(())
}

/// Finds what domains that are gone have left.
fn remains(host: &mut Host) -> Result<Vec<Finding>, Error> {
    let subject = read::host_subject(host.folder());
    // In this order: a domain that is created meanwhile is known to the hypervisor first.
    let noted = host.store.list("/libxl")?;
    let there = host.control().list().map_err(Error::platform("listing the domains"))?;
    let noted = noted.iter().filter_map(|domid| domid.parse().ok().map(DomId));
    let gone = noted.filter(|domid| !there.iter().any(|info| info.domid == *domid));
    let finding = |domid| {
        let cause = FaultCause::Host(HostFault::Remains { domid });
        let evidence = vec![(format!("/libxl/{domid}"), "no such domain".to_owned())];
        Finding { subject: subject.clone(), cause, evidence }
    };
    Ok(gone.map(finding).collect())
}

fn examine_domain(
    host: &mut Host,
    domid: DomId,
    which: Option<&str>,
    counted: &[DiskStats],
    diagnosis: &mut Diagnosis,
) -> Result<(), Error> {
    let guest = read::guest(host, domid)?;
    let subject = read::guest_subject(host, &guest);
    let (mut said, mut unknown, mut known) = (Vec::new(), BTreeSet::new(), 0);
    for device in devices::list(&mut host.store, domid)? {
        if which.is_none() && UNUSED_KINDS.contains(&device.kind.as_str()) {
            unknown.insert(format!("if {} uses its {}", guest.name, device.kind));
            continue;
        }
        let (name, number) = (read::name_of(&device), device.id.devid.to_string());
        if which.is_some_and(|which| which != name && which != number) {
            continue;
        }
        known += 1;
        let read = read::device(host, &device, counted);
        let what = || format!("{name} of {}", guest.name);
        let Some(facts) = unless_of_one(read, what, &mut diagnosis.unknown)? else { continue };
        let is_told = facts.supervisor.as_ref().is_some_and(|one| one.serves(&device.backend_kind));
        if facts.service == ServiceProcess::Unknown && !is_told {
            let (kind, domid) = (&device.backend_kind, device.backend);
            unknown.insert(format!("if a process serves {kind} in domain {domid}"));
        }
        if let Some(finding) = judge::device(&subject, &facts, &guest) {
            said.push(finding.cause.clone());
            diagnosis.findings.push(finding);
        }
    }
    if let (Some(which), 0) = (which, known) {
        return Err(Error::NotFound(format!(
            "domain {domid} has no device {which}; xb tree shows all"
        )));
    }
    diagnosis.devices += known;
    // What keeps a device of it is said there.
    let own = judge::guest(&subject, &guest).filter(|own| !said.contains(&own.cause));
    diagnosis.findings.extend(own.filter(|_| domid != DomId::DOM0));
    if domid != DomId::DOM0 {
        if guest.quotas.is_empty() {
            unknown.insert("the use of the store's quotas".into());
        }
        if guest.ports.is_none() {
            unknown.insert("the use of event channels, grants and mapped pages".into());
        }
    }
    unknown.retain(|clause| !diagnosis.unknown.contains(clause));
    diagnosis.unknown.extend(unknown);
    Ok(())
}

/// Returns the reason why a guest does not do what is awaited, with the command that helps; `None`
/// where none is found in time.
#[must_use]
pub fn guest_reason(host: &mut Host, domid: DomId) -> Option<String> {
    if let Some(reason) = host.folder().and_then(host_reason) {
        return Some(reason);
    }
    let guest = read::guest(host, domid).ok()?;
    let subject = read::guest_subject(host, &guest);
    judge::guest(&subject, &guest).map(|finding| finding.advice())
}

/// Returns the reason why a hosted host does not answer, with the command that helps; `None` where
/// its broker and its store run.
#[must_use]
pub fn host_reason(folder: &Folder) -> Option<String> {
    let (findings, answers) = examine_processes(folder);
    let first = findings.first().filter(|_| !answers)?;
    Some(first.advice())
}

/// Returns the reason why a device is not yet as it is awaited, with the command that helps; `None`
/// where none is found in time. The wait for it was the first look, so there is no second.
#[must_use]
pub fn reason(host: &mut Host, device: &NewDevice) -> Option<String> {
    if let Some(reason) = host.folder().and_then(host_reason) {
        return Some(reason);
    }
    let guest = read::guest(host, device.id.frontend).ok()?;
    let subject = read::guest_subject(host, &guest);
    let counted = read::counted(host);
    let facts = read::device(host, device, &counted).ok()?;
    judge::device(&subject, &facts, &guest).map(|finding| finding.advice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::cause::{BackendFault, GuestFault};
    use crate::doctor::subject::FaultSubject;

    #[test]
    fn only_what_has_not_gone_on_is_a_fault_of_progress() {
        let finding = |device: &str, cause| {
            let subject = FaultSubject { device: Some(device.into()), ..FaultSubject::default() };
            Finding { subject, cause, evidence: Vec::new() }
        };
        let no_driver = || FaultCause::Guest(GuestFault::NoDriver);
        let undecided = || FaultCause::Backend(BackendFault::Undecided);
        let paused = || FaultCause::Guest(GuestFault::Paused);
        let first = [finding("xvda", no_driver()), finding("xvdb", no_driver())];
        let second = [
            ("xvda", no_driver()),
            ("xvdb", undecided()),
            ("xvdc", no_driver()),
            ("xvdd", paused()),
        ];
        let mut second = second.map(|(device, cause)| finding(device, cause)).to_vec();
        retain_agreed(&mut second, &first);
        assert_eq!(second, [finding("xvda", no_driver()), finding("xvdd", paused())]);
    }
}
