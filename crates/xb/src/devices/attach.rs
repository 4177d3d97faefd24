//! Adding a device, and waiting until it is connected.

use super::attached::list;
use super::detach::{Force, detach, forget, is_detached};
use super::device::AttachableDevice;
use super::ends::{state, watched};
use super::reported::ReportedError;
use crate::host::{Host, daemons};
use crate::wait::{self, Limit};
use crate::{Error, doctor};
use std::time::Duration;
use xen::DomId;
use xen_block::front::disks::{READY, TELLS_READY};
use xen_io::xenbus::State;
use xenbus::toolstack::{self, AddOutcome};
use xenstore::{Client, Store};

/// The advice for a guest that can grant no more pages.
const MORE: &str = "give it more (memory=), or detach another device";

/// Longest time that a guest whose ring cannot be used may take to end, so that its end is the cause.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The time between two looks for that.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Adds a device to its domain: both ends and libxl's nodes, in one transaction. There must be none
/// with its number.
///
/// # Errors
/// [`Error::AlreadyThere`] where there is one, [`Error::Destroyed`] where the domain has no nodes any more.
pub fn add(store: &mut Client, device: &AttachableDevice) -> Result<(), Error> {
    let domid = device.domid();
    // One whose detaching was given up, and that was closed after that, is in nobody's way.
    for left in list(store, domid)? {
        if left.kind == device.nodes().kind
            && left.id == device.nodes().id
            && is_detached(store, &left)?
        {
            forget(store, &left)?;
        }
    }
    match toolstack::add_new(store, device.nodes())? {
        AddOutcome::New => Ok(()),
        AddOutcome::WasThere => Err(Error::AlreadyThere(format!(
            "domain {domid} has a {} already{}",
            device.words(),
            device.advice()
        ))),
        AddOutcome::NoDomain => Err(Error::destroyed(format!("domain {domid}"))),
    }
}

/// Adds a device to a domain that runs and waits until it is connected; takes it away again if it does not.
///
/// # Errors
/// A sentence: why it does not connect.
pub fn attach(host: &mut Host, device: &AttachableDevice, limit: Limit) -> Result<(), Error> {
    add(&mut host.store, device)?;
    let Err(error) = await_connected(host, device, limit) else { return Ok(()) };
    let nodes = device.nodes();
    let undone = wait::undo(|| detach(host, nodes, Force::Take, limit.for_undoing()));
    Err(error.with_undoing(undone))
}

/// Waits until both ends of a device are connected.
///
/// # Errors
/// The error that the backend tells, [`Error::Timeout`] with the states of both ends, [`Error::Interrupted`].
pub fn await_connected(
    host: &mut Host,
    device: &AttachableDevice,
    limit: Limit,
) -> Result<(), Error> {
    let (domid, words) = (device.domid(), device.words());
    let (front, back) = (device.nodes().frontend_path(), device.nodes().backend_path());
    let states = std::cell::Cell::new((State::Unknown, State::Unknown));
    let what = || {
        let (front, back) = states.get();
        format!("{words} of domain {domid} connects (frontend {front}, backend {back})")
    };
    let backend = daemons::backend(&device.nodes().backend_kind);
    // The log of a driver domain's backend is there.
    let backend = backend.filter(|_| device.nodes().backend == DomId::DOM0);
    let log = host.folder().zip(backend).map(|(folder, daemon)| daemon.log(folder));
    let log = log.map(|log| format!("; {} says more", log.display())).unwrap_or_default();
    let ended =
        || Error::Ended(format!("domain {domid} has ended before its {words} was connected"));
    let connected = watched(
        host,
        &[&front, &back, "@releaseDomain"],
        |Host { store, platform }| {
            limit.until(store, &what, |store| {
                let both = (state(store, &front)?, state(store, &back)?);
                states.set(both);
                if both == (State::Connected, State::Connected)
                    && has_interfaces(store, device, &front)?
                {
                    return Ok(Some(()));
                }
                for (end, is_guest) in [(&back, false), (&front, true)] {
                    if let Some(error) = store.try_read(format!("{end}/error"))? {
                        let error = ReportedError::parse(error);
                        let users = if error.is_busy() { device.users(store)? } else { None };
                        let why = match users {
                            Some(users) => users,
                            None if is_guest && error.is_out_of_pages() => {
                                format!("the guest has too little memory for one more device ({error}); {MORE}")
                            }
                            None => format!("{error}{log}"),
                        };
                        let device = device.words_with_target();
                        return Err(Error::Refused(format!("{device}: {why}")));
                    }
                }
                if platform.runs(domid, None) {
                    return Ok(None);
                }
                Err(ended())
            })
        },
    );
    match connected {
        Err(error @ Error::Refused(_))
            if !matches!(states.get().0, State::Initialising | State::InitWait) =>
        {
            // A guest that ends closes its ring before it is gone.
            if ends(host, domid, limit.within(ENDS_WITHIN))? {
                Err(Error::Ended(format!("{}; {error}", ended())))
            } else {
                Err(error)
            }
        }
        Err(error) => Err(error.with_reason(|| doctor::reason(host, device.nodes()))),
        Ok(()) => Ok(()),
    }
}

/// True if a guest has made the files and sockets of a device that is connected, or does not tell of
/// them.
fn has_interfaces(
    store: &mut Client,
    device: &AttachableDevice,
    front: &str,
) -> Result<bool, Error> {
    if device.nodes().kind != "vbd" {
        return Ok(true);
    }
    let domid = device.domid();
    let tells = format!("{}/{TELLS_READY}", xenbus::path::home(domid));
    let is_set = |value: Option<Vec<u8>>| value.as_deref() == Some(b"1");
    Ok(!is_set(store.try_read(tells)?) || is_set(store.try_read(format!("{front}/{READY}"))?))
}

/// True if a domain ends in time.
fn ends(host: &mut Host, domid: DomId, limit: Limit) -> Result<bool, Error> {
    while host.platform.runs(domid, None) {
        match limit.slice(&|| format!("domain {domid} ends")) {
            Ok(slice) => std::thread::sleep(slice.min(LOOK_AGAIN)),
            Err(Error::Timeout { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
