//! A guest's frontend and this crate's backend on one machine without Xen: a real store, granted
//! pages on the heap, both ends in one thread.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use conformance::{Daemon, DaemonKind, Options as DaemonOptions};
use loopback::Host;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen::evtchn::EventChannels;
use xen_block::back::{self, OpenDisk, OpenMethod};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target;
use xen_block::front::{self, BlockFrontend, Buffer, BufferSectors, Completion, DiskRequest};
use xen_block::{BlockBackend, BlockServer};
use xen_io::blkif::{Layout, Status};
use xenbus::bus::DeviceEvent;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Id, Side, State};
use xenstore::{Client, Store};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const GUEST: DomId = DomId(3);
pub const ID: Id = Id { frontend: GUEST, devid: 51712 };

/// The setup of the two ends.
pub struct Setup {
    pub back: back::Options,
    pub front: front::Options,
    pub layout: Layout,
    pub open: OpenMethod,
}

impl Setup {
    /// Returns the usual setup, with this disk.
    pub fn new(open: Box<OpenDisk>) -> Self {
        let (back, front) = (back::Options::default(), front::Options::default());
        Self { back, front, layout: Layout::NATIVE, open: open.into() }
    }

    /// Returns the usual setup, with the disk that the nodes name, as `xen-blockd` opens it.
    pub fn named() -> Self {
        let (back, front) = (back::Options::default(), front::Options::default());
        Self {
            back,
            front,
            layout: Layout::NATIVE,
            open: OpenMethod::Aside(Box::new(|device| target::job(device, &ImageDirs::default()))),
        }
    }
}

/// Opens a disk that is not in use any more; if that is refused, it is tried again for two seconds.
/// A process that another test starts has, until it runs its program, all files that are open in
/// this one, and so the locks of files that were closed here meanwhile.
pub fn once_free<T, E>(open: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match open() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened,
        }
    }
}

pub struct Scene {
    pub host: Host,
    pub daemon: Daemon,
    pub tool: Client,
    pub server: BlockServer,
    pub front_store: Client,
    pub bus: Bus<BlockFrontend>,
    pub front_evtchn: Rc<RefCell<loopback::evtchn::Channels>>,
    pub log: Vec<String>,
    /// The errors of the backend, the oldest first.
    pub back_errors: Vec<xenbus::Error>,
    next_tag: u64,
}

pub fn device() -> NewDevice {
    let mut device = NewDevice::new("vbd", ID, DomId::DOM0);
    device.frontend_nodes = vec![("virtual-device".into(), ID.devid.to_string())];
    device.backend_nodes = vec![("mode".into(), "w".into()), ("dev".into(), "xvda".into())];
    device
}

pub fn server(
    host: &Host,
    daemon: &Daemon,
    options: back::Options,
    open: impl Into<OpenMethod>,
) -> BlockServer {
    server_at(host, &daemon.socket(), options, open)
}

pub fn server_at(
    host: &Host,
    socket: &Path,
    options: back::Options,
    open: impl Into<OpenMethod>,
) -> BlockServer {
    let evtchn = Rc::new(RefCell::new(host.evtchn(DomId::DOM0)));
    let grants = Rc::new(RefCell::new(host.gnttab(DomId::DOM0)));
    let open = open.into();
    let platform = back::BackendContext { evtchn, grants, open, options };
    let store = Client::connect(socket).unwrap();
    back::serve(store, DomId::DOM0, &["vbd"], platform).unwrap()
}

impl Scene {
    /// Creates both ends, and adds the device; neither end has had a turn. `None` if there is no
    /// daemon.
    pub fn new(setup: Setup) -> Option<Self> {
        let options = DaemonOptions { everybody: true, ..DaemonOptions::default() };
        let daemon = Daemon::start_with(DaemonKind::Ours, &options)?;
        let host = Host::new();
        let mut tool = Client::connect(daemon.socket()).unwrap();
        tool.introduce(GUEST.0, 1, 1).unwrap();
        let server = server(&host, &daemon, setup.back, setup.open);
        let mut front_store = Client::connect(daemon.socket()).unwrap();
        let front_evtchn = Rc::new(RefCell::new(host.evtchn(GUEST)));
        let platform = Rc::new(front::FrontendContext {
            evtchn: Rc::clone(&front_evtchn) as _,
            grants: Rc::new(RefCell::new(host.gnttab(GUEST))),
            options: setup.front,
        });
        let layout = setup.layout;
        let make = move |_| BlockFrontend::new(Rc::clone(&platform)).with_layout(layout);
        let bus = Bus::start(&mut front_store, Side::Frontend, GUEST, "vbd", make).unwrap();
        toolstack::add(&mut tool, &device()).unwrap();
        Some(Self {
            host,
            daemon,
            tool,
            server,
            front_store,
            bus,
            front_evtchn,
            log: Vec::new(),
            back_errors: Vec::new(),
            next_tag: 0,
        })
    }

    /// Creates both ends, and waits until they are connected.
    pub fn connected(setup: Setup) -> Option<Self> {
        let mut scene = Self::new(setup)?;
        scene.until_connected();
        Some(scene)
    }

    pub fn until_connected(&mut self) {
        self.until("both ends to be connected", |scene| {
            scene.states() == (Some(State::Connected), Some(State::Connected))
        });
    }

    pub fn states(&mut self) -> (Option<State>, Option<State>) {
        (self.bus.state(ID), self.back_bus().state(ID))
    }

    /// Returns the bus of the backends.
    pub fn back_bus(&mut self) -> &mut Bus<BlockBackend> {
        self.server.bus("vbd").expect("the kind that is served")
    }

    pub fn front(&mut self) -> &mut BlockFrontend {
        self.bus.driver(ID).expect("the device is there")
    }

    fn note(&mut self, side: &str, what: &DeviceEvent) {
        self.log.push(match what {
            DeviceEvent::State(state) => format!("{side} {}", *state as u8),
            DeviceEvent::Error(error) => format!("{side} error: {error}"),
            other => format!("{side} {other:?}"),
        });
    }

    /// Gives both ends a turn.
    pub fn turn(&mut self) {
        while let Some(event) = self.front_store.poll_event().unwrap() {
            self.bus.take(&mut self.front_store, &event).unwrap();
        }
        for news in self.bus.take_news() {
            self.note("front", &news.event);
        }
        for news in self.server.turn(Duration::ZERO).unwrap() {
            self.note("back", &news.event);
            if let DeviceEvent::Error(error) = news.event {
                self.back_errors.push(error);
            }
        }
        let mut evtchn = self.front_evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().unwrap() {
            evtchn.unmask(port).unwrap();
        }
    }

    /// Waits until the frontend is connected to a backend in another thread.
    pub fn until_front_connected(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.bus.state(ID) != Some(State::Connected) {
            if let Some(event) = self.front_store.next_event(Some(PATIENCE)).unwrap() {
                self.bus.take(&mut self.front_store, &event).unwrap();
            }
            assert!(Instant::now() < end, "waited {PATIENCE:?} for the frontend to be connected");
        }
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}: {:?}", self.log);
        }
    }

    /// Waits until the backend has the given state, with turns for the backend alone.
    pub fn until_back(&mut self, state: State) {
        self.until("the backend", |scene| scene.states().1 == Some(state));
    }

    /// Makes one request and waits for the answer.
    pub fn ask(
        &mut self,
        want: impl FnOnce(u64) -> DiskRequest,
        parts: &[BufferSectors],
    ) -> Status {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.front().submit(0, want(tag), parts).unwrap();
        self.front().push().unwrap();
        let mut status = None;
        self.until("an answer", |scene| {
            let take = |done: Completion| {
                assert_eq!(done.tag, tag);
                status = Some(done.status);
            };
            scene.front().take(take).unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn buffers(&mut self, count: usize) -> Vec<Buffer> {
        (0..count).map(|_| self.front().take_buffer().unwrap()).collect()
    }

    fn fill(&mut self, buffers: &[Buffer], bytes: &[u8]) {
        for (buffer, part) in buffers.iter().zip(bytes.chunks(4096)) {
            self.front().page(*buffer).unwrap().copy_in(0, part).unwrap();
        }
    }

    /// Writes whole pages, and returns the answer.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> Status {
        let buffers = self.buffers(bytes.len().div_ceil(4096));
        self.fill(&buffers, bytes);
        let parts: Vec<BufferSectors> = buffers.iter().copied().map(BufferSectors::whole).collect();
        let status = self.ask(|tag| DiskRequest::Write { tag, sector }, &parts);
        buffers.into_iter().for_each(|buffer| self.front().give_back(buffer));
        status
    }

    /// Reads whole pages.
    pub fn read(&mut self, sector: u64, pages: usize) -> Result<Vec<u8>, Status> {
        let buffers = self.buffers(pages);
        let parts: Vec<BufferSectors> = buffers.iter().copied().map(BufferSectors::whole).collect();
        let status = self.ask(|tag| DiskRequest::Read { tag, sector }, &parts);
        let mut bytes = vec![0; pages * 4096];
        for (buffer, part) in buffers.iter().zip(bytes.chunks_mut(4096)) {
            self.front().page(*buffer).unwrap().copy_out(0, part).unwrap();
        }
        buffers.into_iter().for_each(|buffer| self.front().give_back(buffer));
        if status == Status::Okay { Ok(bytes) } else { Err(status) }
    }

    pub fn node(&mut self, path: &str) -> String {
        String::from_utf8(self.tool.read(path).unwrap()).unwrap()
    }
}
