//! Disks: a description is made into a device.

mod attached;
pub mod mount;
mod resize;
pub mod stats;
pub(crate) mod users;

use super::backend_domain::{self, BackendUser};
use super::device::AttachableDevice;
use crate::config::DiskSpec;
use crate::config::disk::{BackendType, Format, SCRIPT_FOLDER, Specification};
use crate::host::{Host, HostPlatform};
use crate::wait::Limit;
use crate::{Error, text};
use rustix::fs::OFlags;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use xen::DomId;
use xen_block::disk::DiskAccess;
use xen_block::disk::target::DiskTarget;
use xen_block::vbd::{self, Trust, Vbd};

pub use attached::{AttachedDisk, find, find_served, list, list_served};
pub use resize::resize;
pub use users::FileUser;

/// The script that tells libxl that `xen-blockd` serves a disk.
const OUR_SCRIPT: &str = "block-xenbus";
/// The script of disks that name none.
const COMMON_SCRIPT: &str = "block";

/// A folder that exists while the kernel's block backend is loaded, which then serves all of `vbd`.
const KERNEL_VBD: &str = "/sys/bus/xen-backend/drivers/vbd";

/// A disk that can be added: its description and its target.
#[derive(Clone, Debug)]
pub struct AttachableDisk {
    /// Its description.
    pub spec: DiskSpec,
    /// The target that the backend is told to serve.
    pub target: String,
    /// The domain that serves it.
    pub backend: DomId,
    number: u32,
    backend_kind: &'static str,
}

/// The kind of host that a disk is served on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostKind {
    /// Without Xen.
    Hosted,
    /// In domain 0 of a Xen host.
    Xen,
}

impl HostKind {
    /// Returns the kind of a host.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        match host.platform {
            HostPlatform::Hosted { .. } => Self::Hosted,
            HostPlatform::Xen(_) => Self::Xen,
        }
    }
}

/// Checks that a disk can be served as described. A name without `/` in front is looked for in
/// `directory`, and then below `/dev`, as `xl` does.
///
/// # Errors
/// A sentence: the description cannot be served, or a file does not exist.
pub fn prepare(
    spec: &DiskSpec,
    place: HostKind,
    directory: &Path,
) -> Result<AttachableDisk, Error> {
    let number =
        spec.number().map_err(|why| Error::Refused(format!("disk {}: {why}", spec.vdev)))?;
    let refused = |why: &str| Error::Refused(format!("disk {}: {why}", vbd::name(number)));
    if spec.specification == Some(Specification::Virtio) {
        return Err(refused("specification=virtio is not supported; leave it out"));
    }
    if spec.grant_usage == Some(false) {
        return Err(refused(
            "grant_usage=0 is for virtio; what is served here is granted; leave it out",
        ));
    }
    let is_own = backend_domain::is_own(spec.backend.as_deref());
    if !spec.colo.is_empty() {
        return Err(refused("COLO is not supported"));
    }
    let backend_kind = match (spec.backendtype, place) {
        (Some(BackendType::Tap | BackendType::Standalone), _) => {
            return Err(refused("backendtype is phy or qdisk"));
        }
        (Some(BackendType::Qdisk), _) => "qdisk",
        (None, HostKind::Xen) if is_own && spec.script.is_none() => "qdisk",
        (Some(BackendType::Phy) | None, _) => "vbd",
    };
    if place == HostKind::Xen && is_own && backend_kind == "vbd" && Path::new(KERNEL_VBD).exists() {
        let why = "the kernel's xen-blkback serves vbd; use backendtype=qdisk, or rmmod xen-blkback and start xen-blockd";
        return Err(refused(why));
    }
    let target = target_of(spec, directory).map_err(|why| refused(&why))?;
    let disk =
        AttachableDisk { spec: spec.clone(), target, backend: DomId::DOM0, number, backend_kind };
    if is_own {
        disk.check_target(directory).map_err(|why| refused(&why))?;
    }
    Ok(disk)
}

/// Returns the target that the backend is told to serve; the error is the reason why there is none.
fn target_of(spec: &DiskSpec, directory: &Path) -> Result<String, String> {
    let named = spec.target.as_deref().unwrap_or_default();
    // Names of another domain's files are looked for there.
    let is_own = backend_domain::is_own(spec.backend.as_deref());
    let path = || match is_own {
        true => absolute(named, Some(directory)),
        false => absolute(named, None),
    };
    Ok(match (spec.script_name(), spec.format()) {
        (Some(OUR_SCRIPT), _) => named.to_owned(),
        // The domain that serves the disk runs it.
        (Some(_), _) if !is_own => named.to_owned(),
        (Some(script), _) => {
            return Err(format!(
                "hotplug script {script} is not run; name a path, or {OUR_SCRIPT}"
            ));
        }
        (None, Format::Empty) => return Err("a drive without a medium is not supported".into()),
        (None, Format::Raw) if named.starts_with("nbd:unix:") || named.starts_with("memory:") => {
            named.to_owned()
        }
        (None, Format::Raw) => path(),
        (None, Format::Qcow2) => format!("qcow2:{}", path()),
        (None, other) => {
            return Err(format!("format {} is not served; raw and qcow2 are", other.word()));
        }
    })
}

/// Checks that a file can be a disk; the error is the reason why it cannot.
fn openable(path: &Path, spec: &DiskSpec) -> Result<(), String> {
    // A FIFO must not block the opening.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(spec.writable())
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|error| text::cause(&error))?;
    let kind = file.metadata().map_err(|error| text::cause(&error))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err("is no file and no block device".into())
}

/// Returns the path of a file: of one that is named without `/` in front, in a folder, else below
/// `/dev`.
fn absolute(named: &str, directory: Option<&Path>) -> String {
    if named.starts_with('/') {
        return named.into();
    }
    let here = directory.map(|directory| directory.join(named));
    match here.as_deref().map(|here| (here.to_str(), here)) {
        Some((Some(path), here)) if !named.is_empty() && here.exists() => path.into(),
        _ => format!("/dev/{named}"),
    }
}

impl AttachableDisk {
    /// Checks that its target can be opened here; the error is the reason why it cannot.
    fn check_target(&self, directory: &Path) -> Result<(), String> {
        let (DiskTarget::Raw(path) | DiskTarget::Qcow2(path)) = DiskTarget::parse(&self.target)?
        else {
            return Ok(());
        };
        openable(&path, &self.spec).map_err(|error| {
            let named = self.spec.target.as_deref().unwrap_or_default();
            let hint = if named.starts_with('/') {
                String::new()
            } else {
                format!(" ({named} is not in {} either)", directory.display())
            };
            format!("{}: {error}{hint}", path.display())
        })
    }

    /// Finds the domain that is to serve it, and waits until that serves its kind, where it is to
    /// be awaited.
    ///
    /// # Errors
    /// [`Error::BackendChoice`]; the errors of [`backend_domain::await_served`].
    pub fn find_backend(
        &mut self,
        host: &mut Host,
        user: BackendUser<'_>,
        limit: Option<Limit>,
    ) -> Result<(), Error> {
        let backend = backend_domain::find(host, self.spec.backend.as_deref(), user)?;
        if let Some(limit) = limit {
            backend_domain::await_served(host, backend.as_ref(), self.backend_kind, limit)?;
        }
        self.backend = backend.map_or(DomId::DOM0, |backend| backend.info.domid);
        Ok(())
    }

    /// Returns its device in a domain.
    ///
    /// # Errors
    /// It has no number.
    pub fn device(&self, domid: DomId) -> Result<AttachableDevice, Error> {
        let spec = &self.spec;
        let numeric = spec.vdev.starts_with(|first: char| first.is_ascii_digit());
        let vbd = Vbd {
            frontend: domid,
            backend: self.backend,
            backend_kind: self.backend_kind.into(),
            // A number is replaced below.
            vdev: if numeric { "xvda".into() } else { spec.vdev.clone() },
            target: self.target.clone(),
            access: if spec.writable() { DiskAccess::ReadWrite } else { DiskAccess::ReadOnly },
            trust: if spec.trusted == Some(false) { Trust::Untrusted } else { Trust::Trusted },
        };
        let mut device = vbd.device().map_err(Error::Refused)?;
        device.id.devid = self.number;
        device.backend_nodes.push(("specification".into(), Specification::Xen.word().into()));
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
        if self.backend != DomId::DOM0 {
            // That domain runs it, where its kernel serves the disk.
            let script = spec.script_name().unwrap_or(COMMON_SCRIPT);
            let script = if script.starts_with('/') {
                script.into()
            } else {
                format!("{SCRIPT_FOLDER}{script}")
            };
            device.backend_nodes.push(("script".into(), script));
        } else if spec.script.is_some() {
            device.backend_nodes.push(("script".into(), format!("{SCRIPT_FOLDER}{OUR_SCRIPT}")));
            device.backend_nodes.push(("hotplug-status".into(), "connected".into()));
        }
        Ok(AttachableDevice::new(device).named(&vbd::name(self.number)).serving(&self.target))
    }
}
