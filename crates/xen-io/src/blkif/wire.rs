//! Requests and responses as they lie in the ring.

use super::{
    Body, INDIRECT_PAGES_MAX, InvalidRequest, Layout, REQUEST_SIZE_MAX, RESPONSE_SIZE_MAX, Request,
    RequestLimits, Response, SEGMENT_SIZE, SEGMENTS_MAX, SEGMENTS_PER_PAGE, Secure, Segment,
    Segments, Status, TransferKind, check_segments, op,
};
use xen::GrantRef;

/// `BLKIF_DISCARD_SECURE`.
const DISCARD_SECURE: u8 = 1;

/// The offsets of the fields of a layout, in bytes.
struct FieldOffsets {
    id: usize,
    sector: usize,
    segments: usize,
    indirect_handle: usize,
    indirect_pages: usize,
}

const FIELDS_32: FieldOffsets =
    FieldOffsets { id: 4, sector: 12, segments: 20, indirect_handle: 20, indirect_pages: 24 };
const FIELDS_64: FieldOffsets =
    FieldOffsets { id: 8, sector: 16, segments: 24, indirect_handle: 24, indirect_pages: 28 };

fn fields(layout: Layout) -> &'static FieldOffsets {
    match layout {
        Layout::X86_32 => &FIELDS_32,
        Layout::X86_64 => &FIELDS_64,
    }
}

/// Returns `N` bytes at `at`; zeroes beyond the end, where no field of a layout lies.
fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let place = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
    if let Some(place) = place {
        place.copy_from_slice(value);
    }
}

/// The segment with this number in a page, or a part of one, that was copied out of its grant.
#[must_use]
pub fn segment_at(bytes: &[u8], number: usize) -> Segment {
    let at = number.saturating_mul(SEGMENT_SIZE);
    let [first, last] = get(bytes, at.saturating_add(4));
    Segment { grant: GrantRef(u32::from_ne_bytes(get(bytes, at))), first, last }
}

/// A segment as it lies in a request or in a page of indirect segments.
#[must_use]
pub fn segment_bytes(segment: Segment) -> [u8; SEGMENT_SIZE] {
    let [a, b, c, d] = segment.grant.0.to_ne_bytes();
    [a, b, c, d, segment.first, segment.last, 0, 0]
}

/// A copy of a request as it lay in the ring: nothing in it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestBytes(pub [u8; REQUEST_SIZE_MAX]);

impl RequestBytes {
    /// Room for a copy.
    pub const ZERO: Self = Self([0; REQUEST_SIZE_MAX]);

    /// Returns the fields that a response needs: id and operation.
    #[must_use]
    pub fn to_answer(&self, layout: Layout) -> (u64, u8) {
        let id = u64::from_ne_bytes(get(&self.0, fields(layout).id));
        (id, self.0.first().copied().unwrap_or_default())
    }

    /// Checks and decodes the request.
    ///
    /// # Errors
    /// [`InvalidRequest`]: it is to be answered with an error, [`InvalidRequest::Operation`] with "not supported".
    pub fn check(&self, layout: Layout, limits: RequestLimits) -> Result<Request, InvalidRequest> {
        let fields = fields(layout);
        let (id, operation) = self.to_answer(layout);
        let [second] = get(&self.0, 1);
        let third = u16::from_ne_bytes(get(&self.0, 2));
        let sector = u64::from_ne_bytes(get(&self.0, fields.sector));
        let transfer = match operation {
            op::READ => TransferKind::Read,
            op::WRITE => TransferKind::Write,
            op::WRITE_BARRIER => TransferKind::WriteBarrier,
            op::FLUSH_DISKCACHE => TransferKind::Flush,
            op::DISCARD => {
                let sectors = u64::from_ne_bytes(get(&self.0, fields.segments));
                let secure = if second & DISCARD_SECURE == 0 { Secure::No } else { Secure::Yes };
                let body = Body::Discard { sector, sectors, secure };
                return Ok(Request { id, handle: third, body });
            }
            op::INDIRECT => {
                let handle = u16::from_ne_bytes(get(&self.0, fields.indirect_handle));
                let body = self.indirect(fields, second, third, sector, limits)?;
                return Ok(Request { id, handle, body });
            }
            other => return Err(InvalidRequest::Operation(other)),
        };
        let count = usize::from(second);
        let none_is_fine = matches!(transfer, TransferKind::Flush | TransferKind::WriteBarrier);
        if count > SEGMENTS_MAX || (count == 0 && !none_is_fine) {
            return Err(InvalidRequest::SegmentCount(second.into()));
        }
        let at = self.0.get(fields.segments..).unwrap_or_default();
        let list = std::array::from_fn(|number| segment_at(at, number));
        let segments = Segments { list, count };
        check_segments(segments.as_slice(), limits)?;
        Ok(Request { id, handle: third, body: Body::Direct { transfer, sector, segments } })
    }

    fn indirect(
        &self,
        fields: &FieldOffsets,
        operation: u8,
        count: u16,
        sector: u64,
        limits: RequestLimits,
    ) -> Result<Body, InvalidRequest> {
        if limits.indirect_segments_max == 0 {
            return Err(InvalidRequest::Operation(op::INDIRECT));
        }
        let transfer = match operation {
            op::READ => TransferKind::Read,
            op::WRITE => TransferKind::Write,
            other => return Err(InvalidRequest::Operation(other)),
        };
        if count == 0 || count > limits.indirect_segments_max {
            return Err(InvalidRequest::SegmentCount(count));
        }
        let pages = std::array::from_fn(|number| {
            let at = number.saturating_mul(4).saturating_add(fields.indirect_pages);
            GrantRef(u32::from_ne_bytes(get(&self.0, at)))
        });
        Ok(Body::Indirect { transfer, sector, count, pages })
    }

    /// The bytes of a request that this side makes.
    #[must_use]
    pub fn encode(request: &Request, layout: Layout) -> Self {
        let fields = fields(layout);
        let mut bytes = [0; REQUEST_SIZE_MAX];
        put(&mut bytes, 0, &[request.operation()]);
        put(&mut bytes, fields.id, &request.id.to_ne_bytes());
        let handle = request.handle.to_ne_bytes();
        match &request.body {
            Body::Direct { sector, segments, .. } => {
                let list = segments.as_slice();
                put(&mut bytes, 1, &[u8::try_from(list.len()).unwrap_or_default()]);
                put(&mut bytes, 2, &handle);
                put(&mut bytes, fields.sector, &sector.to_ne_bytes());
                for (number, segment) in list.iter().enumerate() {
                    let at = number.saturating_mul(SEGMENT_SIZE).saturating_add(fields.segments);
                    put(&mut bytes, at, &segment_bytes(*segment));
                }
            }
            Body::Indirect { transfer, sector, count, pages } => {
                put(&mut bytes, 1, &[transfer.code()]);
                put(&mut bytes, 2, &count.to_ne_bytes());
                put(&mut bytes, fields.sector, &sector.to_ne_bytes());
                put(&mut bytes, fields.indirect_handle, &handle);
                let used = usize::from(*count).div_ceil(SEGMENTS_PER_PAGE).min(INDIRECT_PAGES_MAX);
                for (number, page) in pages.iter().take(used).enumerate() {
                    let at = number.saturating_mul(4).saturating_add(fields.indirect_pages);
                    put(&mut bytes, at, &page.0.to_ne_bytes());
                }
            }
            Body::Discard { sector, sectors, secure } => {
                let flag = if *secure == Secure::Yes { DISCARD_SECURE } else { 0 };
                put(&mut bytes, 1, &[flag]);
                put(&mut bytes, 2, &handle);
                put(&mut bytes, fields.sector, &sector.to_ne_bytes());
                put(&mut bytes, fields.segments, &sectors.to_ne_bytes());
            }
        }
        Self(bytes)
    }
}

/// A response as it lies in the ring. All its bytes are set, so that none leaks this side's memory
/// (XSA-216).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseBytes {
    bytes: [u8; RESPONSE_SIZE_MAX],
    len: usize,
}

impl ResponseBytes {
    /// Room for a copy out of a ring of this layout.
    #[must_use]
    pub fn zero(layout: Layout) -> Self {
        let len = match layout {
            Layout::X86_32 => 12,
            Layout::X86_64 => 16,
        };
        Self { bytes: [0; RESPONSE_SIZE_MAX], len }
    }

    /// The bytes of a response that this side makes.
    #[must_use]
    pub fn encode(response: &Response, layout: Layout) -> Self {
        let mut result = Self::zero(layout);
        put(&mut result.bytes, 0, &response.id.to_ne_bytes());
        put(&mut result.bytes, 8, &[response.operation]);
        put(&mut result.bytes, 10, &response.status.code().to_ne_bytes());
        result
    }

    /// Decodes the response. Its id is unchecked: the other side may have put anything there.
    #[must_use]
    pub fn parse(&self) -> Response {
        let [operation] = get(&self.bytes, 8);
        Response {
            id: u64::from_ne_bytes(get(&self.bytes, 0)),
            operation,
            status: Status::from_code(i16::from_ne_bytes(get(&self.bytes, 10))),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The bytes, to copy into.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}
