//! Serves one ring: takes requests, checks them, gives them to the disk, and answers them.

use crate::disk::{Disk, DiskAccess, DiskIo, DiskOp, Piece};
use crate::stats::{RequestCounters, Stats};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::time::Instant;
use xen::gnttab::{GrantMap, PageAccess};
use xen::{DomId, GrantRef};
use xen_driver::Channel;
use xen_driver::backend::pages::{GrantUse, QueuePages};
use xen_driver::backend::ring::{Ring, UnansweredRequest};
use xen_driver::backend::rings;
use xen_driver::backend::throttle::Throttle;
use xen_io::blkif::{
    self, Body, InvalidRequest, Layout, Request, RequestBytes, RequestLimits, Response,
    ResponseBytes, SEGMENT_SIZE, SEGMENTS_PER_PAGE, Segment, Status, TransferKind,
};
use xen_io::ring::RingError;

/// The most requests taken off a ring before other rings have their turn.
const BATCH_MAX: u32 = 64;
/// The most requests that a disk finishes during submission before the answers are shown, so that
/// the frontend can work on these meanwhile. Half of what frontends usually have in flight.
const ANSWERED_MAX: usize = 16;
/// The most sectors of these requests: 512 KiB, about 50 µs, until other devices have their turn.
const ANSWERED_SECTORS_MAX: u64 = 1024;

/// The most sectors of one discard: 8 MiB, which takes a tmpfs some 0.3 ms. A larger discard is
/// done one piece a turn, so that other devices have their turns in between.
const DISCARDED_MAX: u64 = 16384;

/// The state that a queue works with; the same for all queues of a device.
pub(super) struct QueueContext<'a> {
    pub(super) disk: &'a mut dyn Disk,
    pub(super) grants: &'a mut dyn GrantMap,
    pub(super) stats: &'a mut Stats,
    pub(super) throttle: &'a mut Throttle,
    /// Size of the disk in sectors of 512 bytes.
    pub(super) capacity: u64,
    pub(super) access: DiskAccess,
    pub(super) discard: Discard,
    pub(super) now: Instant,
}

/// The device's offer of discard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Discard {
    Offered,
    NotOffered,
}

/// The current step of a request with several steps. Data of a barrier or a flush goes onto stable
/// storage after all data before it, and before the request is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RequestStep {
    /// The only step.
    Only,
    /// A flush, then the data.
    Before,
    /// The data, then a flush.
    Data,
    /// A flush, then the answer.
    After,
}

/// A request that was taken and is not answered.
struct TakenRequest {
    id: u64,
    operation: u8,
    /// The operation for the disk; `None` for a request that did not get to the disk.
    op: Option<DiskOp>,
    step: RequestStep,
    taken: Instant,
    sectors: u64,
    /// The number of sectors still to discard after those that the disk was asked for.
    left: u64,
    /// The data of a request whose first step is a flush.
    data: Option<Box<DiskIo>>,
}

/// A ring, and the requests taken from it.
pub(super) struct Queue {
    ring: Ring,
    pub(super) channel: Channel,
    number: u16,
    layout: Layout,
    limits: RequestLimits,
    pages: QueuePages,
    slots: Vec<TakenRequest>,
    /// The number of sectors in requests whose answer is not shown yet.
    answered_sectors: u64,
    #[expect(clippy::vec_box, reason = "they go to the disk and back in their boxes")]
    spare: Vec<Box<DiskIo>>,
    /// Requests for which the disk had no room.
    waiting: VecDeque<Box<DiskIo>>,
    /// Discards with a next piece to do, one piece a turn.
    discards: VecDeque<Box<DiskIo>>,
    /// A barrier that waits for all requests before it; no request behind it is taken.
    barrier: Option<Box<DiskIo>>,
    /// True while a barrier is under way.
    behind_barrier: bool,
    /// True if the last look at the ring ended at a limit of the device.
    limited: bool,
    grant_list: Vec<GrantRef>,
    segments: Vec<Segment>,
}

/// The setup of all queues of a device.
#[derive(Clone, Copy)]
pub(super) struct QueueSetup {
    pub(super) peer: DomId,
    pub(super) layout: Layout,
    pub(super) limits: RequestLimits,
    pub(super) grants: GrantUse,
    pub(super) persistent_max: usize,
}

/// The result of one turn.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct QueueTurn {
    /// Requests taken or answered.
    pub(super) moved: u32,
    /// True if there is more to take at once.
    pub(super) more: bool,
    /// The time when answers were shown.
    pub(super) shown: Option<Instant>,
}

impl Queue {
    pub(super) fn new(
        rings: rings::Queue<1, 1>,
        number: u16,
        setup: QueueSetup,
        now: Instant,
    ) -> Self {
        let rings::Queue { rings: [ring], channels: [channel] } = rings;
        let QueueSetup { peer, layout, limits, grants, persistent_max } = setup;
        let count = ring.slots();
        let slot = |_| TakenRequest {
            id: 0,
            operation: 0,
            op: None,
            step: RequestStep::Only,
            taken: now,
            sectors: 0,
            left: 0,
            data: None,
        };
        Self {
            ring,
            channel,
            number,
            layout,
            limits,
            pages: QueuePages::new(peer, grants, persistent_max),
            slots: (0..count).map(slot).collect(),
            answered_sectors: 0,
            spare: Vec::with_capacity(count),
            waiting: VecDeque::with_capacity(count),
            discards: VecDeque::new(),
            barrier: None,
            behind_barrier: false,
            limited: false,
            grant_list: Vec::with_capacity(blkif::SEGMENTS_MAX),
            segments: Vec::with_capacity(limits.indirect_segments_max.into()),
        }
    }

    /// Returns the number of requests that the disk has, or is to have.
    pub(super) fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// True while a request waits to be given to the disk.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.has_discards()
    }

    /// True while a discard has a next piece.
    pub(super) fn has_discards(&self) -> bool {
        !self.discards.is_empty()
    }

    pub(super) fn persistent(&self) -> usize {
        self.pages.kept()
    }

    /// Repeats the requests that an earlier process has taken and not answered. Each request gets
    /// the slot that it had, which the record has kept.
    pub(super) fn replay(&mut self, context: &mut QueueContext<'_>) -> Result<(), RingError> {
        for UnansweredRequest { slot, request } in self.ring.unanswered()? {
            context.stats.replayed = context.stats.replayed.wrapping_add(1);
            self.begin(slot, &RequestBytes(request), context)?;
        }
        Ok(())
    }

    /// Takes the requests that are in the ring, up to the limits of a turn.
    pub(super) fn take(
        &mut self,
        context: &mut QueueContext<'_>,
        turn: &mut QueueTurn,
    ) -> Result<(), RingError> {
        let mut bytes = RequestBytes::ZERO;
        for _ in 0..BATCH_MAX {
            if self.behind_barrier {
                return Ok(());
            }
            if self.ring.answered() >= ANSWERED_MAX || self.answered_sectors >= ANSWERED_SECTORS_MAX
            {
                break;
            }
            if context.throttle.is_limited() && context.throttle.ready(context.now).is_err() {
                self.limited = true;
                return Ok(());
            }
            // It has waited where it is there at the first look after that.
            let waited = std::mem::take(&mut self.limited);
            let entry = bytes.0.get_mut(..self.layout.entry_bytes()).unwrap_or_default();
            let Some(slot) = self.ring.take(entry)? else { return Ok(()) };
            if waited {
                context.stats.throttled_at = Some(context.now);
            }
            turn.moved = turn.moved.wrapping_add(1);
            self.begin(slot, &bytes, context)?;
        }
        turn.more = true;
        Ok(())
    }

    /// Checks a request and gives it to the disk, or answers it at once.
    fn begin(
        &mut self,
        slot: u16,
        bytes: &RequestBytes,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        let (id, operation) = answer_header(bytes, self.layout);
        let now = context.now;
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            *slot = TakenRequest {
                id,
                operation,
                op: None,
                step: RequestStep::Only,
                taken: now,
                sectors: 0,
                left: 0,
                data: None,
            };
        }
        let checked = bytes.check(self.layout, self.limits).map_err(RequestRefusal::Invalid);
        let built = checked.and_then(|request| self.build(slot, &request, context));
        if context.throttle.is_limited() {
            // Only moved bytes count as bytes; every request counts as a request, also a wrong one.
            let moved = built.as_ref().map_or(0, |io| io.bytes() as u64);
            context.throttle.spend(moved, context.now);
        }
        match built {
            Ok(io) => self.launch(slot, io, context),
            Err(refusal) => self.refuse(slot, &refusal, context),
        }
    }

    /// Answers a request that cannot be carried out.
    fn refuse(
        &mut self,
        slot: u16,
        refusal: &RequestRefusal,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        context.stats.wrong = context.stats.wrong.wrapping_add(1);
        let status = match refusal {
            RequestRefusal::Invalid(InvalidRequest::Operation(_)) => Status::NotSupported,
            _ => Status::Error,
        };
        self.answer(slot, status, context)
    }

    /// Builds the disk's request from the ring's, with its pages mapped.
    fn build(
        &mut self,
        slot: u16,
        request: &Request,
        context: &mut QueueContext<'_>,
    ) -> Result<Box<DiskIo>, RequestRefusal> {
        let mut io = self.spare.pop().unwrap_or_else(DiskIo::empty);
        io.pieces.clear();
        io.tag = u64::from(self.number) << 16 | u64::from(slot);
        let result = match &request.body {
            Body::Discard { sector, sectors, .. } => {
                self.discard(&mut io, *sector, *sectors, context)
            }
            Body::Direct { transfer, sector, segments } => {
                self.transfer(&mut io, *transfer, *sector, segments.as_slice(), context)
            }
            Body::Indirect { transfer, sector, count, pages } => {
                let mut segments = std::mem::take(&mut self.segments);
                let result = self
                    .indirect(*count, pages, &mut segments, context)
                    .and_then(|()| self.transfer(&mut io, *transfer, *sector, &segments, context));
                self.segments = segments;
                result
            }
        };
        if let Err(refusal) = result {
            io.pieces.clear();
            self.spare.push(io);
            return Err(refusal);
        }
        let step = match &request.body {
            Body::Direct {
                transfer: TransferKind::Flush | TransferKind::WriteBarrier,
                segments,
                ..
            } if !segments.as_slice().is_empty() => RequestStep::Before,
            _ => RequestStep::Only,
        };
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            (slot.op, slot.step, slot.sectors) = (Some(io.op), step, io.sectors);
            if io.op == DiskOp::Discard {
                slot.left = cut_discard(&mut io, slot.sectors);
            }
        }
        Ok(io)
    }

    fn discard(
        &mut self,
        io: &mut DiskIo,
        sector: u64,
        sectors: u64,
        context: &QueueContext<'_>,
    ) -> Result<(), RequestRefusal> {
        if context.discard == Discard::NotOffered {
            return Err(InvalidRequest::Operation(blkif::op::DISCARD).into());
        }
        writable(context)?;
        blkif::check_extent(sector, sectors, context.capacity, self.limits)?;
        (io.op, io.sector, io.sectors) = (DiskOp::Discard, sector, sectors);
        Ok(())
    }

    /// Maps the pages of a transfer. Checks its segments here if they came from an indirect page.
    fn transfer(
        &mut self,
        io: &mut DiskIo,
        transfer: TransferKind,
        sector: u64,
        segments: &[Segment],
        context: &mut QueueContext<'_>,
    ) -> Result<(), RequestRefusal> {
        let sectors = u64::from(blkif::check_segments(segments, self.limits)?);
        io.op = match transfer {
            TransferKind::Read => DiskOp::Read,
            _ if segments.is_empty() => DiskOp::Flush,
            _ => DiskOp::Write,
        };
        (io.sector, io.sectors) = (sector, sectors);
        if segments.is_empty() {
            (io.sector, io.sectors) = (0, 0);
            return Ok(());
        }
        if io.op == DiskOp::Write {
            writable(context)?;
        }
        blkif::check_extent(sector, sectors, context.capacity, self.limits)?;
        let access = if io.op == DiskOp::Read { PageAccess::ReadWrite } else { PageAccess::Read };
        self.grant_list.clear();
        self.grant_list.extend(segments.iter().map(|segment| segment.grant));
        self.pages.tick();
        let mut segments = segments.iter();
        let pieces = &mut io.pieces;
        self.pages
            .get(context.grants, &self.grant_list, access, |page| {
                if let Some(segment) = segments.next() {
                    pieces.push(Piece { page, offset: segment.offset(), len: segment.len() });
                }
            })
            .map_err(|_| RequestRefusal::Failed)
    }

    /// Copies the segments of an indirect request out of their pages, once.
    fn indirect(
        &mut self,
        count: u16,
        pages: &[GrantRef],
        into: &mut Vec<Segment>,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RequestRefusal> {
        into.clear();
        let mut left = usize::from(count);
        let mut bytes = [0; SEGMENTS_PER_PAGE * SEGMENT_SIZE];
        for grant in pages {
            let here = left.min(SEGMENTS_PER_PAGE);
            if here == 0 {
                break;
            }
            let part = bytes.get_mut(..here.saturating_mul(SEGMENT_SIZE)).unwrap_or_default();
            self.pages
                .copy_out(context.grants, *grant, part)
                .map_err(|_| RequestRefusal::Failed)?;
            into.extend((0..here).map(|number| blkif::segment_at(part, number)));
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    /// Starts a request.
    fn launch(
        &mut self,
        slot: u16,
        io: Box<DiskIo>,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        let Some(state) = self.slots.get(usize::from(slot)) else { return Err(RingError::Full) };
        if state.operation == blkif::op::WRITE_BARRIER {
            self.barrier = Some(io);
            self.behind_barrier = true;
            return self.launch_barrier(context);
        }
        if io.op == DiskOp::Discard {
            self.discards.push_back(io);
            return Ok(());
        }
        self.first_step(slot, io, context)
    }

    /// Starts a barrier once all requests before it are answered.
    fn launch_barrier(&mut self, context: &mut QueueContext<'_>) -> Result<(), RingError> {
        if self.in_flight() > 1 {
            return Ok(());
        }
        let Some(io) = self.barrier.take() else { return Ok(()) };
        let slot = slot_of(&io);
        self.first_step(slot, io, context)
    }

    fn first_step(
        &mut self,
        slot: u16,
        mut io: Box<DiskIo>,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        let Some(state) = self.slots.get_mut(usize::from(slot)) else {
            return Err(RingError::Full);
        };
        if state.step == RequestStep::Before {
            let mut flush = self.spare.pop().unwrap_or_else(DiskIo::empty);
            flush.pieces.clear();
            (flush.tag, flush.op, flush.sector, flush.sectors) = (io.tag, DiskOp::Flush, 0, 0);
            std::mem::swap(&mut io, &mut flush);
            state.data = Some(flush);
        }
        self.submit(io, context)
    }

    fn submit(&mut self, io: Box<DiskIo>, context: &mut QueueContext<'_>) -> Result<(), RingError> {
        match context.disk.submit(io) {
            Ok(None) => Ok(()),
            Ok(Some((io, result))) => self.finished(io, result, context),
            Err(io) => {
                self.waiting.push_back(io);
                Ok(())
            }
        }
    }

    /// Gives the disk the requests for which it had no room, and one piece of a discard.
    pub(super) fn retry(&mut self, context: &mut QueueContext<'_>) -> Result<(), RingError> {
        if let Some(io) = self.discards.pop_front() {
            self.submit(io, context)?;
        }
        for _ in 0..self.waiting.len() {
            let Some(io) = self.waiting.pop_front() else { break };
            self.submit(io, context)?;
        }
        Ok(())
    }

    /// Handles the end of a request, or of one of its steps, on the disk.
    pub(super) fn finished(
        &mut self,
        mut io: Box<DiskIo>,
        result: Result<(), Errno>,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        let slot = slot_of(&io);
        let Some(state) = self.slots.get_mut(usize::from(slot)) else {
            return Err(RingError::Full);
        };
        if result.is_ok() && state.left > 0 {
            io.sector = io.sector.saturating_add(io.sectors);
            state.left = cut_discard(&mut io, state.left);
            self.discards.push_back(io);
            return Ok(());
        }
        if result.is_ok() {
            match state.step {
                RequestStep::Before => {
                    state.step = RequestStep::Data;
                    if let Some(data) = state.data.take() {
                        self.spare.push(io);
                        return self.submit(data, context);
                    }
                }
                RequestStep::Data => {
                    state.step = RequestStep::After;
                    io.pieces.clear();
                    (io.op, io.sector, io.sectors) = (DiskOp::Flush, 0, 0);
                    return self.submit(io, context);
                }
                RequestStep::Only | RequestStep::After => {}
            }
        }
        if let Some(mut data) = state.data.take() {
            data.pieces.clear();
            self.spare.push(data);
        }
        let merges = io.take_merged();
        io.pieces.clear();
        self.spare.push(io);
        if let Some(kind) = kind(context.stats, state.op) {
            kind.merges = kind.merges.wrapping_add(merges);
        }
        let discard = state.op == Some(DiskOp::Discard);
        let status = match result {
            Ok(()) => Status::Okay,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if discard => Status::NotSupported,
            Err(errno) => {
                context.stats.fail(errno);
                Status::Error
            }
        };
        self.answer(slot, status, context)
    }

    fn answer(
        &mut self,
        slot: u16,
        status: Status,
        context: &mut QueueContext<'_>,
    ) -> Result<(), RingError> {
        let Some(state) = self.slots.get(usize::from(slot)) else { return Err(RingError::Full) };
        let (id, operation) = (state.id, state.operation);
        let response = ResponseBytes::encode(&Response { id, operation, status }, self.layout);
        self.ring.answer(slot, response.as_slice())?;
        if let Some(kind) = kind(context.stats, state.op) {
            kind.requests = kind.requests.wrapping_add(1);
            kind.sectors = kind.sectors.wrapping_add(state.sectors);
            kind.errors = kind.errors.wrapping_add(u64::from(status != Status::Okay));
        }
        self.answered_sectors = self.answered_sectors.saturating_add(state.sectors);
        if self.behind_barrier {
            if operation == blkif::op::WRITE_BARRIER && self.barrier.is_none() {
                self.behind_barrier = false;
            } else {
                return self.launch_barrier(context);
            }
        }
        Ok(())
    }

    /// Shows the answers to the frontend; true if the frontend is to be notified.
    pub(super) fn show(
        &mut self,
        turn: &mut QueueTurn,
        stats: &mut Stats,
    ) -> Result<bool, RingError> {
        let slots = &self.slots;
        let shown = self.ring.show(|slot, now| {
            if let Some(state) = slots.get(usize::from(slot))
                && let Some(kind) = kind(stats, state.op)
            {
                kind.latency.add(now.saturating_duration_since(state.taken));
            }
        })?;
        let Some(shown) = shown else { return Ok(false) };
        self.answered_sectors = 0;
        turn.shown = Some(shown.at);
        turn.moved = turn.moved.wrapping_add(shown.count);
        Ok(shown.notify)
    }

    /// Checks once more, before the loop sleeps, if there is a request to take.
    pub(super) fn final_check(&mut self) -> Result<bool, RingError> {
        if self.behind_barrier || self.ring.is_full() {
            return Ok(false);
        }
        self.ring.final_check()
    }
}

/// The reason for which a request gets an error.
enum RequestRefusal {
    /// The request makes no sense.
    Invalid(InvalidRequest),
    /// The pages of the request cannot be reached.
    Failed,
}

impl From<InvalidRequest> for RequestRefusal {
    fn from(wrong: InvalidRequest) -> Self {
        Self::Invalid(wrong)
    }
}

fn writable(context: &QueueContext<'_>) -> Result<(), RequestRefusal> {
    match context.access {
        DiskAccess::ReadWrite => Ok(()),
        DiskAccess::ReadOnly => Err(RequestRefusal::Failed),
    }
}

/// Returns the id and the operation of the answer. An indirect request is answered with its inner
/// operation, as Linux's backend does and its frontend insists (`nr_segments` is `indirect_op`
/// there, `io/blkif.h`).
fn answer_header(bytes: &RequestBytes, layout: Layout) -> (u64, u8) {
    match bytes.to_answer(layout) {
        (id, blkif::op::INDIRECT) => (id, bytes.0.get(1).copied().unwrap_or_default()),
        answer => answer,
    }
}

/// Returns the slot of this queue's request.
fn slot_of(io: &DiskIo) -> u16 {
    (io.tag & 0xffff) as u16
}

/// Returns the queue of a request.
pub(super) fn queue_of(io: &DiskIo) -> usize {
    (io.tag >> 16) as usize
}

/// Cuts a discard to the first piece of `sectors`, which ends at a multiple of the piece size;
/// returns the number of sectors left.
fn cut_discard(io: &mut DiskIo, sectors: u64) -> u64 {
    let piece = DISCARDED_MAX.saturating_sub(io.sector % DISCARDED_MAX);
    io.sectors = sectors.min(piece);
    sectors.saturating_sub(piece)
}

fn kind(stats: &mut Stats, op: Option<DiskOp>) -> Option<&mut RequestCounters> {
    op.map(|op| match op {
        DiskOp::Read => &mut stats.read,
        DiskOp::Write => &mut stats.write,
        DiskOp::Flush => &mut stats.flush,
        DiskOp::Discard => &mut stats.discard,
    })
}
