//! Rings of requests and responses, the messages of block devices in them, and the page of a
//! console: `io/ring.h`, `io/blkif.h`, `io/protocols.h`, `io/xenbus.h`, `io/console.h`.
//!
//! The place of a field is taken from the code that encodes it: two requests that differ in one
//! field differ in that field's bytes.

use crate::{CheckedNumber, XenVersion, row};
use xen::GrantRef;
use xen_io::blkif::{
    self, Body, Layout, Request, RequestBytes, Response, ResponseBytes, Secure, Segment, Segments,
    Status, TransferKind, info, op,
};
use xen_io::console;
use xen_io::ring::{self, offset};
use xen_io::xenbus::State;

/// Returns the rows that are the same for every processor.
#[must_use]
pub fn rows() -> Vec<CheckedNumber> {
    let mut rows = vec![
        row("BLKIF_OP_READ", op::READ),
        row("BLKIF_OP_WRITE", op::WRITE),
        row("BLKIF_OP_WRITE_BARRIER", op::WRITE_BARRIER),
        row("BLKIF_OP_FLUSH_DISKCACHE", op::FLUSH_DISKCACHE),
        row("BLKIF_OP_RESERVED_1", op::RESERVED_1),
        row("BLKIF_OP_DISCARD", op::DISCARD),
        row("BLKIF_OP_INDIRECT", op::INDIRECT),
        row("BLKIF_RSP_OKAY", Status::Okay.code()),
        row("BLKIF_RSP_ERROR", Status::Error.code()),
        row("BLKIF_RSP_EOPNOTSUPP", Status::NotSupported.code()),
        row("VDISK_CDROM", info::CDROM),
        row("VDISK_REMOVABLE", info::REMOVABLE),
        row("VDISK_READONLY", info::READ_ONLY),
        row("BLKIF_MAX_SEGMENTS_PER_REQUEST", blkif::SEGMENTS_MAX),
        row("BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST", blkif::INDIRECT_PAGES_MAX),
        row("sizeof(struct blkif_request_segment)", blkif::SEGMENT_SIZE),
        row("sizeof(union blkif_sring_entry)", blkif::REQUEST_SIZE_MAX),
        row("sizeof(struct blkif_response)", blkif::RESPONSE_SIZE_MAX),
    ];
    let same = |c: &str, ours: &str| row(format!("__builtin_strcmp({c}, \"{ours}\")"), 0);
    rows.extend([
        same("XEN_IO_PROTO_ABI_X86_32", Layout::X86_32.protocol()),
        same("XEN_IO_PROTO_ABI_NATIVE", Layout::NATIVE.protocol()),
    ]);
    let state = |state: State| row(format!("XenbusState{}", state.name()), state as u8);
    rows.extend(State::ALL.map(state));
    rows.extend(console_rows());
    rows
}

/// Returns the rows of the page of a console. Xen 4.21 has added the connection byte.
fn console_rows() -> Vec<CheckedNumber> {
    let of = |name| format!("offsetof(struct xencons_interface, {name})");
    let size = |name| format!("sizeof(((struct xencons_interface *)0)->{name})");
    let mut rows = vec![
        row(of("in"), console::offset::IN),
        row(of("out"), console::offset::OUT),
        row(of("in_cons"), console::offset::IN_CONS),
        row(of("in_prod"), console::offset::IN_PROD),
        row(of("out_cons"), console::offset::OUT_CONS),
        row(of("out_prod"), console::offset::OUT_PROD),
        row(size("in"), console::INPUT_SIZE),
        row(size("out"), console::OUTPUT_SIZE),
    ];
    let newer = [
        row(of("connection"), console::offset::CONNECTION),
        row(size("connection"), size_of_val(&console::CONNECTED)),
        row("XENCONSOLE_CONNECTED", console::CONNECTED),
        row("XENCONSOLE_DISCONNECTED", console::DISCONNECTED),
    ];
    rows.extend(newer.map(|row| row.since(XenVersion::V4_21)));
    rows
}

/// Returns the rows that depend on the layout of the frontend's processor.
#[must_use]
pub fn layout_rows(layout: Layout) -> Vec<CheckedNumber> {
    let word = |name: &str| format!("offsetof(struct blkif_sring, {name})");
    let mut rows = vec![
        row(word("req_prod"), offset::REQ_PROD),
        row(word("req_event"), offset::REQ_EVENT),
        row(word("rsp_prod"), offset::RSP_PROD),
        row(word("rsp_event"), offset::RSP_EVENT),
        row(word("ring"), offset::ENTRIES),
        row("sizeof(union blkif_sring_entry)", layout.entry_bytes()),
        row("sizeof(struct blkif_response)", ResponseBytes::zero(layout).as_slice().len()),
    ];
    for pages in [1_usize, 2, 4, 8, ring::PAGES_MAX] {
        let count = ring::entry_count(pages, layout.entry_bytes()).expect("a ring of blkif.h");
        rows.push(row(format!("__CONST_RING_SIZE(blkif, {pages} * 4096)"), count));
    }
    direct(layout, &mut rows);
    discard(layout, &mut rows);
    indirect(layout, &mut rows);
    response(layout, &mut rows);
    rows
}

/// Adds the rows of a field's offset and size: the bytes in which `one` and `other` differ.
fn field(rows: &mut Vec<CheckedNumber>, of: &str, name: &str, one: &[u8], other: &[u8]) {
    let differ: Vec<usize> = (0..one.len()).filter(|at| one[*at] != other[*at]).collect();
    let first = differ.first().copied().unwrap_or(usize::MAX);
    rows.push(row(format!("offsetof(struct {of}, {name})"), first));
    rows.push(row(format!("sizeof(((struct {of} *)0)->{name})"), differ.len()));
}

/// Adds the rows of fields, as [`field`] does, for two requests.
fn request_fields(
    rows: &mut Vec<CheckedNumber>,
    layout: Layout,
    of: &str,
    fields: &[(&str, Request)],
    base: Request,
) {
    let encoded = |request: &Request| RequestBytes::encode(request, layout).0;
    for (name, changed) in fields {
        field(rows, of, name, &encoded(&base), &encoded(changed));
    }
}

const ALL_BITS: GrantRef = GrantRef(u32::MAX);

fn direct(layout: Layout, rows: &mut Vec<CheckedNumber>) {
    let segment = |grant, first, last| Segment { grant, first, last };
    let none = segment(GrantRef(0), 0, 0);
    let body = |transfer, sector, list: &[Segment]| Body::Direct {
        transfer,
        sector,
        segments: Segments::new(list).expect("not too many"),
    };
    let two = |second| body(TransferKind::Read, 0, &[none, second]);
    let base = Request { id: 0, handle: 0, body: two(none) };
    let fields = [
        ("operation", Request { body: body(TransferKind::Write, 0, &[none, none]), ..base }),
        ("nr_segments", Request { body: body(TransferKind::Read, 0, &[none]), ..base }),
        ("handle", Request { handle: u16::MAX, ..base }),
        ("id", Request { id: u64::MAX, ..base }),
        ("sector_number", Request { body: body(TransferKind::Read, u64::MAX, &[none; 2]), ..base }),
        ("seg[1].gref", Request { body: two(segment(ALL_BITS, 0, 0)), ..base }),
        ("seg[1].first_sect", Request { body: two(segment(GrantRef(0), 7, 0)), ..base }),
        ("seg[1].last_sect", Request { body: two(segment(GrantRef(0), 0, 7)), ..base }),
    ];
    request_fields(rows, layout, "blkif_request", &fields, base);
}

fn discard(layout: Layout, rows: &mut Vec<CheckedNumber>) {
    let body = |sector, sectors, secure| Body::Discard { sector, sectors, secure };
    let base = Request { id: 0, handle: 0, body: body(0, 0, Secure::No) };
    let secure = Request { body: body(0, 0, Secure::Yes), ..base };
    let fields = [
        ("flag", secure),
        ("handle", Request { handle: u16::MAX, ..base }),
        ("id", Request { id: u64::MAX, ..base }),
        ("sector_number", Request { body: body(u64::MAX, 0, Secure::No), ..base }),
        ("nr_sectors", Request { body: body(0, u64::MAX, Secure::No), ..base }),
    ];
    request_fields(rows, layout, "blkif_request_discard", &fields, base);
    let flag = RequestBytes::encode(&secure, layout).0[1];
    rows.push(row("BLKIF_DISCARD_SECURE", flag));
}

fn indirect(layout: Layout, rows: &mut Vec<CheckedNumber>) {
    // A count that needs all pages.
    const COUNT: u16 = 0x1000;
    let body = |transfer, sector, count, last| {
        let mut pages = [GrantRef(0); blkif::INDIRECT_PAGES_MAX];
        pages[blkif::INDIRECT_PAGES_MAX - 1] = last;
        Body::Indirect { transfer, sector, count, pages }
    };
    let none = GrantRef(0);
    let base = Request { id: 0, handle: 0, body: body(TransferKind::Read, 0, COUNT, none) };
    let with = |body| Request { body, ..base };
    let fields = [
        ("indirect_op", with(body(TransferKind::Write, 0, COUNT, none))),
        ("nr_segments", with(body(TransferKind::Read, 0, 0x0fff, none))),
        ("id", Request { id: u64::MAX, ..base }),
        ("sector_number", with(body(TransferKind::Read, u64::MAX, COUNT, none))),
        ("handle", Request { handle: u16::MAX, ..base }),
        ("indirect_grefs[7]", with(body(TransferKind::Read, 0, COUNT, ALL_BITS))),
    ];
    request_fields(rows, layout, "blkif_request_indirect", &fields, base);
}

fn response(layout: Layout, rows: &mut Vec<CheckedNumber>) {
    let base = Response { id: 0, operation: op::READ, status: Status::Okay };
    let fields = [
        ("id", Response { id: u64::MAX, ..base }),
        ("operation", Response { operation: op::WRITE, ..base }),
        ("status", Response { status: Status::Error, ..base }),
    ];
    let encoded = |response| ResponseBytes::encode(response, layout);
    for (name, changed) in &fields {
        let (one, other) = (encoded(&base), encoded(changed));
        field(rows, "blkif_response", name, one.as_slice(), other.as_slice());
    }
}
