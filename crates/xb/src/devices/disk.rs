//! Disks: a description is made into a device.

mod attached;
pub mod mount;
mod resize;
pub mod stats;
pub(crate) mod users;

use super::device::AttachableDevice;
use crate::config::DiskSpec;
use crate::config::disk::{BackendType, Format, Specification};
use crate::host::{Host, HostPlatform};
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
/// The folder of scripts.
const SCRIPTS: &str = "/etc/xen/scripts/";

/// A folder that exists while the kernel's block backend is loaded, which then serves all of `vbd`.
const KERNEL_VBD: &str = "/sys/bus/xen-backend/drivers/vbd";

/// A disk that can be added: its description and its target.
#[derive(Clone, Debug)]
pub struct AttachableDisk {
    /// Its description.
    pub spec: DiskSpec,
    /// The target that the backend is told to serve.
    pub target: String,
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
        (Some(BackendType::Phy), _) | (None, HostKind::Hosted) => "vbd",
        (None, HostKind::Xen) => {
            if spec.script.is_some() {
                "vbd"
            } else {
                "qdisk"
            }
        }
    };
    if place == HostKind::Xen && backend_kind == "vbd" && Path::new(KERNEL_VBD).exists() {
        let why = "the kernel's xen-blkback serves vbd; use backendtype=qdisk, or rmmod xen-blkback and start xen-blockd";
        return Err(refused(why));
    }
    let named = spec.target.as_deref().unwrap_or_default();
    let script = spec.script.as_deref().filter(|script| !script.is_empty());
    // Scripts are in one folder, whose path may be omitted.
    let script = script.map(|script| script.strip_prefix(SCRIPTS).unwrap_or(script));
    let target = match (script, spec.format()) {
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
        (None, Format::Raw) => absolute(named, directory),
        (None, Format::Qcow2) => format!("qcow2:{}", absolute(named, directory)),
        (None, other) => {
            return Err(refused(&format!(
                "format {} is not served; raw and qcow2 are",
                other.word()
            )));
        }
    };
    let parsed = DiskTarget::parse(&target).map_err(|wrong| refused(&wrong))?;
    if let DiskTarget::Raw(path) | DiskTarget::Qcow2(path) = parsed
        && let Err(error) = openable(&path, spec)
    {
        let hint = if named.starts_with('/') {
            String::new()
        } else {
            format!(" ({named} is not in {} either)", directory.display())
        };
        return Err(refused(&format!("{}: {error}{hint}", path.display())));
    }
    Ok(AttachableDisk { spec: spec.clone(), target, number, backend_kind })
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

fn absolute(named: &str, directory: &Path) -> String {
    if named.starts_with('/') {
        return named.into();
    }
    let here = directory.join(named);
    match here.to_str() {
        Some(path) if !named.is_empty() && here.exists() => path.into(),
        _ => format!("/dev/{named}"),
    }
}

impl AttachableDisk {
    /// Returns its device in a domain.
    ///
    /// # Errors
    /// It has no number.
    pub fn device(&self, domid: DomId) -> Result<AttachableDevice, Error> {
        let spec = &self.spec;
        let numeric = spec.vdev.starts_with(|first: char| first.is_ascii_digit());
        let vbd = Vbd {
            frontend: domid,
            backend: DomId::DOM0,
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
        if spec.script.is_some() {
            device.backend_nodes.push(("script".into(), format!("{SCRIPTS}{OUR_SCRIPT}")));
            device.backend_nodes.push(("hotplug-status".into(), "connected".into()));
        }
        Ok(AttachableDevice::new(device).named(&vbd::name(self.number)).serving(&self.target))
    }
}
