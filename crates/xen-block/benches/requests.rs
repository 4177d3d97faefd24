//! How many requests a second: before a disk that returns at once, and before a file, against one thread
//! that reads the same file through io_uring without anything in between.
//!
//! `cargo bench -p xen-block --bench requests [FOLDER]`: FOLDER (default: the temporary folder) is where the
//! file is.

#[path = "../tests/support/mod.rs"]
mod support;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Scene, Setup};
use xen::evtchn::EventChannels;
use xen_block::Page;
use xen_block::back::{self, OpenDisk};
use xen_block::disk::file::{Cache, File, Options, Way};
use xen_block::disk::{Disk, DiskAccess, Finished, Geometry, Io, Op, Piece};
use xen_block::front::{Part, Want};

const TIME: Duration = Duration::from_secs(2);
const DEPTH: usize = 32;
const FILE_BYTES: u64 = 256 << 20;

/// A disk that has done everything already.
#[derive(Debug)]
struct Instantly;

impl Disk for Instantly {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: 1 << 21,
            sector_size: 512,
            physical_sector_size: 4096,
            access: DiskAccess::ReadWrite,
            discard_granularity: None,
        }
    }

    fn submit(&mut self, io: Box<Io>) -> Result<Option<Finished>, Box<Io>> {
        Ok(Some((io, Ok(()))))
    }
}

/// How sectors follow one another.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Random,
    Sequential,
}

/// One kind of work: so many pages in each request.
#[derive(Clone, Copy)]
struct Load {
    pages: usize,
    order: Order,
}

/// What was reached.
struct Reached {
    /// Requests a second.
    rate: f64,
    /// Requests for each second of processor time.
    per_cpu: f64,
}

struct Meter {
    start: Instant,
    cpu: Duration,
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

impl Meter {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu_time() }
    }

    fn running(&self) -> bool {
        self.start.elapsed() < TIME
    }

    fn reached(&self, count: u64) -> Reached {
        let cpu = (cpu_time() - self.cpu).as_secs_f64();
        Reached {
            rate: count as f64 / self.start.elapsed().as_secs_f64(),
            per_cpu: count as f64 / cpu,
        }
    }
}

/// Where the next request begins.
struct Sectors {
    seed: u64,
    next: u64,
    requests: u64,
    load: Load,
}

impl Sectors {
    fn new(load: Load, sectors: u64) -> Self {
        Self { seed: 1, next: 0, requests: sectors / (load.pages as u64 * 8), load }
    }

    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.next += 1;
        let number = match self.load.order {
            Order::Random => self.seed >> 33,
            Order::Sequential => self.next,
        };
        number % self.requests * self.load.pages as u64 * 8
    }
}

/// Lets something happen between two looks into the ring.
trait Between {
    fn between(&mut self, scene: &mut Scene, took: usize);
}

/// The backend in the same thread.
struct SameThread;

impl Between for SameThread {
    fn between(&mut self, scene: &mut Scene, _: usize) {
        scene.server.turn(Duration::ZERO).expect("a store");
    }
}

/// The backend in another thread: this one sleeps until it is notified.
struct OwnThread;

impl Between for OwnThread {
    fn between(&mut self, scene: &mut Scene, took: usize) {
        if took > 0 || scene.front().final_check().expect("right indices") {
            return;
        }
        let evtchn = &scene.front_evtchn;
        let waited = poll(
            &mut [PollFd::from_borrowed_fd(evtchn.borrow().fd(), PollFlags::IN)],
            Some(&rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 }),
        );
        assert_eq!(waited, Ok(1), "waited 10 s for the backend");
        let mut evtchn = evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().expect("event channels") {
            evtchn.unmask(port).expect("an open port");
        }
    }
}

/// Reads through frontend and backend.
fn through_the_ring(scene: &mut Scene, load: Load, mut between: impl Between) -> Reached {
    let parts: Vec<Part> = scene.buffers(DEPTH * load.pages).into_iter().map(Part::whole).collect();
    let sectors = scene.front().info().expect("connected").sectors;
    let mut sectors = Sectors::new(load, sectors);
    let mut idle: Vec<u64> = (0..DEPTH as u64).collect();
    let (meter, mut count) = (Meter::start(), 0);
    while meter.running() {
        for _ in 0..64 {
            let front = scene.front();
            while let Some(tag) = idle.pop() {
                let want = Want::Read { tag, sector: sectors.next() };
                let at = tag as usize * load.pages;
                front.submit(0, want, &parts[at..at + load.pages]).expect("room");
            }
            front.push().expect("a backend");
            let took = scene.front().take(|done| idle.push(done.tag)).expect("right answers");
            count += took as u64;
            between.between(scene, took);
        }
    }
    meter.reached(count)
}

/// Reads a file through io_uring, with nothing in between.
fn directly(path: &Path, load: Load) -> Reached {
    let mut disk = file(path).expect("the file");
    let mut sectors = Sectors::new(load, disk.geometry().sectors);
    let page = |_| Piece { page: Page::private(), offset: 0, len: 4096 };
    let request = |_| {
        let mut io = Io::empty();
        (io.op, io.sectors) = (Op::Read, load.pages as u64 * 8);
        io.pieces = (0..load.pages).map(page).collect();
        io
    };
    let mut idle: Vec<Box<Io>> = (0..DEPTH).map(request).collect();
    let (meter, mut count) = (Meter::start(), 0);
    while meter.running() {
        while let Some(mut io) = idle.pop() {
            io.sector = sectors.next();
            if let Some((io, _)) = disk.submit(io).expect("room") {
                idle.push(io);
            }
        }
        disk.start();
        if let Some(fd) = disk.fd() {
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).expect("a poll");
        }
        while let Some((io, result)) = disk.finished() {
            result.expect("a read");
            idle.push(io);
            count += 1;
        }
    }
    meter.reached(count)
}

fn file(path: &Path) -> Result<File, xen_block::disk::file::OpenError> {
    let (access, cache) = (DiskAccess::ReadOnly, Cache::Direct);
    File::open(path, Options { access, cache, way: Way::Best })
}

fn opens(path: PathBuf) -> Box<OpenDisk> {
    Box::new(move |_| {
        let disk = file(&path).map_err(|error| xenbus::Error::Driver(error.to_string()))?;
        Ok(Box::new(disk))
    })
}

/// Both ends in threads of their own.
fn two_threads(path: &Path, load: Load) -> Option<Reached> {
    // The scene's own server is left alone: a daemon of one's own serves instead.
    let mut setup = Setup::new(opens(path.to_owned()));
    setup.front.buffers = DEPTH * load.pages;
    let mut scene = Scene::new(setup)?;
    let (host, socket) = (scene.host.clone(), scene.daemon.socket());
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, path) = (Arc::clone(&stop), path.to_owned());
    let serving = std::thread::spawn(move || {
        let mut server = support::server_at(&host, &socket, back::Options::default(), opens(path));
        while !stopped.load(Ordering::Relaxed) {
            server.turn(Duration::from_millis(50)).expect("a store");
        }
    });
    scene.until_front_connected();
    let reached = through_the_ring(&mut scene, load, OwnThread);
    stop.store(true, Ordering::Relaxed);
    serving.join().expect("a server that ends");
    Some(reached)
}

fn main() {
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = named.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("xen-block-bench-{}", std::process::id()));
    std::fs::write(&path, vec![1; FILE_BYTES as usize]).expect("256 MiB of room");
    for (name, load) in [
        ("4 KiB random", Load { pages: 1, order: Order::Random }),
        ("128 KiB sequential", Load { pages: 32, order: Order::Sequential }),
    ] {
        for round in 0..3 {
            let direct = directly(&path, load);
            let Some(ours) = two_threads(&path, load) else { return };
            println!(
                "{name}, round {round}: {:.0} a second, {:.0} directly: ratio {:.2}; per second of \
                 processor time {:.2}",
                ours.rate,
                direct.rate,
                ours.rate / direct.rate,
                ours.per_cpu / direct.per_cpu
            );
        }
    }
    std::fs::remove_file(&path).expect("the file is still there");

    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).expect("one processor");
    let open: Box<OpenDisk> = Box::new(|_| Ok(Box::new(Instantly)));
    if let Some(mut scene) = Scene::connected(Setup::new(open)) {
        let load = Load { pages: 1, order: Order::Random };
        let reached = through_the_ring(&mut scene, load, SameThread);
        println!("at once, one processor: {:.0} a second", reached.rate);
    }
}
