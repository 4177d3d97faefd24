//! Arbitrary bytes as the page of a block ring that a guest shares, in both layouts: first the
//! backend's index, then the page. Every request that is taken is checked and answered; an
//! impossible index ends the ring.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen::gnttab::Mapping;
use xen::shared::{PAGE_SIZE, SharedPage};
use xen::{DomId, GrantRef};
use xen_io::blkif::{
    Body, Layout, RequestBytes, RequestLimits, Response, ResponseBytes, Status, check_extent,
    check_segments,
};
use xen_io::ring::{BackRing, Position};

fuzz_target!(|data: &[u8]| {
    let Some((head, bytes)) = data.split_at_checked(9) else { return };
    let layout = if head[0] & 1 == 0 { Layout::X86_64 } else { Layout::X86_32 };
    let sector_size = if head[0] & 2 == 0 { 512 } else { 4096 };
    let limits = RequestLimits { sector_size, ..RequestLimits::default() };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let page = SharedPage::private();
    let len = bytes.len().min(PAGE_SIZE);
    page.copy_in(0, &bytes[..len]).expect("inside the page");
    let at = Position { req_cons: word(1), rsp_prod: word(5) };
    let pages = vec![Mapping::new(DomId(1), GrantRef(8), page)];
    let Ok(mut ring) = BackRing::attach(pages, layout.entry_bytes(), at) else { return };
    serve(&mut ring, layout, limits);
});

fn serve(ring: &mut BackRing, layout: Layout, limits: RequestLimits) {
    let mut taken = 0;
    let mut request = RequestBytes::ZERO;
    while let Ok(Some(_)) = ring.take(&mut request.0[..layout.entry_bytes()]) {
        taken += 1;
        assert!(taken <= ring.count(), "more requests than the ring holds");
        let status = check(&request, layout, limits);
        let (id, operation) = request.to_answer(layout);
        let response = ResponseBytes::encode(&Response { id, operation, status }, layout);
        ring.put(response.as_slice()).expect("room for each answer");
    }
    let _ = ring.push();
    let _ = ring.final_check();
}

/// Checks a request. One that passes stays within its pages and the medium's sectors, and encodes
/// to the bytes that were read.
fn check(request: &RequestBytes, layout: Layout, limits: RequestLimits) -> Status {
    let Ok(read) = request.check(layout, limits) else { return Status::Error };
    match &read.body {
        Body::Direct { sector, segments, .. } => {
            let Ok(sectors) = check_segments(segments.as_slice(), limits) else {
                return Status::Error;
            };
            for segment in segments.as_slice() {
                let end = usize::from(segment.offset()) + usize::from(segment.len());
                assert!(end <= PAGE_SIZE && end > usize::from(segment.offset()));
            }
            if check_extent(*sector, sectors.into(), 1 << 20, limits).is_err() {
                return Status::Error;
            }
            assert!(sector + u64::from(sectors) <= 1 << 20);
        }
        Body::Indirect { count, .. } => {
            assert!((1..=limits.indirect_segments_max).contains(count));
        }
        Body::Discard { .. } => {}
    }
    let written = RequestBytes::encode(&read, layout);
    let again = written.check(layout, limits).expect("it passed before");
    // The values are not compared: the entries behind the used segments and pages are not part of
    // the request.
    assert_eq!(RequestBytes::encode(&again, layout), written, "what was read is written the same");
    Status::Okay
}
