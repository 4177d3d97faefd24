//! One ring of a frontend, and what was asked through it.

use super::{Buffer, Completion, Held};
use std::fmt;
use xen::gnttab::{Access, GrantOffer, Offered};
use xen::{DomId, GrantRef, Port};
use xen_io::blkif::{
    Body, INDIRECT_PAGES_MAX, Layout, Request, RequestBytes, ResponseBytes, SEGMENT_SIZE,
    SEGMENTS_MAX, Secure, Segment, Segments, Transfer, op, segment_bytes,
};
use xen_io::ring::{FrontRing, RingError};

/// Sectors of a buffer that take part in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The buffer.
    pub buffer: Buffer,
    /// First sector of 512 bytes within it, 0 to 7.
    pub first: u8,
    /// Last one.
    pub last: u8,
}

impl Part {
    /// All of a buffer.
    #[must_use]
    pub fn whole(buffer: Buffer) -> Self {
        Self { buffer, first: 0, last: 7 }
    }
}

/// What is wanted; `tag` comes back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Sectors into the parts.
    Read {
        /// The asker's name for it.
        tag: u64,
        /// First sector.
        sector: u64,
    },
    /// The parts onto the sectors.
    Write {
        /// The asker's name for it.
        tag: u64,
        /// First sector.
        sector: u64,
    },
    /// What was written and answered onto stable storage.
    Flush {
        /// The asker's name for it.
        tag: u64,
    },
    /// The parts onto the sectors, behind all before it and before all behind it.
    Barrier {
        /// The asker's name for it.
        tag: u64,
        /// First sector.
        sector: u64,
    },
    /// Sectors that are not needed.
    Discard {
        /// The asker's name for it.
        tag: u64,
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u64,
    },
}

impl Want {
    pub(super) fn tag(&self) -> u64 {
        match self {
            Self::Read { tag, .. }
            | Self::Write { tag, .. }
            | Self::Flush { tag }
            | Self::Barrier { tag, .. }
            | Self::Discard { tag, .. } => *tag,
        }
    }
}

/// Why a request was not put into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Full {
    /// The ring is full: again after an answer.
    Ring,
    /// There is no backend at the moment.
    NotConnected,
    /// The backend does not take this: read-only, too many parts, not offered.
    NotPossible,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "the ring is full",
            Self::NotConnected => "the device is not connected",
            Self::NotPossible => "the backend does not take such requests",
        })
    }
}

impl std::error::Error for Full {}

/// What the backend did that it may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    Ring(RingError),
    /// An answer to what was not asked, or was answered already.
    Id(u64),
    /// An answer to another kind of request.
    Operation {
        asked: u8,
        answered: u8,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Id(id) => write!(f, "an answer to request {id:#x}, which is not open"),
            Self::Operation { asked, answered } => {
                write!(f, "an answer to operation {answered} where {asked} was asked")
            }
        }
    }
}

impl From<RingError> for Broken {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) want: Want,
    pub(super) parts: Vec<Part>,
}

/// A place for a request; its number is the low half of the id.
struct Slot {
    /// The high half of the id: how often the slot was used.
    turn: u32,
    operation: u8,
    want: Option<Want>,
    parts: Vec<Part>,
    /// The page of the segments of an indirect request.
    indirect: Option<Offered>,
}

pub(super) struct Queue {
    ring: FrontRing,
    pub(super) port: Port,
    layout: Layout,
    peer: DomId,
    slots: Vec<Slot>,
    free: Vec<u32>,
    segments: Vec<Segment>,
    /// Pages for the segments of indirect requests.
    spare: Vec<Offered>,
    response: ResponseBytes,
}

impl Queue {
    pub(super) fn new(ring: FrontRing, port: Port, layout: Layout, peer: DomId) -> Self {
        let count = ring.count();
        let slot =
            |_| Slot { turn: 0, operation: 0, want: None, parts: Vec::new(), indirect: None };
        Self {
            ring,
            port,
            layout,
            peer,
            slots: (0..count).map(slot).collect(),
            free: (0..count).rev().collect(),
            segments: Vec::new(),
            spare: Vec::new(),
            response: ResponseBytes::zero(layout),
        }
    }

    pub(super) fn grants(&self) -> Vec<GrantRef> {
        self.ring.pages().map(Offered::grant).collect()
    }

    /// Keeps pages for the segments of indirect requests.
    pub(super) fn keep(&mut self, pages: Vec<Offered>) {
        self.spare = pages;
    }

    pub(super) fn free(&self) -> usize {
        self.free.len().min(self.ring.free() as usize)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// What has no answer, in the order of the slots; the queue is of no use then.
    pub(super) fn take_asked(&mut self) -> Vec<Asked> {
        let asked = self.slots.iter_mut().filter_map(|slot| {
            let want = slot.want.take()?;
            Some(Asked { want, parts: std::mem::take(&mut slot.parts) })
        });
        asked.collect()
    }

    pub(super) fn put(
        &mut self,
        want: Want,
        parts: &[Part],
        buffers: &[Held],
        grants: &mut dyn GrantOffer,
    ) -> Result<(), RingError> {
        let Some(number) = self.free.pop() else { return Err(RingError::Full) };
        self.segments.clear();
        self.segments.extend(parts.iter().filter_map(|part| {
            match buffers.get(part.buffer.0 as usize) {
                Some(Held::Offered(offered)) => {
                    Some(Segment { grant: offered.grant(), first: part.first, last: part.last })
                }
                _ => None,
            }
        }));
        let body = self.body(number, &want, grants);
        let Some(slot) = self.slots.get_mut(number as usize) else { return Err(RingError::Full) };
        let put = body.and_then(|body| {
            slot.turn = slot.turn.wrapping_add(1);
            let id = u64::from(slot.turn) << 32 | u64::from(number);
            let request = Request { id, handle: 0, body };
            let bytes = RequestBytes::encode(&request, self.layout);
            let entry = bytes.0.get(..self.layout.entry_bytes()).unwrap_or_default();
            self.ring.put(entry)?;
            // An indirect request is answered as what it does with its segments.
            slot.operation = match (request.operation(), bytes.0) {
                (op::INDIRECT, [_, transfer, ..]) => transfer,
                (operation, _) => operation,
            };
            slot.want = Some(want);
            slot.parts.clear();
            slot.parts.extend_from_slice(parts);
            Ok(())
        });
        if put.is_err() {
            let slot = self.slots.get_mut(number as usize);
            self.spare.extend(slot.and_then(|slot| slot.indirect.take()));
            self.free.push(number);
        }
        put
    }

    /// The request as the ring has it.
    fn body(
        &mut self,
        number: u32,
        want: &Want,
        grants: &mut dyn GrantOffer,
    ) -> Result<Body, RingError> {
        let (transfer, sector) = match *want {
            Want::Read { sector, .. } => (Transfer::Read, sector),
            Want::Write { sector, .. } => (Transfer::Write, sector),
            Want::Barrier { sector, .. } => (Transfer::WriteBarrier, sector),
            Want::Flush { .. } => (Transfer::Flush, 0),
            Want::Discard { sector, sectors, .. } => {
                return Ok(Body::Discard { sector, sectors, secure: Secure::No });
            }
        };
        if self.segments.len() <= SEGMENTS_MAX {
            let segments = Segments::new(&self.segments).ok_or(RingError::Full)?;
            return Ok(Body::Direct { transfer, sector, segments });
        }
        let Some(slot) = self.slots.get_mut(number as usize) else { return Err(RingError::Full) };
        let page = match self.spare.pop() {
            Some(page) => page,
            None => {
                let offer = grants.offer(self.peer, Access::ReadWrite);
                offer.map_err(|_| RingError::Full)?
            }
        };
        for (at, segment) in self.segments.iter().enumerate() {
            page.page().copy_in(at * SEGMENT_SIZE, &segment_bytes(*segment))?;
        }
        let mut pages = [GrantRef(0); INDIRECT_PAGES_MAX];
        pages[0] = page.grant();
        slot.indirect = Some(page);
        let count = u16::try_from(self.segments.len()).map_err(|_| RingError::Full)?;
        Ok(Body::Indirect { transfer, sector, count, pages })
    }

    pub(super) fn push(&mut self) -> Result<bool, RingError> {
        self.ring.push()
    }

    /// The next answer, copied out of the ring once and checked against what was asked.
    pub(super) fn take(&mut self) -> Result<Option<Completion>, Broken> {
        if !self.ring.take(self.response.as_mut_slice())? {
            return Ok(None);
        }
        let response = self.response.parse();
        let number = response.id as u32;
        let slot = self.slots.get_mut(number as usize).ok_or(Broken::Id(response.id))?;
        if response.id >> 32 != u64::from(slot.turn) {
            return Err(Broken::Id(response.id));
        }
        let Some(want) = slot.want else { return Err(Broken::Id(response.id)) };
        if response.operation != slot.operation {
            let (asked, answered) = (slot.operation, response.operation);
            return Err(Broken::Operation { asked, answered });
        }
        slot.want = None;
        self.spare.extend(slot.indirect.take());
        self.free.push(number);
        Ok(Some(Completion { tag: want.tag(), status: response.status }))
    }

    pub(super) fn final_check(&mut self) -> Result<bool, RingError> {
        self.ring.final_check()
    }
}
