//! Devices of domains: disks, with both ends written at once, awaited, and taken away.

pub mod mount;
pub mod stats;

use crate::config::disk::{BackendType, Format, Specification};
use crate::config::{self, DiskSpec};
use crate::domain::{self, children, read};
use crate::host::{Host, Platform};
use crate::wait::Limit;
use crate::{Error, text, wait};
use std::time::Duration;
use xen::DomId;
use xen_block::disk::DiskAccess;
use xen_block::vbd::{Trust, Vbd};
use xen_io::xenbus::State;
use xenbus::Id;
use xenbus::toolstack::{self, NewDevice};
use xenstore::{Client, Store};

/// How long a backend may take to let go of a device whose domain is gone.
pub const CLOSES_WITHIN: Duration = Duration::from_secs(10);
/// The script that says to libxl that `xen-blockd` serves a disk.
const OUR_SCRIPT: &str = "block-xenbus";

/// A disk that can be added: what is served, and how.
#[derive(Clone, Debug)]
pub struct Disk {
    /// As it was described.
    pub spec: DiskSpec,
    /// What the backend is told to serve.
    pub target: String,
    number: u32,
    backend_kind: &'static str,
}

/// On which kind of host a disk is to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Without Xen.
    Hosted,
    /// In domain 0 of a Xen host.
    Xen,
}

impl Place {
    /// That of a host.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        match host.platform {
            Platform::Hosted { .. } => Self::Hosted,
            Platform::Xen(_) => Self::Xen,
        }
    }
}

/// Looks whether a disk can be served as it is described.
///
/// # Errors
/// A sentence: what cannot be, or is not there.
pub fn prepare(spec: &DiskSpec, place: Place) -> Result<Disk, Error> {
    let vdev = &spec.vdev;
    let refused = |why: &str| Error::Refused(format!("disk {vdev}: {why}"));
    let number = spec.number().map_err(|wrong| refused(&wrong))?;
    if spec.specification == Some(Specification::Virtio) {
        return Err(refused("specification=virtio is not supported; leave it out"));
    }
    if spec.backend.as_deref().is_some_and(|name| !matches!(name, "" | "0" | "Domain-0")) {
        return Err(refused("driver domains (backend=) are not supported yet"));
    }
    if !spec.colo.is_empty() {
        return Err(refused("COLO is not supported"));
    }
    let backend_kind = match (spec.backendtype, place) {
        (Some(BackendType::Tap | BackendType::Standalone), _) => {
            return Err(refused("backendtype is phy or qdisk"));
        }
        (Some(BackendType::Qdisk), _) => "qdisk",
        (Some(BackendType::Phy), _) | (None, Place::Hosted) => "vbd",
        (None, Place::Xen) => {
            if spec.script.is_some() {
                "vbd"
            } else {
                "qdisk"
            }
        }
    };
    let named = spec.target.as_deref().unwrap_or_default();
    let target = match (spec.script.as_deref().filter(|script| !script.is_empty()), spec.format()) {
        (Some(OUR_SCRIPT), _) => named.to_owned(),
        (Some(script), _) => {
            return Err(refused(&format!(
                "hotplug script {script} is not run; name a path, or {OUR_SCRIPT}"
            )));
        }
        (None, Format::Empty) => return Err(refused("a drive without a medium is not supported")),
        (None, Format::Raw) if named.starts_with("nbd:unix:") || named.starts_with("memory:") => {
            named.to_owned()
        }
        (None, Format::Raw) => absolute(named),
        (None, Format::Qcow2) => format!("qcow2:{}", absolute(named)),
        (None, other) => {
            return Err(refused(&format!(
                "format {} is not served; raw and qcow2 are",
                other.word()
            )));
        }
    };
    let parsed = Target::parse(&target).map_err(|wrong| refused(&wrong))?;
    use xen_block::disk::target::Target;
    if let Target::Raw(path) | Target::Qcow2(path) = parsed {
        let opened = if spec.writable() {
            std::fs::OpenOptions::new().read(true).write(true).open(&path)
        } else {
            std::fs::File::open(&path)
        };
        if let Err(error) = opened {
            let hint = if named.starts_with('/') {
                ""
            } else {
                " (a name without / in front is below /dev)"
            };
            let (path, cause) = (path.display(), text::cause(&error));
            return Err(refused(&format!("{path}: {cause}{hint}")));
        }
    }
    Ok(Disk { spec: spec.clone(), target, number, backend_kind })
}

fn absolute(named: &str) -> String {
    if named.starts_with('/') { named.into() } else { format!("/dev/{named}") }
}

impl Disk {
    /// Its device in a domain.
    fn device(&self, domid: DomId) -> Result<NewDevice, Error> {
        let spec = &self.spec;
        let numeric = spec.vdev.starts_with(|first: char| first.is_ascii_digit());
        let vbd = Vbd {
            frontend: domid,
            backend: DomId::DOM0,
            backend_kind: self.backend_kind.into(),
            // A number stands for itself; it is put in below.
            vdev: if numeric { "xvda".into() } else { spec.vdev.clone() },
            target: self.target.clone(),
            access: if spec.writable() { DiskAccess::ReadWrite } else { DiskAccess::ReadOnly },
            trust: if spec.trusted == Some(false) { Trust::Untrusted } else { Trust::Trusted },
        };
        let mut device = vbd.device().map_err(Error::Refused)?;
        device.id.devid = self.number;
        let mut set = |name: &str, value: &str| {
            for nodes in [&mut device.frontend_nodes, &mut device.backend_nodes] {
                for node in nodes.iter_mut().filter(|node| node.0 == name) {
                    node.1 = value.into();
                }
            }
        };
        set("virtual-device", &self.number.to_string());
        set("dev", &spec.vdev);
        if spec.cdrom {
            set("device-type", "cdrom");
            set("removable", "1");
        }
        if spec.discard == Some(false) {
            set("discard-enable", "0");
        }
        if spec.direct_io_safe {
            device.backend_nodes.push(("direct-io-safe".into(), "1".into()));
        }
        if spec.script.is_some() {
            device.backend_nodes.push(("script".into(), format!("/etc/xen/scripts/{OUR_SCRIPT}")));
            device.backend_nodes.push(("hotplug-status".into(), "connected".into()));
        }
        Ok(device)
    }
}

/// Adds a disk to a domain: both ends and libxl's nodes, in one transaction. One of that number must not be there.
///
/// # Errors
/// [`Error::Refused`] where there is one.
pub fn add(store: &mut Client, domid: DomId, disk: &Disk) -> Result<(), Error> {
    let device = disk.device(domid)?;
    if store.exists(device.frontend_path())? || store.exists(device.backend_path())? {
        let vdev = &disk.spec.vdev;
        return Err(Error::Refused(format!(
            "domain {domid} has a disk {vdev} already; xb disk detach {domid} {vdev} takes it away"
        )));
    }
    Ok(toolstack::add(store, &device)?)
}

/// Adds a disk to a domain that runs and waits until it is connected; takes it away again if it does not.
///
/// # Errors
/// A sentence: what is wrong with the disk, or why it does not connect.
pub fn attach(host: &mut Host, domid: DomId, spec: &str, limit: Limit) -> Result<(), Error> {
    let spec = DiskSpec::parse(spec).map_err(|wrong| Error::Refused(wrong.to_string()))?;
    let disk = prepare(&spec, Place::of(host))?;
    add(&mut host.store, domid, &disk)?;
    let connected = await_connected(host, domid, &disk, limit);
    if connected.is_err() {
        wait::forget_interrupt();
        let device = disk.device(domid)?;
        detach(host, &device, Force::Take, Limit::new(CLOSES_WITHIN))?;
    }
    connected
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
    let log =
        host.folder().map(|folder| format!("; {} says more", folder.log("xen-blockd").display()));
    watched(host, &[&front, &back, "@releaseDomain"], |Host { store, platform }| {
        limit.until(store, &what, |store| {
            let both = (state(store, &front)?, state(store, &back)?);
            states.set(both);
            if both == (State::Connected, State::Connected) {
                return Ok(Some(()));
            }
            for end in [&back, &front] {
                if let Some(error) = read(store, &format!("{end}/error"))? {
                    let (target, error, log) =
                        (&disk.target, error.trim(), log.as_deref().unwrap_or_default());
                    return Err(Error::Refused(format!("disk {vdev} ({target}): {error}{log}")));
                }
            }
            if platform.runs(domid, None) {
                return Ok(None);
            }
            Err(Error::Refused(format!(
                "domain {domid} has ended before its disk {vdev} was connected"
            )))
        })
    })
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
    let text = read(store, &format!("{end}/state"))?;
    Ok(text.map_or(State::Unknown, |text| State::parse(text.as_bytes())))
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
    let closed = watched(host, &[&back], |host| {
        limit.until(&mut host.store, &what, |store| {
            let state = state(store, &back)?;
            Ok(matches!(state, State::Closed | State::Unknown).then_some(()))
        })
    });
    match (closed, force) {
        (Ok(()), _) | (Err(Error::Timeout { .. }), Force::Take) => forget(&mut host.store, device),
        (Err(error), _) => Err(error),
    }
}

/// Takes away the nodes of a device, with what its backend has said of errors.
fn forget(store: &mut Client, device: &NewDevice) -> Result<(), Error> {
    toolstack::forget(store, device)?;
    let error = xenbus::path::error(device.backend, &device.backend_path());
    let of_device = above(&error);
    let of_domain = above(of_device);
    store.transaction(|tx| {
        domain::remove(tx, of_device)?;
        if tx.exists(of_domain)? && tx.directory(of_domain)?.is_empty() {
            domain::remove(tx, of_domain)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The node above another.
fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// Takes away all devices of a domain that is gone.
pub(crate) fn release_all(host: &mut Host, domid: DomId, limit: Limit) -> Result<(), Error> {
    let all = devices(&mut host.store, domid)?;
    for device in &all {
        toolstack::detach(&mut host.store, device)?;
    }
    for device in &all {
        detach(host, device, Force::Take, limit)?;
    }
    Ok(())
}

/// All devices of a domain that the toolstack has noted, of every kind.
///
/// # Errors
/// [`Error::Store`].
pub fn devices(store: &mut Client, domid: DomId) -> Result<Vec<NewDevice>, Error> {
    let mut devices = Vec::new();
    for kind in children(store, &format!("/libxl/{domid}/device"))? {
        for devid in children(store, &format!("/libxl/{domid}/device/{kind}"))? {
            let Ok(devid) = devid.parse() else { continue };
            let id = Id { frontend: domid, devid };
            let noted = read(store, &format!("/libxl/{domid}/device/{kind}/{devid}/backend"))?;
            // /local/domain/0/backend/vbd/3/51712
            let parts: Vec<&str> = noted.as_deref().unwrap_or_default().split('/').collect();
            let ["", "local", "domain", backend, "backend", backend_kind, ..] = parts[..] else {
                continue;
            };
            let Ok(backend) = backend.parse() else { continue };
            let mut device = NewDevice::new(&kind, id, DomId(backend));
            device.backend_kind = backend_kind.into();
            devices.push(device);
        }
    }
    Ok(devices)
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
}

/// The disks of a domain.
///
/// # Errors
/// [`Error::Store`].
pub fn disks(store: &mut Client, domid: DomId) -> Result<Vec<Attached>, Error> {
    let mut disks = Vec::new();
    for device in devices(store, domid)?.into_iter().filter(|device| device.kind == "vbd") {
        let (front, back) = (device.frontend_path(), device.backend_path());
        let mut of = |name: &str| read(store, &format!("{back}/{name}"));
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
            front: state(store, &front)?,
            back: state(store, &back)?,
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
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
    let before = file.metadata().map_err(Error::io(path))?;
    if !before.is_file() || before.len() > bytes {
        let size = text::size(before.len());
        return Err(Error::Refused(format!(
            "disk {vdev} ({path}) has {size}; files alone are resized, and only grow"
        )));
    }
    file.set_len(bytes).map_err(Error::io(path))?;
    let back = disk.device.backend_path();
    let what = || format!("the backend tells the new size of disk {vdev}");
    watched(host, &[&back], |host| {
        limit.until(&mut host.store, &what, |store| {
            let sectors = read(store, &format!("{back}/sectors"))?;
            Ok((sectors == Some((bytes / 512).to_string())).then_some(()))
        })
    })
}
