//! The creation of a hosted guest: its process, its nodes, its devices, in this order; undone if
//! any step fails.

use super::succession::{self, NextNumber};
use super::{check, destroy, program};
use crate::config::{self, Description, Setting};
use crate::devices::backend_domain::BackendUser;
use crate::devices::disk::AttachableDisk;
use crate::devices::{self, AttachableDevice};
use crate::domain::{self, Domain, nodes};
use crate::host::creation::Creation;
use crate::host::daemons::{self, BROKER, CONSOLE};
use crate::host::folder::Folder;
use crate::host::guest_end::GuestEnd;
use crate::host::guest_folder::{GuestFolder, Lineage};
use crate::host::service::{self, ServiceProcess};
use crate::host::{Host, HostPlatform, programs, saved_config};
use crate::wait::{self, Limit};
use crate::{Error, text};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;
use xen::DomId;
use xen::domctl::DomainControl;
use xen_console::serve::nodes::SERVED;
use xen_hosted::domain::{ConsoleTerminal, Devices, DomainConfig, Files, Lifetime};
use xen_hosted::domctl::{Control, CreatedDomain, Descriptors, Holder};
use xenstore::{Client, Store};

/// The longest time that the console of a new domain may take to be served.
const CONSOLE_WITHIN: Duration = Duration::from_secs(10);
/// The time between two attempts to create the successor of a domain that is not gone yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The state that a domain is left in once it is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartMode {
    /// It runs.
    Run,
    /// It runs, and ends with this process's connection to the broker.
    RunHeld,
    /// It runs in place of one that has ended.
    RunAgain(Predecessor),
    /// It stays paused.
    StayPaused,
}

/// An ended domain that another one replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Predecessor {
    /// Its number.
    pub domid: DomId,
    /// The connection that it ended with, which the next one ends with too.
    pub holder: Option<Holder>,
    /// The number of the next one.
    pub next: NextNumber,
}

impl StartMode {
    /// Returns the number that the new domain gets.
    fn next_number(self) -> NextNumber {
        match self {
            Self::RunAgain(before) => before.next,
            _ => NextNumber::Free,
        }
    }

    /// Returns the domain whose number the new one gets.
    fn succeeds(self) -> Option<DomId> {
        match self {
            Self::RunAgain(before) if before.next == NextNumber::Same => Some(before.domid),
            _ => None,
        }
    }
}

/// A domain that was created.
#[derive(Debug)]
pub struct CreatedGuest {
    /// Its number.
    pub domid: DomId,
    /// The parts of its sandbox that it runs without, a sentence each.
    pub lacks: Vec<String>,
}

/// Creates the domain that `settings` describe, and waits until its devices are connected. Until it
/// is complete the domain is held: if this process dies, the broker destroys it, and the keeper
/// removes its nodes.
///
/// # Errors
/// A sentence; nothing of the domain is left then.
pub fn create(
    host: &mut Host,
    description: &Description,
    settings: &[Setting],
    mode: StartMode,
    limit: Limit,
) -> Result<CreatedGuest, Error> {
    hosted(&mut host.platform)?;
    let (mut disks, faults) = check::check(description, settings);
    if let Some(first) = faults.into_iter().next() {
        return Err(first);
    }
    wait::check()?;
    let user = BackendUser { name: &description.name, domid: None };
    for disk in &mut disks {
        disk.find_backend(host, user, Some(limit))?;
    }
    let (folder, control) = hosted(&mut host.platform)?;
    let guest = folder.guest(&description.name);
    let lock = claim(&guest, &mut host.store, control)?;
    unique(control, description, mode.succeeds())?;
    saved_config::write(&guest, description, settings)?;
    wait::check()?;
    let creation = Creation::begin(folder, &description.name)?;
    let created = build(folder, control, description, mode.succeeds(), limit)?;
    let domid = created.domid;
    let info = control.info(domid).map_err(|error| match error {
        xen::Error::Srch => Error::destroyed(format!("{} (domain {domid})", description.name)),
        error => Error::platform("asking for the new domain")(error),
    })?;
    let domain = Domain { info, name: description.name.clone() };
    let lineage = match mode {
        StartMode::RunAgain(before) => guest.lineage_of(before.domid).restarted(domid),
        _ => Lineage::begin(domid),
    };
    let noted = guest.note(lineage).map_err(Error::io(guest.path().display()));
    let set_up =
        noted.and_then(|()| set_up(host, &domain, description, &created, &disks, mode, limit));
    drop((lock, creation));
    if let Err(error) = set_up {
        let error = domain::explain(host, &domain, error);
        let undone = wait::undo(|| destroy::destroy(host, domid, limit.for_undoing()));
        return Err(error.with_undoing(undone));
    }
    let mut lacks: Vec<String> = created.lacks.iter().map(ToString::to_string).collect();
    if description.vcpus > processors() {
        let (vcpus, has) = (description.vcpus, processors());
        lacks.push(format!(
            "vcpus = {vcpus} has no effect: this machine has {}",
            text::processors(has)
        ));
    }
    Ok(CreatedGuest { domid, lacks })
}

/// Returns the folder and the broker of a hosted host, where alone domains are created.
fn hosted(platform: &mut HostPlatform) -> Result<(&Folder, &mut Control), Error> {
    match platform {
        HostPlatform::Hosted { folder, control } => Ok((folder, control)),
        HostPlatform::Xen(_) => Err(Error::Refused(
            "on Xen, domains are created by xl create; xb lists them and attaches disks".into(),
        )),
    }
}

/// Refuses a UUID that another domain has, which is not the one before.
fn unique(
    control: &mut Control,
    description: &Description,
    before: Option<DomId>,
) -> Result<(), Error> {
    let Some(uuid) = description.uuid else { return Ok(()) };
    let infos = control.list().map_err(Error::platform("listing the domains"))?;
    match infos.iter().find(|info| info.handle == uuid && Some(info.domid) != before) {
        None => Ok(()),
        Some(info) => Err(Error::Refused(format!(
            "domain {} has the uuid {} already; give {} another one, or leave the key out",
            info.domid,
            domain::uuid(info),
            description.name
        ))),
    }
}

/// Takes a name for a new domain: no other domain may have it, or be taking it.
fn claim(guest: &GuestFolder, store: &mut Client, control: &mut Control) -> Result<File, Error> {
    let (dir, name) = (guest.claim()?, guest.name());
    if let Some(domid) = guest.last().filter(|domid| control.info(*domid).is_ok()) {
        let theirs = store.try_read(format!("{}/name", domain::home(domid)))?;
        if theirs.as_deref() == Some(name.as_bytes()) {
            return Err(Error::Refused(format!(
                "there is a domain {name} already (number {domid}); xb destroy {name} takes it down, \
                 or give this one another name"
            )));
        }
    }
    Ok(dir)
}

/// Creates the domain's process, paused.
fn build(
    folder: &Folder,
    control: &mut Control,
    description: &Description,
    succeeds: Option<DomId>,
    limit: Limit,
) -> Result<CreatedDomain, Error> {
    let mut config = DomainConfig::default();
    config.handle = match description.uuid {
        Some(uuid) => uuid,
        None => random_uuid()?,
    };
    config.memory_max_kib = description.memory_mib * 1024;
    config.weight = description.weight;
    config.cap = match (description.cap, description.vcpus) {
        // The processors are the host's; a guest with fewer is limited to their share of time.
        (0, vcpus) if vcpus < processors() => u16::try_from(vcpus.saturating_mul(100)).unwrap_or(0),
        (cap, _) => cap,
    };
    config.lifetime = Lifetime::Held;
    config.succeeds = succeeds;
    config.files = Files::System;
    config.devices = if description.kernel_block { Devices::KernelFiles } else { Devices::Files };
    config.env = vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into(), "HOME=/tmp".into()];
    let program = match &description.kernel {
        None => {
            config.terminal = ConsoleTerminal::Private;
            config.args = vec!["xb".into(), "guest-init".into()];
            config.args.extend(description.driver_domain.then(|| "--driver-domain".into()));
            config.args.extend(["--".into(), description.extra.clone().into()]);
            File::open("/proc/self/exe").map_err(Error::io("this program"))?
        }
        Some(kernel) => {
            config.args = vec![kernel.into()];
            config.args.extend(description.extra.split_whitespace().map(Into::into));
            program::open(kernel)?
        }
    };
    if description.driver_domain {
        for daemon in daemons::backends() {
            config.programs.push(programs::find(daemon.program())?.into());
        }
    }
    let name = &description.name;
    let output = folder.guest(name).new_output()?;
    let input = File::open("/dev/null").map_err(Error::io("/dev/null"))?;
    let descriptors = Descriptors {
        program: program.as_fd(),
        input: input.as_fd(),
        output: output.as_fd(),
        error: output.as_fd(),
    };
    let created = loop {
        match control.create(&config, descriptors) {
            // The domain before is not gone altogether.
            Err(xen::Error::Busy) if succeeds.is_some() => {
                let slice = limit.slice(&|| format!("{name} may have its number again"))?;
                std::thread::sleep(slice.min(LOOK_AGAIN));
            }
            created => break created,
        }
    };
    created.map_err(|error| {
        let log = BROKER.log(folder);
        // The error is of files and namespaces, not of ports and grants.
        let cause = text::cause(&std::io::Error::from_raw_os_error(error.errno()));
        Error::Refused(format!("{name} cannot be created: {cause}; {} says more", log.display()))
    })
}

fn processors() -> u32 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Makes a random UUID (RFC 9562, version 4).
fn random_uuid() -> Result<[u8; 16], Error> {
    let mut uuid = [0; 16];
    let got = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty());
    got.map_err(|errno| Error::io("random numbers")(errno.into()))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Writes all nodes of the domain; then the domain runs.
fn set_up(
    host: &mut Host,
    domain: &Domain,
    description: &Description,
    created: &CreatedDomain,
    disks: &[AttachableDisk],
    mode: StartMode,
    limit: Limit,
) -> Result<(), Error> {
    let domid = created.domid;
    wait::check()?;
    if host.store.exists(format!("/libxl/{domid}"))? {
        // Devices of an earlier domain with this number that was not cleaned up, as after a broker
        // that was killed.
        destroy::remove_nodes(host, domid, None, limit.for_undoing())?;
    }
    let next = mode.next_number();
    nodes::write(&mut host.store, description, created, &domain.info.handle, next)?;
    if next == NextNumber::Same {
        succession::open_again(&mut host.store, domid)?;
    }
    host.store.introduce(domid.0, created.store_gfn.0, created.store_port.0)?;
    let all = disks.iter().map(|disk| disk.device(domid));
    let all: Vec<AttachableDevice> = all.collect::<Result<_, _>>()?;
    for device in &all {
        wait::check()?;
        devices::add(&mut host.store, device)?;
    }
    await_console(host, domain, mode, limit)?;
    wait::check()?;
    if mode == StartMode::StayPaused {
        return let_go(host, domain, None);
    }
    match host.control().unpause(domid) {
        // Another client has unpaused it, which has seen it in the list.
        Ok(()) | Err(xen::Error::Inval) => {}
        Err(error) => return Err(Error::platform(format!("starting {}", description.name))(error)),
    }
    for device in &all {
        wait::check()?;
        match devices::await_connected(host, device, limit) {
            Err(Error::Refused(_) | Error::Ended(_))
                if has_run(host, &description.name, domid)? =>
            {
                break;
            }
            connected => connected?,
        }
    }
    wait::check()?;
    match mode {
        StartMode::RunHeld => Ok(()),
        StartMode::RunAgain(before) => let_go(host, domain, before.holder),
        StartMode::Run | StartMode::StayPaused => let_go(host, domain, None),
    }
}

/// Waits until the domain's console is served: before that, the first words of a guest that ends at
/// once would be lost. A guest that is started again runs without: its words wait for the daemon.
fn await_console(
    host: &mut Host,
    domain: &Domain,
    mode: StartMode,
    limit: Limit,
) -> Result<(), Error> {
    const TOKEN: &str = "console";
    let runs_again = matches!(mode, StartMode::RunAgain(_));
    if service::of_console(host) == ServiceProcess::Down {
        let dir = host.folder().map(|folder| folder.path().display().to_string());
        let refused = Error::Refused(format!(
            "nothing serves the console of {}; xb --host {} host up starts {}",
            domain.name,
            dir.unwrap_or_default(),
            CONSOLE.name()
        ));
        return if runs_again { Ok(()) } else { Err(refused) };
    }
    let node = format!("{}/{SERVED}", domain::home(domain.info.domid));
    let what = || format!("the console of {} is served", domain.name);
    host.store.watch(&node, TOKEN)?;
    let served = limit.within(CONSOLE_WITHIN).until(&mut host.store, &what, |store| {
        Ok((store.try_read(&node)?.as_deref() == Some(b"1")).then_some(()))
    });
    host.store.unwatch(&node, TOKEN)?;
    match served {
        Err(Error::Timeout { .. }) if runs_again => Ok(()),
        served => served,
    }
}

/// Makes the complete domain end with `holder` alone, and not with its creator. A domain that has
/// ended by itself may be gone by now.
fn let_go(host: &mut Host, domain: &Domain, holder: Option<Holder>) -> Result<(), Error> {
    let Domain { info, name } = domain;
    let HostPlatform::Hosted { folder, control } = &mut host.platform else { return Ok(()) };
    let guest = folder.guest(name);
    let ended = || GuestEnd::of_domain(&guest, info.domid);
    let is_preserved = ended().is_some_and(|ended| ended.action == config::Action::Preserve);
    let done = match holder.filter(|_| !is_preserved) {
        Some(holder) => control.hand_over(info.domid, holder),
        None => control.keep(info.domid),
    };
    match done {
        Err(xen::Error::Srch) if ended().is_some() => Ok(()),
        done => done.map_err(Error::platform(format!("keeping {name}"))),
    }
}

/// True if the guest's program has run and ended: the guest init runs it once all disks are
/// connected, so a guest whose disks are gone already had them.
fn has_run(host: &mut Host, name: &str, domid: DomId) -> Result<bool, Error> {
    // In this order: the keeper records the end before the node is removed.
    if domain::exit_status(&mut host.store, domid)?.is_some() {
        return Ok(true);
    }
    let ended = host.folder().and_then(|folder| GuestEnd::of_domain(&folder.guest(name), domid));
    Ok(ended.is_some_and(|ended| ended.status.is_some()))
}
