//! The backend of one block device.
//!
//! [`BlockBackend`] is the driver that a bus calls; [`BlockBackend::work`] serves its rings. The module `queue`
//! takes requests off a ring, checks them, gives them to the disk with the guest's own pages, and
//! answers them.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod opening;
mod queue;

use crate::disk::{Disk, DiskAccess, Geometry};
use crate::stats::{RequestCounters, Stats};
use opening::PendingDisk;
pub use opening::{MakeJob, OpenDisk, OpenJob, OpenMethod};
use queue::{Discard, Queue, QueueContext, QueueSetup, QueueTurn, queue_of};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fmt::{self, Write};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::evtchn::EventChannels;
use xen::gnttab::GrantMap;
use xen::{DomId, Port};
use xen_driver::Channel;
use xen_driver::backend::pages::GrantUse;
use xen_driver::backend::rings::{self, EntryFormat, Rings};
use xen_driver::backend::throttle::{self, Throttle};
use xen_driver::backend::{self, Backend, Buses, DescriptorId, TurnOutcome};
use xen_io::blkif::{Layout, RequestLimits, info, names};
use xenbus::negotiate::QueueNames;
use xenbus::{Device, Driver, Error, Progress};
use xenstore::Client;

/// The node of a backend with its limit of bytes a second; 0 is none.
pub const LIMIT_BYTES: &str = "limit-bytes-per-second";
/// The node of a backend that is 1 while the server of its disk is away and requests wait for it.
pub const SERVER_GONE: &str = "server-gone";
/// The node of a backend with its limit of requests a second; 0 is none.
pub const LIMIT_REQUESTS: &str = "limit-requests-per-second";

/// The limits of a device.
#[derive(Clone, Debug)]
pub struct Options {
    /// The limits of its rings, and of how often a frontend may connect: each connection opens the
    /// disk as well.
    pub rings: rings::RingOptions,
    /// The most segments of an indirect request.
    pub indirect_segments_max: u16,
    /// The most pages of one queue that stay mapped.
    pub persistent_max: usize,
    /// The limits of bytes and requests a second.
    pub throttle: throttle::RateLimits,
}

impl Default for Options {
    /// The defaults of the rings' own options; 256 segments, as Linux's blkback offers; 1056
    /// persistent pages in a queue; no limits of bytes and requests.
    fn default() -> Self {
        Self {
            rings: rings::RingOptions::default(),
            indirect_segments_max: 256,
            persistent_max: 1056,
            throttle: throttle::RateLimits::default(),
        }
    }
}

/// The state that all devices of a backend share.
pub struct BackendContext {
    /// The event channels of this process.
    pub evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The mapper of the guests' grants.
    pub grants: Rc<RefCell<dyn GrantMap>>,
    /// The method of opening disks.
    pub open: OpenMethod,
    /// The limits of each device.
    pub options: Options,
}

impl fmt::Debug for BackendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendContext").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The server of all block devices of a domain.
pub type BlockServer = xen_driver::BackendServer<Buses<BlockBackend>>;

/// Returns the server of all devices of these kinds in a domain.
///
/// # Errors
/// The store is gone.
pub fn serve(
    mut store: Client,
    domid: DomId,
    kinds: &[&str],
    platform: BackendContext,
) -> Result<BlockServer, Error> {
    let (evtchn, platform) = (Rc::clone(&platform.evtchn), Rc::new(platform));
    let make = move |_| BlockBackend::new(Rc::clone(&platform));
    let buses = Buses::start(&mut store, domid, kinds, make)?;
    BlockServer::start(store, evtchn, buses)
}

/// The state of a connected device.
struct ConnectedDevice {
    disk: Box<dyn Disk>,
    /// The source of the disk's descriptor, among all descriptors of this process.
    source: DescriptorId,
    geometry: Geometry,
    discard: Discard,
    queues: Vec<Queue>,
    throttle: Throttle,
    limits: throttle::RateLimits,
    taking: RequestIntake,
}

impl ConnectedDevice {
    /// Splits the device into its queues and the state that they work with.
    fn split<'a>(
        &'a mut self,
        grants: &'a mut dyn GrantMap,
        stats: &'a mut Stats,
        now: Instant,
    ) -> (&'a mut [Queue], QueueContext<'a>) {
        let context = QueueContext {
            disk: &mut *self.disk,
            grants,
            stats,
            throttle: &mut self.throttle,
            capacity: self.geometry.sectors,
            access: self.geometry.access,
            discard: self.discard,
            now,
        };
        (&mut self.queues, context)
    }
}

/// The state of taking requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RequestIntake {
    Yes,
    /// No request is taken: the device closes, or the frontend has broken a ring. Requests in
    /// flight are still ended.
    Ended,
}

/// The backend of one device.
pub struct BlockBackend {
    platform: Rc<BackendContext>,
    opening: PendingDisk,
    /// While the server of a disk that was served before is away: the time when that was found, and
    /// the time of the next try.
    away: Option<(Instant, Instant)>,
    /// The last announced state of the disk's server: true for away; `None` before the first
    /// announcement.
    announced_away: Option<bool>,
    connected: Option<ConnectedDevice>,
    /// The rings. The field stands behind the disk, which may have I/O under way until it is
    /// dropped: the record stays locked as long.
    rings: Rings,
    stats: Stats,
}

impl fmt::Debug for BlockBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockBackend").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl BlockBackend {
    /// Creates the backend of a new device.
    #[must_use]
    pub fn new(platform: Rc<BackendContext>) -> Self {
        let (evtchn, grants) = (Rc::clone(&platform.evtchn), Rc::clone(&platform.grants));
        let rings =
            Rings::new(backend::Platform { evtchn, grants }, platform.options.rings.clone());
        let (opening, stats) = (PendingDisk::default(), Stats::default());
        let (away, announced_away, connected) = (None, None, None);
        Self { platform, opening, rings, away, announced_away, connected, stats }
    }

    /// Returns the counters since the device was connected.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Sets new limits.
    pub fn limit(&mut self, limits: throttle::RateLimits) {
        if let Some(connected) = &mut self.connected
            && connected.limits != limits
        {
            connected.limits = limits;
            connected.throttle = Throttle::new(limits, Instant::now());
        }
    }

    /// Returns the limits in this end's nodes; where a node is missing, the limit of all devices.
    fn read_limits(&self, device: &mut Device<'_>) -> Result<throttle::RateLimits, Error> {
        let all = self.platform.options.throttle;
        // A value of 0 means no limit, also where all devices have one.
        let own = |said: Option<u64>, all| said.map_or(all, |most| (most > 0).then_some(most));
        let bytes = device.own_number(LIMIT_BYTES)?;
        let requests = device.own_number(LIMIT_REQUESTS)?;
        Ok(throttle::RateLimits {
            bytes_per_second: own(bytes, all.bytes_per_second),
            requests_per_second: own(requests, all.requests_per_second),
        })
    }

    /// True while the server of the disk may still be waited for. Notes the first time that it was
    /// found away, and the time of the next try.
    fn may_wait_for_server(&mut self, now: Instant) -> bool {
        let since = self.away.map_or(now, |(since, _)| since);
        let next = now.checked_add(RETRY_INTERVAL).map(|next| (since, next));
        self.away = next.filter(|_| now.saturating_duration_since(since) < AWAY_MAX);
        self.away.is_some()
    }

    /// Returns a description of the disk and its access, while the device is connected.
    #[must_use]
    pub fn disk(&self) -> Option<String> {
        self.connected.as_ref().map(|connected| connected.disk.describe())
    }

    /// Returns the limits, while the device is connected.
    #[must_use]
    pub fn limits(&self) -> Option<throttle::RateLimits> {
        self.connected.as_ref().map(|connected| connected.limits)
    }

    /// Returns the number of requests that were taken and are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let queues = self.connected.iter().flat_map(|connected| &connected.queues);
        queues.map(Queue::in_flight).sum()
    }

    fn work_once(
        &mut self,
        now: Instant,
        patience: Option<Duration>,
    ) -> Result<TurnOutcome, Error> {
        let mut worked = TurnOutcome::default();
        let taking = self.connected.as_ref().map(|connected| connected.taking);
        self.for_each_queue(now, &mut worked, |queue, context, turn| {
            queue.retry(context)?;
            if taking == Some(RequestIntake::Yes) {
                queue.take(context, turn)?;
            }
            Ok(())
        })?;
        let Some(connected) = &mut self.connected else { return Ok(worked) };
        match patience {
            Some(patience) => connected.disk.start_and_wait(patience),
            None => connected.disk.start(),
        }
        self.take_finished(now)?;
        let Some(connected) = &mut self.connected else { return Ok(worked) };
        let mut persistent = 0_usize;
        for queue in &mut connected.queues {
            let mut turn = QueueTurn::default();
            let notify = queue.show(&mut turn, &mut self.stats)?;
            worked.moved = worked.moved.wrapping_add(turn.moved);
            worked.shown = turn.shown.or(worked.shown);
            // A discard of which the disk has just finished one piece has a next piece, and no
            // event announces it.
            worked.more |= queue.has_discards();
            persistent = queue.persistent().saturating_add(persistent);
            if notify {
                queue.channel.notify()?;
            }
        }
        self.stats.persistent = persistent as u64;
        worked.complains = self.stats.failures.is_some();
        Ok(worked)
    }

    /// Checks if the size of the disk has changed; returns the number of sectors to announce if so.
    pub fn resized(&mut self) -> Option<u64> {
        let connected = self.connected.as_mut()?;
        let sectors = connected.disk.resized()?;
        connected.geometry.sectors = sectors;
        Some(sectors)
    }

    /// Checks the disk's server. Returns true if it has gone since the last check, false if it has
    /// come back.
    pub fn server_change(&mut self) -> Option<bool> {
        let away = match &mut self.connected {
            Some(connected) => connected.disk.is_away()?,
            None => self.away.map(|_| true)?,
        };
        let before = self.announced_away.replace(away);
        // The node may be left over from an earlier process.
        (before != Some(away)).then_some(away)
    }

    /// Takes the finished requests from the disk and gives them to their queues.
    fn take_finished(&mut self, now: Instant) -> Result<(), Error> {
        let Some(connected) = &mut self.connected else { return Ok(()) };
        let grants = Rc::clone(&self.platform.grants);
        let mut grants = grants.borrow_mut();
        let (queues, mut context) = connected.split(&mut *grants, &mut self.stats, now);
        while let Some((io, result)) = context.disk.finished() {
            if let Some(queue) = queues.get_mut(queue_of(&io)) {
                queue.finished(io, result, &mut context)?;
            }
        }
        // A request that follows a flush or a barrier may have been submitted.
        context.disk.start();
        Ok(())
    }

    /// Calls `call` for each queue.
    fn for_each_queue(
        &mut self,
        now: Instant,
        worked: &mut TurnOutcome,
        mut call: impl FnMut(
            &mut Queue,
            &mut QueueContext<'_>,
            &mut QueueTurn,
        ) -> Result<(), xen_io::ring::RingError>,
    ) -> Result<(), Error> {
        let Some(connected) = &mut self.connected else { return Ok(()) };
        let grants = Rc::clone(&self.platform.grants);
        let mut grants = grants.borrow_mut();
        let (queues, mut context) = connected.split(&mut *grants, &mut self.stats, now);
        for queue in queues {
            let mut turn = QueueTurn::default();
            call(queue, &mut context, &mut turn)?;
            worked.moved = worked.moved.wrapping_add(turn.moved);
            worked.more |= turn.more;
        }
        Ok(())
    }

    /// Attaches a disk to rings that are connected; gives up the rings on failure.
    fn attach(
        &mut self,
        device: &mut Device<'_>,
        disk: Box<dyn Disk>,
        layout: Layout,
        queues: Vec<rings::Queue<1, 1>>,
    ) -> Result<ConnectedDevice, Error> {
        let connected = self.connected(device, disk, layout, queues);
        if connected.is_err() {
            self.rings.give_up();
        }
        connected
    }

    fn connected(
        &self,
        device: &mut Device<'_>,
        mut disk: Box<dyn Disk>,
        layout: Layout,
        queues: Vec<rings::Queue<1, 1>>,
    ) -> Result<ConnectedDevice, Error> {
        let persistent = device.their_feature(names::FEATURE_PERSISTENT)?;
        let rates = self.read_limits(device)?;
        let geometry = disk.geometry();
        let discard = match (geometry.discard_granularity, geometry.access) {
            (Some(_), DiskAccess::ReadWrite)
                if device.own_number::<u32>(names::DISCARD_ENABLE)? != Some(0) =>
            {
                Discard::Offered
            }
            _ => Discard::NotOffered,
        };
        if let Some(guard) = self.rings.guard() {
            let held = disk.hold(guard);
            held.map_err(|errno| Error::Driver(format!("holding the record: {errno}")))?;
        }
        let options = &self.platform.options;
        let limits = RequestLimits {
            indirect_segments_max: options.indirect_segments_max,
            sector_size: geometry.sector_size,
        };
        let setup = QueueSetup {
            peer: device.peer(),
            layout,
            limits,
            grants: if persistent { GrantUse::Persistent } else { GrantUse::Once },
            persistent_max: options.persistent_max,
        };
        let now = Instant::now();
        let numbered = (0..).zip(queues);
        let queues = numbered.map(|(number, rings)| Queue::new(rings, number, setup, now));
        Ok(ConnectedDevice {
            disk,
            source: DescriptorId::new(),
            geometry,
            discard,
            queues: queues.collect(),
            throttle: Throttle::new(rates, now),
            limits: rates,
            taking: RequestIntake::Yes,
        })
    }

    /// Writes the properties of the disk that the frontend needs.
    fn describe(connected: &ConnectedDevice, options: &Options, device: &mut Device<'_>) {
        let geometry = connected.geometry;
        let read_only = geometry.access == DiskAccess::ReadOnly;
        device.put(names::FEATURE_FLUSH_CACHE, 1);
        device.put(names::FEATURE_BARRIER, 1);
        device.put(names::FEATURE_DISCARD, u8::from(connected.discard == Discard::Offered));
        if let (Discard::Offered, Some(bytes)) = (connected.discard, geometry.discard_granularity) {
            device.put(names::DISCARD_GRANULARITY, bytes);
            device.put(names::DISCARD_ALIGNMENT, 0);
            device.put(names::DISCARD_SECURE, 0);
        }
        device.put(names::FEATURE_PERSISTENT, 1);
        if options.indirect_segments_max > 0 {
            device.put(names::FEATURE_MAX_INDIRECT_SEGMENTS, options.indirect_segments_max);
        }
        device.put(names::SECTORS, geometry.sectors);
        device.put(names::INFO, if read_only { info::READ_ONLY } else { 0 });
        device.put(names::SECTOR_SIZE, geometry.sector_size);
        device.put(names::PHYSICAL_SECTOR_SIZE, geometry.physical_sector_size);
    }
}

/// Returns the layout of requests that the frontend has chosen.
fn layout(device: &mut Device<'_>) -> Result<Layout, Error> {
    match device.theirs(names::PROTOCOL)? {
        None => Ok(Layout::NATIVE),
        Some(name) => Layout::from_protocol(&name)
            .ok_or_else(|| device.bad(names::PROTOCOL, &name, "x86_64-abi or x86_32-abi")),
    }
}

/// Returns the entries of a ring of this layout. The record stores their format as a number.
fn entry(layout: Layout) -> EntryFormat {
    let format = match layout {
        Layout::X86_32 => 32,
        Layout::X86_64 => 64,
    };
    EntryFormat { bytes: layout.entry_bytes(), format }
}

/// The longest time that the server of a disk may be away when another process has served the disk
/// before: the same as for a disk in use.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// The interval between two tries to open such a disk.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

impl Driver for BlockBackend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.rings.limits().put(device);
        // Linux's frontend looks for this one before it is connected.
        device.put(names::FEATURE_PERSISTENT, 1);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        if !self.rings.may_connect(device)? {
            return Ok(Progress::Pending);
        }
        let layout = layout(device)?;
        let Some(disk) = self.opening.disk(&self.platform.open, device)? else {
            return Ok(Progress::Pending);
        };
        // The node of an earlier disk.
        if device.own(SERVER_GONE)?.is_some() {
            device.put(SERVER_GONE, 0);
        }
        let queues = self.rings.connect(device, &QueueNames::PLAIN, [entry(layout)])?;
        let connected = self.attach(device, disk, layout, queues)?;
        (self.away, self.announced_away) = (None, None);
        Self::describe(&connected, &self.platform.options, device);
        self.connected = Some(connected);
        self.stats = Stats::default();
        Ok(Progress::Done)
    }

    fn reattach(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let now = Instant::now();
        if self.away.is_some_and(|(_, next)| now < next) {
            return Ok(Progress::Pending);
        }
        let opened = self.opening.disk(&self.platform.open, device);
        let disk = match opened {
            Ok(Some(disk)) => disk,
            // The file is locked until the last request of the earlier process is done.
            Ok(None) | Err(Error::Busy(_)) => return Ok(Progress::Pending),
            // The guest's requests wait for this server as for one that goes away during use.
            Err(Error::Away(_)) if self.may_wait_for_server(now) => return Ok(Progress::Pending),
            Err(error) => return Err(error),
        };
        if disk.is_in_memory() && self.rings.are_of_domain_before(device) {
            let what = disk.describe();
            return Err(Error::Driver(format!(
                "{what}: it was in the memory of the driver domain that has ended, and is lost with it"
            )));
        }
        let layout = layout(device)?;
        let queues = self.rings.take_over(device, &QueueNames::PLAIN, [entry(layout)])?;
        let Some(queues) = queues else { return Ok(Progress::Pending) };
        let connected = self.attach(device, disk, layout, queues)?;
        self.away = None;
        self.connected = Some(connected);
        self.stats = Stats::default();
        let mut worked = TurnOutcome::default();
        self.for_each_queue(Instant::now(), &mut worked, |queue, context, _| {
            queue.replay(context)
        })?;
        // The earlier process may have shown answers without a notification.
        let queues = self.connected.iter().flat_map(|connected| &connected.queues);
        queues.map(|queue| &queue.channel).try_for_each(Channel::notify)?;
        Ok(Progress::Done)
    }

    fn nodes_changed(&mut self, device: &mut Device<'_>) {
        // A value that is no number changes nothing.
        if let Ok(limits) = self.read_limits(device) {
            self.limit(limits);
        }
    }

    fn release(&mut self, device: &mut Device<'_>) -> Progress {
        if self.opening.give_up() == Progress::Pending {
            return Progress::Pending;
        }
        if let Some(connected) = &mut self.connected {
            connected.taking = RequestIntake::Ended;
            connected.disk.give_up();
        }
        self.away = None;
        // Requests in flight are answered if the rings are still usable.
        let _ = self.work(Instant::now(), None);
        let Some(connected) = &mut self.connected else { return self.rings.give_back(device) };
        if connected.disk.in_flight() > 0 || connected.queues.iter().any(Queue::has_waiting) {
            return Progress::Pending;
        }
        self.connected = None;
        self.rings.give_back(device)
    }
}

impl Backend for BlockBackend {
    fn work(&mut self, now: Instant, patience: Option<Duration>) -> Result<TurnOutcome, Error> {
        let worked = self.work_once(now, patience);
        if worked.is_err()
            && let Some(connected) = &mut self.connected
        {
            // One report is enough; nobody reads that ring again.
            connected.taking = RequestIntake::Ended;
        }
        worked
    }

    fn final_check(&mut self) -> Result<bool, Error> {
        let Some(connected) = &mut self.connected else { return Ok(false) };
        if connected.taking == RequestIntake::Ended {
            return Ok(false);
        }
        let mut more = false;
        for queue in &mut connected.queues {
            more |= queue.final_check()?;
        }
        Ok(more)
    }

    fn ports(&self) -> impl Iterator<Item = Port> {
        let queues = self.connected.iter().flat_map(|connected| &connected.queues);
        queues.map(|queue| queue.channel.port())
    }

    fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.connected.as_ref()?.throttle.ready(now).err()
    }

    fn sources(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        let connected = self.connected.as_ref();
        connected.and_then(|connected| Some((connected.source, connected.disk.fd()?))).into_iter()
    }

    fn is_at_work(&self) -> bool {
        self.in_flight() > 0
    }

    fn changes(&mut self) -> Vec<(&'static str, String)> {
        let sectors = self.resized().map(|sectors| (names::SECTORS, sectors.to_string()));
        let away = self.server_change().map(|away| (SERVER_GONE, u8::from(away).to_string()));
        sectors.into_iter().chain(away).collect()
    }

    fn complaint(&mut self) -> Option<String> {
        let (count, errno) = self.stats.failures.take()?;
        let requests = if count == 1 { "request" } else { "requests" };
        let disk = self.disk().filter(|disk| !disk.is_empty());
        let disk = disk.map(|disk| format!("; {disk}")).unwrap_or_default();
        let hint = match errno {
            Errno::NOSPC => "; the host's file system under it is full: make room there",
            Errno::DQUOT => "; the quota of its file's owner is used up: make room there",
            _ => "",
        };
        Some(format!("{count} {requests} failed: {errno}{hint}{disk}"))
    }

    fn summary(&self) -> String {
        let (replayed, disk) = (self.stats.replayed, self.disk().unwrap_or_default());
        format!("{replayed} requests done again; {disk}")
    }

    fn statistics(&self) -> String {
        let stats = &self.stats;
        let (persistent, wrong, replayed) = (stats.persistent, stats.wrong, stats.replayed);
        let (throttled, connects) = (u8::from(stats.is_throttled()), self.rings.recent_connects());
        let in_flight = self.in_flight();
        let mut text = format!(
            "persistent {persistent} in-flight {in_flight} wrong {wrong} replayed {replayed} throttled {throttled} connects {connects}"
        );
        for (name, of) in [
            ("read", &stats.read),
            ("write", &stats.write),
            ("flush", &stats.flush),
            ("discard", &stats.discard),
        ] {
            let RequestCounters { requests, sectors, merges, errors, latency } = of;
            let (half, most) = (latency.quantile_us(0.5), latency.quantile_us(0.99));
            let buckets = latency.buckets().map(|count| count.to_string()).join(",");
            // A write into a string cannot fail.
            let _ = write!(
                text,
                " {name} {requests} {sectors} {merges} {errors} {half} {most} {buckets}"
            );
        }
        text
    }
}
