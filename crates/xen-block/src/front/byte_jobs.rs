//! Access to any bytes of a device: reads and writes at any place and of any length, flushes,
//! zeroes.
//!
//! A job is cut into as many requests of the ring as it needs; many jobs are under way at a time. A
//! write that is not of whole sectors reads, changes and writes them, and no other job writes there
//! meanwhile. Requests that others put into the same frontend ([`super::export`]) belong to none of
//! these jobs. Zeroes are a discard; data that does not read as zeroes afterwards is overwritten.

use super::{
    BlockFrontend, Buffer, BufferSectors, Completion, DiskRequest, Info, Offer, SubmitError,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use xen::shared::PAGE_SIZE;
use xen_io::blkif::Status;

/// The bit that marks these requests in a tag, among others' requests of the same frontend.
const MARK: u64 = 1 << 63;
/// The bytes that are read and overwritten at a time where zeroes are wanted.
const ZEROES: u64 = 256 << 10;

/// The work of a job.
#[derive(Debug)]
pub(super) enum JobKind {
    Read,
    Write(Vec<u8>, Durability),
    Zero,
    Flush,
}

/// The time of the answer to a write: once it is on stable storage, or once a later flush would
/// include it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Durability {
    Flushed,
    Plain,
}

/// A job that has ended: the data that was read, or the error.
#[derive(Debug)]
pub(super) struct FinishedJob {
    pub(super) tag: u64,
    pub(super) result: Result<Vec<u8>, Errno>,
}

/// The current stage of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum JobStage {
    /// `data` is read, and the job ends.
    Read,
    /// `data` is read, for the bytes around those that are written.
    Around,
    /// `data` is written.
    Write,
    /// All of the job's whole sectors are discarded.
    Discard,
    /// `data` is read, to find out if it is all zeroes.
    Look,
    /// `data` is written, with the wanted range zeroed.
    Clear,
    Flush,
}

#[derive(Debug)]
struct ByteJob {
    tag: u64,
    /// The range of the job, in bytes.
    wanted: Range<u64>,
    /// The range of the job, extended to whole sectors.
    sectors: Range<u64>,
    payload: Vec<u8>,
    sync: Durability,
    stage: JobStage,
    /// True if no other job may write to its sectors meanwhile.
    exclusive: bool,
    started: bool,
    /// The offset of `data` on the device.
    place: u64,
    data: Vec<u8>,
    /// The bytes of this stage for which requests were made.
    requested: usize,
    /// The number of requests without an answer.
    open: usize,
    errno: Option<Errno>,
}

/// A request of the ring.
#[derive(Debug)]
struct PieceRequest {
    job: u64,
    bytes: Range<usize>,
    buffers: Vec<Buffer>,
}

/// The jobs of one device.
#[derive(Debug, Default)]
pub(super) struct ByteJobs {
    jobs: BTreeMap<u64, ByteJob>,
    /// The jobs with requests to make, in order.
    waiting: VecDeque<u64>,
    pieces: BTreeMap<u64, PieceRequest>,
    next: u64,
    held: usize,
}

/// The result of making requests for a job's stage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StageProgress {
    Wholly,
    NotYet,
}

impl ByteJobs {
    /// True if the answer belongs to one of these requests.
    pub(super) fn owns(completion: &Completion) -> bool {
        completion.tag & MARK != 0
    }

    /// Returns the bytes of memory that jobs hold.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Adds a job; `wanted` lies within the device. [`ByteJobs::submit_waiting`] starts it.
    pub(super) fn add(&mut self, info: &Info, tag: u64, wanted: Range<u64>, kind: JobKind) {
        let size = u64::from(info.sector_size);
        let sectors = wanted.start / size * size..wanted.end.next_multiple_of(size);
        let whole = sectors == wanted;
        let (stage, payload, sync) = match kind {
            JobKind::Read => (JobStage::Read, Vec::new(), Durability::Plain),
            JobKind::Write(payload, sync) if whole => (JobStage::Write, payload, sync),
            JobKind::Write(payload, sync) => (JobStage::Around, payload, sync),
            JobKind::Zero => (JobStage::Discard, Vec::new(), Durability::Plain),
            JobKind::Flush => (JobStage::Flush, Vec::new(), Durability::Plain),
        };
        let exclusive = matches!(stage, JobStage::Around | JobStage::Discard);
        let mut job = ByteJob {
            tag,
            place: sectors.start,
            wanted,
            sectors,
            payload,
            sync,
            stage,
            exclusive,
            started: false,
            data: Vec::new(),
            requested: 0,
            open: 0,
            errno: None,
        };
        if stage == JobStage::Write {
            job.data = std::mem::take(&mut job.payload);
        }
        self.held += job.held();
        self.next += 1;
        self.jobs.insert(self.next, job);
        self.waiting.push_back(self.next);
    }

    /// Takes the answer to one request; returns the job that has ended with it, if any.
    pub(super) fn complete(
        &mut self,
        front: &mut BlockFrontend,
        completion: Completion,
    ) -> Option<FinishedJob> {
        let piece = self.pieces.remove(&completion.tag)?;
        let job = self.jobs.get_mut(&piece.job)?;
        let discards = job.stage == JobStage::Discard;
        match completion.status {
            Status::Okay => {
                if matches!(job.stage, JobStage::Read | JobStage::Around | JobStage::Look) {
                    let data = job.data.get_mut(piece.bytes.clone()).unwrap_or_default();
                    for (buffer, part) in piece.buffers.iter().zip(data.chunks_mut(PAGE_SIZE)) {
                        // The range is inside the page.
                        let _ = front.page(*buffer).map(|page| page.copy_out(0, part));
                    }
                }
            }
            // The bytes that were not discarded are read and overwritten.
            _ if discards => {}
            Status::NotSupported => job.errno = Some(Errno::OPNOTSUPP),
            _ => job.errno = Some(Errno::IO),
        }
        piece.buffers.into_iter().for_each(|buffer| front.give_back(buffer));
        job.open -= 1;
        if job.open > 0 || !(job.is_requested() || job.errno.is_some()) {
            return None;
        }
        self.advance(piece.job)
    }

    /// Ends the current stage, and starts the next one or ends the job.
    fn advance(&mut self, number: u64) -> Option<FinishedJob> {
        let job = self.jobs.get_mut(&number)?;
        let before = job.held();
        if job.errno.is_none() && job.next_stage() {
            self.held = self.held - before + job.held();
            self.waiting.push_front(number);
            return None;
        }
        let mut job = self.jobs.remove(&number)?;
        self.held -= before;
        self.waiting.retain(|waiting| *waiting != number);
        let result = match job.errno {
            Some(errno) => Err(errno),
            None if job.stage == JobStage::Read => {
                let skip = usize::try_from(job.wanted.start - job.sectors.start).unwrap_or(0);
                job.data.drain(..skip.min(job.data.len()));
                let len = usize::try_from(job.wanted.end - job.wanted.start).unwrap_or(0);
                job.data.truncate(len);
                Ok(job.data)
            }
            None => Ok(Vec::new()),
        };
        Some(FinishedJob { tag: job.tag, result })
    }

    /// Makes the requests of waiting jobs, as far as there is room; returns the jobs that have
    /// ended without one.
    pub(super) fn submit_waiting(&mut self, front: &mut BlockFrontend) -> Vec<FinishedJob> {
        let mut ended = Vec::new();
        while let Some(number) = self.waiting.pop_front() {
            if !self.may_start(number) {
                self.waiting.push_front(number);
                break;
            }
            match self.submit(front, number) {
                Ok(StageProgress::Wholly) => {
                    if self.jobs.get(&number).is_some_and(|job| job.open == 0) {
                        ended.extend(self.advance(number));
                    }
                }
                Ok(StageProgress::NotYet) => {
                    self.waiting.push_front(number);
                    break;
                }
                Err(errno) => {
                    let Some(job) = self.jobs.get_mut(&number) else { continue };
                    job.errno = Some(errno);
                    if job.open == 0 {
                        ended.extend(self.advance(number));
                    }
                }
            }
        }
        ended
    }

    /// Ends all jobs, as the device is gone.
    pub(super) fn end(&mut self) -> Vec<FinishedJob> {
        let jobs = std::mem::take(self).jobs;
        jobs.into_values().map(|job| FinishedJob { tag: job.tag, result: Err(Errno::IO) }).collect()
    }

    /// True if no started job is in conflict with this one: two that write to the same sectors wait
    /// for each other if one of them must be alone.
    fn may_start(&mut self, number: u64) -> bool {
        let Some(job) = self.jobs.get(&number) else { return true };
        let writes = !matches!(job.stage, JobStage::Read | JobStage::Flush);
        let in_the_way = |(other, at): (&u64, &ByteJob)| {
            *other != number
                && at.started
                && at.stage != JobStage::Read
                && (job.exclusive || at.exclusive)
                && job.sectors.start < at.sectors.end
                && at.sectors.start < job.sectors.end
        };
        if !job.started && writes && self.jobs.iter().any(in_the_way) {
            return false;
        }
        if let Some(job) = self.jobs.get_mut(&number).filter(|job| !job.started) {
            job.started = true;
            if matches!(job.stage, JobStage::Read | JobStage::Around) {
                // Not earlier: a job that waits holds no buffers.
                self.held -= job.held();
                let len = usize::try_from(job.sectors.end - job.sectors.start);
                job.data = vec![0; len.unwrap_or(usize::MAX)];
                self.held += job.held();
            }
        }
        true
    }

    fn submit(&mut self, front: &mut BlockFrontend, number: u64) -> Result<StageProgress, Errno> {
        let Some(job) = self.jobs.get_mut(&number) else { return Ok(StageProgress::Wholly) };
        let Some(info) = front.info() else { return Ok(StageProgress::NotYet) };
        while !job.is_requested() {
            self.next += 1;
            let tag = self.next | MARK;
            let mut piece = PieceRequest { job: number, bytes: 0..0, buffers: Vec::new() };
            match submit_one(front, &info, job, tag, &mut piece) {
                Ok(SubmitOutcome::Nothing) => job.requested = 1,
                Ok(SubmitOutcome::One) => {
                    job.open += 1;
                    job.requested = piece.bytes.end;
                    self.pieces.insert(tag, piece);
                }
                Err(full) => {
                    piece.buffers.into_iter().for_each(|buffer| front.give_back(buffer));
                    return if full == SubmitError::NotPossible {
                        Err(Errno::PERM)
                    } else {
                        Ok(StageProgress::NotYet)
                    };
                }
            }
        }
        Ok(StageProgress::Wholly)
    }
}

/// The result of trying to make one request.
enum SubmitOutcome {
    One,
    Nothing,
}

/// Puts one request into the ring, with as much of the stage as fits.
fn submit_one(
    front: &mut BlockFrontend,
    info: &Info,
    job: &mut ByteJob,
    tag: u64,
    piece: &mut PieceRequest,
) -> Result<SubmitOutcome, SubmitError> {
    let size = u64::from(info.sector_size);
    match job.stage {
        JobStage::Flush => {
            if info.flush == Offer::NotTaken {
                // A backend without flush does not cache writes.
                return Ok(SubmitOutcome::Nothing);
            }
            piece.bytes = 0..1;
            front.submit(0, DiskRequest::Flush { tag }, &[])?;
        }
        JobStage::Discard => {
            let (from, to) =
                (job.wanted.start.next_multiple_of(size), job.wanted.end / size * size);
            if info.discard == Offer::NotTaken || from >= to {
                return Ok(SubmitOutcome::Nothing);
            }
            piece.bytes = 0..1;
            let (sector, sectors) = (from / 512, (to - from) / 512);
            front.submit(0, DiskRequest::Discard { tag, sector, sectors }, &[])?;
        }
        _ => transfer(front, info, job, tag, piece)?,
    }
    Ok(SubmitOutcome::One)
}

fn transfer(
    front: &mut BlockFrontend,
    info: &Info,
    job: &mut ByteJob,
    tag: u64,
    piece: &mut PieceRequest,
) -> Result<(), SubmitError> {
    let most = usize::from(info.segments_max) * PAGE_SIZE;
    let left = (job.data.len() - job.requested).min(most);
    let mut parts = Vec::new();
    let mut len = 0;
    while len < left {
        let Some(buffer) = front.take_buffer() else { break };
        piece.buffers.push(buffer);
        let here = (left - len).min(PAGE_SIZE);
        parts.push(BufferSectors { buffer, first: 0, last: (here / 512 - 1) as u8 });
        len += here;
    }
    // The request is limited by the buffers; a page holds whole sectors.
    if parts.is_empty() {
        return Err(SubmitError::Ring);
    }
    piece.bytes = job.requested..job.requested + len;
    let sector = (job.place + job.requested as u64) / 512;
    if !matches!(job.stage, JobStage::Write | JobStage::Clear) {
        return front.submit(0, DiskRequest::Read { tag, sector }, &parts);
    }
    let data = job.data.get(piece.bytes.clone()).unwrap_or_default();
    for (buffer, part) in piece.buffers.iter().zip(data.chunks(PAGE_SIZE)) {
        // The range is inside the page.
        let _ = front.page(*buffer).map(|page| page.copy_in(0, part));
    }
    front.submit(0, DiskRequest::Write { tag, sector }, &parts)
}

impl ByteJob {
    fn held(&self) -> usize {
        size_of::<Self>() + self.data.len() + self.payload.len()
    }

    /// True if requests were made for all of this stage.
    fn is_requested(&self) -> bool {
        match self.stage {
            JobStage::Flush | JobStage::Discard => self.requested > 0,
            _ => self.requested >= self.data.len(),
        }
    }

    /// Starts the next stage; false if there is none.
    fn next_stage(&mut self) -> bool {
        self.requested = 0;
        match self.stage {
            JobStage::Read | JobStage::Flush => false,
            JobStage::Around => {
                let skip = usize::try_from(self.wanted.start - self.sectors.start).unwrap_or(0);
                let into = self.data.iter_mut().skip(skip);
                into.zip(&self.payload).for_each(|(to, from)| *to = *from);
                self.payload = Vec::new();
                self.stage = JobStage::Write;
                true
            }
            JobStage::Write => {
                self.stage = JobStage::Flush;
                self.sync == Durability::Flushed
            }
            JobStage::Discard => self.look_at(self.sectors.start),
            JobStage::Look => {
                let from = self.wanted.start.max(self.place) - self.place;
                let to = self.wanted.end.min(self.place + self.data.len() as u64) - self.place;
                let (from, to) = (from as usize, to as usize);
                let bytes = self.data.get_mut(from..to).unwrap_or_default();
                if bytes.iter().all(|byte| *byte == 0) {
                    return self.look_at(self.place + self.data.len() as u64);
                }
                bytes.fill(0);
                self.stage = JobStage::Clear;
                true
            }
            JobStage::Clear => self.look_at(self.place + self.data.len() as u64),
        }
    }

    /// Starts to read the bytes at `place`; false at the end of the job's sectors.
    fn look_at(&mut self, place: u64) -> bool {
        let len = self.sectors.end.saturating_sub(place).min(ZEROES);
        self.stage = JobStage::Look;
        self.place = place;
        self.data.resize(len as usize, 0);
        len > 0
    }
}
