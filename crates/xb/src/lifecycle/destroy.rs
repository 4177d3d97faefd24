//! Taking domains down: the domain itself, its devices, its nodes, in this order. What is not finished is finished by
//! the next call.

use crate::domain::{find, home};
use crate::host::Host;
use crate::wait::Limit;
use crate::{Error, devices, text};
use std::time::Duration;
use xen::DomId;
use xen::domctl::DomainInfo;
use xenstore::{Client, Store};

/// Between two tries to remove the nodes of a domain that has got a device meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    /// They are not there.
    Yes,
    /// It has got a device since its devices were taken away.
    HasDevices,
}

/// Removes a domain's nodes in one transaction, as devices are added in one: what comes later finds no domain.
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
                // What names no backend is nobody's device.
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

/// True where [`destroy`] is done with a domain.
pub(super) fn is_forgotten(store: &mut Client, domid: DomId) -> Result<bool, Error> {
    Ok(!store.exists(format!("/libxl/{domid}"))?)
}

/// The domain that is to be destroyed by this name or number: one that is there, or what an unfinished [`destroy`] has left of one.
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
