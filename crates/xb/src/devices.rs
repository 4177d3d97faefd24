//! Devices of domains: disks, with both ends written at once, awaited, and taken away.

mod disk;
pub mod mount;
pub mod stats;

use crate::config;
use crate::host::{Host, daemons};
use crate::wait::{self, Limit};
use crate::{Error, text};
use std::time::Duration;
use xen::DomId;
use xen_io::xenbus::State;
use xenbus::Id;
use xenbus::toolstack::{self, Added, NewDevice};
use xenstore::{Client, Store};

pub use disk::{Disk, Place, prepare};

/// How long a backend may take to let go of a device whose domain is gone.
pub const CLOSES_WITHIN: Duration = Duration::from_secs(10);
/// Longest time that a guest whose ring cannot be used may take to end, so that its end is the cause.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks for that.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A disk that its guest says is in use may be on its way out, as after an unmount; this is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// Adds a disk to a domain: both ends and libxl's nodes, in one transaction. One of that number must not be there.
///
/// # Errors
/// [`Error::Refused`] where there is one, [`Error::Destroyed`] where the domain has no nodes any more.
pub fn add(store: &mut Client, domid: DomId, disk: &Disk) -> Result<(), Error> {
    let vdev = &disk.spec.vdev;
    match toolstack::add_new(store, &disk.device(domid)?)? {
        Added::New => Ok(()),
        Added::WasThere => Err(Error::Refused(format!(
            "domain {domid} has a disk {vdev} already; xb disk detach {domid} {vdev} takes it away"
        ))),
        Added::NoDomain => Err(Error::destroyed(format!("domain {domid}"))),
    }
}

/// Adds a disk to a domain that runs and waits until it is connected; takes it away again if it does not.
///
/// # Errors
/// A sentence: why it does not connect.
pub fn attach(host: &mut Host, domid: DomId, disk: &Disk, limit: Limit) -> Result<(), Error> {
    add(&mut host.store, domid, disk)?;
    let Err(error) = await_connected(host, domid, disk, limit) else { return Ok(()) };
    let device = disk.device(domid)?;
    let undone = wait::undo(|| detach(host, &device, Force::Take, Limit::new(CLOSES_WITHIN)));
    Err(error.with_undoing(undone))
}

/// Waits until both ends of a disk are connected.
///
/// # Errors
/// What the backend says of it, [`Error::Timeout`] with the states of both ends, [`Error::Interrupted`].
pub fn await_connected(
    host: &mut Host,
    domid: DomId,
    disk: &Disk,
    limit: Limit,
) -> Result<(), Error> {
    let device = disk.device(domid)?;
    let vdev = &disk.spec.vdev;
    let (front, back) = (device.frontend_path(), device.backend_path());
    let states = std::cell::Cell::new((State::Unknown, State::Unknown));
    let what = || {
        let (front, back) = states.get();
        format!("disk {vdev} of domain {domid} connects (frontend {front}, backend {back})")
    };
    let backend = daemons::backend(&device.backend_kind);
    let log = host.folder().zip(backend).map(|(folder, daemon)| daemon.log(folder));
    let log = log.map(|log| format!("; {} says more", log.display()));
    let ended =
        || Error::Ended(format!("domain {domid} has ended before its disk {vdev} was connected"));
    let connected =
        watched(host, &[&front, &back, "@releaseDomain"], |Host { store, platform }| {
            limit.until(store, &what, |store| {
                let both = (state(store, &front)?, state(store, &back)?);
                states.set(both);
                if both == (State::Connected, State::Connected) {
                    return Ok(Some(()));
                }
                for end in [&back, &front] {
                    if let Some(error) = store.try_read(format!("{end}/error"))? {
                        let (target, error, log) = (
                            &disk.target,
                            text::clean(text::lossy(error).trim()),
                            log.as_deref().unwrap_or_default(),
                        );
                        return Err(Error::Refused(format!(
                            "disk {vdev} ({target}): {error}{log}"
                        )));
                    }
                }
                if platform.runs(domid, None) {
                    return Ok(None);
                }
                Err(ended())
            })
        });
    match connected {
        Err(error @ Error::Refused(_))
            if !matches!(states.get().0, State::Initialising | State::InitWait) =>
        {
            // A guest that ends takes its ring along before it is gone.
            if ends(host, domid, limit.within(ENDS_WITHIN))? {
                Err(Error::Ended(format!("{}; {error}", ended())))
            } else {
                Err(error)
            }
        }
        connected => connected,
    }
}

/// True where a domain ends in time.
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

/// Does something while changes below these nodes wake waits.
fn watched<T>(
    host: &mut Host,
    paths: &[&str],
    body: impl FnOnce(&mut Host) -> Result<T, Error>,
) -> Result<T, Error> {
    const TOKEN: &str = "xb:device";
    for path in paths {
        host.store.watch(path, TOKEN)?;
    }
    let done = body(host);
    for path in paths {
        host.store.unwatch(path, TOKEN)?;
    }
    done
}

/// The state of an end.
fn state(store: &mut Client, end: &str) -> Result<State, Error> {
    let text = store.try_read(format!("{end}/state"))?;
    Ok(text.map_or(State::Unknown, |text| State::parse(&text)))
}

/// Whether a device may be torn out of its guest's hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// It is asked for.
    Ask,
    /// It is taken, whatever the guest does with it.
    Take,
}

/// Takes a device away from a domain that runs: asked for, awaited, forgotten.
///
/// # Errors
/// [`Error::Timeout`] where the guest does not let go; [`Force::Take`] then.
pub fn detach(
    host: &mut Host,
    device: &NewDevice,
    force: Force,
    limit: Limit,
) -> Result<(), Error> {
    let back = device.backend_path();
    toolstack::detach(&mut host.store, device)?;
    let id = device.id;
    let what = || {
        format!(
            "disk {} of domain {} is let go of (the guest uses it? --force takes it away)",
            id.devid, id.frontend
        )
    };
    let front = device.frontend_path();
    let closed = watched(host, &[&back, &front], |host| {
        let refused = limit.until(&mut host.store, &what, |store| {
            if is_closed(store, &back)? {
                return Ok(Some(None));
            }
            let refused = store.try_read(format!("{front}/error"))?.map(text::lossy);
            Ok(refused.filter(|_| force == Force::Ask).map(Some))
        })?;
        let Some(error) = refused else { return Ok(()) };
        let closed = limit
            .within(BUSY)
            .until(&mut host.store, &what, |store| Ok(is_closed(store, &back)?.then_some(())));
        match closed {
            Err(Error::Timeout { .. }) => Err(Error::Refused(format!(
                "disk {} of domain {}: {}; xb disk detach again then, or with --force now",
                id.devid,
                id.frontend,
                text::clean(error.trim())
            ))),
            closed => closed,
        }
    });
    match (closed, force) {
        (Ok(()), _) | (Err(Error::Timeout { .. }), Force::Take) => forget(&mut host.store, device),
        (Err(error), _) => Err(error),
    }
}

/// Whether a backend has let go.
fn is_closed(store: &mut Client, back: &str) -> Result<bool, Error> {
    Ok(matches!(state(store, back)?, State::Closed | State::Unknown))
}

/// Takes away the nodes of a device, with what its backend has said of errors.
fn forget(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    toolstack::forget(store, device)?;
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

/// The node above another.
fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// Has the backends of all devices of a domain begin to let go.
pub(crate) fn ask_all(store: &mut Client, domid: DomId) -> Result<(), Error> {
    for device in devices(store, domid)? {
        toolstack::detach(store, &device)?;
    }
    Ok(())
}

/// Takes away all devices of a domain that is gone.
pub(crate) fn release_all(host: &mut Host, domid: DomId, limit: Limit) -> Result<(), Error> {
    for device in devices(&mut host.store, domid)? {
        detach(host, &device, Force::Take, limit)?;
    }
    Ok(())
}

/// All devices of a domain that the toolstack has noted, of every kind.
///
/// # Errors
/// [`Error::Store`].
pub fn devices(store: &mut Client, domid: DomId) -> Result<Vec<NewDevice>, Error> {
    let mut devices = Vec::new();
    for kind in store.list(format!("/libxl/{domid}/device"))? {
        for devid in store.list(format!("/libxl/{domid}/device/{kind}"))? {
            let Ok(devid) = devid.parse() else { continue };
            let id = Id { frontend: domid, devid };
            let noted = store.try_read(format!("/libxl/{domid}/device/{kind}/{devid}/backend"))?;
            let noted = text::lossy(noted.unwrap_or_default());
            let Some((backend, backend_kind)) = backend_of(&noted) else { continue };
            let mut device = NewDevice::new(&kind, id, backend);
            device.backend_kind = backend_kind.into();
            devices.push(device);
        }
    }
    Ok(devices)
}

/// The domain and kind of a backend, by its path: `/local/domain/0/backend/vbd/3/51712`.
pub(crate) fn backend_of(path: &str) -> Option<(DomId, &str)> {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "local", "domain", backend, "backend", kind, ..] = parts[..] else { return None };
    Some((DomId(backend.parse().ok()?), kind))
}

/// A disk as it is in the store.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its device.
    pub device: NewDevice,
    /// Its name in the guest.
    pub vdev: String,
    /// What is served.
    pub target: String,
    /// `w` or `r`.
    pub mode: String,
    /// The frontend's state.
    pub front: State,
    /// The backend's state.
    pub back: State,
    /// Bytes, once the backend has said so.
    pub bytes: Option<u64>,
    /// What went wrong with it, in the backend's words.
    pub error: Option<String>,
    /// The server that has its sectors is away; requests wait for it.
    pub server_gone: bool,
}

impl Attached {
    /// The backend's state in words; of one whose server is away, that.
    #[must_use]
    pub fn backend_state(&self) -> String {
        if self.server_gone { "its server is gone".into() } else { self.back.to_string() }
    }
}

/// The disks of a domain.
///
/// # Errors
/// [`Error::Store`].
pub fn disks(store: &mut Client, domid: DomId) -> Result<Vec<Attached>, Error> {
    let mut disks = Vec::new();
    for device in devices(store, domid)?.into_iter().filter(|device| device.kind == "vbd") {
        let (front, back) = (device.frontend_path(), device.backend_path());
        let back_state = state(store, &back)?;
        let mut of = |name: &str| -> Result<_, Error> {
            Ok(store.try_read(format!("{back}/{name}"))?.map(text::lossy))
        };
        let target = match of("target")? {
            Some(target) => target,
            None => of("params")?.unwrap_or_default(),
        };
        let sectors = of("sectors")?.and_then(|text| text.parse::<u64>().ok());
        disks.push(Attached {
            vdev: of("dev")?.unwrap_or_default(),
            target,
            mode: of("mode")?.unwrap_or_default(),
            bytes: sectors.and_then(|sectors| sectors.checked_mul(512)),
            error: of("error")?,
            // It is told of a disk in use, and by nobody of one that is closed.
            server_gone: back_state == State::Connected
                && of(xen_block::back::SERVER_GONE)?.as_deref() == Some("1"),
            front: state(store, &front)?,
            back: back_state,
            device,
        });
    }
    Ok(disks)
}

/// The disk with this name or number in a domain.
///
/// # Errors
/// [`Error::NotFound`].
pub fn disk(store: &mut Client, domid: DomId, which: &str) -> Result<Attached, Error> {
    let number = config::disk::number(which).ok();
    let found = disks(store, domid)?
        .into_iter()
        .find(|disk| Some(disk.device.id.devid) == number || disk.vdev == which);
    found.ok_or_else(|| {
        Error::NotFound(format!(
            "domain {domid} has no disk {which}; xb disk list {domid} shows all"
        ))
    })
}

/// Gives a raw image another size, and waits until the guest has been told.
///
/// # Errors
/// A sentence: no raw image, or it would become smaller.
pub fn resize(host: &mut Host, disk: &Attached, bytes: u64, limit: Limit) -> Result<(), Error> {
    let vdev = &disk.vdev;
    let path = disk.target.trim_start_matches("raw:").trim_start_matches("aio:");
    if !path.starts_with('/') || !bytes.is_multiple_of(512) {
        let why = "only raw images are resized, to a multiple of 512 bytes";
        return Err(Error::Refused(format!("disk {vdev} ({}): {why}", disk.target)));
    }
    let back = disk.device.backend_path();
    let physical = host.store.try_read(format!("{back}/physical-sector-size"))?;
    let physical = physical.and_then(|size| xen_io::xenbus::number(&size)).unwrap_or(512_u64);
    if physical > 0 && !bytes.is_multiple_of(physical) {
        let whole = bytes.next_multiple_of(physical);
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) is served in whole sectors of {physical} bytes: {bytes} is none, {whole} is"
        )));
    }
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
    let before = file.metadata().map_err(Error::io(path))?;
    if !before.is_file() || before.len() > bytes {
        let size = text::size(before.len());
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) has {size}; files alone are resized, and only grow"
        )));
    }
    file.set_len(bytes).map_err(Error::io(path))?;
    let what = || format!("the backend tells the new size of disk {vdev}");
    watched(host, &[&back], |host| {
        limit.until(&mut host.store, &what, |store| {
            let sectors = store.try_read(format!("{back}/sectors"))?;
            Ok((sectors == Some((bytes / 512).to_string().into_bytes())).then_some(()))
        })
    })
}
