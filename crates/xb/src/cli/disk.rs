//! `xb disk`.

use super::options::GlobalOptions;
use super::out;
use crate::config::DiskSpec;
use crate::config::disk::next_free;
use crate::devices::backend_domain::BackendUser;
use crate::devices::disk::{self, AttachedDisk, HostKind};
use crate::devices::{self, Force};
use crate::domain::Domain;
use crate::host::Host;
use crate::{Error, domain, text};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use xen::DomId;

#[derive(Subcommand, Debug)]
pub(crate) enum DiskCommand {
    /// Attach a disk to a domain, and wait until it is connected.
    #[command(
        after_help = "Example: xb disk attach web format=qcow2,vdev=xvdb,target=/images/data.qcow2"
    )]
    Attach(Attach),
    /// Detach a disk, and wait until the guest has let go of it.
    #[command(after_help = "Example: xb disk detach web xvdb")]
    Detach(Detach),
    /// List the disks of a domain, or of all.
    #[command(visible_alias = "ls", after_help = "Example: xb disk list web --json")]
    List {
        /// The domain's name or number; all domains without it.
        domain: Option<String>,
    },
    /// Have the host's kernel mount a disk at /mnt in a guest that has kernel_block=1; as root.
    #[command(after_help = "Example: xb disk mount web xvda")]
    Mount(Mount),
    /// Unmount what was mounted at /mnt in a guest.
    #[command(after_help = "Example: xb disk unmount web")]
    Unmount {
        /// The domain's name or number.
        domain: String,
    },
    /// Tell what the disks of a domain, or of all, have done since they were connected.
    #[command(after_help = "Example: xb disk stats web --json")]
    Stats {
        /// The domain's name or number; all domains without it.
        domain: Option<String>,
    },
    /// Enlarge a raw image, and tell the guest. A block device is enlarged before, by its own tools.
    #[command(after_help = "Example: xb disk resize web xvdb 2G")]
    Resize(Resize),
}

#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// The domain's name or number.
    domain: String,
    /// The disk, as in a configuration; several words are one string, as with xl. Without a vdev it gets the next free
    /// name from xvda on, which is printed.
    #[arg(required = true)]
    disk: Vec<String>,
    /// Do not wait until the guest has connected it.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Detach {
    /// The domain's name or number.
    domain: String,
    /// The disk's name in the guest, or its number.
    vdev: String,
    /// Take it away even if the guest does not let go of it in time.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Mount {
    /// The domain's name or number.
    domain: String,
    /// The disk's name in the guest, or its number.
    vdev: String,
    /// The file system that is on it.
    #[arg(long = "type", value_name = "TYPE", default_value = "ext4")]
    fs_type: String,
}

#[derive(Args, Debug)]
pub(crate) struct Resize {
    /// The domain's name or number.
    domain: String,
    /// The disk's name in the guest, or its number.
    vdev: String,
    /// The new size in bytes, or with K, M, G or T.
    #[arg(value_parser = size)]
    size: u64,
}

fn size(text: &str) -> Result<u64, String> {
    text::bytes(text)
        .ok_or_else(|| "a number of bytes is needed, or one with K, M, G or T".to_owned())
}

/// Returns a disk as JSON.
pub(crate) fn as_json(disk: &AttachedDisk) -> Value {
    json!({
        "vdev": disk.vdev,
        "devid": disk.number(),
        "target": disk.target,
        "access": disk.mode,
        "backend": disk.attached.device.backend_kind,
        "bytes": disk.bytes,
        "frontend_state": disk.attached.front.to_string(),
        "backend_state": disk.backend_state(),
        "backend_runs": disk.backend_runs(),
        "server_gone": disk.server_gone,
        "error": disk.attached.error.as_ref().map(|error| &error.text),
        "errno": disk.attached.error.as_ref().and_then(|error| error.errno),
    })
}

pub(crate) fn run(options: &GlobalOptions, command: &DiskCommand) -> Result<u8, Error> {
    match command {
        DiskCommand::Attach(attach) => self::attach(options, attach),
        DiskCommand::Detach(detach) => {
            domain::with(&mut options.open()?, &detach.domain, |host, domain| {
                let domid = domain.info.domid;
                let disk = disk::find(&mut host.store, domid, &detach.vdev)?;
                let force = if detach.force { Force::Take } else { Force::Ask };
                devices::detach(host, &disk.attached.device, force, options.limit())?;
                let so = json!({ "domid": domid.0, "vdev": disk.vdev, "detached": true });
                if options.json { out::json(&so) } else { Ok(0) }
            })
        }
        DiskCommand::Mount(mount) => {
            domain::with(&mut options.open()?, &mount.domain, |host, domain| {
                let disk = disk::find(&mut host.store, domain.info.domid, &mount.vdev)?;
                disk::mount::mount(host, domain, &disk, &mount.fs_type, options.limit())?;
                let at = disk::mount::PLACE;
                let so = json!({ "domain": domain.name, "vdev": disk.vdev, "mounted": at });
                if options.json { out::json(&so) } else { Ok(0) }
            })
        }
        DiskCommand::Unmount { domain } => {
            domain::with(&mut options.open()?, domain, |host, domain| {
                disk::mount::unmount(host, domain)?;
                let so = json!({ "domain": domain.name, "mounted": null });
                if options.json { out::json(&so) } else { Ok(0) }
            })
        }
        DiskCommand::List { domain } => list(options, domain.as_deref()),
        DiskCommand::Stats { domain } => super::stats::run(options, domain.as_deref()),
        DiskCommand::Resize(resize) => {
            domain::with(&mut options.open()?, &resize.domain, |host, domain| {
                let domid = domain.info.domid;
                let disk = disk::find(&mut host.store, domid, &resize.vdev)?;
                disk::resize(host, &disk, resize.size, options.limit())?;
                print_state(options, host, domid, &resize.vdev)
            })
        }
    }
}

fn attach(options: &GlobalOptions, attach: &Attach) -> Result<u8, Error> {
    let text = attach.disk.join(",");
    domain::with(&mut options.open()?, &attach.domain, |host, domain| {
        let domid = domain.info.domid;
        let mut spec = DiskSpec::parse(&text).map_err(|wrong| Error::Refused(wrong.to_string()))?;
        if !spec.vdev.is_empty() {
            attach_one(options, attach, host, domain, &spec)?;
            return print_state(options, host, domid, &spec.vdev);
        }
        loop {
            let mut disks = disk::list(&mut host.store, domid)?;
            let mut left = Vec::new();
            for disk in &disks {
                left.push(devices::is_detached(&mut host.store, &disk.attached.device)?);
            }
            let mut left = left.into_iter();
            disks.retain(|_| !left.next().unwrap_or(false));
            spec.vdev = next_free(|number| disks.iter().any(|disk| disk.number() == number));
            match attach_one(options, attach, host, domain, &spec) {
                // Another client has taken the name meanwhile.
                Err(Error::AlreadyThere(_)) => crate::wait::check()?,
                attached => break attached?,
            }
        }
        if !options.json {
            out::print(&format!("the disk is {} of {}\n", spec.vdev, out::clean(&domain.name)))?;
        }
        print_state(options, host, domid, &spec.vdev)
    })
}

fn attach_one(
    options: &GlobalOptions,
    attach: &Attach,
    host: &mut Host,
    domain: &Domain,
    spec: &DiskSpec,
) -> Result<(), Error> {
    let mut disk = disk::prepare(spec, HostKind::of(host), &super::options::current_folder())?;
    let user = BackendUser { name: &domain.name, domid: Some(domain.info.domid) };
    let limit = options.limit();
    disk.find_backend(host, user, Some(limit).filter(|_| !attach.no_wait))?;
    let device = disk.device(domain.info.domid)?;
    if attach.no_wait {
        devices::add(&mut host.store, &device)
    } else {
        devices::attach(host, &device, limit)
    }
}

/// Prints the present state of the disk with --json.
fn print_state(
    options: &GlobalOptions,
    host: &mut Host,
    domid: DomId,
    vdev: &str,
) -> Result<u8, Error> {
    if !options.json {
        return Ok(0);
    }
    out::json(&as_json(&disk::find_served(host, domid, vdev)?))
}

fn list(options: &GlobalOptions, which: Option<&str>) -> Result<u8, Error> {
    let mut host = options.open()?;
    let domains = match which {
        Some(which) => vec![domain::find(&mut host, which)?],
        None => domain::list(&mut host)?,
    };
    let mut rows = vec![
        ["DOMAIN", "VDEV", "SIZE", "ACCESS", "FRONTEND", "BACKEND", "TARGET"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut values = Vec::new();
    for domain in domains {
        for disk in disk::list_served(&mut host, domain.info.domid)? {
            rows.push(vec![
                out::clean(&domain.name),
                out::clean(&disk.vdev),
                disk.bytes.map_or_else(|| "-".into(), text::size),
                out::clean(&disk.mode),
                disk.attached.front.to_string(),
                disk.backend_state(),
                out::clean(&disk.target),
            ]);
            let mut value = as_json(&disk);
            value["domid"] = json!(domain.info.domid.0);
            value["domain"] = json!(domain.name);
            values.push(value);
        }
    }
    if options.json { out::json(&Value::Array(values)) } else { out::table(&rows) }
}
