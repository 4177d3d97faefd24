//! The frontend of one block device.
//!
//! [`BlockFrontend`] is the driver that a bus calls. Data goes through [`Buffer`]s: pages that are granted
//! to the backend once and used again and again. Between two connections (a resume, or a backend
//! that was started again) the requests without an answer are kept, and then submitted again.
//!
//! The backend need not be trusted. It can answer wrongly, late or never, and see the contents of
//! the buffers; it can do nothing else.

mod byte_jobs;
pub mod disks;
pub mod export;
pub mod fuse;
mod queue;
mod resubmit;

use crate::disk::DiskAccess;
use queue::Queue;
use resubmit::ResubmitQueue;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use xen::DomId;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::shared::SharedPage;
use xen_driver::frontend;
use xen_driver::frontend::buffers::{Buffers, Trust};
use xen_driver::frontend::rings;
use xen_io::blkif::{Layout, SEGMENTS_MAX, SEGMENTS_PER_PAGE, info, names};
use xenbus::negotiate::{self, QueueNames};
use xenbus::{Device, Driver, Error, Progress};

pub use queue::{BufferSectors, Completion, DiskRequest, SubmitError};
pub use xen_driver::frontend::buffers::Buffer;

/// The options of a frontend.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The largest ring and the most queues; the backend may take less.
    pub rings: negotiate::QueueLimits,
    /// The most segments of a request; the backend may take less. At most 512.
    pub segments_max: u16,
    /// The number of buffers; fewer if the platform does not have that many grants left.
    pub buffers: usize,
}

impl Default for Options {
    fn default() -> Self {
        let rings = negotiate::QueueLimits { order_max: 2, queues_max: 1 };
        Self { rings, segments_max: 256, buffers: 512 }
    }
}

/// The state that all frontends of a domain share.
pub struct FrontendContext {
    /// The event channels of this process.
    pub evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The source of the grants that frontends offer.
    pub grants: Rc<RefCell<dyn GrantOffer>>,
    /// The options of the frontends.
    pub options: Options,
}

impl fmt::Debug for FrontendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontendContext").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The backend's description of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// The size in units of 512 bytes.
    pub sectors: u64,
    /// The bytes of a sector.
    pub sector_size: u32,
    /// The permitted access.
    pub access: DiskAccess,
    /// The backend's offer of flushes.
    pub flush: Offer,
    /// The backend's offer of barriers.
    pub barrier: Offer,
    /// The backend's offer of discards.
    pub discard: Offer,
    /// The most segments of a request.
    pub segments_max: u16,
}

impl Info {
    /// Returns the size in bytes; `u64::MAX` if the backend's number is too large.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(512)
    }
}

/// The backend's offer of a kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// The backend takes such requests.
    Taken,
    /// The backend does not take such requests.
    NotTaken,
}

impl Offer {
    fn from_feature(set: bool) -> Self {
        if set { Self::Taken } else { Self::NotTaken }
    }
}

/// The frontend of one device.
pub struct BlockFrontend {
    platform: Rc<FrontendContext>,
    buffers: Buffers,
    queues: Vec<Queue>,
    /// The pages for the segments of indirect requests, until it is known if the backend takes
    /// these.
    indirect: Vec<OfferedPage>,
    info: Option<Info>,
    layout: Layout,
    /// Requests of an earlier connection that have no answer and are not submitted again yet.
    resubmit: ResubmitQueue,
    /// The number of users that have the device open.
    users: usize,
}

impl fmt::Debug for BlockFrontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockFrontend").field("info", &self.info).finish_non_exhaustive()
    }
}

impl BlockFrontend {
    /// Creates the frontend of a new device.
    #[must_use]
    pub fn new(platform: Rc<FrontendContext>) -> Self {
        let buffers = Buffers::new(Rc::clone(&platform.grants), platform.options.buffers);
        Self {
            platform,
            buffers,
            queues: Vec::new(),
            indirect: Vec::new(),
            info: None,
            layout: Layout::NATIVE,
            resubmit: ResubmitQueue::default(),
            users: 0,
        }
    }

    /// Sets the number of users that have the device open. While there are any, the device is not
    /// closed at a toolstack's request. When there are none any more,
    /// [`Bus::look_again`](xenbus::Bus::look_again) closes a device that waits for that.
    pub fn set_users(&mut self, users: usize) {
        self.users = users;
    }

    /// Uses the layout of another processor, as a 32-bit guest does, for tests of backends. To be
    /// called before the device is opened.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Returns the backend's description of the device; `None` while the device is not connected.
    #[must_use]
    pub fn info(&self) -> Option<Info> {
        self.info
    }

    /// Returns the number of queues, which is 0 while the device is not connected.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Takes a free buffer. It shows a backend that is not trusted nothing of its earlier contents.
    pub fn take_buffer(&mut self) -> Option<Buffer> {
        self.buffers.take()
    }

    /// Gives back a buffer that no request uses any more.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer);
    }

    /// Returns the memory of a buffer. The backend may change it at any time.
    #[must_use]
    pub fn page(&self, buffer: Buffer) -> Option<&SharedPage> {
        self.buffers.page(buffer)
    }

    /// Returns the number of requests without an answer, including those of earlier connections.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.resubmit.len() + self.queues.iter().map(Queue::in_flight).sum::<usize>()
    }

    /// Puts a request into the ring of a queue. The backend sees it after [`BlockFrontend::push`].
    ///
    /// # Errors
    /// [`SubmitError`]: the request is not possible now, or never.
    pub fn submit(
        &mut self,
        queue: usize,
        want: DiskRequest,
        parts: &[BufferSectors],
    ) -> Result<(), SubmitError> {
        let info = self.info.ok_or(SubmitError::NotConnected)?;
        check(&info, &want, parts)?;
        let Some(queue) = self.queues.get_mut(queue) else { return Err(SubmitError::NotConnected) };
        if queue.free() == 0 {
            return Err(SubmitError::Ring);
        }
        let mut grants = self.platform.grants.borrow_mut();
        queue.put(want, parts, &self.buffers, &mut *grants).map_err(|_| SubmitError::Ring)
    }

    /// Shows the submitted requests to the backend, and notifies it if it sleeps.
    ///
    /// # Errors
    /// The event channel is gone.
    pub fn push(&mut self) -> Result<(), Error> {
        for queue in &mut self.queues {
            if queue.push()? {
                queue.channel.notify()?;
            }
        }
        Ok(())
    }

    /// Takes the answers, and returns their number.
    ///
    /// # Errors
    /// The backend has broken the ring, or answered a request that was not made: the device is to
    /// be closed.
    pub fn take(&mut self, mut done: impl FnMut(Completion)) -> Result<usize, Error> {
        let mut count = 0;
        for queue in &mut self.queues {
            while let Some(completion) = queue.take()? {
                count += 1;
                self.resubmit.complete(completion).into_iter().for_each(&mut done);
            }
        }
        // The answers have made room.
        if count > 0 && self.resubmit.has_requests() {
            self.resubmit_pending()?;
        }
        self.resubmit.take_failed().for_each(done);
        Ok(count)
    }

    /// Submits the unanswered requests of earlier connections again, as far as there is room.
    fn resubmit_pending(&mut self) -> Result<(), Error> {
        while let Some(request) = self.resubmit.pop() {
            let room = (0..self.queues.len()).find(|at| self.queues[*at].free() > 0);
            match room
                .map_or(Err(SubmitError::Ring), |at| self.submit(at, request.want, &request.parts))
            {
                Ok(()) => {}
                Err(SubmitError::NotPossible) => self.resubmit.fail(&request),
                Err(SubmitError::Ring | SubmitError::NotConnected) => {
                    self.resubmit.put_back(request);
                    break;
                }
            }
        }
        self.push()
    }

    /// Checks once more, before the loop sleeps, if there is an answer.
    ///
    /// # Errors
    /// As [`BlockFrontend::take`].
    pub fn final_check(&mut self) -> Result<bool, Error> {
        let mut more = self.resubmit.has_failed();
        for queue in &mut self.queues {
            more |= queue.final_check()?;
        }
        Ok(more)
    }

    /// Grants the pages for the segments of indirect requests, as many as can be in use at a time.
    /// If these are not available, requests are direct ones.
    fn offer_indirect(&mut self, peer: DomId) -> Result<(), Error> {
        let count = indirect_pages(self.buffers.count());
        let mut grants = self.platform.grants.borrow_mut();
        for queue in &mut self.queues {
            if !self.indirect.is_empty() {
                queue.keep_pages(std::mem::take(&mut self.indirect));
                continue;
            }
            let mut pages = Vec::with_capacity(count);
            match grants.offer_batch(peer, PageAccess::ReadWrite, count, &mut pages) {
                Ok(()) => queue.keep_pages(pages),
                Err(xen::Error::NoSpc | xen::Error::NoPages { .. }) => {
                    let info = self.info.as_mut();
                    info.into_iter().for_each(|info| info.segments_max = SEGMENTS_MAX as u16);
                    return Ok(());
                }
                Err(error) => return Err(Error::platform("granting pages of segments")(error)),
            }
        }
        Ok(())
    }

    fn read_info(&self, device: &mut Device<'_>) -> Result<Info, Error> {
        let sector_size = device.their_number::<u32>(names::SECTOR_SIZE)?.unwrap_or(512);
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            let wanted = "a power of two from 512 to 4096";
            let value = sector_size.to_string();
            return Err(device.bad(names::SECTOR_SIZE, value.as_bytes(), wanted));
        }
        let bits = device.their_number::<u32>(names::INFO)?.unwrap_or(0);
        let read_only = bits & info::READ_ONLY != 0;
        let indirect = device.their_number::<u32>(names::FEATURE_MAX_INDIRECT_SEGMENTS)?;
        // A request with more segments than there are buffers could never be made.
        let buffers = u16::try_from(self.buffers.count()).unwrap_or(u16::MAX);
        let most = self.platform.options.segments_max.min(buffers);
        let segments_max = match indirect.map(|most| u16::try_from(most).unwrap_or(u16::MAX)) {
            Some(theirs) => theirs.min(most).min(SEGMENTS_PER_PAGE as u16).max(SEGMENTS_MAX as u16),
            None => SEGMENTS_MAX as u16,
        };
        Ok(Info {
            sectors: device.their_needed(names::SECTORS)?,
            sector_size,
            access: if read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite },
            flush: Offer::from_feature(device.their_feature(names::FEATURE_FLUSH_CACHE)?),
            barrier: Offer::from_feature(device.their_feature(names::FEATURE_BARRIER)?),
            discard: Offer::from_feature(device.their_feature(names::FEATURE_DISCARD)?),
            segments_max,
        })
    }
}

/// Checks if the device can ever do the request.
fn check(info: &Info, want: &DiskRequest, parts: &[BufferSectors]) -> Result<(), SubmitError> {
    let taken = |offer: Offer| offer == Offer::Taken;
    let possible = match want {
        DiskRequest::Read { .. } => !parts.is_empty(),
        DiskRequest::Write { .. } => !parts.is_empty() && info.access == DiskAccess::ReadWrite,
        DiskRequest::Flush { .. } => taken(info.flush) && parts.is_empty(),
        DiskRequest::Barrier { .. } => taken(info.barrier) && parts.len() <= SEGMENTS_MAX,
        DiskRequest::Discard { .. } => taken(info.discard) && parts.is_empty(),
    };
    if possible && parts.len() <= usize::from(info.segments_max) {
        Ok(())
    } else {
        Err(SubmitError::NotPossible)
    }
}

/// Returns the most indirect requests at a time: each has more buffers than a direct one holds.
fn indirect_pages(buffers: usize) -> usize {
    buffers / (SEGMENTS_MAX + 1) + 1
}

impl Driver for BlockFrontend {
    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let untrusted = device.own_number::<u32>(names::TRUSTED)? == Some(0);
        self.buffers.set_trust(if untrusted { Trust::Untrusted } else { Trust::Trusted });
        let limits = self.platform.options.rings.within_theirs(device)?;
        let rings = (limits.queues_max as usize) << limits.order_max;
        let others = self.buffers.offer(device.peer(), |count| rings + indirect_pages(count));
        // The rings take their pages at once. The others are kept, or other devices would take
        // them.
        self.indirect = others?.split_off(rings);
        let (evtchn, grants) = (Rc::clone(&self.platform.evtchn), Rc::clone(&self.platform.grants));
        let platform = frontend::Platform { evtchn, grants };
        let entry = [self.layout.entry_bytes()];
        let queues = rings::offer(&platform, device, &QueueNames::PLAIN, limits, entry)?;
        let queue = |queue| Queue::new(queue, self.layout, device.peer());
        self.queues = queues.into_iter().map(queue).collect();
        device.put(names::PROTOCOL, self.layout.protocol());
        device.put(names::FEATURE_PERSISTENT, 1);
        Ok(Progress::Done)
    }

    fn connect(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        self.info = Some(self.read_info(device)?);
        if self.info.is_some_and(|info| usize::from(info.segments_max) > SEGMENTS_MAX) {
            self.offer_indirect(device.peer())?;
        }
        self.indirect.clear();
        // The unanswered requests go to the new backend, which may take fewer segments in a
        // request.
        let segments_max = self.info.map_or(SEGMENTS_MAX, |info| info.segments_max.into());
        self.resubmit.split(segments_max);
        self.resubmit_pending()?;
        Ok(Progress::Done)
    }

    fn refresh(&mut self, device: &mut Device<'_>) -> Result<(), Error> {
        let mut info = self.read_info(device)?;
        // No pages for more segments were granted.
        let before = self.info.map_or(info.segments_max, |before| before.segments_max);
        info.segments_max = info.segments_max.min(before);
        self.info = Some(info);
        Ok(())
    }

    fn closing(&mut self, device: &mut Device<'_>) -> Progress {
        // A backend that has failed answers no more, so there is nothing to wait for.
        let by_toolstack =
            device.their_number::<u32>("online").is_ok_and(|online| online == Some(0));
        if by_toolstack && self.users > 0 { Progress::Pending } else { Progress::Done }
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        self.info = None;
        for mut queue in self.queues.drain(..) {
            self.resubmit.extend(queue.take_pending());
        }
        self.buffers.withdraw();
        Progress::Done
    }
}
