//! A block device as a guest sees it: data reads as it was written, with every kind of ring and
//! request.

use crate::fault::{FaultAction, FaultInjector};
use crate::support::{self, ID, PATIENCE, Scene, Setup, device, once_free};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use xen_block::back::{self, LIMIT_BYTES, OpenDisk};
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::disk::memory::Memory;
use xen_block::disk::{Disk, DiskAccess, DiskIo, DiskOp, Finished, Geometry, Piece};
use xen_block::front::{BufferSectors, DiskRequest, Offer};
use xen_driver::backend::{rings, throttle};
use xen_io::blkif::{Layout, Status};
use xenbus::negotiate::QueueLimits;
use xenbus::{State, toolstack};
use xenstore::Store;

/// A disk that the test can read while it is used.
#[derive(Clone, Debug)]
struct SharedDisk(Rc<RefCell<Memory>>);

impl Disk for SharedDisk {
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry()
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        self.0.borrow_mut().submit(io)
    }
}

fn memory(memory: Memory) -> (SharedDisk, Box<OpenDisk>) {
    let disk = SharedDisk(Rc::new(RefCell::new(memory)));
    let opened = disk.clone();
    (disk, Box::new(move |_| Ok(Box::new(opened.clone()))))
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| ((at / 7).wrapping_mul(seed | 1) >> 3) as u8).collect()
}

/// Makes an empty disk of this size in the temporary folder.
fn disk_file(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Returns the function that opens this file as a disk.
fn opening(file: &NamedTempFile, way: IoMethod) -> Box<OpenDisk> {
    let path = file.path().to_owned();
    Box::new(move |_| {
        let (access, cache) = (DiskAccess::ReadWrite, Cache::Direct);
        let disk = once_free(|| FileDisk::open(&path, Options { access, cache, way }));
        Ok(Box::new(disk?))
    })
}

#[test]
fn what_is_read_is_what_was_written() {
    let rings = |order_max, queues_max| QueueLimits { order_max, queues_max };
    for (what, layout, rings, segments_max) in [
        ("plain", Layout::X86_64, rings(0, 1), 11),
        ("32-bit", Layout::X86_32, rings(0, 1), 11),
        ("indirect", Layout::X86_64, rings(0, 1), 256),
        ("32-bit indirect", Layout::X86_32, rings(2, 1), 256),
        ("16 pages", Layout::X86_64, rings(4, 1), 256),
        ("4 queues of 2 pages", Layout::X86_64, rings(1, 4), 64),
    ] {
        let (disk, open) = memory(Memory::new(8192));
        let mut setup = Setup::new(open);
        setup.layout = layout;
        (setup.front.rings, setup.front.segments_max) = (rings, segments_max);
        let Some(mut scene) = Scene::connected(setup) else { return };
        assert_eq!(scene.front().queue_count(), rings.queues_max as usize, "{what}");
        let pages = usize::from(segments_max).min(200);
        let bytes = pattern(7, pages * 4096);
        assert_eq!(scene.write(16, &bytes), Status::Okay, "{what}");
        assert_eq!(scene.read(16, pages), Ok(bytes.clone()), "{what}");
        assert_eq!(disk.0.borrow().contents()[8192..][..bytes.len()], bytes, "{what}");
        assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
        let stats = scene.back_bus().driver(ID).unwrap().stats().clone();
        assert_eq!((stats.read.requests, stats.read.sectors), (1, pages as u64 * 8), "{what}");
        assert_eq!((stats.write.requests, stats.flush.requests), (1, 1), "{what}");
        assert_eq!(stats.read.latency.buckets().iter().sum::<u64>(), 1);
    }
}

#[test]
fn every_queue_is_served() {
    let (_, open) = memory(Memory::new(8192));
    let mut setup = Setup::new(open);
    setup.front.rings = QueueLimits { order_max: 0, queues_max: 4 };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let buffers = scene.buffers(4);
    for (queue, buffer) in buffers.iter().enumerate() {
        let (tag, sector) = (queue as u64, queue as u64 * 8);
        let parts = [BufferSectors::whole(*buffer)];
        scene.front().submit(queue, DiskRequest::Write { tag, sector }, &parts).unwrap();
    }
    scene.front().push().unwrap();
    let mut answered = 0;
    scene.until("four answers", |scene| {
        answered += scene.front().take(|done| assert_eq!(done.status, Status::Okay)).unwrap();
        answered == 4
    });
}

#[test]
fn sectors_of_a_page_go_where_they_belong() {
    let (disk, open) = memory(Memory::new(64));
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    let buffer = scene.buffers(1)[0];
    scene.front().page(buffer).unwrap().copy_in(0, &pattern(3, 4096)).unwrap();
    let part = BufferSectors { buffer, first: 2, last: 4 };
    assert_eq!(scene.ask(|tag| DiskRequest::Write { tag, sector: 61 }, &[part]), Status::Okay);
    assert_eq!(disk.0.borrow().contents()[61 * 512..], pattern(3, 4096)[1024..2560]);
    assert_eq!(scene.ask(|tag| DiskRequest::Write { tag, sector: 62 }, &[part]), Status::Error);
    assert_eq!(
        scene.ask(|tag| DiskRequest::Read { tag, sector: u64::MAX }, &[part]),
        Status::Error
    );
    let wrong = scene.back_bus().driver(ID).unwrap().stats().wrong;
    assert_eq!(wrong, 2, "beyond the end, twice");
    let stats = scene.back_bus().driver(ID).unwrap().stats().clone();
    let counted = [&stats.read, &stats.write, &stats.flush].map(|kind| kind.requests);
    assert_eq!(counted, [0, 1, 0], "what was refused is no read, and no flush");
}

#[test]
fn discard_gives_back_what_is_inside_the_disk() {
    let (disk, open) = memory(Memory::with_contents(vec![9; 64 * 512]));
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    assert_eq!(scene.front().info().unwrap().discard, Offer::Taken);
    let discard = |sector, sectors| move |tag| DiskRequest::Discard { tag, sector, sectors };
    assert_eq!(scene.ask(discard(8, 16), &[]), Status::Okay);
    assert_eq!(disk.0.borrow().contents()[8 * 512..24 * 512], [0; 16 * 512]);
    assert_eq!(disk.0.borrow().contents()[24 * 512], 9);
    for (sector, sectors) in [(60, 5), (0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        assert_eq!(scene.ask(discard(sector, sectors), &[]), Status::Error);
    }
}

/// A discard of a whole disk is done piece by piece, and other requests have their turns in
/// between. A limit of bytes counts moved bytes, of which a discard has none.
#[test]
fn a_large_discard_keeps_nobody_waiting() {
    let pieces: Rc<RefCell<Vec<u64>>> = Rc::default();
    let seen = Rc::clone(&pieces);
    let open: Box<OpenDisk> = Box::new(move |_| {
        let seen = Rc::clone(&seen);
        let decide = move |op, sector| {
            if op == DiskOp::Discard {
                seen.borrow_mut().push(sector);
            }
            FaultAction::Pass
        };
        Ok(Box::new(FaultInjector::new(Box::new(Memory::with_contents(vec![9; 64 << 20])), decide)))
    });
    let mut setup = Setup::new(open);
    setup.back.throttle =
        throttle::RateLimits { bytes_per_second: Some(1 << 20), requests_per_second: None };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let sectors = (64 << 20) / 512 - 8;
    scene.front().submit(0, DiskRequest::Discard { tag: 900, sector: 8, sectors }, &[]).unwrap();
    let buffer = BufferSectors::whole(scene.buffers(1)[0]);
    let last = DiskRequest::Read { tag: 901, sector: sectors };
    scene.front().submit(0, last, &[buffer]).unwrap();
    scene.front().push().unwrap();
    let mut order = Vec::new();
    scene.until("both answers", |scene| {
        scene.front().take(|done| order.push((done.tag, done.status))).unwrap();
        order.len() == 2
    });
    assert_eq!(order, [(901, Status::Okay), (900, Status::Okay)]);
    let wanted: Vec<u64> = [8].into_iter().chain((1..8).map(|piece| piece << 14)).collect();
    assert_eq!(*pieces.borrow(), wanted, "8 MiB each, and aligned");
    assert_eq!(scene.read(sectors, 1), Ok(vec![0; 4096]));
    assert_eq!(scene.read(0, 1), Ok(vec![9; 4096]));
    let stats = scene.back_bus().driver(ID).unwrap().stats().clone();
    assert_eq!((stats.discard.requests, stats.discard.sectors), (1, sectors));
}

/// The limit is 8 MiB a second at first, and 1 MiB a second later; the bytes of a tenth of a second
/// may be saved.
#[test]
fn a_limit_of_bytes_slows_a_device_down() {
    let (_, open) = memory(Memory::new(8192));
    let mut setup = Setup::new(open);
    setup.back.throttle =
        throttle::RateLimits { bytes_per_second: Some(8 << 20), requests_per_second: None };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let start = Instant::now();
    for _ in 0..6 {
        assert_eq!(scene.read(0, 64), Ok(vec![0; 64 * 4096]));
    }
    let took = start.elapsed();
    assert!(took > Duration::from_millis(40), "1.5 MiB in {took:?}");
    // The limit is set again while the device is connected; a value that is no number changes
    // nothing.
    let node = format!("{}/{LIMIT_BYTES}", device().backend_path());
    let slower =
        throttle::RateLimits { bytes_per_second: Some(1 << 20), requests_per_second: None };
    for value in ["much", "1048576"] {
        scene.tool.write(&node, value).unwrap();
    }
    scene.until("the new limit", |scene| {
        scene.back_bus().driver(ID).unwrap().limits() == Some(slower)
    });
    let start = Instant::now();
    for _ in 0..2 {
        assert_eq!(scene.read(0, 64), Ok(vec![0; 64 * 4096]));
    }
    assert!(start.elapsed() > Duration::from_millis(140), "{:?}", start.elapsed());
    // A value of 0 means no limit, also where all devices have one.
    scene.tool.write(&node, "0").unwrap();
    scene.until("no limit", |scene| {
        scene.back_bus().driver(ID).unwrap().limits() == Some(throttle::RateLimits::default())
    });
}

#[test]
fn a_toolstack_may_forbid_discard() {
    let (_, open) = memory(Memory::new(64));
    let Some(mut scene) = Scene::new(Setup::new(open)) else { return };
    let node = format!("{}/discard-enable", device().backend_path());
    scene.tool.write(node, "0").unwrap();
    scene.until_connected();
    assert_eq!(scene.front().info().unwrap().discard, Offer::NotTaken);
}

#[test]
fn a_disk_for_reading_is_not_written() {
    let (disk, open) = memory(Memory::with_contents(vec![5; 64 * 512]).read_only());
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    let info = scene.front().info().unwrap();
    assert_eq!((info.access, info.discard), (DiskAccess::ReadOnly, Offer::NotTaken));
    assert_eq!(scene.node(&format!("{}/info", device().backend_path())), "4");
    assert_eq!(scene.read(0, 1), Ok(vec![5; 4096]));
    assert!(disk.0.borrow().contents().iter().all(|byte| *byte == 5));
}

#[test]
fn large_sectors_are_counted_in_small_ones() {
    let (_, open) = memory(Memory::new(64).with_sector_size(4096));
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    let info = scene.front().info().unwrap();
    assert_eq!((info.sectors, info.sector_size), (64, 4096));
    assert_eq!(scene.write(8, &pattern(1, 8192)), Status::Okay);
    assert_eq!(scene.read(8, 2), Ok(pattern(1, 8192)));
    let buffer = scene.buffers(1)[0];
    let part = BufferSectors { buffer, first: 0, last: 3 };
    assert_eq!(scene.ask(|tag| DiskRequest::Read { tag, sector: 0 }, &[part]), Status::Error);
    let whole = BufferSectors::whole(buffer);
    assert_eq!(scene.ask(|tag| DiskRequest::Read { tag, sector: 4 }, &[whole]), Status::Error);
}

#[test]
fn a_file_grows_while_it_is_used() {
    let file = disk_file(1 << 20);
    let Some(mut scene) = Scene::connected(Setup::new(opening(&file, IoMethod::Best))) else {
        return;
    };
    assert_eq!(scene.front().info().unwrap().sectors, 2048);
    assert_eq!(scene.read(2048, 1), Err(Status::Error));
    std::fs::File::options().write(true).open(file.path()).unwrap().set_len(2 << 20).unwrap();
    scene.server.announce_changes().unwrap();
    scene.until("the new size", |scene| scene.front().info().unwrap().sectors == 4096);
    assert_eq!(scene.write(2048, &pattern(5, 4096)), Status::Okay);
    assert_eq!(scene.read(2048, 1), Ok(pattern(5, 4096)));
}

#[test]
fn files_are_read_and_written_through_io_uring_and_threads() {
    for way in [IoMethod::Best, IoMethod::Threads] {
        let file = disk_file(4 << 20);
        let Some(mut scene) = Scene::connected(Setup::new(opening(&file, way))) else { return };
        let bytes = pattern(11, 100 * 4096);
        assert_eq!(scene.write(8, &bytes), Status::Okay, "{way:?}");
        assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Okay);
        assert_eq!(scene.read(8, 100), Ok(bytes.clone()), "{way:?}");
        let discard = |tag| DiskRequest::Discard { tag, sector: 16, sectors: 8 };
        assert_eq!(scene.ask(discard, &[]), Status::Okay, "{way:?}");
        let on_disk = std::fs::read(file.path()).unwrap();
        assert_eq!(on_disk[4096..8192], bytes[..4096]);
        assert_eq!(on_disk[8192..12288], [0; 4096]);
    }
}

/// No event announces the next piece of a discard: a backend that has just learnt of the end of one
/// must not sleep.
#[test]
fn a_large_discard_of_a_file_waits_for_no_other_event() {
    for way in [IoMethod::Best, IoMethod::Threads] {
        let file = disk_file(64 << 20);
        let Some(mut scene) = Scene::connected(Setup::new(opening(&file, way))) else { return };
        let discard = DiskRequest::Discard { tag: 1, sector: 0, sectors: (64 << 20) / 512 };
        scene.front().submit(0, discard, &[]).unwrap();
        scene.front().push().unwrap();
        let (began, mut status) = (Instant::now(), None);
        while status.is_none() {
            // One sleep may be as long as the whole discard may take.
            scene.server.turn(PATIENCE).unwrap();
            scene.front().take(|done| status = Some(done.status)).unwrap();
        }
        assert_eq!(status, Some(Status::Okay), "{way:?}");
        assert!(began.elapsed() < PATIENCE, "{way:?}: it slept between two pieces");
    }
}

/// True if this process has the file open past the page cache, according to the kernel's flags of
/// its descriptors.
fn is_direct(path: &Path) -> bool {
    std::fs::read_dir("/proc/self/fd").unwrap().flatten().any(|entry| {
        let info = format!("/proc/self/fdinfo/{}", entry.file_name().to_string_lossy());
        std::fs::read_link(entry.path()).is_ok_and(|found| found == path)
            && std::fs::read_to_string(info).is_ok_and(|text| {
                let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
                let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
                flags.is_some_and(|flags| flags & libc::O_DIRECT != 0)
            })
    })
}

fn can_be_direct(path: &Path) -> bool {
    let mut options = std::fs::File::options();
    options.read(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
    options.open(path).is_ok()
}

/// Makes the kernel answer this thread as if it did not have this system call.
fn deny_call(call: libc::c_long) {
    let filter = confine::Calls::any(&[call]).fail(Errno::NOSYS);
    filter.unwrap().install().unwrap();
}

/// A kernel or a file system that does not report the alignment for direct I/O (`STATX_DIOALIGN`):
/// trial reads find it.
#[test]
fn direct_io_is_found_without_statx() {
    let file = disk_file(1 << 20);
    let (access, cache, way) = (DiskAccess::ReadWrite, Cache::Direct, IoMethod::Uring);
    let options = Options { access, cache, way };
    let said = FileDisk::open(file.path(), options).unwrap().geometry();
    let path = file.path().to_owned();
    let tried = std::thread::spawn(move || {
        deny_call(libc::SYS_statx);
        let disk = once_free(|| FileDisk::open(&path, options)).unwrap();
        assert_eq!(is_direct(&path), can_be_direct(&path), "{disk:?}");
        disk.geometry()
    });
    assert_eq!(tried.join().unwrap(), said);
}

/// The mechanisms by their names, for a file on this file system and, if there is one, on a tmpfs.
#[test]
fn each_way_to_a_file_is_the_one_that_was_asked_for() {
    let file = disk_file(1 << 20);
    let access = DiskAccess::ReadWrite;
    for (way, name) in [(IoMethod::Uring, "io_uring"), (IoMethod::Threads, "threads")] {
        let options = Options { access, cache: Cache::Direct, way };
        let disk = once_free(|| FileDisk::open(file.path(), options)).unwrap();
        assert!(format!("{disk:?}").contains(name), "{disk:?}");
        assert_eq!(is_direct(file.path()), can_be_direct(file.path()), "{disk:?}");
        let cache = if is_direct(file.path()) { "cache: Direct" } else { "cache: PageCache" };
        assert!(format!("{disk:?}").contains(cache), "{disk:?}");
    }
    if let Ok(shm) = NamedTempFile::new_in("/dev/shm") {
        std::fs::write(shm.path(), [0; 4096]).unwrap();
        let options = Options { access, cache: Cache::Direct, way: IoMethod::Best };
        let disk = FileDisk::open(shm.path(), options).unwrap();
        assert!(format!("{disk:?}").contains("at once"), "{disk:?}");
    }
}

/// A kernel without io_uring, or one that forbids it: threads do the requests.
#[test]
fn without_io_uring_threads_do_it() {
    let file = disk_file(1 << 20);
    std::fs::write(file.path(), [6; 8192]).unwrap();
    let path = file.path().to_owned();
    // The filter applies to this thread only.
    let read = std::thread::spawn(move || {
        deny_call(libc::SYS_io_uring_setup);
        let (access, cache, way) = (DiskAccess::ReadWrite, Cache::PageCache, IoMethod::Uring);
        let mut disk = FileDisk::open(&path, Options { access, cache, way }).unwrap();
        assert!(format!("{disk:?}").contains("threads"), "{disk:?}");
        let page = xen_block::RequestPage::private();
        let mut io = DiskIo::empty();
        (io.op, io.sector, io.sectors) = (DiskOp::Read, 8, 8);
        io.pieces.push(Piece { page: page.clone(), offset: 0, len: 4096 });
        assert!(disk.submit(io).unwrap().is_none());
        let end = Instant::now() + PATIENCE;
        let (_, result) = loop {
            assert!(Instant::now() < end, "waited for the read");
            if let Some(finished) = disk.finished() {
                break finished;
            }
        };
        assert_eq!(result, Ok(()));
        let mut bytes = vec![0; 4096];
        page.copy_out(0, &mut bytes).unwrap();
        bytes
    });
    assert_eq!(read.join().unwrap(), [6; 4096]);
}

/// A suspend with requests under way: the toolstack has made the device again, with another
/// backend. The unanswered requests go to the new backend, although its ring is smaller, and it
/// takes no indirect segments and no discard.
#[test]
fn requests_under_way_survive_a_suspend() {
    let hold = Rc::new(Cell::new(FaultAction::Hold));
    let (disk, fate) = (SharedDisk(Rc::new(RefCell::new(Memory::new(4096)))), Rc::clone(&hold));
    let opened = disk.clone();
    let open: Box<OpenDisk> = Box::new(move |_| {
        let fate = Rc::clone(&fate);
        Ok(Box::new(FaultInjector::new(Box::new(opened.clone()), move |_, _| fate.get())))
    });
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    let buffers = scene.buffers(160);
    for (number, buffer) in buffers.iter().enumerate() {
        let page = scene.front().page(*buffer).unwrap();
        page.copy_in(0, &[number as u8 + 1; 4096]).unwrap();
    }
    // One request of 100 pages, 60 of one page, and a discard.
    let parts: Vec<BufferSectors> = buffers.iter().copied().map(BufferSectors::whole).collect();
    let write = |tag, sector| DiskRequest::Write { tag, sector };
    scene.front().submit(0, write(0, 0), &parts[..100]).unwrap();
    for tag in 1..61 {
        let at = 99 + tag as usize;
        scene.front().submit(0, write(tag, at as u64 * 8), &parts[at..=at]).unwrap();
    }
    let discard = DiskRequest::Discard { tag: 61, sector: 0, sectors: 8 };
    scene.front().submit(0, discard, &[]).unwrap();
    scene.front().push().unwrap();
    scene.until("the backend to have them", |scene| {
        scene.back_bus().driver(ID).unwrap().in_flight() == 62
    });
    // The domain continues on another host: other nodes, and a backend that does not know it.
    toolstack::add(&mut scene.tool, &device()).unwrap();
    let node = format!("{}/discard-enable", device().backend_path());
    scene.tool.write(node, "0").unwrap();
    let again = disk.clone();
    let open: Box<OpenDisk> = Box::new(move |_| Ok(Box::new(again.clone())));
    let smaller = back::Options {
        rings: rings::RingOptions { limits: QueueLimits::PLAIN, ..rings::RingOptions::default() },
        indirect_segments_max: 0,
        ..back::Options::default()
    };
    let next = support::server(&scene.host, &scene.daemon, smaller, open);
    drop(std::mem::replace(&mut scene.server, next));
    while scene.front_store.poll_event().unwrap().is_some() {}
    let Scene { bus, front_store, .. } = &mut scene;
    bus.resume(front_store).unwrap();
    let mut answered = Vec::new();
    scene.until("all answers", |scene| {
        scene.front().take(|done| answered.push((done.tag, done.status))).unwrap();
        answered.len() == 62
    });
    answered.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(answered.pop(), Some((61, Status::NotSupported)));
    assert_eq!(answered, (0..61).map(|tag| (tag, Status::Okay)).collect::<Vec<_>>());
    assert_eq!(scene.front().in_flight(), 0);
    for number in 0..160 {
        let sector = number as u64 * 8;
        assert_eq!(scene.read(sector, 1), Ok(vec![number as u8 + 1; 4096]), "page {number}");
    }
}

/// With a hotplug script, the backend waits for the script's success, and closes if it fails.
#[test]
fn a_hotplug_script_is_waited_for() {
    for (status, after) in [("connected", State::Connected), ("error", State::Closing)] {
        let (_, open) = memory(Memory::new(64));
        let Some(mut scene) = Scene::new(Setup::new(open)) else { return };
        let back = device().backend_path();
        scene.tool.write(format!("{back}/script"), "block-xenbus").unwrap();
        scene.until("the frontend to be ready", |scene| {
            scene.states() == (Some(State::Initialised), Some(State::InitWait))
        });
        for _ in 0..100 {
            scene.turn();
            assert_eq!(scene.states().1, Some(State::InitWait), "before the script has ended");
        }
        scene.tool.write(format!("{back}/hotplug-error"), "no such file").unwrap();
        scene.tool.write(format!("{back}/hotplug-status"), status).unwrap();
        scene.until("the backend to go on", |scene| {
            scene.states().1.is_some_and(|state| state >= after)
        });
        if status == "error" {
            let error = scene.node(&format!("{back}/error"));
            assert_eq!(error, "22 the hotplug script failed: no such file");
        }
    }
}

#[test]
fn a_file_that_another_device_writes_is_refused() {
    let file = disk_file(1 << 20);
    let Some(mut first) = Scene::connected(Setup::new(opening(&file, IoMethod::Best))) else {
        return;
    };
    let Some(mut second) = Scene::new(Setup::new(opening(&file, IoMethod::Best))) else { return };
    second.until("the second to close", |scene| scene.states().1 == Some(State::Closed));
    // Both ends report the error.
    for path in [device().backend_path(), device().frontend_path()] {
        let error = second.node(&format!("{path}/error"));
        assert!(error.starts_with("16 EBUSY: ") && error.contains("detach it there"), "{error}");
    }
    assert_eq!(first.read(0, 1), Ok(vec![0; 4096]));
    drop(first);
    // Once the image is free, a device that is made again gets it.
    toolstack::add(&mut second.tool, &device()).unwrap();
    second.until_connected();
}

/// Requests before a barrier are done before it, and requests after it are done after it.
#[test]
fn barriers_keep_their_order() {
    let log: Rc<RefCell<Vec<(DiskOp, u64)>>> = Rc::default();
    let seen = Rc::clone(&log);
    let open: Box<OpenDisk> = Box::new(move |_| {
        let seen = Rc::clone(&seen);
        let decide = move |op, sector| {
            seen.borrow_mut().push((op, sector));
            FaultAction::Pass
        };
        Ok(Box::new(FaultInjector::new(Box::new(Memory::new(1024)), decide)))
    });
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    let buffer = BufferSectors::whole(scene.buffers(1)[0]);
    let write = |tag, sector| DiskRequest::Write { tag, sector };
    for want in [
        write(0, 0),
        DiskRequest::Barrier { tag: 1, sector: 8 },
        write(2, 16),
        DiskRequest::Flush { tag: 3 },
    ] {
        let parts = if matches!(want, DiskRequest::Flush { .. }) { &[][..] } else { &[buffer] };
        scene.front().submit(0, want, parts).unwrap();
    }
    scene.front().push().unwrap();
    let mut order = Vec::new();
    scene.until("four answers", |scene| {
        scene.front().take(|done| order.push((done.tag, done.status))).unwrap();
        order.len() == 4
    });
    assert_eq!(order, [0, 1, 2, 3].map(|tag| (tag, Status::Okay)));
    let (flush, write) = ((DiskOp::Flush, 0), |sector| (DiskOp::Write, sector));
    assert_eq!(*log.borrow(), [write(0), flush, write(8), flush, write(16), flush]);
}

#[test]
fn errors_of_the_disk_are_the_guests_errors() {
    let fate = Rc::new(Cell::new(FaultAction::Pass));
    let decided = Rc::clone(&fate);
    let open: Box<OpenDisk> = Box::new(move |_| {
        let decided = Rc::clone(&decided);
        Ok(Box::new(FaultInjector::new(Box::new(Memory::new(1024)), move |_, _| decided.get())))
    });
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    for errno in [Errno::IO, Errno::NOSPC] {
        fate.set(FaultAction::Fail(errno));
        assert_eq!(scene.write(0, &pattern(1, 4096)), Status::Error);
        assert_eq!(scene.read(0, 1), Err(Status::Error));
        assert_eq!(scene.ask(|tag| DiskRequest::Flush { tag }, &[]), Status::Error);
    }
    fate.set(FaultAction::Fail(Errno::OPNOTSUPP));
    let discard = |tag| DiskRequest::Discard { tag, sector: 0, sectors: 8 };
    assert_eq!(scene.ask(discard, &[]), Status::NotSupported);
    fate.set(FaultAction::Pass);
    assert_eq!(scene.write(0, &pattern(1, 4096)), Status::Okay);
    let stats = scene.back_bus().driver(ID).unwrap().stats().clone();
    assert_eq!((stats.read.errors, stats.write.errors, stats.flush.errors), (2, 2, 2));
}

#[test]
fn limits_slow_a_device_down() {
    let (_, open) = memory(Memory::new(8192));
    let mut setup = Setup::new(open);
    setup.back.throttle =
        throttle::RateLimits { requests_per_second: Some(200), bytes_per_second: None };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let start = Instant::now();
    for _ in 0..60 {
        assert_eq!(scene.read(0, 1), Ok(vec![0; 4096]));
    }
    // 20 at once, saved during the pause before, then 200 a second.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(150), "60 requests in {took:?}");
}

#[test]
fn detaching_gives_everything_back() {
    let (_, open) = memory(Memory::new(8192));
    let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
    assert_eq!(scene.write(0, &pattern(1, 40960)), Status::Okay);
    assert!(scene.host.mapped() > 10, "persistent grants stay mapped");
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
    assert_eq!(scene.host.mapped(), 0);
    toolstack::forget(&mut scene.tool, &device()).unwrap();
    scene.until("both to forget it", |scene| scene.states() == (None, None));
    assert_eq!((scene.host.offered(), scene.host.ports()), (0, 0));
}

/// A request to a disk never reaches the next disk of the same number, even if the guest has not
/// seen the first one go.
#[test]
fn a_new_disk_gets_nothing_of_the_old_ones() {
    for seen in ["closed", "nothing"] {
        let (disk, open) = memory(Memory::new(8192));
        let Some(mut scene) = Scene::connected(Setup::new(open)) else { return };
        let buffer = scene.buffers(1)[0];
        scene.front().page(buffer).unwrap().copy_in(0, &[7; 4096]).unwrap();
        let want = DiskRequest::Write { tag: 1, sector: 0 };
        scene.front().submit(0, want, &[BufferSectors::whole(buffer)]).unwrap();
        if seen == "closed" {
            scene.bus.leave(&mut scene.front_store, ID).unwrap();
            let closed = (Some(State::Closed), Some(State::Closed));
            scene.until("both ends to close", |scene| scene.states() == closed);
        }
        toolstack::forget(&mut scene.tool, &device()).unwrap();
        toolstack::add(&mut scene.tool, &device()).unwrap();
        scene.until_connected();
        assert_eq!(scene.front().in_flight(), 0, "seen: {seen}");
        assert_eq!(scene.read(0, 1), Ok(vec![0; 4096]), "seen: {seen}");
        assert!(disk.0.borrow().contents().iter().all(|byte| *byte == 0), "seen: {seen}");
    }
}
