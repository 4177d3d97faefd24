//! Takes samples of a host: from the hypervisor, the store and the backends' counters.
//!
//! The requests to the store are sent together. The devices of a domain are listed anew only after the
//! toolstack has changed something about them, which a watch tells.

use super::counters::{AllCounters, CounterSources};
use super::qemu::QemuMonitors;
use super::sample::{
    DiskSample, DomainKey, DomainSample, HostSample, NetworkSample, StoreSample, UseOfBound,
};
use crate::devices;
use crate::devices::disk::stats::DiskStats;
use crate::domain::quota::QuotaLine;
use crate::domain::{self, Domain};
use crate::host::{Host, HostPlatform};
use crate::{Error, text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_block::vbd;
use xen_hosted::limits::ARENAS_MAX;
use xen_io::xenbus::number;
use xenbus::Id;
use xenbus::toolstack::NewDevice;
use xenstore::{Client, MsgType, Ticket, TransactionId};

/// The nodes in which a toolstack records devices.
const RECORDED: &str = "/libxl";
/// The token of the watch on them.
const TOKEN: &str = "top";
/// The kind of disks.
const DISK_KIND: &str = "vbd";
/// The kind of backends that QEMU serves.
const QEMU_KIND: &str = "qdisk";
/// The kind of network interfaces.
const NETWORK_KIND: &str = "vif";

/// The reader of samples.
#[derive(Debug)]
pub struct TopReader {
    host: Host,
    sources: CounterSources,
    /// The QEMUs of a Xen host, which serve disks.
    qemu: Option<QemuMonitors>,
    /// The memory of the machine in KiB, and its processors.
    machine: (Option<u64>, Option<u32>),
    /// The devices of each domain, as they were last listed.
    devices: BTreeMap<DomainKey, Vec<NewDevice>>,
    /// The counts of disks in the last sample.
    counted: Vec<DiskStats>,
}

/// The answers about a domain that are under way.
struct DomainQuestions {
    target: Ticket,
    quota: Ticket,
}

/// The hypervisor's account of what a domain shares.
#[derive(Clone, Copy, Default)]
struct SharedUse {
    grant_frames: Option<UseOfBound>,
    granted_pages: Option<u64>,
    mapped_pages: Option<u64>,
    events: Option<u64>,
}

impl TopReader {
    /// Begins to look at a host.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn new(mut host: Host) -> Result<Self, Error> {
        let sources = CounterSources::of(host.folder());
        host.store.watch(RECORDED, TOKEN)?;
        let machine = machine(&host.platform);
        let qemu = host.folder().is_none().then(QemuMonitors::default);
        Ok(Self { host, sources, qemu, machine, devices: BTreeMap::new(), counted: Vec::new() })
    }

    /// The host that is looked at.
    pub fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    /// Returns the counts of disks in the last sample, with the host.
    pub(super) fn counted(&mut self) -> (&mut Host, &[DiskStats]) {
        (&mut self.host, &self.counted)
    }

    /// Takes a sample.
    ///
    /// # Errors
    /// The errors of the hypervisor and the store.
    pub fn take(&mut self) -> Result<HostSample, Error> {
        self.forget_changed()?;
        let at = monotonic();
        let domains = domain::list(&mut self.host)?;
        let mut counters = self.sources.read(at);
        self.qemu.iter_mut().for_each(QemuMonitors::begin_turn);
        let mut asked = Vec::with_capacity(domains.len());
        // All requests are sent before the first answer is read.
        for domain in &domains {
            asked.push(ask(&mut self.host.store, domain.info.domid)?);
        }
        let mut samples = Vec::with_capacity(domains.len());
        for (domain, asked) in domains.into_iter().zip(asked) {
            let target = answer(&mut self.host.store, asked.target)?;
            let target_kib = target.and_then(|target| number(target.as_bytes()));
            let quota = answer(&mut self.host.store, asked.quota)?;
            let store = quota.map(|answer| store_sample(&answer)).unwrap_or_default();
            let mut sample = self.sample(domain, target_kib, store, &counters)?;
            if let Some(qemu) = &mut self.qemu {
                add_of_qemu(qemu, &mut sample, at);
            }
            samples.push(sample);
        }
        let there: BTreeSet<DomainKey> = samples.iter().map(DomainSample::key).collect();
        self.devices.retain(|key, _| there.contains(key));
        self.counted = std::mem::take(&mut counters.counted);
        let (memory_kib, processors) = self.machine;
        Ok(HostSample { at, memory_kib, processors, domains: samples })
    }

    /// Waits for some time, at most until `wake` can be read. What happens in the store meanwhile is
    /// taken note of.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn wait(&mut self, time: Duration, wake: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let end = Instant::now().checked_add(time);
        loop {
            // Events may have come with answers, and no poll tells of them.
            self.forget_changed()?;
            let left = end.map_or(time, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            let mut fds = vec![PollFd::new(&self.host.store, PollFlags::IN)];
            fds.extend(wake.map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("waiting for the store")(errno.into())),
            }
            if fds.get(1).is_some_and(|wake| !wake.revents().is_empty()) {
                return Ok(());
            }
        }
    }

    /// Forgets the devices of domains about which the toolstack has changed something.
    fn forget_changed(&mut self) -> Result<(), Error> {
        while let Some(changed) = self.host.store.poll_event()? {
            let path = text::lossy(changed.path);
            let below = path.strip_prefix(RECORDED).and_then(|below| below.split('/').nth(1));
            match below.and_then(|domid| domid.parse().ok()) {
                Some(domid) => self.devices.retain(|(of, _), _| *of != DomId(domid)),
                // The first event of the watch, or the removal of everything.
                None => self.devices.clear(),
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        domain: Domain,
        target_kib: Option<u64>,
        store: StoreSample,
        counters: &AllCounters,
    ) -> Result<DomainSample, Error> {
        let Domain { info, name } = domain;
        let key = (info.domid, info.handle);
        let shared = shared_use(&mut self.host.platform, info.domid);
        let listed = match self.devices.remove(&key) {
            Some(listed) => listed,
            None => devices::list(&mut self.host.store, info.domid)?,
        };
        let disks = disks(info.domid, &listed, counters);
        let networks = networks(info.domid, &listed, counters);
        self.devices.insert(key, listed);
        let SharedUse { grant_frames, granted_pages, mapped_pages, events } = shared;
        Ok(DomainSample {
            info,
            name,
            target_kib,
            grant_frames,
            granted_pages,
            mapped_pages,
            events,
            store,
            disks,
            networks,
        })
    }
}

/// Adds what QEMU counts of a domain's disks that nobody else counts.
fn add_of_qemu(qemu: &mut QemuMonitors, sample: &mut DomainSample, at: Duration) {
    let is_of_qemu = |disk: &&mut DiskSample| {
        disk.backend == DomId::DOM0 && disk.backend_kind == QEMU_KIND && disk.counters.is_none()
    };
    let mut disks = sample.disks.iter_mut().filter(is_of_qemu).peekable();
    if disks.peek().is_none() {
        return;
    }
    let mut counters = qemu.ask(sample.info.domid, at);
    for disk in disks {
        disk.counters = counters.remove(&disk.devid);
    }
}

/// Returns the time by CLOCK_MONOTONIC.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

/// Returns the memory in KiB and the processors of the machine of a host.
fn machine(platform: &HostPlatform) -> (Option<u64>, Option<u32>) {
    match platform {
        HostPlatform::Hosted { .. } => {
            let info = rustix::system::sysinfo();
            let memory = info.totalram.saturating_mul(u64::from(info.mem_unit)) / 1024;
            let processors = std::thread::available_parallelism().ok();
            (Some(memory), processors.and_then(|count| u32::try_from(count.get()).ok()))
        }
        HostPlatform::Xen(control) => {
            let machine = control.physical_machine().ok();
            (machine.map(|of| of.memory_kib), machine.map(|of| of.processors))
        }
    }
}

/// Asks the hypervisor what a domain shares with others; a domain that is gone shares nothing that
/// is known.
fn shared_use(platform: &mut HostPlatform, domid: DomId) -> SharedUse {
    match platform {
        // The broker has no account of domain 0, which is many processes.
        HostPlatform::Hosted { .. } if domid == DomId::DOM0 => SharedUse::default(),
        HostPlatform::Hosted { control, .. } => match control.accounts(domid) {
            Ok(accounts) => SharedUse {
                grant_frames: Some(UseOfBound {
                    used: accounts.arenas,
                    most: u64::try_from(ARENAS_MAX).ok(),
                }),
                granted_pages: Some(accounts.granted),
                mapped_pages: Some(accounts.mapped),
                events: Some(accounts.notified),
            },
            Err(_) => SharedUse::default(),
        },
        HostPlatform::Xen(control) => {
            let size = control.grant_table_size(domid).ok();
            let grant_frames = size.map(|size| UseOfBound {
                used: size.frames.into(),
                most: Some(size.frames_max.into()),
            });
            SharedUse { grant_frames, ..SharedUse::default() }
        }
    }
}

/// Sends the requests about a domain.
fn ask(store: &mut Client, domid: DomId) -> Result<DomainQuestions, Error> {
    let none = TransactionId::NONE;
    let target = format!("{}/memory/target\0", domain::home(domid));
    let quota = format!("quota\0{domid}\0");
    Ok(DomainQuestions {
        target: store.submit(none, MsgType::Read, &[target.as_bytes()])?,
        quota: store.submit(none, MsgType::Control, &[quota.as_bytes()])?,
    })
}

/// Takes an answer; none where the store refuses it.
fn answer(store: &mut Client, ticket: Ticket) -> Result<Option<String>, Error> {
    match store.wait(ticket) {
        Ok(answer) => Ok(Some(text::lossy(answer))),
        Err(error) if error.refusal().is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Parses the answer about the quotas of a domain.
fn store_sample(answer: &str) -> StoreSample {
    let mut sample = StoreSample::default();
    for line in answer.lines().filter_map(QuotaLine::parse) {
        let of_bound = Some(UseOfBound { used: line.used, most: line.limit });
        match line.name {
            "nodes" => sample.nodes = of_bound,
            "watches" => sample.watches = of_bound,
            _ => {}
        }
        // A store that tells a limit tells refusals too, if there are any.
        if line.limit.is_some() {
            let refused = line.refused.map_or(0, |(count, _)| count);
            sample.refusals = Some(sample.refusals.unwrap_or(0).saturating_add(refused));
        }
    }
    sample
}

/// Returns the disks of a domain: those that the toolstack has recorded, and those that a backend
/// counts besides.
fn disks(domid: DomId, listed: &[NewDevice], counters: &AllCounters) -> Vec<DiskSample> {
    let counted = of_domain(&counters.disks, domid);
    let mut disks: BTreeMap<u32, DiskSample> = counted
        .map(|(id, counters)| (id.devid, disk(id.devid, DomId::DOM0, DISK_KIND, counters.clone())))
        .collect();
    for device in listed.iter().filter(|device| device.kind == DISK_KIND) {
        let (devid, kind) = (device.id.devid, &device.backend_kind);
        // What is counted here is served here.
        let counted = disks.remove(&devid).filter(|_| device.backend == DomId::DOM0);
        let counters = counted.and_then(|disk| disk.counters);
        disks.insert(devid, disk(devid, device.backend, kind, counters));
    }
    disks.into_values().collect()
}

fn disk(
    devid: u32,
    backend: DomId,
    kind: &str,
    counters: Option<super::sample::DiskCounters>,
) -> DiskSample {
    DiskSample { devid, name: vbd::name(devid), backend, backend_kind: kind.to_owned(), counters }
}

/// Returns the network interfaces of a domain, as [`disks`] does.
fn networks(domid: DomId, listed: &[NewDevice], counters: &AllCounters) -> Vec<NetworkSample> {
    let counted = of_domain(&counters.networks, domid);
    let mut networks: BTreeMap<u32, NetworkSample> = counted
        .map(|(id, counters)| (id.devid, NetworkSample { devid: id.devid, counters: *counters }))
        .collect();
    for device in listed.iter().filter(|device| device.kind == NETWORK_KIND) {
        let devid = device.id.devid;
        let counted = networks.remove(&devid).filter(|_| device.backend == DomId::DOM0);
        let counters = counted.and_then(|network| network.counters);
        networks.insert(devid, NetworkSample { devid, counters });
    }
    networks.into_values().collect()
}

/// Returns the entries of the devices of a domain.
fn of_domain<T>(all: &BTreeMap<Id, T>, domid: DomId) -> impl Iterator<Item = (&Id, &T)> {
    let of = |devid| Id { frontend: domid, devid };
    all.range(of(0)..=of(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_of_the_store_is_known_as_far_as_it_is_told() {
        let answer = "Domain 3:\n\
            nodes            :       12 (max       14) limit     1000, refused 3 times, last 2 s ago\n\
            watches          :        4 (max        4) limit      128\n\
            memory           :     3000 (max     3000) limit  2621440, refused 4 times, last 9 s ago\n";
        let of = |used, most| Some(UseOfBound { used, most });
        let sample = store_sample(answer);
        assert_eq!((sample.nodes, sample.watches), (of(12, Some(1000)), of(4, Some(128))));
        assert_eq!(sample.refusals, Some(7));
        let plain = "Domain 3:\nnodes            :       12 (max:       14)\n";
        let sample = store_sample(plain);
        assert_eq!((sample.nodes, sample.watches, sample.refusals), (of(12, None), None, None));
    }

    #[test]
    fn devices_are_those_of_the_toolstack_and_of_backends() {
        let id = |devid| Id { frontend: DomId(3), devid };
        let mut of_driver_domain = NewDevice::new("vbd", id(51728), DomId(5));
        of_driver_domain.backend_kind = "vbd".into();
        let ours = NewDevice::new("vbd", id(51712), DomId::DOM0);
        let network = NewDevice::new("vif", id(0), DomId::DOM0);
        let some = Some(super::super::sample::DiskCounters::default());
        let other = Id { frontend: DomId(4), devid: 51712 };
        let disk_counters =
            [id(51712), id(51728), id(768), other].map(|id| (id, some.clone())).into();
        let counters = AllCounters { disks: disk_counters, ..AllCounters::default() };
        let listed = [of_driver_domain, ours, network];
        let disks = disks(DomId(3), &listed, &counters);
        let found: Vec<_> =
            disks.iter().map(|disk| (disk.name.as_str(), disk.counters.is_some())).collect();
        assert_eq!(found, [("hda", true), ("xvda", true), ("xvdb", false)]);
        let networks = networks(DomId(3), &listed, &counters);
        assert_eq!(networks, [NetworkSample { devid: 0, counters: None }]);
    }
}
