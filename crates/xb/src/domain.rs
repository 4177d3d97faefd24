//! Domains: finding them, listing them, asking them to end. They are created and destroyed, with
//! their devices, in [`lifecycle`](crate::lifecycle).

mod ended;
pub(crate) mod nodes;
pub(crate) mod quota;

use crate::host::Host;
use crate::host::guest_end::GuestEnd;
use crate::host::guest_folder::Lineage;
use crate::wait::Limit;
use crate::{Error, config, text};
use std::time::{Duration, SystemTime};
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};
use xen::domwatch::ShutdownReason;
use xenstore::{Client, Store};

pub use ended::{EndedGuest, find_ended, list_with_ended};

/// True if an error says that a node does not exist.
pub(crate) fn is_missing(error: &xenstore::Error) -> bool {
    error.refusal().is_some() && error.errno() == xen::Error::NoEnt.errno()
}

/// A domain and its name.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The hypervisor's account of it.
    pub info: DomainInfo,
    /// Its name in the store; empty where it has none.
    pub name: String,
}

impl Domain {
    /// True if it has this name or number.
    #[must_use]
    pub fn is(&self, which: &str) -> bool {
        match which.parse().ok().map(DomId) {
            Some(domid) => self.info.domid == domid,
            None => self.name == which,
        }
    }

    /// Returns the domains that it has been over its restarts; `None` on Xen, and for domain 0.
    #[must_use]
    pub fn lineage(&self, host: &Host) -> Option<Lineage> {
        let guest = host.folder().map(|folder| folder.guest(&self.name));
        guest?.lineage().filter(|lineage| lineage.last == self.info.domid)
    }

    /// Returns the time until it is started again, if it has crashed and waits for that.
    #[must_use]
    pub fn restarts_in(&self, host: &Host) -> Option<Duration> {
        let RunState::Shutdown(_) = self.info.state else { return None };
        let guest = host.folder()?.guest(&self.name);
        let again_at = GuestEnd::of_domain(&guest, self.info.domid)?.again_at?;
        again_at.duration_since(SystemTime::now()).ok()
    }

    /// Returns its state in a word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.info.state {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Dying => "dying",
            RunState::Shutdown(reason) => reason_word(reason),
            _ => "unknown",
        }
    }
}

/// Returns the reason of a domain's end in a word.
#[must_use]
pub fn reason_word(reason: ShutdownReason) -> &'static str {
    match reason {
        ShutdownReason::Poweroff => "shutdown",
        ShutdownReason::Reboot => "reboot",
        ShutdownReason::Suspend => "suspended",
        ShutdownReason::Crash => "crashed",
        ShutdownReason::Watchdog => "watchdog",
        ShutdownReason::SoftReset => "soft-reset",
        _ => "ended",
    }
}

/// Returns the path of a domain's nodes.
#[must_use]
pub fn home(domid: DomId) -> String {
    xenbus::path::home(domid)
}

/// Returns the exit status of a guest's program, as its init has written it.
///
/// # Errors
/// [`Error::Store`].
pub fn exit_status(store: &mut Client, domid: DomId) -> Result<Option<u8>, Error> {
    let text = store.try_read(format!("{}/data/exit-status", home(domid)))?;
    Ok(text.and_then(|text| text::lossy(text).parse().ok()))
}

/// Lists all domains, by number.
///
/// # Errors
/// The error of the hypervisor or the store.
pub fn list(host: &mut Host) -> Result<Vec<Domain>, Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    let mut asked = Vec::with_capacity(infos.len());
    for info in infos {
        // All requests are sent before the first answer is read.
        let path = format!("{}/name\0", home(info.domid));
        let parts: [&[u8]; 1] = [path.as_bytes()];
        let none = xenstore::TransactionId::NONE;
        asked.push((info, host.store.submit(none, xenstore::MsgType::Read, &parts)?));
    }
    let mut domains = Vec::with_capacity(asked.len());
    for (info, ticket) in asked {
        let name = match host.store.wait(ticket) {
            Ok(name) => String::from_utf8_lossy(&name).into_owned(),
            Err(error) if is_missing(&error) && info.domid == DomId::DOM0 => "Domain-0".into(),
            Err(error) if is_missing(&error) => String::new(),
            Err(error) => return Err(error.into()),
        };
        domains.push(Domain { info, name });
    }
    Ok(domains)
}

/// Finds the domain with this name or number.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find(host: &mut Host, which: &str) -> Result<Domain, Error> {
    let found = list(host)?.into_iter().find(|domain| domain.is(which));
    found.ok_or_else(|| missing(which))
}

/// Returns the error that no domain has this name or number.
pub(crate) fn missing(which: &str) -> Error {
    Error::NotFound(format!("there is no domain {which}; xb list shows all"))
}

/// A request to a domain, written to its `control/shutdown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlRequest {
    /// To end.
    Poweroff,
    /// To end and be started again.
    Reboot,
}

impl ControlRequest {
    /// Returns the word in the node.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }
}

/// Asks a domain to end.
///
/// # Errors
/// [`Error::Store`], or an error where it has ended.
pub fn request(host: &mut Host, domain: &Domain, request: ControlRequest) -> Result<(), Error> {
    if let RunState::Shutdown(_) | RunState::Dying = domain.info.state {
        let (name, state) = (&domain.name, domain.state());
        return Err(Error::Refused(format!(
            "{name} has ended ({state}); xb destroy {name} takes it down"
        )));
    }
    let home = home(domain.info.domid);
    let asked = host.store.transaction(|tx| {
        let is_there = tx.exists(&home)?;
        if is_there {
            tx.write(format!("{home}/control/shutdown"), request.word())?;
        }
        Ok(is_there)
    })?;
    if asked { Ok(()) } else { Err(Error::destroyed(&domain.name)) }
}

/// Waits until a domain has ended or is gone.
///
/// # Errors
/// [`Error::Timeout`], [`Error::Interrupted`].
pub fn await_end(host: &mut Host, domain: &Domain, limit: Limit) -> Result<(), Error> {
    let (domid, handle) = (domain.info.domid, domain.info.handle);
    let token = format!("end:{domid}");
    host.store.watch("@releaseDomain", &token)?;
    let what = || format!("{} ends", domain.name);
    let Host { store, platform } = host;
    let ended =
        limit.until(store, &what, |_| Ok((!platform.runs(domid, Some(handle))).then_some(())));
    host.store.unwatch("@releaseDomain", &token)?;
    ended
}

/// Runs `body` with the domain that has this name or number.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Destroyed`] where it was destroyed meanwhile; else the error of
/// `body`.
pub fn with<T>(
    host: &mut Host,
    which: &str,
    body: impl FnOnce(&mut Host, &Domain) -> Result<T, Error>,
) -> Result<T, Error> {
    let domain = find(host, which)?;
    body(host, &domain).map_err(|error| explain(host, &domain, error))
}

/// Replaces an error of an operation by [`Error::Destroyed`] where the operation's domain was
/// destroyed meanwhile. Such a domain can make any step fail, each with an error of its own.
pub(crate) fn explain(host: &mut Host, domain: &Domain, error: Error) -> Error {
    let DomainInfo { domid, handle, .. } = domain.info;
    let is_there = match host.control().info(domid) {
        Ok(now) => now.handle == handle && now.state != RunState::Dying,
        Err(error) => error != xen::Error::Srch,
    };
    if is_there || matches!(error, Error::Interrupted | Error::Ended(_)) {
        return error;
    }
    let guest = host.folder().map(|folder| folder.guest(&domain.name));
    let ended =
        guest.and_then(|guest| GuestEnd::of_domain(&guest, domid)).map(|ended| ended.reason);
    let domain = match domain.name.as_str() {
        "" => format!("domain {domid}"),
        name => format!("{name} (domain {domid})"),
    };
    Error::Destroyed { domain, ended }
}

/// Formats the UUID of a domain.
#[must_use]
pub fn uuid(info: &DomainInfo) -> String {
    config::description::write_uuid(&info.handle)
}
