//! Both ends of a device against the real daemon: finding each other, closing, coming back, and peers
//! that do what they should not.

use crate::greeter::{GreeterBackend, GreeterFrontend};
use conformance::{Daemon, DaemonKind, Options};
use loopback::Host;
use loopback::evtchn::Channels;
use loopback::gnttab::Grants;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen::DomId;
use xen::evtchn::EventChannels;
use xenbus::bus::DeviceEvent;
use xenbus::state::IllegalMove;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Device, Driver, Error, Id, Progress, Side, State, path};
use xenstore::{Client, Store};

const PATIENCE: Duration = Duration::from_secs(10);
const GUEST: DomId = DomId(3);
const ID: Id = Id { frontend: GUEST, devid: 7 };

type FrontBus = Bus<GreeterFrontend<Channels, Grants>>;
type BackBus = Bus<GreeterBackend<Channels, Grants>>;

/// A daemon, a toolstack, and two ends that have not looked yet.
struct Scene {
    host: Host,
    _daemon: Daemon,
    tool: Client,
    front: (Client, FrontBus),
    back: (Client, BackBus),
    log: Vec<String>,
}

fn front_bus(host: &Host, store: &mut Client) -> FrontBus {
    let evtchn = Arc::new(Mutex::new(host.evtchn(GUEST)));
    let host = host.clone();
    let make = move |_| {
        let (evtchn, grants) = (Arc::clone(&evtchn), host.gnttab(GUEST));
        GreeterFrontend { evtchn, grants, page: None }
    };
    Bus::start(store, Side::Frontend, GUEST, "greeter", make).unwrap()
}

fn back_bus(host: &Host, store: &mut Client) -> BackBus {
    let evtchn = Arc::new(Mutex::new(host.evtchn(DomId::DOM0)));
    let host = host.clone();
    let make = move |_| {
        let (evtchn, grants) = (Arc::clone(&evtchn), host.gnttab(DomId::DOM0));
        GreeterBackend { evtchn, grants, page: None }
    };
    Bus::start(store, Side::Backend, DomId::DOM0, "greeter", make).unwrap()
}

fn device() -> NewDevice {
    NewDevice::new("greeter", ID, DomId::DOM0)
}

fn turn<D: Driver>(store: &mut Client, bus: &mut Bus<D>, log: &mut Vec<String>) {
    while let Some(event) = store.poll_event().unwrap() {
        assert!(bus.take(store, &event).unwrap(), "{event:?} is nobody's");
    }
    log.extend(bus.take_news().into_iter().map(|news| match news.event {
        DeviceEvent::State(state) => format!("{}", state as u8),
        DeviceEvent::Error(error) => format!("error: {error}"),
        DeviceEvent::Removed => "removed".to_owned(),
        other => format!("{other:?}"),
    }));
}

impl Scene {
    fn new() -> Option<Self> {
        let options = Options { everybody: true, ..Options::default() };
        let daemon = Daemon::start_with(DaemonKind::Ours, &options)?;
        let host = Host::new();
        let client = || Client::connect(daemon.socket()).unwrap();
        let (mut tool, mut front_store, mut back_store) = (client(), client(), client());
        for domid in [1, GUEST.0] {
            tool.introduce(domid, 1, 1).unwrap();
        }
        let front = front_bus(&host, &mut front_store);
        let back = back_bus(&host, &mut back_store);
        let (front, back) = ((front_store, front), (back_store, back));
        Some(Self { host, _daemon: daemon, tool, front, back, log: Vec::new() })
    }

    /// Lets both ends act until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut log = Vec::new();
            turn(&mut self.front.0, &mut self.front.1, &mut log);
            self.log.extend(log.drain(..).map(|line| format!("front {line}")));
            turn(&mut self.back.0, &mut self.back.1, &mut log);
            self.log.extend(log.drain(..).map(|line| format!("back {line}")));
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}: {:?}", self.log);
        }
    }

    fn states(&self) -> (Option<State>, Option<State>) {
        (self.front.1.state(ID), self.back.1.state(ID))
    }

    fn connect(&mut self) {
        toolstack::add(&mut self.tool, &device()).unwrap();
        self.until_connected();
    }

    fn until_connected(&mut self) {
        let both = (Some(State::Connected), Some(State::Connected));
        self.until("both ends to be connected", |scene| scene.states() == both);
    }

    fn read(&mut self, path: &str) -> String {
        String::from_utf8(self.tool.read(path).unwrap()).unwrap()
    }
}

/// The text of docs/device-model.md is the example that these tests run.
#[test]
fn the_documented_example_is_this_one() {
    let text = include_str!("../../../../docs/device-model.md");
    let code = include_str!("greeter.rs");
    let block = text.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(block, Some(code), "docs/device-model.md and tests/suite/greeter.rs differ");
    assert!(code.lines().count() < 100, "a device type in under 100 lines");
}

#[test]
fn a_device_is_found_greets_and_goes() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let front = scene.front.1.driver(ID).unwrap();
    let mut greeting = [0; 16];
    front.page.as_ref().unwrap().0.page().copy_out(0, &mut greeting).unwrap();
    assert_eq!(&greeting, b"hello, domain 3!");
    let port = front.page.as_ref().unwrap().1;
    assert_eq!(front.evtchn.lock().unwrap().pending(), Ok(Some(port)));
    let order = ["back 2", "front 3", "back 4", "front 4"];
    assert_eq!(scene.log, order);

    toolstack::detach(&mut scene.tool, &device()).unwrap();
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
    assert_eq!(scene.read(&format!("{}/state", device().backend_path())), "6");
    toolstack::forget(&mut scene.tool, &device()).unwrap();
    scene.until("both ends to forget it", |scene| scene.states() == (None, None));
    assert_eq!((scene.host.mapped(), scene.host.offered(), scene.host.ports()), (0, 0, 0));
    assert!(!scene.tool.exists("/local/domain/0/backend/greeter/3").unwrap());
}

/// A program that drives one disk of a guest takes nothing from the kernel, which drives the others.
#[test]
fn a_bus_for_one_device_leaves_the_others() {
    let Some(mut scene) = Scene::new() else { return };
    let (store, bus) = scene.front;
    scene.front = (store, bus.only(ID));
    let mut other = device();
    other.id.devid += 1;
    toolstack::add(&mut scene.tool, &other).unwrap();
    scene.connect();
    assert_eq!(scene.front.1.ids().collect::<Vec<_>>(), [ID]);
    assert_eq!(scene.read(&format!("{}/state", other.frontend_path())), "1");
    // The other way round: a bus for all but one number.
    let Some(mut scene) = Scene::new() else { return };
    let (store, bus) = scene.back;
    scene.back = (store, bus.without(other.id.devid));
    toolstack::add(&mut scene.tool, &other).unwrap();
    scene.connect();
    assert_eq!(scene.back.1.ids().collect::<Vec<_>>(), [ID]);
    assert_eq!(scene.read(&format!("{}/state", other.backend_path())), "1");
}

/// libxl's paths, values and permissions.
#[test]
fn adding_writes_what_xl_writes() {
    let Some(mut scene) = Scene::new() else { return };
    let mut device = NewDevice::new("vbd", Id { frontend: GUEST, devid: 51712 }, DomId(1));
    device.frontend_nodes = vec![("virtual-device".into(), "51712".into())];
    device.frontend_fixed = vec![("trusted".into(), "1".into())];
    device.backend_nodes = vec![("mode".into(), "w".into())];
    toolstack::add(&mut scene.tool, &device).unwrap();
    let (front, back) = ("/local/domain/3/device/vbd/51712", "/local/domain/1/backend/vbd/3/51712");
    let libxl = "/libxl/3/device/vbd/51712";
    for (path, value, perms) in [
        (front, "", "n3 r1"),
        (&format!("{front}/backend"), back, "n3 r1"),
        (&format!("{front}/backend-id"), "1", "n3 r1"),
        (&format!("{front}/state"), "1", "n3 r1"),
        (&format!("{front}/virtual-device"), "51712", "n3 r1"),
        (&format!("{front}/trusted"), "1", "n1 r3"),
        (back, "", "n1 r3"),
        (&format!("{back}/frontend"), front, "n1 r3"),
        (&format!("{back}/frontend-id"), "3", "n1 r3"),
        (&format!("{back}/online"), "1", "n1 r3"),
        (&format!("{back}/state"), "1", "n1 r3"),
        (&format!("{back}/mode"), "w", "n1 r3"),
        (&format!("{libxl}/frontend"), front, "n0"),
        (&format!("{libxl}/backend"), back, "n0"),
        (&format!("{libxl}/mode"), "w", "n0"),
    ] {
        assert_eq!(scene.read(path), value, "{path}");
        assert_eq!(perms_of(&mut scene.tool, path), perms, "{path}");
    }
}

#[test]
fn a_frontend_closes_and_comes_back() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    // As a module that is unloaded and loaded again.
    let state = format!("{}/state", device().frontend_path());
    scene.front.1.leave(&mut scene.front.0, ID).unwrap();
    let closed = (Some(State::Closed), Some(State::Closed));
    scene.until("both ends to be closed", |scene| scene.states() == closed);
    assert_eq!((scene.host.mapped(), scene.host.offered()), (0, 0));
    scene.tool.write(state, "1").unwrap();
    scene.until_connected();
}

/// A toolstack that makes a guest anew replaces its devices, whatever their backend was about.
#[test]
fn a_device_that_is_made_anew_begins_anew() {
    let Some(mut scene) = Scene::new() else { return };
    let paths = [device().backend_path(), device().frontend_path()];
    let is_up = |scene: &mut Scene| {
        let state = |path| scene.tool.try_read(format!("{path}/state")).unwrap();
        paths.iter().map(state).all(|state| state.as_deref() == Some(b"4"))
    };
    toolstack::add(&mut scene.tool, &device()).unwrap();
    let (store, bus) = &mut scene.back;
    let end = Instant::now() + PATIENCE;
    while bus.state(ID) != Some(State::InitWait) {
        assert!(Instant::now() < end, "the backend does not offer the device");
        turn(store, bus, &mut scene.log);
    }
    // Nobody has told the backend that the frontend is another: there was none yet.
    toolstack::add(&mut scene.tool, &device()).unwrap();
    scene.until("the second one", is_up);
    toolstack::add(&mut scene.tool, &device()).unwrap();
    scene.until("one in place of a device in use", is_up);
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    toolstack::add(&mut scene.tool, &device()).unwrap();
    scene.until("one in place of a device that was to go", is_up);
    // It is made anew and is to go before its backend, which has closed it, looks again.
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    let closed = |scene: &mut Scene| scene.back.1.state(ID) == Some(State::Closed);
    scene.until("the backend to close", closed);
    toolstack::add(&mut scene.tool, &device()).unwrap();
    toolstack::detach(&mut scene.tool, &device()).unwrap();
    let path = format!("{}/state", device().backend_path());
    scene.until("the backend to say so once more", |scene| scene.read(&path) == "6");
}

/// A backend that serves devices without a `type`, and shows the frontend what it has found.
struct Choosy;

impl Driver for Choosy {
    fn serves(&mut self, device: &mut Device<'_>) -> Result<bool, Error> {
        Ok(device.theirs("type")?.is_none())
    }

    fn open(&mut self, device: &mut Device<'_>) -> Result<Progress, Error> {
        let mut found = String::from_utf8(device.of_their_domain("name")?.unwrap()).unwrap();
        for node in ["kept", "theirs", "anyone", "absent"] {
            found += if device.own_is_guarded(node)? { " guarded" } else { " open" };
        }
        device.show("found", &found)?;
        device.show("fixed", "new")?;
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Pending)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        Progress::Done
    }
}

/// Lets the bus act until the backend of the device is in InitWait.
fn until_offered(store: &mut Client, bus: &mut Bus<Choosy>) {
    let (end, mut log) = (Instant::now() + PATIENCE, Vec::new());
    while bus.state(ID) != Some(State::InitWait) {
        assert!(Instant::now() < end, "the backend does not offer the device: {log:?}");
        turn(store, bus, &mut log);
    }
}

fn perms_of(store: &mut Client, path: &str) -> String {
    let perms: Vec<String> =
        store.get_perms(path).unwrap().iter().map(ToString::to_string).collect();
    perms.join(" ")
}

#[test]
fn a_device_for_another_program_is_left_alone_until_it_is_for_this_one() {
    let Some(scene) = Scene::new() else { return };
    let (mut store, mut tool) = (Client::connect(scene.back.0.endpoint()).unwrap(), scene.tool);
    let mut bus = Bus::start(&mut store, Side::Backend, DomId::DOM0, "choosy", |_| Choosy).unwrap();
    tool.write("/local/domain/3/name", "web").unwrap();
    let mut device = NewDevice::new("choosy", ID, DomId::DOM0);
    device.frontend_nodes = vec![("type".into(), "other".into())];
    let other = NewDevice::new("choosy", Id { devid: 8, ..ID }, DomId::DOM0);
    toolstack::add(&mut tool, &device).unwrap();
    toolstack::add(&mut tool, &other).unwrap();
    let (front, back) = (device.frontend_path(), device.backend_path());
    let (end, mut log) = (Instant::now() + PATIENCE, Vec::new());
    while bus.state(other.id).is_none() {
        assert!(Instant::now() < end, "{log:?}");
        turn(&mut store, &mut bus, &mut log);
    }
    for state in ["3", "4", "5", "6", "1"] {
        tool.write(format!("{front}/state"), state).unwrap();
        tool.write(format!("{back}/state"), "4").unwrap();
        turn(&mut store, &mut bus, &mut log);
        assert_eq!(bus.ids().collect::<Vec<_>>(), [other.id], "{log:?}");
        assert_eq!(tool.read(format!("{back}/state")).unwrap(), b"4");
        assert!(!tool.exists(format!("{back}/error")).unwrap());
    }
    tool.rm(format!("{front}/type")).unwrap();
    tool.write(format!("{back}/state"), "1").unwrap();
    until_offered(&mut store, &mut bus);
    assert!(tool.exists(format!("{front}/found")).unwrap());
}

#[test]
fn what_is_shown_to_a_frontend_stays_as_it_was_written() {
    let Some(scene) = Scene::new() else { return };
    let (mut store, mut tool) = (Client::connect(scene.back.0.endpoint()).unwrap(), scene.tool);
    tool.write("/local/domain/3/name", "web").unwrap();
    let mut device = NewDevice::new("choosy", ID, DomId::DOM0);
    device.frontend_fixed = vec![("fixed".into(), "old".into())];
    device.backend_nodes =
        ["kept", "theirs", "anyone"].map(|name| (name.into(), "x".into())).into();
    let (front, back) = (device.frontend_path(), device.backend_path());
    let perms = |words: &[&str]| -> Vec<xenstore::Perm> {
        words.iter().map(|word| xenstore::Perm::parse(word.as_bytes()).unwrap()).collect()
    };
    toolstack::add(&mut tool, &device).unwrap();
    tool.transaction(|tx| {
        tx.set_perms(format!("{back}/theirs"), &perms(&["n3"]))?;
        tx.set_perms(format!("{back}/anyone"), &perms(&["n0", "w4"]))?;
        // One that the frontend's domain could change is replaced.
        tx.write(format!("{front}/found"), "forged")?;
        tx.set_perms(format!("{front}/found"), &perms(&["n3", "r0"]))?;
        tx.set_perms(format!("{front}/fixed"), &perms(&["n0", "r3", "r4"]))
    })
    .unwrap();
    let mut bus = Bus::start(&mut store, Side::Backend, DomId::DOM0, "choosy", |_| Choosy).unwrap();
    until_offered(&mut store, &mut bus);
    let read = |tool: &mut Client, node: &str| tool.read(format!("{front}/{node}")).unwrap();
    assert_eq!(read(&mut tool, "found"), b"web guarded open open open");
    assert_eq!(perms_of(&mut tool, &format!("{front}/found")), "n0 r3");
    assert_eq!(read(&mut tool, "fixed"), b"new");
    assert_eq!(perms_of(&mut tool, &format!("{front}/fixed")), "n0 r3 r4");
}

/// A backend that needs several calls to give back its resources.
struct Holding {
    /// The number of calls that are still answered with pending.
    asks: Rc<Cell<u32>>,
}

impl Driver for Holding {
    fn open(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Pending)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        self.asks.set(self.asks.get().saturating_sub(1));
        if self.asks.get() == 0 { Progress::Done } else { Progress::Pending }
    }
}

/// A driver gives back what it holds, as an image that it has begun to open, before its successor is made.
#[test]
fn a_device_that_is_made_anew_waits_for_what_the_one_before_holds() {
    let Some(mut scene) = Scene::new() else { return };
    let (asks, made) = (Rc::new(Cell::new(3)), Rc::new(Cell::new(0)));
    let make = {
        let (asks, made) = (Rc::clone(&asks), Rc::clone(&made));
        move |_| {
            made.set(made.get() + 1);
            Holding { asks: Rc::clone(&asks) }
        }
    };
    let (store, _) = &mut scene.back;
    let mut bus = Bus::start(store, Side::Backend, DomId::DOM0, "holding", make).unwrap();
    let device = NewDevice::new("holding", ID, DomId::DOM0);
    toolstack::add(&mut scene.tool, &device).unwrap();
    let (end, mut log) = (Instant::now() + PATIENCE, Vec::new());
    let mut turn = |bus: &mut Bus<Holding>| {
        assert!(Instant::now() < end, "{log:?}");
        while let Some(event) = store.poll_event().unwrap() {
            let _ = bus.take(store, &event).unwrap();
        }
        if bus.waits(ID) {
            bus.look_again(store, ID).unwrap();
        }
        log.extend(bus.take_news());
    };
    while bus.state(ID) != Some(State::InitWait) {
        turn(&mut bus);
    }
    // The frontend is ready: the backend is asked to connect, and holds something from then on.
    let state = format!("{}/state", device.frontend_path());
    scene.tool.write(state, "3").unwrap();
    while !bus.waits(ID) {
        turn(&mut bus);
    }
    assert_eq!((made.get(), asks.get()), (1, 3));
    toolstack::add(&mut scene.tool, &device).unwrap();
    while made.get() < 2 {
        assert!(asks.get() > 0, "its successor is made when it is asked for the last time");
        turn(&mut bus);
    }
    assert_eq!(asks.get(), 0);
}

/// A crash kernel: nobody has closed anything.
#[test]
fn a_frontend_dies_midway_and_another_takes_its_place() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let mut store = Client::connect(scene.front.0.endpoint()).unwrap();
    let bus = front_bus(&scene.host, &mut store);
    scene.front = (store, bus);
    scene.until_connected();
    assert_eq!((scene.host.mapped(), scene.host.offered()), (1, 1));
}

#[test]
fn a_backend_that_ends_is_closed_and_opened_by_its_successor() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let mut store = Client::connect(scene.back.0.endpoint()).unwrap();
    let bus = back_bus(&scene.host, &mut store);
    scene.back = (store, bus);
    // The greeter cannot take over a page in use, and says so.
    let (_, back) = (scene.log.clear(), device().backend_path());
    scene.until("the backend to give it up", |scene| scene.states().1 == Some(State::Closed));
    assert!(scene.read(&format!("{back}/error")).contains("a process that has ended"));
}

#[test]
fn a_move_that_makes_no_sense_is_said_so_once() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let state = format!("{}/state", device().frontend_path());
    for illegal in ["2", " 2", "02", "2\n"] {
        scene.tool.write(&state, illegal).unwrap();
    }
    let errors = |scene: &Scene| scene.log.iter().filter(|line| line.contains("error")).count();
    scene.until("the backend to complain", |scene| errors(scene) > 0);
    scene.tool.write(&state, " 4\n").unwrap();
    scene.until_connected();
    assert_eq!(errors(&scene), 1, "{:?}", scene.log);
    let back = device().backend_path();
    let error = scene.read(&format!("{back}/error"));
    let own = State::Connected;
    let illegal = IllegalMove { side: Side::Backend, own, peer: State::InitWait };
    assert_eq!(error, format!("22 {}", Error::Illegal(illegal)));
    assert_eq!(scene.read(&path::error(DomId::DOM0, &back)), error);
}

#[test]
fn a_frontend_whose_state_is_none_is_let_go_and_may_come_back() {
    let Some(mut scene) = Scene::new() else { return };
    let state = format!("{}/state", device().frontend_path());
    scene.connect();
    for garbage in ["99", "x", "", "0", "+4"] {
        scene.log.clear();
        scene.tool.write(&state, garbage).unwrap();
        scene.until("the backend to close", |scene| scene.log.iter().any(|line| line == "back 6"));
        scene.until_connected();
        assert!(!scene.log.iter().any(|line| line.contains("error")), "{:?}", scene.log);
    }
}

#[test]
fn a_frontend_that_names_no_page_is_refused_with_its_path() {
    let Some(mut scene) = Scene::new() else { return };
    toolstack::add(&mut scene.tool, &device()).unwrap();
    let front = device().frontend_path();
    for (node, value) in [("ring-ref", "-1"), ("event-channel", "5"), ("state", "3")] {
        scene.tool.write(format!("{front}/{node}"), value).unwrap();
    }
    let mut log = Vec::new();
    let end = Instant::now() + PATIENCE;
    while scene.back.1.state(ID) != Some(State::Closing) {
        turn(&mut scene.back.0, &mut scene.back.1, &mut log);
        assert!(Instant::now() < end, "waited for the backend to close: {log:?}");
    }
    let error = scene.read(&format!("{}/error", device().backend_path()));
    assert_eq!(
        error,
        format!("22 {front}/ring-ref is \"-1\"; a decimal number in range is needed")
    );
}

/// A frontend that goes round and round without ever being connected is given up.
#[test]
fn a_frontend_that_flaps_is_given_up() {
    let Some(mut scene) = Scene::new() else { return };
    toolstack::add(&mut scene.tool, &device()).unwrap();
    let state = format!("{}/state", device().frontend_path());
    let mut log = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !log.iter().any(|line: &String| line.contains("began anew")) {
        for value in ["5", "6", "1"] {
            scene.tool.write(&state, value).unwrap();
            turn(&mut scene.back.0, &mut scene.back.1, &mut log);
        }
        assert!(Instant::now() < end, "waited for the backend to give up: {log:?}");
        assert!(log.len() < 100, "{log:?}");
    }
}

/// `online` alone going to 0, without a state beside it, takes a device away.
#[test]
fn a_device_that_goes_offline_closes() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    scene.tool.write(format!("{}/online", device().backend_path()), "0").unwrap();
    let closed = (Some(State::Closed), Some(State::Closed));
    scene.until("both ends to close", |scene| scene.states() == closed);
    assert_eq!((scene.host.mapped(), scene.host.offered()), (0, 0));
}

/// An error that comes when the device is gone already does not bring its nodes back.
#[test]
fn the_error_of_a_device_that_is_gone_is_not_written() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let back = device().backend_path();
    toolstack::forget(&mut scene.tool, &device()).unwrap();
    let error = Error::Driver("too late".into());
    scene.back.1.fail(&mut scene.back.0, ID, error).unwrap();
    scene.until("both ends to forget it", |scene| scene.states() == (None, None));
    assert!(!scene.tool.exists(&back).unwrap());
    assert!(!scene.tool.exists(path::error(DomId::DOM0, &back)).unwrap());
}

#[test]
fn a_domain_that_dies_is_let_go() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    let mut log = Vec::new();
    scene.tool.rm(device().frontend_path()).unwrap();
    let end = Instant::now() + PATIENCE;
    while scene.back.1.state(ID) != Some(State::Closed) {
        turn(&mut scene.back.0, &mut scene.back.1, &mut log);
        assert!(Instant::now() < end, "waited for the backend to let go: {log:?}");
    }
    assert_eq!(scene.host.mapped(), 0);
    scene.tool.rm(device().backend_path()).unwrap();
    while scene.back.1.state(ID).is_some() {
        turn(&mut scene.back.0, &mut scene.back.1, &mut log);
        assert!(Instant::now() < end, "waited for the backend to forget it: {log:?}");
    }
}

/// After a migration the tree is new: the toolstack has made the device again, with another backend.
#[test]
fn a_domain_resumes_with_another_backend() {
    let Some(mut scene) = Scene::new() else { return };
    scene.connect();
    toolstack::add(&mut scene.tool, &device()).unwrap();
    let mut store = Client::connect(scene.back.0.endpoint()).unwrap();
    let bus = back_bus(&scene.host, &mut store);
    scene.back = (store, bus);
    while scene.front.0.poll_event().unwrap().is_some() {}
    scene.front.1.resume(&mut scene.front.0).unwrap();
    scene.until_connected();
    assert_eq!((scene.host.mapped(), scene.host.offered(), scene.host.ports()), (1, 1, 2));
}
