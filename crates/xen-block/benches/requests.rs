//! How many requests a second: front and back in one thread, on one processor, 4 KiB each, in front of a
//! disk that returns at once and copies nothing, and of a file through io_uring.

#[path = "../tests/support/mod.rs"]
mod support;

use rustix::thread::{CpuSet, sched_setaffinity};
use std::time::{Duration, Instant};
use support::{Scene, Setup};
use xen_block::disk::file::{Cache, File, Options, Way};
use xen_block::disk::{Disk, DiskAccess, Finished, Geometry, Io};
use xen_block::front::{Part, Want};

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

/// Random reads of 4 KiB, `depth` of them at any time, for `time`; how many a second.
fn reads(scene: &mut Scene, depth: u64, time: Duration) -> f64 {
    let parts: Vec<Part> = scene.buffers(depth as usize).into_iter().map(Part::whole).collect();
    let sectors = scene.front().info().expect("connected").sectors / 8;
    let (mut seed, mut count) = (1_u64, 0_u64);
    let mut sector = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % sectors * 8
    };
    let mut idle: Vec<u64> = (0..depth).collect();
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..64 {
            let front = scene.front();
            while let Some(tag) = idle.pop() {
                let want = Want::Read { tag, sector: sector() };
                front.submit(0, want, &parts[tag as usize..=tag as usize]).expect("room");
            }
            front.push().expect("a backend");
            scene.server.turn(Duration::ZERO).expect("a store");
            let took = scene.front().take(|done| idle.push(done.tag)).expect("right answers");
            count += took as u64;
        }
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).expect("one processor");
    let time = Duration::from_secs(2);
    let open: Box<xen_block::back::OpenDisk> = Box::new(|_| Ok(Box::new(Instantly)));
    if let Some(mut scene) = Scene::connected(Setup::new(open)) {
        println!("at once: {:.0} requests a second", reads(&mut scene, 32, time));
    }
    let path = std::env::temp_dir().join(format!("xen-block-bench-{}", std::process::id()));
    std::fs::write(&path, vec![1; 64 << 20]).expect("64 MiB of room");
    let file = path.clone();
    let open: Box<xen_block::back::OpenDisk> = Box::new(move |_| {
        let (access, cache) = (DiskAccess::ReadWrite, Cache::PageCache);
        let disk = File::open(&file, Options { access, cache, way: Way::Best });
        Ok(Box::new(disk.map_err(|error| xenbus::Error::Driver(error.to_string()))?))
    });
    if let Some(mut scene) = Scene::connected(Setup::new(open)) {
        println!("io_uring, page cache: {:.0} requests a second", reads(&mut scene, 32, time));
    }
    std::fs::remove_file(&path).expect("the file is still there");
}
