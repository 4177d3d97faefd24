//! Domains: created, listed, paused, asked to end, taken down.
//!
//! The store's nodes of a domain are those that libxl makes, with its permissions, so that every tool that
//! knows a Xen host's store knows these.

pub mod create;
mod follow;
mod program;

use crate::devices;
use crate::host::Host;
use crate::host::ended::Ended;
use crate::wait::Limit;
use crate::{Error, config, text};
use std::time::Duration;
use xen::DomId;
use xen::domctl::{DomainInfo, RunState};
use xen::domwatch::ShutdownReason;
use xenstore::{Client, Store};

pub use follow::{await_again, follow};

/// Between two tries to remove the nodes of a domain that has got a device meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Whether an error says that a node is not there.
pub(crate) fn is_missing(error: &xenstore::Error) -> bool {
    error.refusal().is_some() && error.errno() == rustix::io::Errno::NOENT
}

/// A domain and its name.
#[derive(Clone, Debug)]
pub struct Domain {
    /// What the hypervisor says of it.
    pub info: DomainInfo,
    /// Its name in the store; empty where it has none.
    pub name: String,
}

impl Domain {
    /// Its state in a word.
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

/// Why a domain has ended, in a word.
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

/// Where a domain's nodes are.
#[must_use]
pub fn home(domid: DomId) -> String {
    xenbus::path::home(domid)
}

/// What the guest init has said of its program's end.
///
/// # Errors
/// [`Error::Store`].
pub fn exit_status(store: &mut Client, domid: DomId) -> Result<Option<u8>, Error> {
    let text = store.try_read(format!("{}/data/exit-status", home(domid)))?;
    Ok(text.and_then(|text| text::lossy(text).parse().ok()))
}

/// All domains, by number.
///
/// # Errors
/// The hypervisor or the store refused.
pub fn list(host: &mut Host) -> Result<Vec<Domain>, Error> {
    let infos = host.control().list().map_err(Error::platform("listing the domains"))?;
    let mut asked = Vec::with_capacity(infos.len());
    for info in infos {
        // All questions before the first answer.
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

/// The domain with this name or number.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find(host: &mut Host, which: &str) -> Result<Domain, Error> {
    let by_number = which.parse().ok().map(DomId);
    let domains = list(host)?;
    let found = domains.into_iter().find(|domain| match by_number {
        Some(domid) => domain.info.domid == domid,
        None => domain.name == which,
    });
    found.ok_or_else(|| Error::NotFound(format!("there is no domain {which}; xb list shows all")))
}

/// What a domain can be asked to do, through its `control/shutdown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// To end.
    Poweroff,
    /// To end and be started again.
    Reboot,
}

impl Request {
    /// The word in the node.
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
/// [`Error::Store`], or it has ended.
pub fn request(host: &mut Host, domain: &Domain, request: Request) -> Result<(), Error> {
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

/// Takes a domain down, with its devices and nodes. Done again where it was begun before.
///
/// # Errors
/// Domain 0, or what is left cannot be removed.
pub fn destroy(host: &mut Host, domid: DomId, limit: Limit) -> Result<(), Error> {
    let info = host.control().info(domid);
    take_down(host, &[domid], limit)?;
    match info {
        Ok(info) => await_gone(host, &info, limit),
        Err(_) => Ok(()),
    }
}

/// Takes domains down, all at once: every backend is asked before the first is waited for, and `limit` is for all.
/// It does not wait until the domains themselves are gone.
///
/// # Errors
/// The first that [`destroy`] has; the others are taken down all the same.
pub fn take_down(host: &mut Host, domids: &[DomId], limit: Limit) -> Result<(), Error> {
    let mut asked = Vec::with_capacity(domids.len());
    for domid in domids {
        asked.push((*domid, ask_to_go(host, *domid)));
    }
    let mut all = Ok(());
    for (domid, asked) in asked {
        // The nodes stay where a device could not be taken away: with them it can be tried again.
        let gone = asked.and_then(|()| remove_nodes(host, domid, None, limit));
        all = all.and(gone);
    }
    all
}

/// Waits until a domain that was destroyed is gone.
fn await_gone(host: &mut Host, destroyed: &DomainInfo, limit: Limit) -> Result<(), Error> {
    const TOKEN: &str = "gone";
    let DomainInfo { domid, handle, .. } = *destroyed;
    let Host { store, platform } = host;
    let mut is_there = || match platform.control().info(domid) {
        Ok(info) => Ok(info.handle == handle),
        Err(xen::Error::Srch) => Ok(false),
        Err(error) => Err(Error::platform(format!("asking for domain {domid}"))(error)),
    };
    if !is_there()? {
        return Ok(());
    }
    store.watch("@releaseDomain", TOKEN)?;
    let what = || format!("domain {domid} is gone (it is dying, and something of it does not end)");
    // The store has no event for a domain that it was never told of: it is looked at again all the same.
    let gone = loop {
        match is_there()
            .and_then(|there| if there { limit.slice(&what).map(Some) } else { Ok(None) })
        {
            Ok(None) => break Ok(()),
            Ok(Some(slice)) => match store.next_event(Some(slice)) {
                Ok(_) => {}
                Err(error) => break Err(error.into()),
            },
            Err(error) => break Err(error),
        }
    };
    store.unwatch("@releaseDomain", TOKEN)?;
    gone
}

/// Ends a domain, and has the backends of its devices begin to let go.
fn ask_to_go(host: &mut Host, domid: DomId) -> Result<(), Error> {
    if domid == DomId::DOM0 {
        return Err(Error::Refused(
            "domain 0 is the host itself; xb host down ends a hosted one".into(),
        ));
    }
    match host.control().destroy(domid) {
        Ok(()) | Err(xen::Error::Srch) => {}
        Err(error) => return Err(Error::platform(format!("destroying domain {domid}"))(error)),
    }
    devices::ask_all(&mut host.store, domid)
}

/// Takes away the devices and nodes of a domain that is gone. With `vm`, those of the domain alone whose node that is, as
/// another may have its number by now.
pub(crate) fn remove_nodes(
    host: &mut Host,
    domid: DomId,
    vm: Option<&str>,
    limit: Limit,
) -> Result<(), Error> {
    if let Some(vm) = vm
        && host.store.try_read(format!("{}/vm", home(domid)))?.as_deref() != Some(vm.as_bytes())
    {
        return Ok(());
    }
    loop {
        devices::release_all(host, domid, limit)?;
        match forget(&mut host.store, domid, vm)? {
            Forgotten::Yes => return Ok(()),
            Forgotten::HasDevices => {
                let slice =
                    limit.slice(&|| format!("no device is added to domain {domid} any more"))?;
                host.store.next_event(Some(slice.min(LOOK_AGAIN)))?;
            }
        }
    }
}

/// The outcome of removing a domain's nodes.
enum Forgotten {
    /// They are not there.
    Yes,
    /// It has got a device since its devices were taken away.
    HasDevices,
}

/// Removes a domain's nodes in one transaction, as devices are added in one: what comes later finds no domain.
fn forget(store: &mut Client, domid: DomId, expected: Option<&str>) -> Result<Forgotten, Error> {
    let (home, libxl) = (home(domid), format!("/libxl/{domid}"));
    Ok(store.transaction(|tx| {
        let vm = tx.try_read(format!("{home}/vm"))?.map(text::lossy);
        if expected.is_some() && vm.as_deref() != expected {
            return Ok(Forgotten::Yes);
        }
        let devices = format!("{libxl}/device");
        for kind in tx.list(&devices)? {
            for devid in tx.list(format!("{devices}/{kind}"))? {
                let noted = tx.try_read(format!("{devices}/{kind}/{devid}/backend"))?;
                // What names no backend is nobody's device.
                if devices::backend_of(&text::lossy(noted.unwrap_or_default())).is_some() {
                    return Ok(Forgotten::HasDevices);
                }
            }
        }
        tx.remove(&home)?;
        tx.remove(&libxl)?;
        if let Some(vm) = vm.filter(|vm| vm.starts_with("/vm/"))
            && !is_named(tx, &vm, expected)?
        {
            tx.remove(&vm)?;
        }
        Ok(Forgotten::Yes)
    })?)
}

/// True where a node of `/vm` is another domain's by now, which has the same uuid. Only who comes late has to look: while
/// the one before was there, nobody else could have it.
fn is_named(tx: &mut impl Store, vm: &str, late: Option<&str>) -> Result<bool, xenstore::Error> {
    if late.is_none() {
        return Ok(false);
    }
    for domain in tx.list("/local/domain")? {
        let node = format!("/local/domain/{domain}/vm");
        if tx.try_read(node)?.as_deref() == Some(vm.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Does something with the domain that has this name or number.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Destroyed`] where it was destroyed meanwhile; else what `body` says.
pub fn with<T>(
    host: &mut Host,
    which: &str,
    body: impl FnOnce(&mut Host, &Domain) -> Result<T, Error>,
) -> Result<T, Error> {
    let domain = find(host, which)?;
    body(host, &domain).map_err(|error| explain(host, &domain, error))
}

/// [`Error::Destroyed`] in place of an error, where the domain that something was done with was destroyed meanwhile. All
/// that can fail then fails in its own way.
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
    let ended = guest.and_then(|guest| Ended::of_domain(&guest, domid)).map(|ended| ended.reason);
    let domain = match domain.name.as_str() {
        "" => format!("domain {domid}"),
        name => format!("{name} (domain {domid})"),
    };
    Error::Destroyed { domain, ended }
}

/// Whether [`destroy`] is done with a domain.
fn is_forgotten(store: &mut Client, domid: DomId) -> Result<bool, Error> {
    Ok(!store.exists(format!("/libxl/{domid}"))?)
}

/// What is to be destroyed by this name or number: a domain, or what an unfinished [`destroy`] has left of one.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find_remains(host: &mut Host, which: &str) -> Result<DomId, Error> {
    let missing = match find(host, which) {
        Err(Error::NotFound(text)) => Error::NotFound(text),
        found => return found.map(|domain| domain.info.domid),
    };
    for child in host.store.list("/libxl")? {
        let Some(domid) = child.parse().ok().map(DomId) else { continue };
        let by_number = child == which && domid != DomId::DOM0;
        let name = format!("{}/name", home(domid));
        if by_number || host.store.try_read(&name)?.as_deref() == Some(which.as_bytes()) {
            return Ok(domid);
        }
    }
    Err(missing)
}

/// A UUID of a domain, as it is written.
#[must_use]
pub fn uuid(info: &DomainInfo) -> String {
    config::description::write_uuid(&info.handle)
}
