//! One ring of a frontend, and its open requests.

use std::fmt;
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::{DomId, GrantRef};
use xen_driver::Channel;
use xen_driver::frontend::buffers::{Buffer, Buffers};
use xen_driver::frontend::ring::{Ring, RingRequestId, UnexpectedResponse};
use xen_driver::frontend::rings;
use xen_io::blkif::{
    Body, INDIRECT_PAGES_MAX, Layout, Request, RequestBytes, ResponseBytes, SEGMENT_SIZE,
    SEGMENTS_MAX, Secure, Segment, Segments, Status, TransferKind, op, segment_bytes,
};
use xen_io::ring::RingError;
use xenbus::Error;

/// The sectors of a buffer that take part in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferSectors {
    /// The buffer.
    pub buffer: Buffer,
    /// The first sector within the buffer, of 512 bytes, 0 to 7.
    pub first: u8,
    /// The last sector.
    pub last: u8,
}

impl BufferSectors {
    /// Returns the part that is all of a buffer.
    #[must_use]
    pub fn whole(buffer: Buffer) -> Self {
        Self { buffer, first: 0, last: 7 }
    }
}

/// A request to the device; `tag` comes back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskRequest {
    /// Reads the sectors into the parts.
    Read {
        /// The caller's name for the request.
        tag: u64,
        /// The first sector.
        sector: u64,
    },
    /// Writes the parts onto the sectors.
    Write {
        /// The caller's name for the request.
        tag: u64,
        /// The first sector.
        sector: u64,
    },
    /// Puts all answered writes onto stable storage.
    Flush {
        /// The caller's name for the request.
        tag: u64,
    },
    /// Writes the parts onto the sectors, after all earlier requests and before all later ones.
    Barrier {
        /// The caller's name for the request.
        tag: u64,
        /// The first sector.
        sector: u64,
    },
    /// Discards the sectors.
    Discard {
        /// The caller's name for the request.
        tag: u64,
        /// The first sector.
        sector: u64,
        /// The number of sectors.
        sectors: u64,
    },
}

impl DiskRequest {
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

/// The reason why a request was not put into the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SubmitError {
    /// The ring is full; try again after an answer.
    Ring,
    /// There is no backend at the moment.
    NotConnected,
    /// The backend does not take this request: it is read-only, has too many parts, or is not
    /// offered.
    NotPossible,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "the ring is full",
            Self::NotConnected => "the device is not connected",
            Self::NotPossible => "the backend does not take such requests",
        })
    }
}

impl std::error::Error for SubmitError {}

/// A request that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The caller's name for the request.
    pub tag: u64,
    /// The backend's answer.
    pub status: Status,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub(super) struct SubmittedRequest {
    pub(super) want: DiskRequest,
    pub(super) parts: Vec<BufferSectors>,
}

/// The state of a request until it is answered.
#[derive(Default)]
struct OpenRequest {
    operation: u8,
    want: Option<DiskRequest>,
    parts: Vec<BufferSectors>,
    /// The page with the segments of an indirect request.
    indirect: Option<OfferedPage>,
}

pub(super) struct Queue {
    /// The event channel, which is closed before the ring is taken back.
    pub(super) channel: Channel,
    ring: Ring<OpenRequest>,
    layout: Layout,
    peer: DomId,
    segments: Vec<Segment>,
    /// The pages for the segments of indirect requests.
    spare: Vec<OfferedPage>,
    response: ResponseBytes,
}

impl Queue {
    pub(super) fn new(queue: rings::Queue<1, 1>, layout: Layout, peer: DomId) -> Self {
        let rings::Queue { rings: [ring], channels: [channel] } = queue;
        Self {
            ring: Ring::new(ring),
            channel,
            layout,
            peer,
            segments: Vec::new(),
            spare: Vec::new(),
            response: ResponseBytes::zero(layout),
        }
    }

    /// Keeps pages for the segments of indirect requests.
    pub(super) fn keep_pages(&mut self, pages: Vec<OfferedPage>) {
        self.spare = pages;
    }

    pub(super) fn free(&self) -> usize {
        self.ring.free()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// Takes the unanswered requests, in the order of their slots; the queue cannot be used
    /// afterwards.
    pub(super) fn take_pending(&mut self) -> Vec<SubmittedRequest> {
        let open = self.ring.take_open();
        open.filter_map(|open| Some(SubmittedRequest { want: open.want?, parts: open.parts }))
            .collect()
    }

    pub(super) fn put(
        &mut self,
        want: DiskRequest,
        parts: &[BufferSectors],
        buffers: &Buffers,
        grants: &mut dyn GrantOffer,
    ) -> Result<(), RingError> {
        let id = self.ring.next_id()?;
        self.segments.clear();
        self.segments.extend(parts.iter().filter_map(|part| {
            let grant = buffers.grant(part.buffer)?;
            Some(Segment { grant, first: part.first, last: part.last })
        }));
        let (body, indirect) = self.body(&want, grants)?;
        let request = Request { id: id.wire(), handle: 0, body };
        let bytes = RequestBytes::encode(&request, self.layout);
        let entry = bytes.0.get(..self.layout.entry_bytes()).unwrap_or_default();
        let open = match self.ring.put(entry) {
            Ok(open) => open,
            Err(error) => {
                self.spare.extend(indirect);
                return Err(error);
            }
        };
        // An indirect request is answered with its inner operation.
        open.operation = match (request.operation(), bytes.0) {
            (op::INDIRECT, [_, transfer, ..]) => transfer,
            (operation, _) => operation,
        };
        (open.want, open.indirect) = (Some(want), indirect);
        open.parts.clear();
        open.parts.extend_from_slice(parts);
        Ok(())
    }

    /// Returns the request in the ring's format, and the page of its segments if it is an indirect
    /// one.
    fn body(
        &mut self,
        want: &DiskRequest,
        grants: &mut dyn GrantOffer,
    ) -> Result<(Body, Option<OfferedPage>), RingError> {
        let (transfer, sector) = match *want {
            DiskRequest::Read { sector, .. } => (TransferKind::Read, sector),
            DiskRequest::Write { sector, .. } => (TransferKind::Write, sector),
            DiskRequest::Barrier { sector, .. } => (TransferKind::WriteBarrier, sector),
            DiskRequest::Flush { .. } => (TransferKind::Flush, 0),
            DiskRequest::Discard { sector, sectors, .. } => {
                return Ok((Body::Discard { sector, sectors, secure: Secure::No }, None));
            }
        };
        if self.segments.len() <= SEGMENTS_MAX {
            let segments = Segments::new(&self.segments).ok_or(RingError::Full)?;
            return Ok((Body::Direct { transfer, sector, segments }, None));
        }
        let page = match self.spare.pop() {
            Some(page) => page,
            None => {
                let offer = grants.offer(self.peer, PageAccess::ReadWrite);
                offer.map_err(|_| RingError::Full)?
            }
        };
        for (at, segment) in self.segments.iter().enumerate() {
            page.page().copy_in(at * SEGMENT_SIZE, &segment_bytes(*segment))?;
        }
        let mut pages = [GrantRef(0); INDIRECT_PAGES_MAX];
        pages[0] = page.grant();
        let count = u16::try_from(self.segments.len()).map_err(|_| RingError::Full)?;
        Ok((Body::Indirect { transfer, sector, count, pages }, Some(page)))
    }

    pub(super) fn push(&mut self) -> Result<bool, RingError> {
        self.ring.push()
    }

    /// Takes the next answer, copied out of the ring once and checked against its request.
    pub(super) fn take(&mut self) -> Result<Option<Completion>, Error> {
        if !self.ring.take(self.response.as_mut_slice())? {
            return Ok(None);
        }
        let response = self.response.parse();
        let id = RingRequestId::from_wire(response.id);
        let open = self.ring.asked(id)?;
        if response.operation != open.operation {
            let (asked, answered) = (open.operation, response.operation);
            let text = format!("the backend answers operation {answered} where {asked} was asked");
            return Err(Error::Driver(text));
        }
        self.spare.extend(open.indirect.take());
        let want = open.want.take().ok_or(UnexpectedResponse(id))?;
        self.ring.end(id);
        Ok(Some(Completion { tag: want.tag(), status: response.status }))
    }

    pub(super) fn final_check(&mut self) -> Result<bool, RingError> {
        self.ring.final_check()
    }
}
