//! A device is reconfigured while it is connected, over a real store.

use conformance::{Daemon, DaemonKind, Options};
use std::time::{Duration, Instant};
use xen::DomId;
use xenbus::bus::DeviceEvent;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Device, Driver, Error, Id, Progress, Side, State};
use xenstore::{Client, Store};

const PATIENCE: Duration = Duration::from_secs(10);
const ID: Id = Id { frontend: DomId(3), devid: 0 };

/// Either end of a device without rings; it writes its next state when it is reconfigured.
struct Plain;

impl Driver for Plain {
    fn open(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn connect(&mut self, _: &mut Device<'_>) -> Result<Progress, Error> {
        Ok(Progress::Done)
    }

    fn reconfigure(&mut self, device: &mut Device<'_>, next: State) -> Result<Progress, Error> {
        device.put(format!("went-to-{}", next as u8), 1);
        Ok(Progress::Done)
    }

    fn release(&mut self, _: &mut Device<'_>) -> Progress {
        Progress::Done
    }
}

/// The order of Linux's pcifront and pciback, begun by the toolstack as `xl pci-attach` does.
#[test]
fn both_ends_go_through_the_states_of_pci() {
    let options = Options { everybody: true, ..Options::default() };
    let Some(daemon) = Daemon::start_with(DaemonKind::Ours, &options) else { return };
    let client = || Client::connect(daemon.socket()).unwrap();
    let (mut tool, mut front_store, mut back_store) = (client(), client(), client());
    tool.introduce(ID.frontend.0, 1, 1).unwrap();
    let start = |store: &mut Client, side, domid| Bus::start(store, side, domid, "pci", |_| Plain);
    let mut front = start(&mut front_store, Side::Frontend, ID.frontend).unwrap();
    let mut back = start(&mut back_store, Side::Backend, DomId::DOM0).unwrap();
    let device = NewDevice::new("pci", ID, DomId::DOM0);
    toolstack::add(&mut tool, &device).unwrap();
    let mut log = Vec::new();
    let mut until = |wanted: &[&str]| {
        let end = Instant::now() + PATIENCE;
        while log != wanted {
            for (bus, store) in [(&mut front, &mut front_store), (&mut back, &mut back_store)] {
                while let Some(event) = store.poll_event().unwrap() {
                    bus.take(store, &event).unwrap();
                }
            }
            for (side, news) in [("front", front.take_news()), ("back", back.take_news())] {
                log.extend(news.into_iter().map(|news| match news.event {
                    DeviceEvent::State(state) => format!("{side} {}", state as u8),
                    other => format!("{side} {other:?}"),
                }));
            }
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {wanted:?}: {log:?}");
        }
        log.clear();
    };
    until(&["back 2", "front 3", "back 4", "front 4"]);
    for _ in 0..2 {
        tool.write(format!("{}/state", device.backend_path()), "7").unwrap();
        until(&["front 7", "back 8", "front 4", "back 4"]);
    }
    for (path, nodes) in [
        (device.frontend_path(), ["went-to-7", "went-to-4"]),
        (device.backend_path(), ["went-to-8", "went-to-4"]),
    ] {
        for node in nodes {
            assert!(tool.exists(format!("{path}/{node}")).unwrap(), "{path}: {node}");
        }
    }
}
