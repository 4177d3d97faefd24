//! Devices of a kind for which xb has no word and no daemon: attached, detached, and removed with
//! their domain.

use super::support::{TestHost, WITHIN};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use xb::devices::{self, AttachableDevice, Force};
use xb::host::folder::Folder;
use xb::host::{Host as Opened, HostChoice};
use xb::wait::Limit;
use xen::DomId;
use xenbus::toolstack::NewDevice;
use xenbus::{Bus, Driver, Error, Id, Progress, Side, State};
use xenstore::Client;

const KIND: &str = "adder";
/// The number of a device that its backend does not serve.
const BROKEN: u32 = 7;
/// A time that is long enough to see that an event does not happen.
const SHORT: Duration = Duration::from_millis(300);

/// An end of an adder that adds nothing.
struct PlainEnd {
    id: Id,
    busy: Arc<AtomicBool>,
}

impl Driver for PlainEnd {
    fn open(&mut self, _: &mut xenbus::Device<'_>) -> Result<Progress, Error> {
        if self.id.devid == BROKEN {
            return Err(Error::Driver("it has lost its numbers".into()));
        }
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut xenbus::Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn closing(&mut self, _: &mut xenbus::Device<'_>) -> Progress {
        if self.busy.load(Ordering::SeqCst) { Progress::Pending } else { Progress::Done }
    }

    fn release(&mut self, _: &mut xenbus::Device<'_>) -> Progress {
        Progress::Done
    }
}

/// One end of all adders of a domain, played by a thread.
struct Player {
    busy: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Player {
    fn start(host: &TestHost, side: Side, domid: DomId) -> Self {
        let (busy, ends) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (of_drivers, told, path) = (busy.clone(), ends.clone(), host.path("h/store"));
        let play = move || {
            let mut store = Client::connect(path).unwrap();
            let make = move |id| PlainEnd { id, busy: of_drivers.clone() };
            let mut bus = Bus::start(&mut store, side, domid, KIND, make).unwrap();
            while !told.load(Ordering::SeqCst) {
                if let Some(event) = store.next_event(Some(Duration::from_millis(20))).unwrap() {
                    bus.take(&mut store, &event).unwrap();
                }
                let waiting: Vec<Id> = bus.ids().filter(|id| bus.waits(*id)).collect();
                for id in waiting {
                    bus.look_again(&mut store, id).unwrap();
                }
            }
        };
        Self { busy, ends, thread: Some(std::thread::spawn(play)) }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let played = self.thread.take().unwrap().join();
        assert!(played.is_ok() || std::thread::panicking());
    }
}

fn limit() -> Limit {
    Limit::new(WITHIN)
}

fn adder(frontend: DomId, devid: u32) -> AttachableDevice {
    AttachableDevice::new(NewDevice::new(KIND, Id { frontend, devid }, DomId::DOM0))
}

/// Makes a host with a guest that has no disk, and opens the host with the library.
fn scene(test: &str) -> (TestHost, Opened, DomId) {
    let host = TestHost::up(test);
    let config = host.config("web", "extra = \"exec sleep 1000\"");
    let domid = host.json(&["create", &config])["domid"].as_u64().unwrap();
    let opened = Opened::open(HostChoice::Hosted(Folder::new(&host.path("h")))).unwrap();
    (host, opened, DomId(domid.try_into().unwrap()))
}

/// Checks that no node of an adder exists. The folders above stay with the domain, and its
/// frontend's errors.
fn no_adder_is_left(host: &TestHost) {
    let is_left = |node: &str| node.contains("/adder/") && !node.contains("/error/device/");
    let nodes = host.nodes();
    let left: Vec<_> = nodes.iter().filter(|node| is_left(node)).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_device_of_another_kind_is_attached_and_detached() {
    let (host, mut opened, domid) = scene("kind");
    let _back = Player::start(&host, Side::Backend, DomId::DOM0);
    let (first, broken) = (adder(domid, 0), adder(domid, BROKEN));
    let refused = |done: Result<(), xb::Error>, words: &str| {
        let said = done.unwrap_err().to_string();
        assert_eq!(said.find(words), Some(0), "{said}");
        assert!(!said.contains(" disk ") && !said.contains("detach"), "it is no disk: {said}");
        said
    };

    let connects =
        format!("device adder 0 of domain {domid} connects (frontend Initialising (1), ");
    let said = refused(devices::attach(&mut opened, &first, Limit::new(SHORT)), &connects);
    assert!(said.contains("): not within "), "{said}");
    let said = refused(devices::attach(&mut opened, &broken, limit()), "device adder 7: ");
    assert!(said.ends_with("it has lost its numbers"), "{said}");
    no_adder_is_left(&host);

    let front = Player::start(&host, Side::Frontend, domid);
    devices::attach(&mut opened, &first, limit()).unwrap();
    refused(
        devices::add(&mut opened.store, &first),
        &format!("domain {domid} has a device adder 0 already"),
    );
    let listed = devices::list_of_kind(&mut opened.store, domid, KIND).unwrap();
    let states: Vec<_> = listed.iter().map(|device| (device.front, device.back)).collect();
    assert_eq!(states, [(State::Connected, State::Connected)]);
    assert_eq!(host.json(&["disk", "list", "web"]), json!([]), "it is no disk");

    front.busy.store(true, Ordering::SeqCst);
    refused(
        devices::detach(&mut opened, first.nodes(), Force::Ask, limit()),
        &format!("device adder 0 of domain {domid}: "),
    );
    devices::detach(&mut opened, first.nodes(), Force::Take, Limit::new(SHORT)).unwrap();
    no_adder_is_left(&host);

    front.busy.store(false, Ordering::SeqCst);
    devices::attach(&mut opened, &first, limit()).unwrap();
    devices::detach(&mut opened, first.nodes(), Force::Ask, limit()).unwrap();
    no_adder_is_left(&host);
}

#[test]
fn devices_of_every_kind_go_with_their_domain() {
    let (host, mut opened, domid) = scene("kinds");
    let _back = Player::start(&host, Side::Backend, DomId::DOM0);
    let _front = Player::start(&host, Side::Frontend, domid);
    for devid in 0..2 {
        devices::attach(&mut opened, &adder(domid, devid), limit()).unwrap();
    }
    host.ok(&["disk", "attach", "web", "vdev=xvda,target=memory:1048576"]);
    let mut listed = devices::list(&mut opened.store, domid).unwrap();
    listed.sort_by_key(|device| (device.kind.clone(), device.id.devid));
    let listed: Vec<_> =
        listed.iter().map(|device| (device.kind.as_str(), device.id.devid)).collect();
    assert_eq!(listed, [("adder", 0), ("adder", 1), ("vbd", 51712)]);
    host.ok(&["destroy", "web"]);
    assert!(devices::list(&mut opened.store, domid).unwrap().is_empty());
    no_adder_is_left(&host);
}
