//! Block devices: the requests and responses of frontend and backend.
//!
//! Source: `xen/include/public/io/blkif.h`, `protocols.h`. A request lies in the ring in the layout of the
//! frontend's processor; [`RequestBytes`] is a copy of one, [`Request`] what it says, checked. Sectors
//! are 512 bytes everywhere, whatever the medium's own sectors are.
//!
//! | field | 64-bit layout | 32-bit layout |
//! |---|---|---|
//! | operation, `nr_segments` (discard: flags; indirect: operation) | 0, 1 | 0, 1 |
//! | handle (indirect: `nr_segments`) | 2, 2 bytes | 2 |
//! | id | 8, 8 bytes | 4 |
//! | sector | 16, 8 bytes | 12 |
//! | segments of 8 bytes: grant (4), first and last sector (1 each) | 24 | 20 |
//! | discard: number of sectors | 24, 8 bytes | 20 |
//! | indirect: handle; up to 8 grants | 24, 2 bytes; 28 | 20; 24 |
//! | bytes of a request | 112 | 108 |
//! | response: id, operation, status (2 bytes) | 0, 8, 10 of 16 | 0, 8, 10 of 12 |

use std::fmt;
use xen::GrantRef;
use xen::shared::PAGE_SIZE;

pub mod names;
mod wire;

pub use wire::{RequestBytes, ResponseBytes, segment_at, segment_bytes};

/// Bytes of a sector, in every field that counts sectors.
pub const SECTOR_SIZE: u32 = 512;
/// Sectors of a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Most segments within a request itself (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS_MAX: usize = 11;
/// Most pages of indirect segments (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const INDIRECT_PAGES_MAX: usize = 8;
/// Bytes of a segment, in a request and in a page of indirect segments.
pub const SEGMENT_SIZE: usize = 8;
/// Segments in one page of indirect segments.
pub const SEGMENTS_PER_PAGE: usize = PAGE_SIZE / SEGMENT_SIZE;
/// Most segments of an indirect request that the layout has room for.
pub const INDIRECT_SEGMENTS_MAX: usize = INDIRECT_PAGES_MAX * SEGMENTS_PER_PAGE;
/// Bytes of the largest request of both layouts.
pub const REQUEST_SIZE_MAX: usize = 112;
/// Bytes of the largest response of both layouts.
pub const RESPONSE_SIZE_MAX: usize = 16;

/// Bits of the backend's node `info` (`VDISK_*`).
pub mod info {
    /// A CD-ROM.
    pub const CDROM: u32 = 1;
    /// Its medium can be taken out.
    pub const REMOVABLE: u32 = 2;
    /// Not to be written.
    pub const READ_ONLY: u32 = 4;
}

/// The layout of requests and responses in the ring: the node `protocol` of the frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// `x86_32-abi`: 64-bit numbers are aligned to 4 bytes.
    X86_32,
    /// `x86_64-abi`, and `arm-abi` which is the same: aligned to 8 bytes.
    X86_64,
}

impl Layout {
    /// The layout of this build's processor.
    pub const NATIVE: Self = if cfg!(target_arch = "x86") { Self::X86_32 } else { Self::X86_64 };

    /// The layout with this name.
    #[must_use]
    pub fn from_protocol(name: &[u8]) -> Option<Self> {
        match name {
            b"x86_32-abi" => Some(Self::X86_32),
            b"x86_64-abi" | b"arm-abi" => Some(Self::X86_64),
            _ => None,
        }
    }

    /// The name that a frontend of this build writes.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::X86_32 => "x86_32-abi",
            Self::X86_64 if cfg!(any(target_arch = "arm", target_arch = "aarch64")) => "arm-abi",
            Self::X86_64 => "x86_64-abi",
        }
    }

    /// Bytes of an entry of the ring.
    #[must_use]
    pub fn entry_bytes(self) -> usize {
        match self {
            Self::X86_32 => 108,
            Self::X86_64 => 112,
        }
    }
}

/// The request codes (`BLKIF_OP_*`).
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Write after all earlier requests and before all later ones.
    pub const WRITE_BARRIER: u8 = 2;
    /// Put earlier writes onto stable storage.
    pub const FLUSH_DISKCACHE: u8 = 3;
    /// A drive's own commands; no implementation has it.
    pub const RESERVED_1: u8 = 4;
    /// Free sectors that are not needed any more.
    pub const DISCARD: u8 = 5;
    /// Read or write with the segments in pages of their own.
    pub const INDIRECT: u8 = 6;
}

/// The operation on the sectors that segments name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferKind {
    /// From the medium into the segments.
    Read,
    /// From the segments onto the medium.
    Write,
    /// [`op::WRITE_BARRIER`]; without segments it is a barrier alone.
    WriteBarrier,
    /// [`op::FLUSH_DISKCACHE`]: makes earlier answered writes stable; with segments, these are
    /// written and made stable too.
    Flush,
}

impl TransferKind {
    fn code(self) -> u8 {
        match self {
            Self::Read => op::READ,
            Self::Write => op::WRITE,
            Self::WriteBarrier => op::WRITE_BARRIER,
            Self::Flush => op::FLUSH_DISKCACHE,
        }
    }
}

/// Sectors of one granted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page.
    pub grant: GrantRef,
    /// First sector within it, 0 to 7.
    pub first: u8,
    /// Last sector within it, not before the first and at most 7.
    pub last: u8,
}

impl Segment {
    /// The whole page.
    #[must_use]
    pub fn page(grant: GrantRef) -> Self {
        Self { grant, first: 0, last: 7 }
    }

    /// Returns the number of sectors.
    #[must_use]
    pub fn sectors(self) -> u32 {
        u32::from(self.last.saturating_sub(self.first)).saturating_add(1)
    }

    /// Returns the offset of the first sector in the page, in bytes.
    #[must_use]
    pub fn offset(self) -> u16 {
        u16::from(self.first).wrapping_mul(512)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(self) -> u16 {
        u16::from(self.last.saturating_sub(self.first)).wrapping_add(1).wrapping_mul(512)
    }

    /// False: a segment has at least one sector.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// True if the segment lies inside its page and keeps to sectors of `sector_size` bytes.
    fn fits(self, sector_size: u32) -> bool {
        let per_sector = (sector_size / SECTOR_SIZE).max(1);
        let aligned = |sectors: u32| sectors.checked_rem(per_sector) == Some(0);
        self.first <= self.last
            && self.last < SECTORS_PER_PAGE
            && aligned(u32::from(self.first))
            && aligned(self.sectors())
    }
}

/// The segments of a request that holds them itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    list: [Segment; SEGMENTS_MAX],
    count: usize,
}

impl Segments {
    /// The list of `segments`; `None` for more than [`SEGMENTS_MAX`].
    #[must_use]
    pub fn new(segments: &[Segment]) -> Option<Self> {
        let mut list = [Segment { grant: GrantRef(0), first: 0, last: 0 }; SEGMENTS_MAX];
        list.get_mut(..segments.len())?.copy_from_slice(segments);
        Some(Self { list, count: segments.len() })
    }

    /// The segments.
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        self.list.get(..self.count).unwrap_or_default()
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// The contents of a request, checked as far as possible without the medium.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Sectors from or to pages.
    Direct {
        /// Read, write, barrier or flush.
        transfer: TransferKind,
        /// First sector on the medium.
        sector: u64,
        /// The pages; there is one at least, except for barriers and flushes.
        segments: Segments,
    },
    /// Sectors from or to pages, with the list of segments in granted pages.
    Indirect {
        /// Read or write.
        transfer: TransferKind,
        /// First sector on the medium.
        sector: u64,
        /// The number of segments: at least one, at most the backend's limit.
        count: u16,
        /// Pages with the segments, [`SEGMENTS_PER_PAGE`] in each.
        pages: [GrantRef; INDIRECT_PAGES_MAX],
    },
    /// Sectors that are not needed any more.
    Discard {
        /// First sector on the medium.
        sector: u64,
        /// The number of sectors.
        sectors: u64,
        /// The promise about the old contents.
        secure: Secure,
    },
}

/// The promise of a discard about the old contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secure {
    /// Nothing.
    No,
    /// They cannot be recovered (`BLKIF_DISCARD_SECURE`).
    Yes,
}

/// One request, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The frontend's name for it, for the response.
    pub id: u64,
    /// The device's number (`virtual-device`).
    pub handle: u16,
    /// The operation and its arguments.
    pub body: Body,
}

impl Request {
    /// The code in the ring.
    #[must_use]
    pub fn operation(&self) -> u8 {
        match self.body {
            Body::Direct { transfer, .. } => transfer.code(),
            Body::Indirect { .. } => op::INDIRECT,
            Body::Discard { .. } => op::DISCARD,
        }
    }
}

/// The limits of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestLimits {
    /// Most segments of an indirect request; 0 where it does not take any.
    pub indirect_segments_max: u16,
    /// Bytes of the medium's sectors: segments keep to them.
    pub sector_size: u32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { indirect_segments_max: 256, sector_size: SECTOR_SIZE }
    }
}

/// The reason that a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// A code that the backend does not know, or does not offer.
    Operation(u8),
    /// No segment where one is needed, or more than are possible.
    SegmentCount(u16),
    /// A segment that leaves its page, runs backwards or does not keep to the medium's sectors.
    Segment {
        /// Its first sector.
        first: u8,
        /// Its last sector.
        last: u8,
    },
    /// Sectors that the medium does not have, or not the medium's whole sectors.
    Extent {
        /// First sector.
        sector: u64,
        /// The number of sectors.
        sectors: u64,
    },
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(code) => write!(f, "operation {code} is not offered"),
            Self::SegmentCount(count) => write!(f, "{count} segments"),
            Self::Segment { first, last } => {
                write!(f, "a segment of sectors {first} to {last} of its page")
            }
            Self::Extent { sector, sectors } => {
                write!(f, "{sectors} sectors at {sector}, which the medium does not have")
            }
        }
    }
}

impl std::error::Error for InvalidRequest {}

/// Checks that all segments fit; returns the sum of their sectors.
///
/// # Errors
/// [`InvalidRequest::Segment`].
pub fn check_segments(segments: &[Segment], limits: RequestLimits) -> Result<u32, InvalidRequest> {
    let mut sectors = 0_u32;
    for segment in segments {
        if !segment.fits(limits.sector_size) {
            return Err(InvalidRequest::Segment { first: segment.first, last: segment.last });
        }
        sectors = sectors.saturating_add(segment.sectors());
    }
    Ok(sectors)
}

/// Checks that `sectors` at `sector` are whole sectors of the medium and lie on it. `capacity` is
/// its size in sectors of 512 bytes.
///
/// # Errors
/// [`InvalidRequest::Extent`].
pub fn check_extent(
    sector: u64,
    sectors: u64,
    capacity: u64,
    limits: RequestLimits,
) -> Result<(), InvalidRequest> {
    let per_sector = u64::from((limits.sector_size / SECTOR_SIZE).max(1));
    let aligned = |number: u64| number.checked_rem(per_sector) == Some(0);
    match sector.checked_add(sectors) {
        Some(end) if end <= capacity && aligned(sector) && aligned(sectors) => Ok(()),
        _ => Err(InvalidRequest::Extent { sector, sectors }),
    }
}

/// The status of a response (`BLKIF_RSP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// 0: done.
    Okay,
    /// -1: not done.
    Error,
    /// -2: not offered.
    NotSupported,
    /// A number that the header does not have; an error.
    Other(i16),
}

impl Status {
    /// The status with this number.
    #[must_use]
    pub fn from_code(code: i16) -> Self {
        match code {
            0 => Self::Okay,
            -1 => Self::Error,
            -2 => Self::NotSupported,
            other => Self::Other(other),
        }
    }

    /// Its number.
    #[must_use]
    pub fn code(self) -> i16 {
        match self {
            Self::Okay => 0,
            Self::Error => -1,
            Self::NotSupported => -2,
            Self::Other(code) => code,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The request's code.
    pub operation: u8,
    /// The outcome of the request.
    pub status: Status,
}
