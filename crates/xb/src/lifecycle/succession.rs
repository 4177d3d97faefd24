//! The succession of a hosted driver domain that has ended: another domain gets its number, which the
//! grants, ports and nodes of its frontends name.
//!
//! For the store the successor is another domain. The death of the one before removes what that
//! owned, and voids its entries in permissions. So its nodes for devices that it serves are
//! domain 0's in between, and opened to the successor before that runs.

use crate::devices;
use crate::domain::home;
use crate::host::{Host, HostPlatform};
use crate::wait::Limit;
use crate::{Error, text};
use xen::DomId;
use xenbus::toolstack::NewDevice;
use xenstore::{Client, NodeAccess, Perm, Store};

/// The folder of a driver domain with its ends of devices.
const BACKENDS: &str = "backend";

/// The number of a domain that replaces another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextNumber {
    /// Any free one.
    Free,
    /// That of the one before, which waits for it.
    Same,
}

/// The outcome of taking a domain down for its successor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VacateOutcome {
    /// Its number waits for the successor, which this connection to the broker creates.
    Vacant,
    /// Another client has destroyed it before.
    WasDestroyed,
}

/// Takes down a domain that has ended. Its number, and what other domains have granted to that,
/// wait for a successor that the same `host` creates; its own devices and its other nodes go.
///
/// # Errors
/// A device of its own is not released, the store or the broker refuses. Then the domain is
/// destroyed once `host` is dropped.
pub(crate) fn vacate(host: &mut Host, domid: DomId, limit: Limit) -> Result<VacateOutcome, Error> {
    let HostPlatform::Hosted { control, .. } = &mut host.platform else {
        return Ok(VacateOutcome::WasDestroyed);
    };
    for device in served(&mut host.store, domid)? {
        give_all(&mut host.store, &device.frontend_path(), domid, DomId::DOM0)?;
    }
    give_all(&mut host.store, &backends(domid), domid, DomId::DOM0)?;
    match control.vacate(domid) {
        Ok(()) => {}
        Err(xen::Error::Srch) => return Ok(VacateOutcome::WasDestroyed),
        Err(error) => return Err(Error::platform(format!("taking domain {domid} down"))(error)),
    }
    // Once its own disks are closed, nothing of it is on the way to them.
    devices::ask_all(&mut host.store, domid)?;
    devices::release_all(host, domid, limit)?;
    let (home, libxl) = (home(domid), format!("/libxl/{domid}"));
    host.store.transaction(|tx| {
        let vm = tx.try_read(format!("{home}/vm"))?.map(text::lossy);
        if let Some(vm) = vm.filter(|vm| vm.starts_with("/vm/")) {
            tx.remove(&vm)?;
        }
        clear(tx, &home)?;
        tx.remove(&libxl)
    })?;
    Ok(VacateOutcome::Vacant)
}

/// Removes the nodes of a domain but those of the devices that it serves.
pub(crate) fn clear(tx: &mut impl Store, home: &str) -> Result<(), xenstore::Error> {
    for name in tx.list(home)? {
        if name != BACKENDS {
            tx.remove(format!("{home}/{name}"))?;
        }
    }
    Ok(())
}

/// Opens the nodes of the devices that a domain served to its successor, which has its number.
///
/// # Errors
/// [`Error::Store`].
pub(crate) fn open_again(store: &mut Client, domid: DomId) -> Result<(), Error> {
    give_all(store, &backends(domid), DomId::DOM0, domid)?;
    for device in served(store, domid)? {
        let front = device.frontend_path();
        give_all(store, &front, DomId::DOM0, domid)?;
        let reader = Perm { access: NodeAccess::Read, domid: domid.0.into() };
        store.transaction(|tx| {
            change_all(tx, &front, &|perms| {
                let of_frontend = owner(perms) == Some(device.id.frontend);
                (of_frontend && !perms.contains(&reader)).then(|| [perms, &[reader][..]].concat())
            })
        })?;
    }
    Ok(())
}

fn backends(domid: DomId) -> String {
    format!("{}/{BACKENDS}", home(domid))
}

/// Lists the devices that a domain serves, as the toolstack has recorded them.
fn served(store: &mut Client, backend: DomId) -> Result<Vec<NewDevice>, Error> {
    let mut served = Vec::new();
    for child in store.list("/libxl")? {
        let Some(domid) = child.parse().ok().map(DomId) else { continue };
        let devices = devices::list(store, domid)?;
        served.extend(devices.into_iter().filter(|device| device.backend == backend));
    }
    Ok(served)
}

fn owner(perms: &[Perm]) -> Option<DomId> {
    perms.first().and_then(|perm| u16::try_from(perm.domid).ok()).map(DomId)
}

/// Gives a node and those below it to another owner, where they belong to `from`. Who else may read
/// them still may.
fn give_all(store: &mut Client, path: &str, from: DomId, to: DomId) -> Result<(), Error> {
    Ok(store.transaction(|tx| {
        change_all(tx, path, &|perms| {
            let mut perms = perms.to_vec();
            let first = perms.first_mut().filter(|perm| perm.domid == i32::from(from.0))?;
            first.domid = to.0.into();
            Some(perms)
        })
    })?)
}

/// Changes the permissions of a node and of those below it, where `change` returns others.
fn change_all(
    tx: &mut impl Store,
    path: &str,
    change: &dyn Fn(&[Perm]) -> Option<Vec<Perm>>,
) -> Result<(), xenstore::Error> {
    if !tx.exists(path)? {
        return Ok(());
    }
    if let Some(perms) = change(&tx.get_perms(path)?) {
        tx.set_perms(path, &perms)?;
    }
    for name in tx.list(path)? {
        change_all(tx, &format!("{path}/{name}"), change)?;
    }
    Ok(())
}
