//! blkif: layouts byte by byte, round trips, and what is refused.

use xen::GrantRef;
use xen_io::blkif::{
    Body, InvalidRequest, Layout, Request, RequestBytes, RequestLimits, Response, ResponseBytes,
    Secure, Segment, Segments, Status, TransferKind, check_extent, segment_at, segment_bytes,
};

const LAYOUTS: [Layout; 2] = [Layout::X86_32, Layout::X86_64];

fn segments(count: usize) -> Segments {
    let list: Vec<Segment> =
        (0..count).map(|at| Segment::page(GrantRef(100 + u32::try_from(at).unwrap()))).collect();
    Segments::new(&list).unwrap()
}

fn bodies() -> Vec<Body> {
    let direct = |transfer, count| Body::Direct {
        transfer,
        sector: 0x0102_0304_0506_0708,
        segments: segments(count),
    };
    let indirect = |transfer, count: u16| {
        let mut pages = [GrantRef(0); 8];
        for (at, page) in pages.iter_mut().enumerate().take(usize::from(count).div_ceil(512)) {
            *page = GrantRef(900 + u32::try_from(at).unwrap());
        }
        Body::Indirect { transfer, sector: 77, count, pages }
    };
    vec![
        direct(TransferKind::Read, 1),
        direct(TransferKind::Write, 11),
        direct(TransferKind::WriteBarrier, 0),
        direct(TransferKind::WriteBarrier, 3),
        direct(TransferKind::Flush, 0),
        direct(TransferKind::Flush, 1),
        Body::Discard { sector: 8, sectors: u64::MAX, secure: Secure::Yes },
        Body::Discard { sector: 8, sectors: 16, secure: Secure::No },
        indirect(TransferKind::Read, 1),
        indirect(TransferKind::Write, 4096),
    ]
}

#[test]
fn requests_round_trip_in_both_layouts() {
    let limits = RequestLimits { indirect_segments_max: 4096, ..RequestLimits::default() };
    for layout in LAYOUTS {
        for body in bodies() {
            let request = Request { id: 0x1122_3344_5566_7788, handle: 51712, body };
            let bytes = RequestBytes::encode(&request, layout);
            assert_eq!(bytes.check(layout, limits), Ok(request), "{layout:?}");
            assert_eq!(bytes.to_answer(layout), (request.id, request.operation()));
            assert!(bytes.0[layout.entry_bytes()..].iter().all(|byte| *byte == 0));
        }
    }
}

/// A read of one segment, byte by byte as a little-endian x86 lays it out.
#[test]
#[cfg(target_endian = "little")]
fn a_read_has_the_bytes_that_the_header_says() {
    let segment = Segment { grant: GrantRef(0x0a0b_0c0d), first: 1, last: 3 };
    let segments = Segments::new(&[segment]).unwrap();
    let body = Body::Direct { transfer: TransferKind::Read, sector: 0x22, segments };
    let request = Request { id: 0x11, handle: 0x0304, body };
    let head = [0, 1, 0x04, 0x03];
    let id = [0x11, 0, 0, 0, 0, 0, 0, 0];
    let sector = [0x22, 0, 0, 0, 0, 0, 0, 0];
    let segment = [0x0d, 0x0c, 0x0b, 0x0a, 1, 3, 0, 0];
    let packed = [&head[..], &id, &sector, &segment].concat();
    let padded = [&head[..], &[0; 4], &id, &sector, &segment].concat();
    let start = |layout, len: usize| RequestBytes::encode(&request, layout).0[..len].to_vec();
    assert_eq!(start(Layout::X86_32, packed.len()), packed);
    assert_eq!(start(Layout::X86_64, padded.len()), padded);
}

#[test]
fn wrong_requests_are_refused() {
    let limits = RequestLimits { indirect_segments_max: 256, sector_size: 512 };
    let encode = |body| RequestBytes::encode(&Request { id: 1, handle: 0, body }, Layout::X86_64);
    let direct =
        |transfer, count| encode(Body::Direct { transfer, sector: 0, segments: segments(count) });
    for (what, patch, wrong) in [
        ("no segment", (1, 0), InvalidRequest::SegmentCount(0)),
        ("12 segments", (1, 12), InvalidRequest::SegmentCount(12)),
        ("255 segments", (1, 255), InvalidRequest::SegmentCount(255)),
        ("beyond the page", (29, 8), InvalidRequest::Segment { first: 0, last: 8 }),
        ("backwards", (28, 200), InvalidRequest::Segment { first: 200, last: 7 }),
        ("reserved", (0, 4), InvalidRequest::Operation(4)),
        ("unknown", (0, 255), InvalidRequest::Operation(255)),
    ] {
        let mut bytes = direct(TransferKind::Read, 1);
        let (at, value): (usize, u8) = patch;
        bytes.0[at] = value;
        assert_eq!(bytes.check(Layout::X86_64, limits), Err(wrong), "{what}");
    }
    let indirect = |count, operation: u8, limits| {
        let pages = [GrantRef(1); 8];
        let body = Body::Indirect { transfer: TransferKind::Read, sector: 0, count, pages };
        let mut bytes = encode(body);
        bytes.0[1] = operation;
        bytes.check(Layout::X86_64, limits).map(drop)
    };
    assert_eq!(indirect(256, 0, limits), Ok(()));
    assert_eq!(indirect(0, 0, limits), Err(InvalidRequest::SegmentCount(0)));
    assert_eq!(indirect(257, 0, limits), Err(InvalidRequest::SegmentCount(257)));
    for nested in [2, 3, 5, 6] {
        assert_eq!(indirect(1, nested, limits), Err(InvalidRequest::Operation(nested)));
    }
    let none = RequestLimits { indirect_segments_max: 0, ..limits };
    assert_eq!(indirect(1, 0, none), Err(InvalidRequest::Operation(6)));
}

#[test]
fn large_sectors_are_kept_to() {
    let limits = RequestLimits { sector_size: 4096, ..RequestLimits::default() };
    let check = |first, last| {
        let segments = Segments::new(&[Segment { grant: GrantRef(1), first, last }]).unwrap();
        let body = Body::Direct { transfer: TransferKind::Read, sector: 0, segments };
        let request = Request { id: 1, handle: 0, body };
        RequestBytes::encode(&request, Layout::X86_64).check(Layout::X86_64, limits).is_ok()
    };
    assert!(check(0, 7));
    assert!(!check(0, 0) && !check(4, 7) && !check(0, 6));
    assert_eq!(check_extent(8, 16, 24, limits), Ok(()));
    for (sector, sectors) in [(4, 8), (8, 4), (16, 16), (u64::MAX - 7, 8), (u64::MAX - 7, 16)] {
        let wrong = Err(InvalidRequest::Extent { sector, sectors });
        assert_eq!(check_extent(sector, sectors, 24, limits), wrong);
    }
}

#[test]
fn responses_round_trip() {
    for layout in LAYOUTS {
        for code in [0, -1, -2, -77, 5] {
            let status = Status::from_code(code);
            let response = Response { id: u64::MAX - 1, operation: 3, status };
            let bytes = ResponseBytes::encode(&response, layout);
            assert_eq!(bytes.parse(), response);
            let mut copy = ResponseBytes::zero(layout);
            copy.as_mut_slice().copy_from_slice(bytes.as_slice());
            assert_eq!(copy, bytes);
        }
    }
    assert_eq!(ResponseBytes::zero(Layout::X86_32).as_slice().len(), 12);
    assert_eq!(ResponseBytes::zero(Layout::X86_64).as_slice().len(), 16);
}

/// A response is written over the request before it in the same entry, and whatever was on the
/// stack must not be between its fields: all bytes are set.
#[test]
fn xsa_216_no_byte_of_a_response_is_left_as_it_was() {
    let response = Response { id: 0, operation: 0, status: Status::Okay };
    for layout in LAYOUTS {
        let bytes = ResponseBytes::encode(&response, layout);
        assert!(bytes.as_slice().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn segments_in_pages() {
    let list: Vec<Segment> =
        (0..512).map(|at| Segment { grant: GrantRef(at), first: 2, last: 5 }).collect();
    let page: Vec<u8> = list.iter().flat_map(|segment| segment_bytes(*segment)).collect();
    assert_eq!(page.len(), 4096);
    for (at, segment) in list.iter().enumerate() {
        assert_eq!(segment_at(&page, at), *segment);
    }
}

#[test]
fn protocols_have_layouts() {
    for (name, layout) in [
        (&b"x86_32-abi"[..], Some(Layout::X86_32)),
        (b"x86_64-abi", Some(Layout::X86_64)),
        (b"arm-abi", Some(Layout::X86_64)),
        (b"x86_64-abi\0", None),
        (b"", None),
    ] {
        assert_eq!(Layout::from_protocol(name), layout);
    }
    assert_eq!(Layout::from_protocol(Layout::NATIVE.protocol().as_bytes()), Some(Layout::NATIVE));
}
