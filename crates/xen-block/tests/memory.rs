//! The memory that disks take. A program of its own, as it reads the memory of the whole process.

#[path = "suite/support.rs"]
mod support;

use support::{ID, Scene, Setup, device};
use xen_block::back::OpenDisk;
use xen_block::disk::DiskAccess;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::front::{BufferSectors, DiskRequest};
use xen_io::blkif::Status;
use xenbus::negotiate::QueueLimits;
use xenbus::{State, toolstack};

/// 32 disks with the largest rings, each used once; the memory includes both ends and the rings.
#[test]
fn memory_of_32_disks() {
    let resident_kib = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().to_owned();
    let open: Box<OpenDisk> = Box::new(move |device| {
        let path = files.join(device.id().devid.to_string());
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let (access, cache, way) = (DiskAccess::ReadWrite, Cache::PageCache, IoMethod::Best);
        let disk = FileDisk::open(&path, Options { access, cache, way });
        Ok(Box::new(disk?))
    });
    let mut setup = Setup::new(open);
    setup.front.buffers = 16;
    setup.front.rings = QueueLimits { order_max: 4, queues_max: 1 };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let before = resident_kib();
    let ids = (1..32).map(|number| xenbus::Id { devid: ID.devid + number * 16, ..ID });
    let ids: Vec<xenbus::Id> = ids.collect();
    for id in &ids {
        let mut device = device();
        device.id = *id;
        toolstack::add(&mut scene.tool, &device).unwrap();
    }
    scene.until("32 disks to be connected", |scene| {
        ids.iter().all(|id| scene.bus.state(*id) == Some(State::Connected))
    });
    for id in &ids {
        let front = scene.bus.driver(*id).unwrap();
        let buffer = BufferSectors::whole(front.take_buffer().unwrap());
        front.submit(0, DiskRequest::Write { tag: 1, sector: 0 }, &[buffer]).unwrap();
        front.push().unwrap();
    }
    scene.until("32 answers", |scene| {
        ids.iter().all(|id| {
            let front = scene.bus.driver(*id).unwrap();
            front.take(|done| assert_eq!(done.status, Status::Okay)).unwrap();
            front.in_flight() == 0
        })
    });
    let grown = resident_kib().saturating_sub(before);
    println!("31 more disks: {grown} KiB, granted pages and frontends included");
    assert!(grown < 64 << 10, "{grown} KiB");
}
