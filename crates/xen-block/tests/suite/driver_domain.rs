//! A disk that a driver domain serves. Backend and frontend each use the store's ring of their own
//! domain, so that the store gives them the rights of any guest, and no more.

use conformance::{Daemon, DaemonKind};
use loopback::Host;
use rustix::io::Errno;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::DomId;
use xen::evtchn::EventChannels;
use xen_block::BlockServer;
use xen_block::back;
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::{DiskAccess, target};
use xen_block::front::{self, BlockFrontend, BufferSectors, Completion, DiskRequest};
use xen_block::vbd::{Trust, Vbd};
use xen_driver::backend::rings;
use xen_io::blkif::Status;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Id, Side, State};
use xenstore::{Client, Perm, Store};

const PATIENCE: Duration = Duration::from_secs(30);
const DRIVER: DomId = DomId(1);
const GUEST: DomId = DomId(2);
const ID: Id = Id { frontend: GUEST, devid: 51712 };

/// Domain 0's toolstack, a driver domain and a guest.
struct Scene {
    host: Host,
    daemon: Daemon,
    tool: Client,
    server: BlockServer,
    guest: Option<GuestFrontends>,
}

/// The frontends of a guest.
struct GuestFrontends {
    store: Client,
    bus: Bus<BlockFrontend>,
    evtchn: Rc<RefCell<loopback::evtchn::Channels>>,
}

/// Creates the domain's nodes; returns its connection to the store.
fn domain(daemon: &Daemon, tool: &mut Client, domid: DomId) -> Client {
    let (page, channel) = testbed::guest::create(&daemon.guests(), domid).unwrap();
    tool.introduce(domid.0, 1, 1).unwrap();
    for (path, perms) in testbed::guest::nodes(domid) {
        let perms: Vec<Perm> =
            perms.iter().map(|perm| Perm::parse(perm.as_bytes()).unwrap()).collect();
        tool.write(&path, "").unwrap();
        tool.set_perms(&path, &perms).unwrap();
    }
    tool.write(format!("/local/domain/{domid}/domid"), domid.to_string()).unwrap();
    Client::over_ring(page, testbed::guest::STORE_PORT, Box::new(channel))
}

fn refusal(result: Result<impl Sized, xenstore::Error>) -> Option<Errno> {
    result.err().map(|error| Errno::from_raw_os_error(error.errno()))
}

impl Scene {
    fn new(record_dir: &Path) -> Option<Self> {
        let daemon = Daemon::start(DaemonKind::Ours)?;
        let host = Host::new();
        let mut tool = Client::connect(daemon.socket()).unwrap();
        let mut store = domain(&daemon, &mut tool, DRIVER);
        let guest = GuestFrontends::start(domain(&daemon, &mut tool, GUEST), &host);
        // A driver domain has only the rights of a guest.
        tool.write("/local/domain/2/data/secret", "").unwrap();
        assert_eq!(store.read("domid").unwrap(), DRIVER.to_string().as_bytes());
        assert_eq!(refusal(store.read("/local/domain/2/data")), Some(Errno::ACCESS));
        assert_eq!(refusal(store.write("/local/domain/0/backend/vbd", "")), Some(Errno::ACCESS));

        let rings = rings::RingOptions::recorded_in(record_dir);
        let options = back::Options { rings, ..back::Options::default() };
        let platform = back::BackendContext {
            evtchn: Rc::new(RefCell::new(host.evtchn(DRIVER))),
            grants: Rc::new(RefCell::new(host.gnttab(DRIVER))),
            open: back::OpenMethod::Aside(Box::new(|device| {
                target::job(device, &ImageDirs::default())
            })),
            options,
        };
        let server = back::serve(store, DRIVER, &["vbd"], platform).unwrap();
        Some(Self { host, daemon, tool, server, guest: Some(guest) })
    }

    fn states(&mut self) -> (Option<State>, Option<State>) {
        let front = self.guest.as_ref().and_then(|guest| guest.bus.state(ID));
        (front, self.server.bus("vbd").unwrap().state(ID))
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut log = Vec::new();
        while !done(self) {
            if let Some(guest) = &mut self.guest {
                log.extend(guest.turn());
            }
            log.extend(self.server.turn(Duration::from_millis(1)).unwrap());
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}: {log:#?}");
        }
    }

    fn until_states(&mut self, states: (Option<State>, Option<State>)) {
        self.until("both ends", |scene| scene.states() == states);
    }

    fn ask(&mut self, want: DiskRequest, part: BufferSectors) -> Status {
        let front = self.guest.as_mut().unwrap().bus.driver(ID).unwrap();
        front.submit(0, want, &[part]).unwrap();
        front.push().unwrap();
        let mut status = None;
        self.until("an answer", |scene| {
            let front = scene.guest.as_mut().unwrap().bus.driver(ID).unwrap();
            front.take(|done: Completion| status = Some(done.status)).unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Writes a page and reads it back.
    fn use_disk(&mut self, text: &[u8]) {
        let front = self.guest.as_mut().unwrap().bus.driver(ID).unwrap();
        let buffer = front.take_buffer().unwrap();
        front.page(buffer).unwrap().copy_in(0, text).unwrap();
        let write = DiskRequest::Write { tag: 1, sector: 8 };
        assert_eq!(self.ask(write, BufferSectors::whole(buffer)), Status::Okay);
        let front = self.guest.as_mut().unwrap().bus.driver(ID).unwrap();
        front.page(buffer).unwrap().copy_in(0, &[0; 4096]).unwrap();
        assert_eq!(
            self.ask(DiskRequest::Read { tag: 2, sector: 8 }, BufferSectors::whole(buffer)),
            Status::Okay
        );
        let front = self.guest.as_mut().unwrap().bus.driver(ID).unwrap();
        let mut read = vec![0; text.len()];
        front.page(buffer).unwrap().copy_out(0, &mut read).unwrap();
        assert_eq!(read, text);
        front.give_back(buffer);
    }
}

impl GuestFrontends {
    fn start(mut store: Client, host: &Host) -> Self {
        let evtchn = Rc::new(RefCell::new(host.evtchn(GUEST)));
        let platform = Rc::new(front::FrontendContext {
            evtchn: Rc::clone(&evtchn) as _,
            grants: Rc::new(RefCell::new(host.gnttab(GUEST))),
            options: front::Options::default(),
        });
        let make = move |_| BlockFrontend::new(Rc::clone(&platform));
        let bus = Bus::start(&mut store, Side::Frontend, GUEST, "vbd", make).unwrap();
        Self { store, bus, evtchn }
    }

    fn turn(&mut self) -> Vec<xenbus::bus::DeviceNews> {
        while let Some(event) = self.store.poll_event().unwrap() {
            self.bus.take(&mut self.store, &event).unwrap();
        }
        let mut evtchn = self.evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().unwrap() {
            evtchn.unmask(port).unwrap();
        }
        self.bus.take_news()
    }
}

/// Makes a folder with an image.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let image = std::fs::File::create(folder.path().join("image")).unwrap();
    image.set_len(1 << 20).unwrap();
    folder
}

/// Returns the device as `xl` adds it for `backend=DRIVER`.
fn device_of(image: &Path) -> NewDevice {
    let vbd = Vbd {
        frontend: GUEST,
        backend: DRIVER,
        backend_kind: "vbd".into(),
        vdev: "xvda".into(),
        target: image.to_str().unwrap().into(),
        access: DiskAccess::ReadWrite,
        trust: Trust::Untrusted,
    };
    vbd.device().unwrap()
}

#[test]
fn a_driver_domain_serves_a_disk_as_any_guest_may() {
    let folder = folder();
    let Some(mut scene) = Scene::new(folder.path()) else { return };
    let device = device_of(&folder.path().join("image"));
    assert_eq!(device.backend_path(), "/local/domain/1/backend/vbd/2/51712");
    let connected = (Some(State::Connected), Some(State::Connected));
    toolstack::add(&mut scene.tool, &device).unwrap();
    scene.until_states(connected);
    scene.use_disk(b"written by domain 2, kept by domain 1");
    let image = std::fs::read(folder.path().join("image")).unwrap();
    assert!(image[4096..].starts_with(b"written by domain 2"));
    // The frontend may read the backend's nodes, and nobody else but domain 0 may.
    let perms = scene.tool.get_perms(format!("{}/sectors", device.backend_path())).unwrap();
    let perms: Vec<String> = perms.iter().map(ToString::to_string).collect();
    assert_eq!(perms, ["n1", "r2"]);

    // The device is unplugged while it is connected.
    toolstack::detach(&mut scene.tool, &device).unwrap();
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
    toolstack::forget(&mut scene.tool, &device).unwrap();
    scene.until_states((None, None));
    assert_eq!((scene.host.mapped(), scene.host.offered(), scene.host.ports()), (0, 0, 0));

    // Another device replaces it. Then its frontend's domain dies, and no @releaseDomain announces
    // that to domain 1.
    toolstack::add(&mut scene.tool, &device).unwrap();
    scene.until_states(connected);
    scene.use_disk(b"once more");
    scene.guest = None;
    scene.daemon.destroy(GUEST.0);
    scene.tool.rm("/local/domain/2").unwrap();
    scene.until("the death to be noticed", |scene| scene.states().1 == Some(State::Closed));
    assert_eq!((scene.host.mapped(), scene.host.ports()), (0, 0));
    toolstack::forget(&mut scene.tool, &device).unwrap();
    scene.until_states((None, None));
    let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["image"], "no record is left");
}

#[test]
fn a_driver_domain_says_at_both_ends_why_it_serves_no_disk() {
    let folder = folder();
    let Some(mut scene) = Scene::new(folder.path()) else { return };
    let device = device_of(&folder.path().join("missing"));
    toolstack::add(&mut scene.tool, &device).unwrap();
    let nodes = [
        "/local/domain/1/backend/vbd/2/51712/error",
        "/local/domain/1/error/backend/vbd/2/51712/error",
        "/local/domain/2/device/vbd/51712/error",
        "/local/domain/2/error/device/vbd/51712/error",
    ];
    for node in nodes {
        scene.until(node, |scene| scene.tool.exists(node).unwrap());
        let said = String::from_utf8(scene.tool.read(node).unwrap()).unwrap();
        assert!(said.contains("missing: No such file"), "{node}: {said}");
    }
    scene.until("the backend to close", |scene| scene.states().1 == Some(State::Closed));
}
