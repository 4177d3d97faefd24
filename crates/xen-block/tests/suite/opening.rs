//! Disks that take long to open, and frontends that have theirs opened again and again: the loop
//! that serves the other devices does not wait for them.

use crate::support::{ID, PATIENCE, Scene, Setup, device};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen_block::back::{OpenJob, OpenMethod};
use xen_block::disk::Disk;
use xen_block::disk::memory::Memory;
use xen_driver::Backend;
use xen_io::blkif::Status;
use xenbus::{Error, State, toolstack};
use xenstore::Store;

/// The result of opening a disk.
type OpenResult = Result<Box<dyn Disk + Send>, Error>;

/// Returns a setup whose disks are open once the test sends their results.
fn slow_disk() -> (Sender<OpenResult>, Setup) {
    let (say, outcomes) = channel::<OpenResult>();
    let outcomes: Arc<Mutex<Receiver<OpenResult>>> = Arc::new(Mutex::new(outcomes));
    let mut setup = Setup::named();
    setup.open = OpenMethod::Aside(Box::new(move |_| {
        let outcomes = Arc::clone(&outcomes);
        let job: OpenJob = Box::new(move || outcomes.lock().unwrap().recv().unwrap());
        Ok(job)
    }));
    (say, setup)
}

/// Returns a device whose disk is being opened.
fn opening_device() -> Option<(Sender<OpenResult>, Scene)> {
    let (say, setup) = slow_disk();
    let mut scene = Scene::new(setup)?;
    scene.until("both ends to begin", |scene| {
        scene.states() == (Some(State::Initialised), Some(State::InitWait))
    });
    turns_while_it_opens(&mut scene);
    Some((say, scene))
}

/// Runs turns for a while; each ends at once, and the backend is neither Connected nor Closed.
fn turns_while_it_opens(scene: &mut Scene) {
    let began = Instant::now();
    let mut turns = Vec::new();
    while began.elapsed() < Duration::from_millis(300) || turns.len() <= 20 {
        assert!(began.elapsed() < PATIENCE, "{turns:?}");
        let turn = Instant::now();
        scene.turn();
        turns.push(turn.elapsed());
        let done = [Some(State::Connected), Some(State::Closed), None];
        assert!(!done.contains(&scene.states().1), "{:?}", scene.log);
    }
    // The median, as other tests may take the processor in some of the turns.
    turns.sort_unstable();
    let median = turns[turns.len() / 2];
    assert!(median < Duration::from_millis(15), "{median:?} for a turn");
}

fn memory() -> OpenResult {
    Ok(Box::new(Memory::new(64)))
}

#[test]
fn a_disk_that_opens_slowly_keeps_nobody_waiting() {
    let Some((say, mut scene)) = opening_device() else { return };
    say.send(memory()).unwrap();
    scene.until_connected();
    assert_eq!(scene.write(0, &[3; 4096]), Status::Okay);
    assert_eq!(scene.read(0, 1), Ok(vec![3; 4096]));
}

#[test]
fn why_a_disk_did_not_open_is_said() {
    let (say, setup) = slow_disk();
    let Some(mut scene) = Scene::new(setup) else { return };
    say.send(Err(Error::Driver("no such export".into()))).unwrap();
    scene.until_back(State::Closing);
    let said = scene.node(&format!("{}/error", device().backend_path()));
    assert!(said.contains("no such export"), "{said}");
}

/// The disk may be locked while it opens; the next user must find it free.
#[test]
fn a_device_that_goes_while_its_disk_opens_is_closed_when_that_is_closed() {
    let Some((say, mut scene)) = opening_device() else { return };
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    turns_while_it_opens(&mut scene);
    say.send(memory()).unwrap();
    scene.until_back(State::Closed);
    toolstack::forget(&mut scene.tool, &device()).unwrap();
    scene.until("it to be forgotten", |scene| scene.back_bus().state(ID).is_none());
    assert_eq!(scene.host.mapped(), 0);
    assert!(!scene.tool.exists(device().backend_path()).unwrap());
}

/// A frontend that closes and connects again without end has its disk opened a limited number of
/// times, and then waits.
#[test]
fn a_frontend_that_reconnects_in_a_loop_is_slowed_down() {
    let (most, within) = (5, Duration::from_millis(1500));
    let opened = Rc::new(Cell::new(0));
    let count = Rc::clone(&opened);
    let mut setup = Setup::new(Box::new(move |_| {
        count.set(count.get() + 1);
        Ok(Box::new(Memory::new(64)))
    }));
    setup.back.rings.connects_max = (most, within);
    let Some(mut scene) = Scene::new(setup) else { return };
    let began = Instant::now();
    let state = format!("{}/state", device().frontend_path());
    for times in 1..=most + 2 {
        scene.until_connected();
        assert_eq!(opened.get(), times);
        assert!(
            times <= most || began.elapsed() >= within,
            "the {times}th after {:?}",
            began.elapsed()
        );
        if times == most && began.elapsed() < within {
            let said = scene.back_bus().driver(ID).unwrap().statistics();
            assert!(said.contains(&format!(" throttled 0 connects {most} ")), "{said}");
        }
        scene.bus.leave(&mut scene.front_store, ID).unwrap();
        scene.until("both ends to close", |scene| {
            scene.states() == (Some(State::Closed), Some(State::Closed))
        });
        scene.tool.write(&state, "1").unwrap();
    }
}
