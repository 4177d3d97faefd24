//! The rings of one device, and their life: connected, taken over from a process that was killed, given back.
//!
//! The [`Driver`](xenbus::Driver) of a backend asks [`Rings::may_connect`] first, gets its queues from
//! [`Rings::connect`] or [`Rings::take_over`], and ends with [`Rings::give_back`].
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::connects::ConnectLimit;
use super::record::{self, DeviceRecord, REQUEST_BYTES_MAX, RecordPlace, RingRecord, Shape};
use super::ring::Ring;
use super::{Platform, TurnOutcome};
use crate::channel::Channel;
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen::gnttab::PageAccess;
use xen::{DomId, GrantRef};
use xen_io::ring::{BackRing, Position, RingError, entry_count};
use xenbus::negotiate::{self, QueueLimits, QueueNames};
use xenbus::{Device, Error, Progress};

pub use super::record::RecordMemory;

/// The time for which a killed process may still have the frontend's port: what its io_uring waited for is ended behind its
/// back.
const BOUND_MAX: Duration = Duration::from_secs(2);

/// Limits of the rings of a device, and the place of their record.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Largest ring and most queues.
    pub limits: QueueLimits,
    /// Most connects of a frontend, and the time within which they are counted: for what is more it waits. Each time its
    /// pages are mapped anew, and more is done, by device type.
    pub connects_max: (u32, Duration),
    /// A folder in memory that outlives this process (tmpfs), for what was taken and not answered;
    /// `None`: guests notice when the process is killed.
    pub record_dir: Option<PathBuf>,
    /// Memory that outlives this domain, for the pages of the records.
    pub record_memory: Option<Arc<RecordMemory>>,
}

impl Default for RingOptions {
    /// Rings of 16 pages, 4 queues, 16 connects in 10 s; no record.
    fn default() -> Self {
        let limits = QueueLimits { order_max: 4, queues_max: 4 };
        Self {
            limits,
            connects_max: (16, Duration::from_secs(10)),
            record_dir: None,
            record_memory: None,
        }
    }
}

impl RingOptions {
    /// These limits, and a record in this folder.
    #[must_use]
    pub fn recorded_in(folder: impl Into<PathBuf>) -> Self {
        Self { record_dir: Some(folder.into()), ..Self::default() }
    }
}

/// The entries of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFormat {
    /// Bytes of the larger of a request and a response; at most 112, where a record is kept.
    pub bytes: usize,
    /// The device type's number for their format, the same for all rings of a device. A record of another one is not
    /// taken over.
    pub format: u32,
}

/// One queue of a device: its rings, and the event channels beside them.
#[derive(Debug)]
pub struct Queue<const RINGS: usize, const CHANNELS: usize> {
    /// Its rings.
    pub rings: [Ring; RINGS],
    /// Its event channels.
    pub channels: [Channel; CHANNELS],
}

impl Queue<1, 1> {
    /// Shows the frontend what was answered, and notifies it where it sleeps.
    ///
    /// # Errors
    /// As [`Backend::work`](super::Backend::work).
    pub fn show(&mut self, worked: &mut TurnOutcome) -> Result<(), Error> {
        let Self { rings: [ring], channels: [channel] } = self;
        let Some(shown) = ring.show(|_, _| {})? else { return Ok(()) };
        worked.moved = worked.moved.saturating_add(shown.count);
        worked.shown = Some(shown.at);
        if shown.notify { channel.notify() } else { Ok(()) }
    }
}

/// The rings of one device, from its backend's view.
pub struct Rings {
    platform: Platform,
    options: RingOptions,
    /// The count of the frontend's connects.
    connects: ConnectLimit,
    /// When a process that was killed was first seen to have the frontend's port still.
    bound_since: Option<Instant>,
    /// Locked while the device is connected.
    record: Option<(RecordPlace, OwnedFd)>,
    /// The way in which it was connected last.
    how: AttachMode,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A way to connect: rings are new, or were served by a process that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AttachMode {
    Fresh,
    TakeOver,
}

/// The names that a frontend has for a queue, and the entries of its rings.
struct QueuePlan<'n, const RINGS: usize, const CHANNELS: usize> {
    names: &'n QueueNames<RINGS, CHANNELS>,
    entries: [EntryFormat; RINGS],
}

impl Rings {
    /// The rings of a device that was found.
    #[must_use]
    pub fn new(platform: Platform, options: RingOptions) -> Self {
        let connects = ConnectLimit::new(options.connects_max);
        let (bound_since, record) = (None, None);
        Self { platform, options, connects, bound_since, record, how: AttachMode::Fresh }
    }

    /// Limits of the rings, for [`QueueLimits::put`].
    #[must_use]
    pub fn limits(&self) -> QueueLimits {
        self.options.limits
    }

    /// False where the frontend has to wait: a hotplug script is at work, it has connected too often lately, or a
    /// process that was killed still reaches its pages.
    ///
    /// # Errors
    /// [`Error::Hotplug`], [`Error::Store`].
    pub fn may_connect(&mut self, device: &mut Device<'_>) -> Result<bool, Error> {
        if !device.hotplug_done()? {
            return Ok(false);
        }
        Ok(self.connects.allows_another() && self.leave_nothing(device) == Progress::Done)
    }

    /// Returns the number of times that the frontend has connected lately, up to
    /// [`RingOptions::connects_max`]: at that number it has to wait.
    #[must_use]
    pub fn recent_connects(&self) -> usize {
        self.connects.recent()
    }

    /// Maps the rings and binds the ports that the frontend has named. Leaves nothing where it fails.
    ///
    /// # Errors
    /// A ring or port of the frontend is not there, not as it was offered, or taken; the record cannot be made.
    pub fn connect<const R: usize, const C: usize>(
        &mut self,
        device: &mut Device<'_>,
        names: &QueueNames<R, C>,
        entries: [EntryFormat; R],
    ) -> Result<Vec<Queue<R, C>>, Error> {
        self.connects.note();
        let queues = self.attach(device, &QueuePlan { names, entries }, AttachMode::Fresh);
        if queues.is_err() {
            self.give_up();
        }
        queues
    }

    /// Connects rings that a process which was killed has served, where they are; `None` while that process is not gone
    /// altogether. What it has left undone is in [`Ring::unanswered`]; then each frontend is to be told
    /// ([`Channel::notify`]), as that process may have shown answers and not told of them.
    ///
    /// # Errors
    /// As [`Rings::connect`]; there is no record, or one of other rings.
    pub fn take_over<const R: usize, const C: usize>(
        &mut self,
        device: &mut Device<'_>,
        names: &QueueNames<R, C>,
        entries: [EntryFormat; R],
    ) -> Result<Option<Vec<Queue<R, C>>>, Error> {
        match self.attach(device, &QueuePlan { names, entries }, AttachMode::TakeOver) {
            Ok(queues) => {
                self.bound_since = None;
                Ok(Some(queues))
            }
            Err(error) => {
                self.give_up();
                match error {
                    Error::Busy(_) => Ok(None),
                    Error::PortTaken(_) if self.may_wait_for_port() => Ok(None),
                    error => Err(error),
                }
            }
        }
    }

    /// True if the domain that this one succeeds has served the device, and not a process of this one: all that was in
    /// its memory is lost. To be asked before [`Rings::take_over`].
    #[must_use]
    pub fn are_of_domain_before(&self, device: &Device<'_>) -> bool {
        self.record_place(device).is_some_and(|place| place.is_inherited())
    }

    /// Locked as long as anybody reaches the guest's pages for this process: to be held by whatever may go on when the
    /// process is killed. `None` where no record is kept.
    #[must_use]
    pub fn guard(&self) -> Option<BorrowedFd<'_>> {
        self.record.as_ref().map(|(_, guard)| guard.as_fd())
    }

    /// Ends the record, for [`Driver::release`](xenbus::Driver::release), once nothing is in flight and the queues are
    /// dropped. Pending while a process that was killed still reaches the guest's pages.
    pub fn give_back(&mut self, device: &Device<'_>) -> Progress {
        if self.record.is_some() {
            self.forget();
            return Progress::Done;
        }
        self.leave_nothing(device)
    }

    /// The device cannot be used after all: a record that this process has made goes at once, one that it has taken
    /// over stays for the next try. The queues are to be dropped before.
    pub fn give_up(&mut self) {
        match self.how {
            AttachMode::Fresh => self.forget(),
            AttachMode::TakeOver => self.record = None,
        }
    }

    /// Takes the record away that this process has made.
    fn forget(&mut self) {
        if let Some((place, _guard)) = self.record.take() {
            let _ = record::remove(&place);
        }
    }

    /// Takes away what a process that was killed has left of the device.
    fn leave_nothing(&self, device: &Device<'_>) -> Progress {
        match self.record_place(device).map(|place| record::discard(&place)) {
            Some(Err(Errno::WOULDBLOCK)) => Progress::Pending,
            // One that cannot be taken away is in the way of the next, which says so.
            _ => Progress::Done,
        }
    }

    /// True while it is not too long ago that the frontend's port was found bound first.
    fn may_wait_for_port(&mut self) -> bool {
        self.bound_since.get_or_insert_with(Instant::now).elapsed() < BOUND_MAX
    }

    fn attach<const R: usize, const C: usize>(
        &mut self,
        device: &mut Device<'_>,
        plan: &QueuePlan<'_, R, C>,
        how: AttachMode,
    ) -> Result<Vec<Queue<R, C>>, Error> {
        self.how = how;
        let named = plan.names.queues(device, self.options.limits)?;
        let pages = named.first().and_then(|queue| queue.rings.first()).map_or(1, Vec::len);
        let mut entries = 0;
        for entry in &plan.entries {
            if self.options.record_dir.is_some() && entry.bytes > REQUEST_BYTES_MAX {
                let most = REQUEST_BYTES_MAX;
                return Err(Error::Driver(format!("requests of over {most} bytes have no record")));
            }
            entries = entry_count(pages, entry.bytes)?.max(entries);
        }
        let shape = Shape {
            rings: u32::try_from(named.len().saturating_mul(R)).unwrap_or(u32::MAX),
            entries,
            format: plan.entries.first().map_or(0, |entry| entry.format),
        };
        // First that: whoever was there before may have I/O under way in the guest's pages.
        let mut records = self.record(device, shape, how)?.into_iter();
        let peer = device.peer();
        named.iter().map(|queue| self.queue(peer, queue, plan, &mut records, how)).collect()
    }

    /// The record of each ring; none where no record is kept.
    fn record(
        &mut self,
        device: &Device<'_>,
        shape: Shape,
        how: AttachMode,
    ) -> Result<Vec<RingRecord>, Error> {
        let (place, record) = match (self.record_place(device), how) {
            (None, AttachMode::Fresh) => return Ok(Vec::new()),
            (None, AttachMode::TakeOver) => return Err(no_record(device)),
            (Some(place), AttachMode::Fresh) => {
                let record = record::create(&place, shape);
                (place, record)
            }
            (Some(place), AttachMode::TakeOver) => {
                let record = record::open(&place, shape);
                (place, record)
            }
        };
        let DeviceRecord { guard, rings } = record.map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::Busy("a process before has I/O under way".to_owned()),
            errno => Error::Driver(format!("the record of requests in flight: {errno}")),
        })?;
        self.record = Some((place, guard));
        Ok(rings)
    }

    /// The place of the record of a device: `vbd-3-51712.inflight`.
    fn record_place(&self, device: &Device<'_>) -> Option<RecordPlace> {
        let dir = self.options.record_dir.as_ref()?;
        let (id, kind) = (device.id(), device.path().split('/').nth(5)?);
        let path = dir.join(format!("{kind}-{}-{}.inflight", id.frontend, id.devid));
        Some(RecordPlace { path, memory: self.options.record_memory.clone() })
    }

    fn queue<const R: usize, const C: usize>(
        &self,
        peer: DomId,
        queue: &negotiate::Queue<R, C>,
        plan: &QueuePlan<'_, R, C>,
        records: &mut impl Iterator<Item = RingRecord>,
        how: AttachMode,
    ) -> Result<Queue<R, C>, Error> {
        let mut rings = Vec::with_capacity(R);
        for (pages, entry) in queue.rings.iter().zip(&plan.entries) {
            let record = records.next();
            let before = record.as_ref().filter(|_| how == AttachMode::TakeOver);
            let req_cons = before.map(RingRecord::req_cons).transpose().map_err(RingError::Page)?;
            rings.push(Ring::new(self.map(peer, pages, entry.bytes, req_cons)?, record));
        }
        let mut channels = Vec::with_capacity(C);
        for port in &queue.ports {
            channels.push(Channel::bind(&self.platform.evtchn, peer, *port)?);
        }
        let rings = <[Ring; R]>::try_from(rings);
        let channels = <[Channel; C]>::try_from(channels);
        let (Ok(rings), Ok(channels)) = (rings, channels) else {
            unreachable!("as many as there are names")
        };
        Ok(Queue { rings, channels })
    }

    /// One ring; `req_cons` where it was in use.
    fn map(
        &self,
        peer: DomId,
        pages: &[GrantRef],
        entry_bytes: usize,
        req_cons: Option<u32>,
    ) -> Result<BackRing, Error> {
        let mut mapped = Vec::new();
        self.platform.grants.borrow_mut().map_batch(
            peer,
            pages,
            PageAccess::ReadWrite,
            &mut mapped,
        );
        let pages: Result<Vec<_>, _> = mapped.into_iter().collect();
        let pages = pages.map_err(Error::platform("mapping the frontend's ring"))?;
        let at = match (req_cons, pages.first()) {
            (Some(req_cons), Some(first)) => {
                let rsp_prod = BackRing::responses_in(first.page())?;
                Position { req_cons, rsp_prod }
            }
            _ => Position::default(),
        };
        Ok(BackRing::attach(pages, entry_bytes, at)?)
    }
}

fn no_record(device: &Device<'_>) -> Error {
    let path = device.path();
    Error::Driver(format!("{path} was in use by a process that has ended and kept no record"))
}
