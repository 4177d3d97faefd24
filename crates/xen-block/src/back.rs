//! The backend of one block device.
//!
//! [`Back`] is the driver that a bus calls; [`Back::work`] serves its rings. The requests' way is in
//! `queue`: taken off the ring, checked, given to the disk with the guest's pages as they are, answered.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod opening;
mod pages;
mod queue;

use crate::disk::{Disk, DiskAccess, Geometry};
use crate::record::{self, Record, Shape};
use crate::stats::Stats;
use crate::throttle::{self, Throttle};
use opening::Opening;
pub use opening::{Job, MakeJob, Open, OpenDisk};
use pages::Grants;
use queue::{Discard, Queue, Setup, Turn, Work, queue_of};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xen::evtchn::EventChannels;
use xen::gnttab::{Access, GrantMap};
use xen::{DomId, Port};
use xen_io::blkif::{Layout, Limits, info, names};
use xen_io::ring::{BackRing, Position, entry_count};
use xenbus::negotiate::{self, Names};
use xenbus::{Device, Driver, Error, Progress};

/// The node of a backend with its limit of bytes a second; 0 is none.
pub const LIMIT_BYTES: &str = "limit-bytes-per-second";
/// The node of a backend that is 1 while the server of its disk is away, and requests wait for it.
pub const SERVER_GONE: &str = "server-gone";
/// The node of a backend with its limit of requests a second; 0 is none.
pub const LIMIT_REQUESTS: &str = "limit-requests-per-second";

/// What a device may have.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest ring and most queues.
    pub rings: negotiate::Limits,
    /// Most segments of an indirect request.
    pub indirect_segments_max: u16,
    /// Most pages of one queue that stay mapped.
    pub persistent_max: usize,
    /// Bytes and requests a second.
    pub throttle: throttle::Limits,
    /// How often a frontend may connect, and within which time: for what is more it waits. Each time its disk is
    /// opened and its pages are mapped anew.
    pub connects_max: (u32, Duration),
    /// A folder in memory that outlives this process (tmpfs), for what was taken and not answered;
    /// `None`: guests notice when the process is killed.
    pub record_dir: Option<PathBuf>,
}

impl Default for Options {
    /// Rings of 16 pages, 4 queues, 256 segments as Linux's blkback offers; 1056 pages mapped
    /// for good in a queue; no limits but 16 connects in 10 s.
    fn default() -> Self {
        Self {
            rings: negotiate::Limits { order_max: 4, queues_max: 4 },
            indirect_segments_max: 256,
            persistent_max: 1056,
            throttle: throttle::Limits::default(),
            connects_max: (16, Duration::from_secs(10)),
            record_dir: None,
        }
    }
}

/// What all devices of a backend share.
pub struct Platform {
    /// The event channels of this process.
    pub evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The grants that it maps.
    pub grants: Rc<RefCell<dyn GrantMap>>,
    /// How disks are opened.
    pub open: Open,
    /// What devices may have.
    pub options: Options,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").field("options", &self.options).finish_non_exhaustive()
    }
}

/// How many disks there were in this process.
static DISKS: AtomicU64 = AtomicU64::new(0);

/// A device that is connected.
struct Connected {
    disk: Box<dyn Disk>,
    /// Which of the disks of this process it is.
    number: u64,
    geometry: Geometry,
    discard: Discard,
    queues: Vec<Queue>,
    throttle: Throttle,
    limits: throttle::Limits,
    record: Option<(PathBuf, OwnedFd)>,
    taking: Taking,
}

impl Connected {
    /// The queues, and what they work with.
    fn split<'a>(
        &'a mut self,
        grants: &'a mut dyn GrantMap,
        stats: &'a mut Stats,
        now: Instant,
    ) -> (&'a mut [Queue], Work<'a>) {
        let work = Work {
            disk: &mut *self.disk,
            grants,
            stats,
            throttle: &mut self.throttle,
            capacity: self.geometry.sectors,
            access: self.geometry.access,
            discard: self.discard,
            now,
        };
        (&mut self.queues, work)
    }
}

/// Whether requests are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taking {
    Yes,
    /// The device closes, or the frontend has broken a ring: what is in flight is ended, nothing else.
    Ended,
}

/// The backend of one device.
pub struct Back {
    platform: Rc<Platform>,
    opening: Opening,
    /// When the frontend has connected lately, the first first.
    connects: VecDeque<Instant>,
    /// When a process that was killed was first seen to have the frontend's port still.
    bound_since: Option<Instant>,
    /// While the server of a disk that was served before is away: since when that is known, and when it is tried again.
    away: Option<(Instant, Instant)>,
    /// The disk's server was away when that was last told; `None` before the first time.
    told_away: Option<bool>,
    connected: Option<Connected>,
    stats: Stats,
}

impl fmt::Debug for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Back").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// What a turn of [`Back::work`] came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Worked {
    /// Requests taken and answers shown.
    pub moved: u32,
    /// There is more to be taken at once.
    pub more: bool,
    /// When a limit allows the next request.
    pub until: Option<Instant>,
    /// When answers were shown.
    pub shown: Option<Instant>,
    /// The disk has failed requests that were not told of ([`Back::take_failures`]).
    pub failed: bool,
}

impl Back {
    /// The backend of a device that was found.
    #[must_use]
    pub fn new(platform: Rc<Platform>) -> Self {
        let (opening, connects) = (Opening::default(), VecDeque::new());
        let (bound_since, connected, stats) = (None, None, Stats::default());
        let (away, told_away) = (None, None);
        Self { platform, opening, connects, bound_since, away, told_away, connected, stats }
    }

    /// What it has done since it was connected.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Requests that its disk has failed since this was last asked, and the error of the first; `None` where there are
    /// none.
    pub fn take_failures(&mut self) -> Option<(u64, Errno)> {
        self.stats.failures.take()
    }

    /// Sets its limits anew.
    pub fn limit(&mut self, limits: throttle::Limits) {
        if let Some(connected) = &mut self.connected
            && connected.limits != limits
        {
            connected.limits = limits;
            connected.throttle = Throttle::new(limits, Instant::now());
        }
    }

    /// The limits that this end's nodes say; where they say none, those of all devices.
    fn rates(&self, device: &mut Device<'_>) -> Result<throttle::Limits, Error> {
        let all = self.platform.options.throttle;
        // None at all, where a toolstack takes the others' away.
        let own = |said: Option<u64>, all| said.map_or(all, |most| (most > 0).then_some(most));
        let bytes = device.own_number(LIMIT_BYTES)?;
        let requests = device.own_number(LIMIT_REQUESTS)?;
        Ok(throttle::Limits {
            bytes_per_second: own(bytes, all.bytes_per_second),
            requests_per_second: own(requests, all.requests_per_second),
        })
    }

    /// Whether the frontend may connect once more.
    fn may_connect(&mut self, now: Instant) -> bool {
        let (most, within) = self.platform.options.connects_max;
        self.connects.retain(|at| now.saturating_duration_since(*at) < within);
        self.connects.len() < most as usize
    }

    /// Whether it is not too long ago that the frontend's port was found bound first.
    fn may_wait_for_port(&mut self) -> bool {
        self.bound_since.get_or_insert_with(Instant::now).elapsed() < BOUND_MAX
    }

    /// True while it is not too long ago that the server of its disk was found away first; notes when it is tried again.
    fn may_wait_for_server(&mut self, now: Instant) -> bool {
        let since = self.away.map_or(now, |(since, _)| since);
        let next = now.checked_add(TRY_AGAIN).map(|next| (since, next));
        self.away = next.filter(|_| now.saturating_duration_since(since) < AWAY_MAX);
        self.away.is_some()
    }

    /// Its disk, and how that is reached, while it is connected.
    #[must_use]
    pub fn disk(&self) -> Option<String> {
        self.connected.as_ref().map(|connected| format!("{:?}", connected.disk))
    }

    /// Its limits while it is connected.
    #[must_use]
    pub fn limits(&self) -> Option<throttle::Limits> {
        self.connected.as_ref().map(|connected| connected.limits)
    }

    /// The ports of its rings.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.connected.iter().flat_map(|connected| connected.queues.iter().map(|queue| queue.port))
    }

    /// Polls readable when the disk is done with something; before it a number that no other disk of this process
    /// has had.
    #[must_use]
    pub fn disk_fd(&self) -> Option<(u64, BorrowedFd<'_>)> {
        let connected = self.connected.as_ref()?;
        Some((connected.number, connected.disk.fd()?))
    }

    /// Requests that were taken and are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let queues = self.connected.iter().flat_map(|connected| &connected.queues);
        queues.map(Queue::in_flight).sum()
    }

    /// Takes what is in the rings, answers what the disk is done with, notifies. Waits for the disk with
    /// `patience` alone, and then no longer: [`Disk::start_and_wait`].
    ///
    /// # Errors
    /// The frontend has broken a ring, or the event channel is gone: the device is to be closed.
    pub fn work(&mut self, now: Instant, patience: Option<Duration>) -> Result<Worked, Error> {
        let worked = self.work_once(now, patience);
        if worked.is_err()
            && let Some(connected) = &mut self.connected
        {
            // Once is enough to be told; nobody reads that ring again.
            connected.taking = Taking::Ended;
        }
        worked
    }

    fn work_once(&mut self, now: Instant, patience: Option<Duration>) -> Result<Worked, Error> {
        let mut worked = Worked::default();
        let taking = self.connected.as_ref().map(|connected| connected.taking);
        self.each(now, &mut worked, |queue, work, turn| {
            queue.retry(work)?;
            if taking == Some(Taking::Yes) {
                queue.take(work, turn)?;
            }
            Ok(())
        })?;
        let Some(connected) = &mut self.connected else { return Ok(worked) };
        match patience {
            Some(patience) => connected.disk.start_and_wait(patience),
            None => connected.disk.start(),
        }
        self.harvest(now)?;
        let evtchn = Rc::clone(&self.platform.evtchn);
        let Some(connected) = &mut self.connected else { return Ok(worked) };
        let mut persistent = 0_usize;
        for queue in &mut connected.queues {
            let mut turn = Turn::default();
            queue.show(&mut turn, &mut self.stats).map_err(broken)?;
            worked.moved = worked.moved.wrapping_add(turn.moved);
            worked.shown = turn.shown.or(worked.shown);
            // The next piece of one of which the disk has just done a piece: nothing else tells of it.
            worked.more |= queue.discards();
            persistent = queue.persistent().saturating_add(persistent);
            if turn.notify {
                let told = evtchn.borrow().notify(queue.port);
                told.map_err(Error::platform("notifying the frontend"))?;
            }
        }
        self.stats.persistent = persistent as u64;
        worked.failed = self.stats.failures.is_some();
        Ok(worked)
    }

    /// Before sleeping: whether there is something in the rings after all.
    ///
    /// # Errors
    /// As [`Back::work`].
    pub fn final_check(&mut self) -> Result<bool, Error> {
        let Some(connected) = &mut self.connected else { return Ok(false) };
        if connected.taking == Taking::Ended {
            return Ok(false);
        }
        let mut more = false;
        for queue in &mut connected.queues {
            more |= queue.final_check().map_err(broken)?;
        }
        Ok(more)
    }

    /// When its limits allow the next request, if they do not now.
    #[must_use]
    pub fn limited_until(&self, now: Instant) -> Option<Instant> {
        self.connected.as_ref()?.throttle.ready(now).err()
    }

    /// Looks whether the disk has another size; the number of sectors to announce if so.
    pub fn resized(&mut self) -> Option<u64> {
        let connected = self.connected.as_mut()?;
        let sectors = connected.disk.resized()?;
        connected.geometry.sectors = sectors;
        Some(sectors)
    }

    /// Looks whether the disk's server is there; true where it has gone since the last look, false where it has come back.
    pub fn went_or_came(&mut self) -> Option<bool> {
        let away = match &mut self.connected {
            Some(connected) => connected.disk.is_away()?,
            None => self.away.map(|_| true)?,
        };
        let before = self.told_away.replace(away);
        // The node may be left of a process before.
        (before != Some(away)).then_some(away)
    }

    /// Gives the queues what the disk is done with.
    fn harvest(&mut self, now: Instant) -> Result<(), Error> {
        let Some(connected) = &mut self.connected else { return Ok(()) };
        let grants = Rc::clone(&self.platform.grants);
        let mut grants = grants.borrow_mut();
        let (queues, mut work) = connected.split(&mut *grants, &mut self.stats, now);
        while let Some((io, result)) = work.disk.finished() {
            if let Some(queue) = queues.get_mut(queue_of(&io)) {
                queue.finished(io, result, &mut work).map_err(broken)?;
            }
        }
        // What follows a flush or a barrier may have been submitted.
        work.disk.start();
        Ok(())
    }

    /// Calls `call` for each queue.
    fn each(
        &mut self,
        now: Instant,
        worked: &mut Worked,
        mut call: impl FnMut(
            &mut Queue,
            &mut Work<'_>,
            &mut Turn,
        ) -> Result<(), xen_io::ring::RingError>,
    ) -> Result<(), Error> {
        let Some(connected) = &mut self.connected else { return Ok(()) };
        let grants = Rc::clone(&self.platform.grants);
        let mut grants = grants.borrow_mut();
        let (queues, mut work) = connected.split(&mut *grants, &mut self.stats, now);
        for queue in queues {
            let mut turn = Turn::default();
            call(queue, &mut work, &mut turn).map_err(broken)?;
            worked.moved = worked.moved.wrapping_add(turn.moved);
            worked.more |= turn.more;
            worked.until = [worked.until, turn.until].into_iter().flatten().min();
        }
        Ok(())
    }

    /// Maps the rings and binds the ports that the frontend has named. Leaves nothing where it fails.
    fn attach(
        &mut self,
        device: &mut Device<'_>,
        disk: Box<dyn Disk>,
        how: How,
    ) -> Result<Connected, Error> {
        let layout = match device.theirs(names::PROTOCOL)? {
            None => Layout::NATIVE,
            Some(name) => Layout::from_protocol(&name)
                .ok_or_else(|| device.bad(names::PROTOCOL, &name, "x86_64-abi or x86_32-abi"))?,
        };
        let persistent = device.their_feature(names::FEATURE_PERSISTENT)?;
        let grants = if persistent { Grants::Persistent } else { Grants::Once };
        let rings = Names::PLAIN.queues(device, self.platform.options.rings)?;
        let pages = rings.first().map_or(1, |queue| {
            let [pages] = &queue.rings;
            pages.len()
        });
        let shape = Shape {
            queues: u32::try_from(rings.len()).unwrap_or(u32::MAX),
            entries: entry_count(pages, layout.entry_bytes()).map_err(broken)?,
            layout,
        };
        // First that: whoever was there before may have I/O under way in the guest's pages.
        let record = self.record(device, shape, how)?;
        let attached = self.attach_disk(device, disk, &rings, (layout, grants), record, how);
        if attached.is_err()
            && how == How::Fresh
            && let Some(path) = self.record_path(device)
        {
            let _ = record::remove(&path);
        }
        attached
    }

    /// The record of the device, if one is kept.
    fn record(
        &self,
        device: &Device<'_>,
        shape: Shape,
        how: How,
    ) -> Result<Option<(PathBuf, Record)>, Error> {
        let record = match (self.record_path(device), how) {
            (None, How::Fresh) => return Ok(None),
            (None, How::TakeOver) => return Err(no_record(device)),
            (Some(path), How::Fresh) => record::create(&path, shape).map(|record| (path, record)),
            (Some(path), How::TakeOver) => record::open(&path, shape).map(|record| (path, record)),
        };
        record.map(Some).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::Busy("a process before has I/O under way".to_owned()),
            errno => Error::Driver(format!("the record of requests in flight: {errno}")),
        })
    }

    fn attach_disk(
        &mut self,
        device: &mut Device<'_>,
        mut disk: Box<dyn Disk>,
        rings: &[Plan],
        (layout, grants): (Layout, Grants),
        record: Option<(PathBuf, Record)>,
        how: How,
    ) -> Result<Connected, Error> {
        let options = &self.platform.options;
        let rates = self.rates(device)?;
        let geometry = disk.geometry();
        let discard = match (geometry.discard_granularity, geometry.access) {
            (Some(_), DiskAccess::ReadWrite)
                if device.own_number::<u32>(names::DISCARD_ENABLE)? != Some(0) =>
            {
                Discard::Offered
            }
            _ => Discard::NotOffered,
        };
        let (record, records) = match record {
            None => (None, Vec::new()),
            Some((path, Record { guard, queues })) => {
                let held = disk.hold(guard.as_fd());
                held.map_err(|errno| Error::Driver(format!("holding the record: {errno}")))?;
                (Some((path, guard)), queues)
            }
        };
        let mut records = records.into_iter();
        let limits = Limits {
            indirect_segments_max: options.indirect_segments_max,
            sector_size: geometry.sector_size,
        };
        let (now, peer, persistent_max) = (Instant::now(), device.peer(), options.persistent_max);
        let throttle = Throttle::new(rates, now);
        let mut connected = Connected {
            disk,
            number: DISKS.fetch_add(1, Ordering::Relaxed),
            geometry,
            discard,
            queues: Vec::new(),
            throttle,
            limits: rates,
            record,
            taking: Taking::Yes,
        };
        for (number, ring) in rings.iter().enumerate() {
            let record = records.next();
            let before = record.as_ref().filter(|_| how == How::TakeOver);
            let at = before.map(record::QueueRecord::req_cons).transpose();
            let bound = at
                .map_err(|error| Error::Driver(error.to_string()))
                .and_then(|at| self.bind(peer, ring, layout, at));
            let (ring, port) = match bound {
                Ok(bound) => bound,
                Err(error) => {
                    self.close_ports(&connected);
                    return Err(error);
                }
            };
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            let setup =
                Setup { ring, port, number, peer, layout, limits, grants, persistent_max, record };
            connected.queues.push(Queue::new(setup, now));
        }
        Ok(connected)
    }

    fn close_ports(&self, connected: &Connected) {
        let mut evtchn = self.platform.evtchn.borrow_mut();
        for queue in &connected.queues {
            // The frontend may have closed its end before.
            let _ = evtchn.close(queue.port);
        }
    }

    /// Where the record of a device is: `vbd-3-51712.inflight`.
    fn record_path(&self, device: &Device<'_>) -> Option<PathBuf> {
        let dir = self.platform.options.record_dir.as_ref()?;
        let (id, kind) = (device.id(), device.path().split('/').nth(5).unwrap_or("vbd"));
        Some(dir.join(format!("{kind}-{}-{}.inflight", id.frontend, id.devid)))
    }

    /// One ring; `req_cons` where it was in use.
    fn bind(
        &self,
        peer: DomId,
        ring: &Plan,
        layout: Layout,
        req_cons: Option<u32>,
    ) -> Result<(BackRing, Port), Error> {
        let negotiate::Queue { rings: [pages], ports: [theirs] } = ring;
        let mut grants = self.platform.grants.borrow_mut();
        let mut mapped = Vec::new();
        grants.map_batch(peer, pages, Access::ReadWrite, &mut mapped);
        let pages: Result<Vec<_>, _> = mapped.into_iter().collect();
        let pages = pages.map_err(Error::platform("mapping the frontend's ring"))?;
        let at = match (req_cons, pages.first()) {
            (Some(req_cons), Some(first)) => {
                let rsp_prod = BackRing::responses_in(first.page()).map_err(broken)?;
                Position { req_cons, rsp_prod }
            }
            _ => Position::default(),
        };
        let back = BackRing::attach(pages, layout.entry_bytes(), at).map_err(broken)?;
        let port = self.platform.evtchn.borrow_mut().bind_interdomain(peer, *theirs);
        let port = port.map_err(|error| match error {
            xen::Error::Inval => Error::PortTaken(*theirs),
            error => Error::platform("binding the frontend's event channel")(error),
        })?;
        Ok((back, port))
    }

    /// Closed is said, and a device connected anew, only when nothing of a process that was killed reaches the guest's
    /// pages any more.
    fn leave_nothing(&self, device: &Device<'_>) -> Progress {
        match self.record_path(device).map(|path| record::discard(&path)) {
            Some(Err(Errno::WOULDBLOCK)) => Progress::Pending,
            // One that cannot be taken away is in the way of the next, which says so.
            _ => Progress::Done,
        }
    }

    /// What the frontend needs to know of the disk.
    fn describe(connected: &Connected, options: &Options, device: &mut Device<'_>) {
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

/// Where a frontend has a ring, and the port beside it.
type Plan = negotiate::Queue<1, 1>;

/// Whether rings are new, or were served by a process that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Fresh,
    TakeOver,
}

fn no_record(device: &Device<'_>) -> Error {
    let path = device.path();
    Error::Driver(format!("{path} was in use by a process that has ended and kept no record"))
}

fn broken(error: impl fmt::Display) -> Error {
    Error::Driver(format!("the ring: {error}"))
}

/// How long a killed process may still have the frontend's port: what its io_uring waited for is ended behind its
/// back.
const BOUND_MAX: Duration = Duration::from_secs(2);

/// The longest time that the server of a disk which another process has served may be away: as of one that is in use.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// Between two tries to open such a disk.
const TRY_AGAIN: Duration = Duration::from_millis(200);

impl Driver for Back {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.platform.options.rings.put(device);
        // Linux's frontend looks for this one before it is connected.
        device.put(names::FEATURE_PERSISTENT, 1);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        if !device.hotplug_done()? || !self.may_connect(Instant::now()) {
            return Ok(Progress::Pending);
        }
        if self.leave_nothing(device) == Progress::Pending {
            return Ok(Progress::Pending);
        }
        let Some(disk) = self.opening.disk(&self.platform.open, device)? else {
            return Ok(Progress::Pending);
        };
        self.connects.push_back(Instant::now());
        // Of a disk before. Read first: what fails behind the next line would leave ports bound.
        if device.own(SERVER_GONE)?.is_some() {
            device.put(SERVER_GONE, 0);
        }
        let connected = self.attach(device, disk, How::Fresh)?;
        (self.away, self.told_away) = (None, None);
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
        let attached = match opened {
            Ok(None) => return Ok(Progress::Pending),
            // The guest's requests wait for it as for one that goes while it is used.
            Err(Error::Away(_)) if self.may_wait_for_server(now) => return Ok(Progress::Pending),
            Ok(Some(disk)) => self.attach(device, disk, How::TakeOver),
            Err(error) => Err(error),
        };
        let connected = match attached {
            // The file is held until the last request of the process before is done.
            Err(Error::Busy(_)) => return Ok(Progress::Pending),
            Err(Error::PortTaken(_)) if self.may_wait_for_port() => return Ok(Progress::Pending),
            connected => connected?,
        };
        (self.bound_since, self.away) = (None, None);
        self.connected = Some(connected);
        self.stats = Stats::default();
        let mut worked = Worked::default();
        self.each(Instant::now(), &mut worked, |queue, work, _| queue.replay(work))?;
        let evtchn = self.platform.evtchn.borrow();
        for port in self.ports() {
            // The process before may have shown answers and not told of them.
            evtchn.notify(port).map_err(Error::platform("notifying the frontend"))?;
        }
        Ok(Progress::Done)
    }

    fn noticed(&mut self, device: &mut Device<'_>) {
        // What is no number changes nothing.
        if let Ok(limits) = self.rates(device) {
            self.limit(limits);
        }
    }

    fn release(&mut self, device: &mut Device<'_>) -> Progress {
        if self.opening.give_up() == Progress::Pending {
            return Progress::Pending;
        }
        if let Some(connected) = &mut self.connected {
            connected.taking = Taking::Ended;
            connected.disk.give_up();
        }
        self.away = None;
        // What is in flight is answered, if the rings still stand.
        let _ = self.work(Instant::now(), None);
        let Some(connected) = &mut self.connected else { return self.leave_nothing(device) };
        if connected.disk.in_flight() > 0 || connected.queues.iter().any(Queue::waits) {
            return Progress::Pending;
        }
        if let Some(connected) = self.connected.take() {
            self.close_ports(&connected);
            if let Some((path, _)) = &connected.record {
                let _ = record::remove(path);
            }
        }
        Progress::Done
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Some(connected) = &self.connected {
            self.close_ports(connected);
        }
    }
}
