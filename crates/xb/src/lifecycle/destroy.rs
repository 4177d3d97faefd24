//! The destruction of domains: the domain itself, its devices, its nodes, in this order. Steps that
//! are not finished are finished by the next call.

use crate::domain::{find, home};
use crate::host::Host;
use crate::wait::Limit;
use crate::{Error, devices, text};
use std::time::Duration;
use xen::DomId;
use xen::domctl::DomainInfo;
use xenstore::{Client, Store};

/// The time between two attempts to remove the nodes of a domain that has got a device meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Destroys a domain, with its devices and nodes. Finishes a destruction that was begun before.
///
/// # Errors
/// Domain 0, or its remains cannot be removed.
pub fn destroy(host: &mut Host, domid: DomId, limit: Limit) -> Result<(), Error> {
    let info = host.control().info(domid);
    take_down(host, &[domid], limit)?;
    match info {
        Ok(info) => await_gone(host, &info, limit),
        Err(_) => Ok(()),
    }
}

/// Destroys domains, all at once: every backend is asked before the first is waited for, and
/// `limit` is for all. It does not wait until the domains themselves are gone.
///
/// # Errors
/// The first error of [`destroy`]; the other domains are destroyed all the same.
pub fn take_down(host: &mut Host, domids: &[DomId], limit: Limit) -> Result<(), Error> {
    let mut asked = Vec::with_capacity(domids.len());
    for domid in domids {
        asked.push((*domid, ask_to_go(host, *domid)));
    }
    let mut all = Ok(());
    for (domid, asked) in asked {
        // The nodes stay where a device could not be removed: another attempt needs them.
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
    // The store has no event for a domain that it was never told of, so the state is read again
    // after a time as well.
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

/// Ends a domain, and makes the backends of its devices begin to release them.
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

/// Removes the devices and nodes of a domain that is gone. With `vm`, only those of the domain that
/// has this node, as another domain may have its number by now.
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
            RemovalOutcome::Yes => return Ok(()),
            RemovalOutcome::HasDevices => {
                let slice =
                    limit.slice(&|| format!("no device is added to domain {domid} any more"))?;
                host.store.next_event(Some(slice.min(LOOK_AGAIN)))?;
            }
        }
    }
}

/// The outcome of removing a domain's nodes.
enum RemovalOutcome {
    /// The nodes are not there.
    Yes,
    /// It has got a device since its devices were taken away.
    HasDevices,
}

/// Removes a domain's nodes in one transaction. Devices are added in one as well, so a later
/// addition finds no domain.
fn forget(
    store: &mut Client,
    domid: DomId,
    expected: Option<&str>,
) -> Result<RemovalOutcome, Error> {
    let (home, libxl) = (home(domid), format!("/libxl/{domid}"));
    Ok(store.transaction(|tx| {
        let vm = tx.try_read(format!("{home}/vm"))?.map(text::lossy);
        if expected.is_some() && vm.as_deref() != expected {
            return Ok(RemovalOutcome::Yes);
        }
        let devices = format!("{libxl}/device");
        for kind in tx.list(&devices)? {
            for devid in tx.list(format!("{devices}/{kind}"))? {
                let noted = tx.try_read(format!("{devices}/{kind}/{devid}/backend"))?;
                // A node that names no backend is not a device.
                if devices::backend_of(&text::lossy(noted.unwrap_or_default())).is_some() {
                    return Ok(RemovalOutcome::HasDevices);
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
        Ok(RemovalOutcome::Yes)
    })?)
}

/// True if a node of `/vm` belongs to another domain by now, which has the same uuid. Only a late
/// caller has to check: while the earlier domain existed, no other could have it.
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

/// True if [`destroy`] has finished with a domain.
pub(super) fn is_forgotten(store: &mut Client, domid: DomId) -> Result<bool, Error> {
    Ok(!store.exists(format!("/libxl/{domid}"))?)
}

/// Finds the domain to be destroyed by name or number: an existing one, or one of which an
/// unfinished [`destroy`] has left parts.
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
