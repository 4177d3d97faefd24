//! The detaching of a device: requested, awaited, and its nodes removed.

use super::attached::list;
use super::device::{command, words};
use super::ends::{state, watched};
use super::reported::ReportedError;
use crate::host::Host;
use crate::wait::Limit;
use crate::{Error, doctor};
use std::time::Duration;
use xen::DomId;
use xen_io::xenbus::State;
use xenbus::path::above;
use xenbus::toolstack::{self, NewDevice};
use xenstore::{Client, Store};

/// The time that a backend has to let go of a device whose domain is gone.
pub const CLOSES_WITHIN: Duration = Duration::from_secs(10);
/// The time to wait for a device that its guest reports as in use: it may be about to be released,
/// as a disk after an unmount.
const BUSY: Duration = Duration::from_secs(2);

/// The choice between asking a guest for a device and taking it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// The guest is asked to release it.
    Ask,
    /// It is taken, also while the guest uses it.
    Take,
}

/// Detaches a device from a domain that runs: requests it, waits, and removes its nodes.
///
/// # Errors
/// [`Error::Timeout`] where the guest does not let go; [`Force::Take`] then.
pub fn detach(
    host: &mut Host,
    device: &NewDevice,
    force: Force,
    limit: Limit,
) -> Result<(), Error> {
    toolstack::detach(&mut host.store, device)?;
    match (await_closed(host, device, force, limit), force) {
        (Ok(()), _) | (Err(Error::Timeout { .. }), Force::Take) => forget(&mut host.store, device),
        (Err(error), _) => Err(error.with_reason(|| doctor::reason(host, device))),
    }
}

/// Waits until a device that was asked for is closed.
fn await_closed(
    host: &mut Host,
    device: &NewDevice,
    force: Force,
    limit: Limit,
) -> Result<(), Error> {
    let (front, back) = (device.frontend_path(), device.backend_path());
    let called = format!("{} of domain {}", words(device), device.id.frontend);
    let advice = match (force, command(&device.kind)) {
        (Force::Ask, Some(_)) => " (the guest uses it? --force takes it away)",
        _ => "",
    };
    let what = || format!("{called} is let go of{advice}");
    watched(host, &[&back, &front], |host| {
        let refused = limit.until(&mut host.store, &what, |store| {
            if is_closed(store, &back)? {
                return Ok(Some(None));
            }
            let refused = store.try_read(format!("{front}/error"))?.map(ReportedError::parse);
            Ok(refused.filter(|_| force == Force::Ask).map(Some))
        })?;
        let Some(error) = refused else { return Ok(()) };
        let closed = limit
            .within(BUSY)
            .until(&mut host.store, &what, |store| Ok(is_closed(store, &back)?.then_some(())));
        match closed {
            Err(Error::Timeout { .. }) => {
                let advice = command(&device.kind).map(|command| {
                    format!("; xb {command} detach again then, or with --force now")
                });
                let advice = advice.unwrap_or_default();
                Err(Error::Refused(format!("{called}: {error}{advice}")))
            }
            closed => closed,
        }
    })
}

/// True if a backend has released a device.
fn is_closed(store: &mut Client, back: &str) -> Result<bool, Error> {
    Ok(matches!(state(store, back)?, State::Closed | State::Unknown))
}

/// True if a device was asked for and its backend has closed it, which nobody waited for.
pub(crate) fn is_detached(store: &mut Client, device: &NewDevice) -> Result<bool, Error> {
    let back = device.backend_path();
    let is_asked = store.try_read(format!("{back}/online"))?.as_deref() == Some(b"0");
    Ok(is_asked && state(store, &back)? == State::Closed)
}

/// Removes the nodes of a device, with those of its backend's errors.
pub(super) fn forget(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    toolstack::forget_detached(store, device)?;
    let error = xenbus::path::error(device.backend, &device.backend_path());
    let of_device = above(&error);
    let of_domain = above(of_device);
    store.transaction(|tx| {
        tx.remove(of_device)?;
        if tx.exists(of_domain)? && tx.directory(of_domain)?.is_empty() {
            tx.remove(of_domain)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Makes the backends of all devices of a domain begin to release them.
pub(crate) fn ask_all(store: &mut Client, domid: DomId) -> Result<(), Error> {
    for device in list(store, domid)? {
        toolstack::detach(store, &device)?;
    }
    Ok(())
}

/// Removes all devices of a domain that is gone.
pub(crate) fn release_all(host: &mut Host, domid: DomId, limit: Limit) -> Result<(), Error> {
    for device in list(&mut host.store, domid)? {
        detach(host, &device, Force::Take, limit)?;
    }
    Ok(())
}
