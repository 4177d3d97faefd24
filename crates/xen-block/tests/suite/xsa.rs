//! Advisories on block rings and backends, each with a test: a hostile guest harms at most its own
//! device, and a hostile backend harms at most the device that it serves.

use crate::support::{self, GUEST, ID, Scene, Setup, device};
use std::time::Instant;
use xen::DomId;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer, OfferedPage, PageAccess};
use xen::{GrantRef, Port};
use xen_block::back::OpenDisk;
use xen_block::disk::memory::Memory;
use xen_block::front::{BufferSectors, DiskRequest};
use xen_io::blkif::{
    Body, Layout, Request, RequestBytes, Response, ResponseBytes, Secure, Segment, Segments,
    Status, TransferKind, op, segment_bytes,
};
use xen_io::ring::FrontRing;
use xenbus::State;
use xenstore::Store;

fn disk() -> Box<OpenDisk> {
    Box::new(|_| Ok(Box::new(Memory::with_contents(vec![7; 1024 * 512]))))
}

/// A frontend under the test's control: its own ring, with a real backend.
struct RogueFrontend {
    scene: Scene,
    ring: FrontRing,
    port: Port,
    pages: Vec<OfferedPage>,
    evtchn: loopback::evtchn::Channels,
    grants: loopback::gnttab::Grants,
}

impl RogueFrontend {
    /// Connects with the nodes of the store, with persistent grants or without.
    fn new(persistent: &str) -> Option<Self> {
        Self::on(disk(), persistent)
    }

    fn on(disk: Box<OpenDisk>, persistent: &str) -> Option<Self> {
        let mut scene = Scene::new(Setup::new(disk))?;
        // The frontend of the scene is not used.
        let mut grants = scene.host.gnttab(GUEST);
        let mut evtchn = scene.host.evtchn(GUEST);
        let ring = grants.offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
        let mut pages = Vec::new();
        grants.offer_batch(DomId::DOM0, PageAccess::ReadWrite, 8, &mut pages).unwrap();
        let port = evtchn.alloc_unbound(DomId::DOM0).unwrap();
        let front = device().frontend_path();
        let entry = Layout::NATIVE.entry_bytes();
        for (node, value) in [
            ("ring-ref", ring.grant().to_string()),
            ("event-channel", port.to_string()),
            ("protocol", Layout::NATIVE.protocol().to_owned()),
            ("feature-persistent", persistent.to_owned()),
            ("state", "3".to_owned()),
        ] {
            scene.tool.write(format!("{front}/{node}"), value).unwrap();
        }
        let ring = FrontRing::new(vec![ring], entry).unwrap();
        let mut rogue = Self { scene, ring, port, pages, evtchn, grants };
        rogue.until_back(State::Connected);
        Some(rogue)
    }

    fn back_state(&mut self) -> Option<State> {
        self.scene.back_bus().state(ID)
    }

    fn turn(&mut self) {
        for news in self.scene.server.turn(std::time::Duration::ZERO).unwrap() {
            self.scene.log.push(format!("{news:?}"));
        }
        while let Some(port) = self.evtchn.pending().unwrap() {
            self.evtchn.unmask(port).unwrap();
        }
    }

    fn until_back(&mut self, state: State) {
        let end = Instant::now() + support::PATIENCE;
        while self.back_state() != Some(state) {
            self.turn();
            assert!(Instant::now() < end, "waited for {state}: {:?}", self.scene.log);
        }
    }

    fn read_of(&self, segments: &[Segment]) -> RequestBytes {
        let segments = Segments::new(segments).unwrap();
        let body = Body::Direct { transfer: TransferKind::Read, sector: 0, segments };
        RequestBytes::encode(&Request { id: 77, handle: 0, body }, Layout::NATIVE)
    }

    /// Sends bytes as a request; returns the response.
    fn send(&mut self, request: &RequestBytes) -> Response {
        self.ring.put(&request.0[..Layout::NATIVE.entry_bytes()]).unwrap();
        if self.ring.push().unwrap() {
            self.evtchn.notify(self.port).unwrap();
        }
        let end = Instant::now() + support::PATIENCE;
        let mut response = ResponseBytes::zero(Layout::NATIVE);
        while !self.ring.take(response.as_mut_slice()).unwrap() {
            self.turn();
            assert!(Instant::now() < end, "waited for an answer: {:?}", self.scene.log);
        }
        response.parse()
    }

    /// Checks that the device still works.
    fn assert_served(&mut self) {
        let request = self.read_of(&[Segment::page(self.pages[0].grant())]);
        let response = self.send(&request);
        assert_eq!((response.id, response.status), (77, Status::Okay));
        let mut byte = [0];
        self.pages[0].page().copy_out(4095, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}

/// Each byte of a request in the ring is checked after it was copied out, whatever it is, and every
/// request has an answer.
#[test]
fn xsa_155_every_request_is_copied_once_checked_and_answered() {
    let Some(mut rogue) = RogueFrontend::new("1") else { return };
    let good = rogue.read_of(&[Segment::page(rogue.pages[0].grant())]);
    let mut seed = 0x9e37_79b9_u64;
    for round in 0..2000_u64 {
        let mut bytes = good;
        for _ in 0..=round % 4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round | 1);
            let at = (seed >> 40) as usize % 32;
            // The id stays, as it identifies the answer.
            if !(8..16).contains(&at) {
                bytes.0[at] = (seed >> 32) as u8;
            }
        }
        let response = rogue.send(&bytes);
        // As Linux's frontend requires, an indirect request is answered with the operation of its
        // inner read or write.
        let operation = if bytes.0[0] == op::INDIRECT { bytes.0[1] } else { bytes.0[0] };
        assert_eq!((response.id, response.operation), (77, operation));
    }
    rogue.assert_served();
}

/// Segments of an indirect request are copied out of the guest's page before they are checked.
#[test]
fn xsa_155_indirect_segments_are_checked_like_others() {
    for persistent in ["0", "1"] {
        let Some(mut rogue) = RogueFrontend::new(persistent) else { return };
        let page = rogue.pages[0].grant();
        let grant = rogue.pages[1].grant();
        let indirect = |count| {
            let mut pages = [GrantRef(0); 8];
            pages[0] = page;
            let body = Body::Indirect { transfer: TransferKind::Read, sector: 0, count, pages };
            RequestBytes::encode(&Request { id: 1, handle: 0, body }, Layout::NATIVE)
        };
        for (first, last, status) in [
            (0, 7, Status::Okay),
            (0, 8, Status::Error),
            (5, 4, Status::Error),
            (255, 255, Status::Error),
        ] {
            let bytes = segment_bytes(Segment { grant, first, last });
            rogue.pages[0].page().copy_in(0, &bytes).unwrap();
            let response = rogue.send(&indirect(1));
            assert_eq!(response.status, status, "{first} to {last}");
            assert_eq!(response.operation, op::READ, "not that it was indirect");
        }
        assert_eq!(rogue.send(&indirect(257)).status, Status::Error, "more than offered");
        assert_eq!(rogue.send(&indirect(0)).status, Status::Error);
        rogue.assert_served();
    }
}

/// A guest that tries to write to a read-only disk, with every operation.
#[test]
fn a_read_only_disk_is_written_in_no_way() {
    let open = || -> Box<OpenDisk> {
        Box::new(|_| Ok(Box::new(Memory::with_contents(vec![7; 1024 * 512]).read_only())))
    };
    for persistent in ["0", "1"] {
        let Some(mut rogue) = RogueFrontend::on(open(), persistent) else { return };
        let grant = rogue.pages[1].grant();
        rogue.pages[1].page().copy_in(0, &[9; 4096]).unwrap();
        let list = Segments::new(&[Segment::page(grant)]).unwrap();
        let direct = |transfer| Body::Direct { transfer, sector: 0, segments: list };
        rogue.pages[2].page().copy_in(0, &segment_bytes(Segment::page(grant))).unwrap();
        let mut pages = [GrantRef(0); 8];
        pages[0] = rogue.pages[2].grant();
        let indirect = Body::Indirect { transfer: TransferKind::Write, sector: 0, count: 1, pages };
        let discard = Body::Discard { sector: 0, sectors: 8, secure: Secure::No };
        for (body, status) in [
            (direct(TransferKind::Write), Status::Error),
            (direct(TransferKind::WriteBarrier), Status::Error),
            (direct(TransferKind::Flush), Status::Error),
            (indirect, Status::Error),
            (discard, Status::NotSupported),
        ] {
            let what = format!("{body:?}");
            let request = Request { id: 5, handle: 0, body };
            let response = rogue.send(&RequestBytes::encode(&request, Layout::NATIVE));
            assert_eq!((response.id, response.status), (5, status), "{what}");
        }
        // Byte 4095 of the first page is unchanged.
        rogue.assert_served();
    }
}

/// A guest changes the request, and its segments, while the backend reads them. The backend does
/// exactly the request that it has checked, so no byte outside the request's range is moved.
#[test]
fn xsa_155_what_changes_while_it_is_read_is_checked_as_it_was_read() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for persistent in ["0", "1"] {
        let Some(mut rogue) = RogueFrontend::new(persistent) else { return };
        let mut mine = rogue.scene.host.gnttab(DomId::DOM0);
        let map = |grants: &mut loopback::gnttab::Grants, grant| {
            grants.map(GUEST, grant, PageAccess::ReadWrite).unwrap()
        };
        let ring = rogue.ring.pages().next().unwrap().grant();
        let (ring, page) = (map(&mut mine, ring), map(&mut mine, rogue.pages[0].grant()));
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let flips = std::thread::spawn(move || {
            let (mut flips, mut value) = (0_u64, 0_u8);
            while !stopped.load(Ordering::Relaxed) {
                // `last_sect` of the segment in the indirect page; in every request in the ring,
                // the number of segments (of an indirect one, the inner operation) and the last
                // sector of its first segment.
                page.page().copy_in(5, &[value]).unwrap();
                for entry in 0..32 {
                    ring.page().copy_in(64 + entry * 112 + 1, &[value & 1]).unwrap();
                    ring.page().copy_in(64 + entry * 112 + 29, &[value]).unwrap();
                }
                value = [0, 7, 8, 255, 12][(flips % 5) as usize];
                flips += 1;
            }
            flips
        });
        let grant = rogue.pages[1].grant();
        let mut pages = [GrantRef(0); 8];
        pages[0] = rogue.pages[0].grant();
        rogue.pages[0]
            .page()
            .copy_in(0, &segment_bytes(Segment { grant, first: 0, last: 7 }))
            .unwrap();
        let mut seen = [0_u32; 2];
        let end = Instant::now() + support::PATIENCE;
        for round in 0.. {
            // On a busy machine the other thread may not run at the same time for a while.
            if round >= 4000 && (seen.iter().all(|count| *count > 0) || Instant::now() > end) {
                break;
            }
            let body = if round % 2 == 0 {
                Body::Indirect { transfer: TransferKind::Read, sector: 0, count: 1, pages }
            } else {
                let list = Segments::new(&[Segment::page(grant)]).unwrap();
                Body::Direct { transfer: TransferKind::Read, sector: 0, segments: list }
            };
            let request = Request { id: 9, handle: 0, body };
            let response = rogue.send(&RequestBytes::encode(&request, Layout::NATIVE));
            // The answer is at the place of the request, so its second byte is flipped too.
            assert_eq!(response.id & !0xff00, 9);
            seen[usize::from(response.status != Status::Okay)] += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let flips = flips.join().unwrap();
        // Both kinds occurred: requests that were correct when they were read, and incorrect ones.
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}, {flips} flips");
        for other in 2..rogue.pages.len() {
            let mut bytes = [0; 4096];
            rogue.pages[other].page().copy_out(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "page {other} was not named");
        }
    }
}

#[test]
fn xsa_216_answers_tell_nothing_of_the_backends_memory() {
    let Some(mut rogue) = RogueFrontend::new("1") else { return };
    rogue.assert_served();
    // The entry held a request of 112 bytes; the answer's 16 bytes contain nothing of it.
    let mut grants = rogue.scene.host.gnttab(DomId::DOM0);
    let ring = rogue.ring.pages().next().unwrap().grant();
    let page = grants.map(GUEST, ring, PageAccess::Read).unwrap();
    let mut entry = [0; 16];
    page.page().copy_out(64, &mut entry).unwrap();
    assert_eq!(entry, [77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// A guest that connects and closes its ring again and again leaks nothing, and nothing is used
/// after it was released.
#[test]
fn xsa_350_rings_that_come_and_go_leave_nothing() {
    let Some(mut scene) = Scene::connected(Setup::new(disk())) else { return };
    let state = format!("{}/state", device().frontend_path());
    for _ in 0..5 {
        assert_eq!(scene.write(0, &[3; 8192]), Status::Okay);
        let buffers = scene.buffers(4);
        for (tag, buffer) in buffers.iter().enumerate() {
            let want = DiskRequest::Read { tag: tag as u64, sector: 0 };
            scene.front().submit(0, want, &[BufferSectors::whole(*buffer)]).unwrap();
        }
        scene.front().push().unwrap();
        let Scene { bus, front_store, .. } = &mut scene;
        bus.leave(front_store, ID).unwrap();
        let closed = (Some(State::Closed), Some(State::Closed));
        scene.until("both to be closed", |scene| scene.states() == closed);
        assert_eq!(scene.host.mapped(), 0);
        scene.tool.write(&state, "1").unwrap();
        scene.until_connected();
        // The requests to the earlier device have ended with it.
        assert_eq!(scene.front().in_flight(), 0);
    }
}

/// Some of a request's pages cannot be mapped: the others are unmapped, and the guest gets an
/// error.
#[test]
fn xsa_365_a_request_is_mapped_whole_or_not_at_all() {
    for persistent in ["0", "1"] {
        let Some(mut rogue) = RogueFrontend::new(persistent) else { return };
        let list: Vec<Segment> =
            rogue.pages.iter().map(|page| Segment::page(page.grant())).collect();
        let before = rogue.scene.host.mapped();
        let mut wrong = list.clone();
        wrong[5].grant = GrantRef(999_999);
        let request = rogue.read_of(&wrong);
        assert_eq!(rogue.send(&request).status, Status::Error);
        let kept = if persistent == "1" { 5 } else { 0 };
        assert_eq!(rogue.scene.host.mapped(), before + kept, "persistent {persistent}");
        // No more pages can be mapped: an error; then success once it is possible again.
        rogue.scene.host.limit_mappings(Some(rogue.scene.host.mapped()));
        let request = rogue.read_of(&list[6..]);
        assert_eq!(rogue.send(&request).status, Status::Error);
        rogue.scene.host.limit_mappings(None);
        rogue.assert_served();
    }
}

/// Persistent grants are bounded, whatever grants a guest names, and none leaks.
#[test]
fn xsa_371_persistent_grants_are_bounded_and_let_go() {
    let mut setup = Setup::new(disk());
    setup.back.persistent_max = 64;
    setup.front.buffers = 400;
    let Some(mut scene) = Scene::connected(setup) else { return };
    let ring_pages = scene.host.mapped();
    for _ in 0..3 {
        for round in 0..4 {
            let buffers = scene.buffers(100);
            let parts: Vec<BufferSectors> =
                buffers.iter().copied().map(BufferSectors::whole).collect();
            let status =
                scene.ask(|tag| DiskRequest::Read { tag, sector: round * 8 }, &parts[..100]);
            assert_eq!(status, Status::Okay);
            // Other grants the next time.
            for buffer in buffers.into_iter().rev() {
                scene.front().give_back(buffer);
            }
            assert!(scene.host.mapped() <= ring_pages + 64, "{}", scene.host.mapped());
        }
    }
    xenbus::toolstack::detach(&mut scene.tool, &device()).unwrap();
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
    assert_eq!(scene.host.mapped(), 0);
}

/// A forged index ends the device of that guest, with the reason in its error node.
#[test]
fn a_forged_index_ends_its_own_device() {
    let Some(mut rogue) = RogueFrontend::new("1") else { return };
    rogue.assert_served();
    let page = rogue.ring.pages().next().unwrap().page();
    page.store_u32(0, 1 << 20).unwrap();
    rogue.evtchn.notify(rogue.port).unwrap();
    rogue.until_back(State::Closing);
    let error = rogue.scene.node(&format!("{}/error", device().backend_path()));
    assert!(error.contains("impossible ring index"), "{error}");
    for _ in 0..100 {
        rogue.turn();
    }
    let told = rogue.scene.log.iter().filter(|line| line.contains("Error")).count();
    assert_eq!(told, 1, "{:?}", rogue.scene.log);
    let state = format!("{}/state", device().frontend_path());
    rogue.scene.tool.write(state, "6").unwrap();
    rogue.until_back(State::Closed);
    assert_eq!(rogue.scene.host.mapped(), 0);
    drop(rogue.grants);
}

/// A frontend that makes requests without end does not prevent its backend from closing.
#[test]
fn a_busy_frontend_does_not_keep_its_device_open() {
    let Some(mut rogue) = RogueFrontend::new("1") else { return };
    rogue.assert_served();
    xenbus::toolstack::detach(&mut rogue.scene.tool, &device()).unwrap();
    let state = format!("{}/state", device().frontend_path());
    let request = rogue.read_of(&[Segment::page(rogue.pages[0].grant())]);
    let mut response = ResponseBytes::zero(Layout::NATIVE);
    let end = Instant::now() + support::PATIENCE;
    while rogue.back_state() != Some(State::Closed) {
        while rogue.ring.free() > 0 {
            rogue.ring.put(&request.0[..Layout::NATIVE.entry_bytes()]).unwrap();
        }
        let _ = rogue.ring.push().unwrap();
        if rogue.back_state() == Some(State::Closing) {
            rogue.scene.tool.write(&state, "6").unwrap();
        }
        rogue.turn();
        while rogue.ring.take(response.as_mut_slice()).unwrap() {}
        assert!(Instant::now() < end, "waited for Closed: {:?}", rogue.scene.log);
    }
    assert_eq!(rogue.scene.host.mapped(), 0);
}

/// A guest that writes its state without end, and so connects and closes all the time, takes
/// nothing from the backend's other guests but turns: each turn ends, and their requests are
/// answered within a few.
#[test]
fn a_guest_that_floods_the_store_keeps_nobody_waiting() {
    const WRITES: u32 = 20_000;
    let Some(mut scene) = connected() else { return };
    let hostile = xenbus::Id { frontend: DomId(4), ..ID };
    let mut device = device();
    device.id = hostile;
    let mut grants = scene.host.gnttab(hostile.frontend);
    let ring = grants.offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
    let mut evtchn = scene.host.evtchn(hostile.frontend);
    let port = evtchn.alloc_unbound(DomId::DOM0).unwrap();
    device.frontend_nodes.push(("ring-ref".into(), ring.grant().to_string()));
    device.frontend_nodes.push(("event-channel".into(), port.to_string()));
    xenbus::toolstack::add(&mut scene.tool, &device).unwrap();
    let state = format!("{}/state", device.frontend_path());
    let mut store = xenstore::Client::connect(scene.daemon.socket()).unwrap();
    let flood = std::thread::spawn(move || {
        for number in 0..WRITES {
            let value = ["3", "4", "5", "6", "1"][number as usize % 5];
            store.write(&state, value).unwrap();
        }
    });
    let (mut turns, mut reads) = (0, 0);
    let buffer = scene.buffers(1)[0];
    while !flood.is_finished() {
        let want = DiskRequest::Read { tag: reads, sector: 0 };
        scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
        scene.front().push().unwrap();
        let mut answered = 0;
        for _ in 0..8 {
            turns += 1;
            scene.turn();
            answered += scene.front().take(|done| assert_eq!(done.status, Status::Okay)).unwrap();
            if answered == 1 {
                break;
            }
        }
        assert_eq!(answered, 1, "read {reads} has no answer after eight turns");
        reads += 1;
    }
    flood.join().unwrap();
    assert!(turns >= 200, "{turns} turns while {WRITES} events came");
    assert_eq!(scene.states(), (Some(State::Connected), Some(State::Connected)));
}

/// Runs a backend under the test's control, which answers with forged responses.
fn answer_with(scene: &mut Scene, forge: impl Fn(&mut Response)) -> Result<usize, String> {
    let buffer = scene.buffers(1)[0];
    let want = DiskRequest::Read { tag: 5, sector: 0 };
    scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
    scene.front().push().unwrap();
    let front = device().frontend_path();
    let ring = scene.node(&format!("{front}/ring-ref0")).parse().unwrap();
    let mut grants = scene.host.gnttab(DomId::DOM0);
    let page = grants.map(GUEST, GrantRef(ring), PageAccess::ReadWrite).unwrap();
    let mut bytes = RequestBytes::ZERO;
    page.page().copy_out(64, &mut bytes.0).unwrap();
    let (id, operation) = bytes.to_answer(Layout::NATIVE);
    let mut response = Response { id, operation, status: Status::Okay };
    forge(&mut response);
    let response = ResponseBytes::encode(&response, Layout::NATIVE);
    page.page().copy_in(64, response.as_slice()).unwrap();
    page.page().store_u32(8, 1).unwrap();
    scene.front().take(|_| {}).map_err(|error| error.to_string())
}

fn connected() -> Option<Scene> {
    Scene::connected(Setup::new(disk()))
}

#[test]
fn xsa_376_a_frontend_checks_what_a_backend_answers() {
    let Some(mut scene) = connected() else { return };
    let error = answer_with(&mut scene, |response| response.id ^= 1).unwrap_err();
    assert!(error.contains("which is not open"), "{error}");
    let Some(mut scene) = connected() else { return };
    let error = answer_with(&mut scene, |response| response.id += 1 << 32).unwrap_err();
    assert!(error.contains("which is not open"), "an answer from before: {error}");
    let Some(mut scene) = connected() else { return };
    let error = answer_with(&mut scene, |response| response.operation = 1).unwrap_err();
    assert!(error.contains("operation 1 where 0 was asked"), "{error}");
    let Some(mut scene) = connected() else { return };
    assert_eq!(answer_with(&mut scene, |_| {}), Ok(1));
}

#[test]
fn xsa_391_a_backend_cannot_make_a_frontend_look_for_ever() {
    let Some(mut scene) = connected() else { return };
    let ring = scene.node(&format!("{}/ring-ref0", device().frontend_path())).parse().unwrap();
    let mut grants = scene.host.gnttab(DomId::DOM0);
    let page = grants.map(GUEST, GrantRef(ring), PageAccess::ReadWrite).unwrap();
    // Answers without requests; notifications without answers.
    page.page().store_u32(8, 100).unwrap();
    let error = scene.front().take(|_| {}).unwrap_err().to_string();
    assert!(error.contains("impossible ring index"), "{error}");
    page.page().store_u32(8, 0).unwrap();
    for _ in 0..1000 {
        assert_eq!(scene.front().take(|_| {}).unwrap(), 0);
    }
    assert_eq!(scene.read(0, 1), Ok(vec![7; 4096]));
}

/// A backend that keeps a page mapped after the frontend has ended the grant sees only that page:
/// the frontend's data is in another one.
#[test]
fn xsa_396_a_page_that_a_backend_keeps_is_used_for_nothing_else() {
    let Some(mut scene) = connected() else { return };
    let buffer = scene.buffers(1)[0];
    assert_eq!(
        scene.ask(|tag| DiskRequest::Read { tag, sector: 0 }, &[BufferSectors::whole(buffer)]),
        Status::Okay
    );
    let grants: Vec<u32> = (9..600).collect();
    let mut dom0 = scene.host.gnttab(DomId::DOM0);
    let kept: Vec<_> = grants
        .iter()
        .filter_map(|grant| dom0.map(GUEST, GrantRef(*grant), PageAccess::ReadWrite).ok())
        .collect();
    assert!(kept.len() > 500, "the buffers and the ring: {}", kept.len());
    // The backend starts again: the frontend takes back its pages, and offers others.
    scene.tool.write(format!("{}/state", device().backend_path()), "2").unwrap();
    scene.until("new rings", |scene| scene.states().0 == Some(State::Initialised));
    for page in &kept {
        page.page().copy_in(0, &[0xee; 4096]).unwrap();
    }
    let mut byte = [0];
    scene.front().page(buffer).unwrap().copy_out(0, &mut byte).unwrap();
    assert_eq!(byte, [7], "what was read before is the frontend's own now");
    let Scene { bus, front_store, .. } = &mut scene;
    bus.leave(front_store, ID).unwrap();
    scene.until("the frontend to close", |scene| scene.states().0 == Some(State::Closed));
    assert_eq!(scene.host.offered(), 0, "every grant has ended");
}

/// `trusted` 0: a buffer that is taken again shows the backend nothing of its earlier contents.
#[test]
fn xsa_403_an_untrusted_backend_sees_nothing_of_before() {
    for (trusted, seen) in [("0", 0), ("1", 42)] {
        let Some(mut scene) = Scene::new(Setup::new(disk())) else { return };
        let node = format!("{}/trusted", device().frontend_path());
        scene.tool.write(node, trusted).unwrap();
        scene.until_connected();
        let buffer = scene.buffers(1)[0];
        scene.front().page(buffer).unwrap().copy_in(0, &[42; 4096]).unwrap();
        scene.front().give_back(buffer);
        let again = scene.buffers(1)[0];
        assert_eq!(again, buffer);
        let mut byte = [1];
        scene.front().page(again).unwrap().copy_out(4095, &mut byte).unwrap();
        assert_eq!(byte, [seen], "trusted {trusted}");
    }
}

/// CVE-2026-45890 of netback, and similar faults: numbers in a guest's nodes.
#[test]
fn numbers_of_a_frontend_are_bounded() {
    for (node, value) in [
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "4294967295"),
        ("ring-page-order", "5"),
        ("ring-page-order", "64"),
        ("num-ring-pages", "3"),
        ("num-ring-pages", "0"),
        ("ring-ref", "4294967296"),
        ("protocol", "mips-abi"),
    ] {
        let Some(mut scene) = Scene::new(Setup::new(disk())) else { return };
        let front = device().frontend_path();
        for (name, value) in
            [("ring-ref", "9"), ("event-channel", "1"), (node, value), ("state", "3")]
        {
            scene.tool.write(format!("{front}/{name}"), value).unwrap();
        }
        let end = Instant::now() + support::PATIENCE;
        while scene.back_bus().state(ID) != Some(State::Closing) {
            scene.server.turn(std::time::Duration::ZERO).unwrap();
            assert!(Instant::now() < end, "{node} {value}: waited for Closing");
        }
        let error = scene.node(&format!("{}/error", device().backend_path()));
        assert!(error.contains(&format!("{front}/{node} is \"{value}\"")), "{error}");
        assert_eq!(scene.host.mapped(), 0);
    }
}
