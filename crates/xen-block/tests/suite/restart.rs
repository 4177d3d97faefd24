//! A backend that is killed and started again: its guest notices nothing, no request is lost, and
//! none is answered twice.

use crate::fault::{FaultAction, FaultInjector};
use crate::support::{self, GUEST, ID, Scene, Setup, device, server};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tempfile::TempDir;
use xen::evtchn::EventChannels;
use xen::{DomId, Port};
use xen_block::back::{self, OpenDisk};
use xen_block::disk::memory::Memory;
use xen_block::disk::{Disk, DiskIo, Finished, Geometry};
use xen_block::front::{BufferSectors, DiskRequest};
use xen_driver::backend::{Backend, rings};
use xen_io::blkif::Status;
use xenbus::State;
use xenstore::Store;

/// A disk that outlives the backend, as a file does.
#[derive(Clone, Debug)]
struct PersistentDisk(Rc<RefCell<Memory>>);

impl Disk for PersistentDisk {
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry()
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        self.0.borrow_mut().submit(io)
    }
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// A server that the test kills; its disk does not answer some requests.
struct KillableServer {
    disk: PersistentDisk,
    hold: Rc<Cell<u64>>,
    options: back::Options,
}

impl KillableServer {
    fn new(folder: &TempDir) -> Self {
        let rings = rings::RingOptions::recorded_in(folder.path());
        let options = back::Options { rings, ..back::Options::default() };
        let disk = PersistentDisk(Rc::new(RefCell::new(Memory::new(8192))));
        Self { disk, hold: Rc::default(), options }
    }

    /// Returns the function that opens the disk, which never does `hold` of every 8 requests.
    fn open(&self) -> Box<OpenDisk> {
        let (disk, hold) = (self.disk.clone(), Rc::clone(&self.hold));
        Box::new(move |_| {
            let (hold, mut seed) = (Rc::clone(&hold), 5);
            let decide = move |_, _| {
                if random(&mut seed) % 8 < hold.get() {
                    FaultAction::Hold
                } else {
                    FaultAction::Pass
                }
            };
            Ok(Box::new(FaultInjector::new(Box::new(disk.clone()), decide)))
        })
    }

    fn setup(&self) -> Setup {
        let mut setup = Setup::new(self.open());
        setup.back = self.options.clone();
        setup
    }

    /// Ends the process at once, as a kill does: the kernel closes its files, and nobody is
    /// notified. Then starts another.
    fn kill_and_start(&self, scene: &mut Scene) {
        let next = server(&scene.host, &scene.daemon, self.options.clone(), self.open());
        drop(std::mem::replace(&mut scene.server, next));
    }
}

/// Watches a device's state from now on.
fn watch_state(scene: &mut Scene, path: &str) {
    scene.tool.watch(format!("{path}/state"), "state").unwrap();
    let first = scene.tool.next_event(Some(support::PATIENCE)).unwrap();
    first.expect("the first event of a watch");
}

#[test]
fn a_guest_does_not_notice_that_its_backend_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let killable = KillableServer::new(&folder);
    let mut setup = killable.setup();
    setup.front.rings = xenbus::negotiate::QueueLimits { order_max: 1, queues_max: 2 };
    let Some(mut scene) = Scene::connected(setup) else { return };
    let (front, back) = (device().frontend_path(), device().backend_path());
    for path in [&front, &back] {
        watch_state(&mut scene, path);
    }
    let buffers = scene.buffers(40);
    let mut seed = 17;
    let mut wanted: BTreeMap<u64, u8> = BTreeMap::new();
    let mut idle: Vec<u64> = (0..40).collect();
    let mut under_way: BTreeMap<u64, (u64, u8)> = BTreeMap::new();
    let (mut answered, mut replayed) = (0, 0);
    for kill in 0..30 {
        killable.hold.set(3);
        for _ in 0..20 {
            while let Some(tag) = idle.pop() {
                // Each tag has sectors of its own, as requests under way are in no order.
                let sector = tag * 64 + random(&mut seed) % 8 * 8;
                let value = random(&mut seed) as u8;
                let buffer = buffers[tag as usize];
                scene.front().page(buffer).unwrap().copy_in(0, &[value; 4096]).unwrap();
                let want = DiskRequest::Write { tag, sector };
                let parts = [BufferSectors::whole(buffer)];
                if scene.front().submit((tag % 2) as usize, want, &parts).is_err() {
                    idle.push(tag);
                    break;
                }
                under_way.insert(tag, (sector, value));
            }
            scene.front().push().unwrap();
            scene.turn();
            scene
                .front()
                .take(|done| {
                    assert_eq!(done.status, Status::Okay);
                    let (sector, value) = under_way.remove(&done.tag).expect("answered once");
                    wanted.insert(sector, value);
                    idle.push(done.tag);
                    answered += 1;
                })
                .unwrap();
        }
        assert!(!under_way.is_empty(), "kill {kill}: something has to be in flight");
        killable.kill_and_start(&mut scene);
        scene.until("the successor to take over", |scene| {
            scene.back_bus().state(ID) == Some(State::Connected)
        });
        replayed += scene.back_bus().driver(ID).unwrap().stats().replayed;
    }
    // This includes all held requests of the last process.
    killable.hold.set(0);
    killable.kill_and_start(&mut scene);
    scene.until("the last answers", |scene| {
        let take = |done: xen_block::front::Completion| {
            assert_eq!(done.status, Status::Okay);
            let (sector, value) = under_way.remove(&done.tag).expect("answered once");
            wanted.insert(sector, value);
        };
        scene.front().take(take).unwrap();
        under_way.is_empty()
    });
    assert!(answered > 300 && replayed > 100, "{answered} answered, {replayed} done again");
    for (sector, value) in wanted {
        assert_eq!(scene.read(sector, 1), Ok(vec![value; 4096]), "sector {sector}");
    }
    assert_eq!(scene.tool.poll_event().unwrap(), None, "no state was written");
    assert!(!scene.tool.exists(format!("{back}/error")).unwrap());
}

fn has_disk(scene: &mut Scene) -> bool {
    scene.back_bus().driver(ID).is_some_and(|back| back.disk().is_some())
}

/// The pending requests of a killed process's io_uring keep its event channels open for a moment,
/// and no event announces their end.
#[test]
fn the_port_of_a_process_on_its_way_out_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let killable = KillableServer::new(&folder);
    let Some(mut scene) = Scene::connected(killable.setup()) else { return };
    let back = device().backend_path();
    let port = scene.node(&format!("{}/event-channel", device().frontend_path()));
    let port = Port(port.parse().unwrap());
    let mut lingering = scene.host.evtchn(DomId(0));
    for patient in [true, false] {
        killable.kill_and_start(&mut scene);
        let held = lingering.bind_interdomain(GUEST, port).unwrap();
        for _ in 0..20 {
            scene.turn();
        }
        assert!(!has_disk(&mut scene), "it has no port");
        assert!(!scene.tool.exists(format!("{back}/error")).unwrap(), "{patient}");
        assert_eq!(scene.node(&format!("{back}/state")), "4", "the guest sees nothing of it");
        if patient {
            lingering.close(held).unwrap();
            scene.until("the successor to take over", has_disk);
            assert_eq!(scene.write(8, &[patient.into(); 4096]), Status::Okay);
        } else {
            // Another process has the port permanently.
            scene.until("an error", |scene| !scene.back_errors.is_empty());
            assert!(
                matches!(scene.back_errors[..], [xenbus::Error::PortTaken(taken)] if taken == port),
                "{:?}",
                scene.back_errors
            );
            assert!(scene.tool.exists(format!("{back}/error")).unwrap());
        }
    }
}

/// A barrier that was under way, and all requests that waited behind it.
#[test]
fn a_barrier_survives_its_backend() {
    let folder = tempfile::tempdir().unwrap();
    let killable = KillableServer::new(&folder);
    let Some(mut scene) = Scene::connected(killable.setup()) else { return };
    killable.hold.set(8);
    let buffer = BufferSectors::whole(scene.buffers(1)[0]);
    for want in [
        DiskRequest::Write { tag: 0, sector: 0 },
        DiskRequest::Barrier { tag: 1, sector: 8 },
        DiskRequest::Write { tag: 2, sector: 16 },
    ] {
        scene.front().submit(0, want, &[buffer]).unwrap();
    }
    scene.front().push().unwrap();
    for _ in 0..5 {
        scene.turn();
    }
    killable.hold.set(0);
    killable.kill_and_start(&mut scene);
    let mut order = Vec::new();
    scene.until("three answers", |scene| {
        scene.front().take(|done| order.push(done.tag)).unwrap();
        order.len() == 3
    });
    assert_eq!(order, [0, 1, 2]);
}

/// A successor is killed while it repeats the requests, after each of them: no request is lost.
#[test]
fn a_successor_that_is_killed_midway_loses_nothing() {
    const REQUESTS: u64 = 12;
    for point in 0..=REQUESTS {
        let folder = tempfile::tempdir().unwrap();
        let killable = KillableServer::new(&folder);
        let Some(mut scene) = Scene::connected(killable.setup()) else { return };
        killable.hold.set(8);
        let buffers = scene.buffers(REQUESTS as usize);
        for (tag, buffer) in (0..).zip(&buffers) {
            scene.front().page(*buffer).unwrap().copy_in(0, &[tag as u8 + 1; 4096]).unwrap();
            let want = DiskRequest::Write { tag, sector: tag * 8 };
            scene.front().submit(0, want, &[BufferSectors::whole(*buffer)]).unwrap();
        }
        scene.front().push().unwrap();
        scene.until("all to be taken", |scene| {
            scene.back_bus().driver(ID).unwrap().in_flight() == REQUESTS as usize
        });
        let killed = Rc::new(Cell::new(0));
        let (disk, done) = (killable.disk.clone(), Rc::clone(&killed));
        let open: Box<OpenDisk> = Box::new(move |_| {
            let done = Rc::clone(&done);
            let decide = move |_, _| {
                done.set(done.get() + 1);
                // A panic is the closest thing to a kill that leaves the test alive.
                assert!(done.get() <= point, "killed");
                FaultAction::Pass
            };
            Ok(Box::new(FaultInjector::new(Box::new(disk.clone()), decide)))
        });
        let next = server(&scene.host, &scene.daemon, killable.options.clone(), open);
        drop(std::mem::replace(&mut scene.server, next));
        let turns = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scene.until("the successor to have all", |_| killed.get() == REQUESTS);
        }));
        assert_eq!(turns.is_err(), point < REQUESTS, "killed after {point}");
        killable.hold.set(0);
        killable.kill_and_start(&mut scene);
        let mut answered = Vec::new();
        scene.until("all answers", |scene| {
            scene.front().take(|done| answered.push((done.tag, done.status))).unwrap();
            answered.len() == REQUESTS as usize
        });
        answered.sort_unstable_by_key(|(tag, _)| *tag);
        assert_eq!(answered, (0..REQUESTS).map(|tag| (tag, Status::Okay)).collect::<Vec<_>>());
        for tag in 0..REQUESTS {
            assert_eq!(scene.read(tag * 8, 1), Ok(vec![tag as u8 + 1; 4096]), "{point}: {tag}");
        }
    }
}

/// A process that still has I/O under way in the guest's pages holds the record, with any kind of
/// disk. A successor waits for its end before it takes over or becomes Closed.
#[test]
fn a_successor_waits_until_the_io_of_the_dead_has_ended() {
    for (state, after) in [("4", State::Connected), ("5", State::Closed)] {
        let folder = tempfile::tempdir().unwrap();
        let killable = KillableServer::new(&folder);
        let Some(mut scene) = Scene::connected(killable.setup()) else { return };
        let record = folder.path().join(format!("vbd-{GUEST}-{}.inflight", ID.devid));
        let held = std::fs::File::open(&record).unwrap();
        killable.kill_and_start(&mut scene);
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let (back, front) = (device().backend_path(), device().frontend_path());
        if state == "5" {
            scene.tool.write(format!("{back}/state"), state).unwrap();
            scene.tool.write(format!("{front}/state"), "6").unwrap();
        }
        let end = std::time::Instant::now() + std::time::Duration::from_millis(200);
        while std::time::Instant::now() < end {
            scene.server.turn(std::time::Duration::ZERO).unwrap();
            assert!(record.exists());
            assert_ne!(scene.node(&format!("{back}/state")), "6", "{after}");
            assert!(scene.server.bus("vbd").unwrap().ids().all(|id| id == ID));
            let taken_over =
                scene.back_bus().driver(ID).is_some_and(|back| back.ports().count() > 0);
            assert!(!taken_over, "the rings are in use before the dead one's I/O has ended");
        }
        drop(held);
        scene.until_back(after);
    }
}

/// A successor also waits if the device is not the earlier one any more, but a new one with its
/// number.
#[test]
fn a_new_device_waits_until_the_io_of_the_dead_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let killable = KillableServer::new(&folder);
    let record = folder.path().join(format!("vbd-{GUEST}-{}.inflight", ID.devid));
    let held = std::fs::File::create(&record).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let Some(mut scene) = Scene::new(killable.setup()) else { return };
    scene.until("the frontend", |scene| scene.states().0 == Some(State::Initialised));
    for _ in 0..100 {
        scene.turn();
        assert_eq!((scene.states().1, record.exists()), (Some(State::InitWait), true));
    }
    drop(held);
    scene.until_connected();
}

/// An io_uring holds the record by itself, as its requests continue when the process has ended.
#[test]
fn an_io_uring_keeps_the_record_locked() {
    use rustix::fs::{FlockOperation, flock};
    use xen_block::disk::DiskAccess;
    use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
    let folder = tempfile::tempdir().unwrap();
    let (disk, guard) = (folder.path().join("disk"), folder.path().join("guard"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    let held = std::fs::File::create(&guard).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let options =
        Options { access: DiskAccess::ReadOnly, cache: Cache::PageCache, way: IoMethod::Uring };
    let mut file = FileDisk::open(&disk, options).unwrap();
    assert!(format!("{file:?}").contains("io_uring"), "{file:?}");
    file.hold(std::os::fd::AsFd::as_fd(&held)).unwrap();
    drop(held);
    let next = std::fs::File::open(&guard).unwrap();
    let busy = flock(&next, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(busy, Err(rustix::io::Errno::WOULDBLOCK));
    drop(file);
    // The kernel releases the file some time later.
    flock(&next, FlockOperation::LockExclusive).unwrap();
}

#[test]
fn without_a_record_the_device_is_closed_with_the_reason() {
    let Some(mut scene) = Scene::connected(Setup::new(Box::new(|_| Ok(Box::new(Memory::new(64))))))
    else {
        return;
    };
    let open: Box<OpenDisk> = Box::new(|_| Ok(Box::new(Memory::new(64))));
    let next = server(&scene.host, &scene.daemon, back::Options::default(), open);
    drop(std::mem::replace(&mut scene.server, next));
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
    let error = scene.node(&format!("{}/error", device().backend_path()));
    assert!(error.contains("kept no record"), "{error}");
    assert_eq!((GUEST, DomId::DOM0), (ID.frontend, device().backend));
}
