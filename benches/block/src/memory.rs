//! The memory of a backend with many connected disks.
//!
//! A process of its own holds the backend and its frontends. The frontends' memory counts too, but
//! the pages that they have granted are subtracted. Each disk has done reads of 128 KiB, 16 in
//! flight, before the memory is measured.

use crate::Result;
use crate::ring::WITHIN;
use crate::support::{self, GUEST};
use crate::table::Format;
use conformance::{Daemon, DaemonKind};
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::DomId;
use xen_block::BlockServer;
use xen_block::back::{self, OpenMethod};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target;
use xen_block::front::{self, BlockFrontend, BufferSectors, DiskRequest};
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Id, Side, State};
use xenstore::Client;

/// The argument that starts this program as the measured process.
pub(crate) const PROCESS: &str = "--memory-process";
/// Requests of each disk.
const REQUESTS: usize = 16;
/// Pages of each request.
const PAGES: usize = 32;

/// Returns the bytes of a backend of `disks` copies of `image`.
pub(crate) fn measure(image: &Path, format: Format, disks: usize) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .arg(PROCESS)
        .args([image.as_os_str(), format.name().as_ref(), disks.to_string().as_ref()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse() {
        Ok(bytes) if output.status.success() => Ok(bytes),
        _ => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Runs the measured process, which prints its own memory in bytes.
pub(crate) fn process(image: &str, format: &str, disks: &str) -> Result<()> {
    let daemon = Daemon::start_with(
        DaemonKind::Ours,
        &conformance::Options { everybody: true, ..Default::default() },
    );
    let daemon = daemon.ok_or("there is no store to be had")?;
    let host = loopback::Host::new();
    let mut tool = Client::connect(daemon.socket())?;
    tool.introduce(GUEST.0, 1, 1)?;
    let (options, open) = (
        back::Options::default(),
        OpenMethod::Aside(Box::new(|device| target::job(device, &ImageDirs::default()))),
    );
    let server = support::server_at(&host, &daemon.socket(), options, open);
    let mut store = Client::connect(daemon.socket())?;
    let platform = Rc::new(front::FrontendContext {
        evtchn: Rc::new(RefCell::new(host.evtchn(GUEST))),
        grants: Rc::new(RefCell::new(host.gnttab(GUEST))),
        options: front::Options::default(),
    });
    let make = move |_| BlockFrontend::new(Rc::clone(&platform));
    let bus = Bus::start(&mut store, Side::Frontend, GUEST, "vbd", make)?;
    let disks: u32 = disks.parse()?;
    let ids: Vec<Id> =
        (0..disks).map(|disk| Id { frontend: GUEST, devid: 51712 + 16 * disk }).collect();
    for id in &ids {
        let copy = format!("{image}-{}", id.devid);
        std::fs::copy(image, &copy)?;
        let mut device = NewDevice::new("vbd", *id, DomId::DOM0);
        device.frontend_nodes = vec![("virtual-device".into(), id.devid.to_string())];
        device.backend_nodes =
            vec![("mode".into(), "w".into()), ("params".into(), format!("{format}:{copy}"))];
        toolstack::add(&mut tool, &device)?;
    }
    let mut guests = MemoryBench { server, store, bus };
    guests.until("all disks to be connected", |bus| {
        ids.iter().all(|id| bus.state(*id) == Some(State::Connected))
    })?;
    for id in &ids {
        guests.read(*id)?;
    }
    let resident: usize = std::fs::read_to_string("/proc/self/statm")?
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .ok_or("/proc/self/statm has no second number")?;
    let beyond = resident.saturating_sub(host.offered());
    println!("{}", beyond * rustix::param::page_size());
    Ok(())
}

/// The frontends of the guests, and the backend.
struct MemoryBench {
    server: BlockServer,
    store: Client,
    bus: Bus<BlockFrontend>,
}

impl MemoryBench {
    fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Bus<BlockFrontend>) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + WITHIN;
        while !done(&mut self.bus) {
            while let Some(event) = self.store.poll_event()? {
                self.bus.take(&mut self.store, &event)?;
            }
            self.server.turn(Duration::ZERO)?;
            if Instant::now() > end {
                return Err(format!("waited {WITHIN:?} for {what}").into());
            }
        }
        Ok(())
    }

    fn read(&mut self, id: Id) -> Result<()> {
        let front = self.bus.driver(id).ok_or("the device is gone")?;
        for tag in 0..REQUESTS as u64 {
            let buffers = (0..PAGES).map(|_| front.take_buffer().map(BufferSectors::whole));
            let parts = buffers.collect::<Option<Vec<_>>>().ok_or("too few buffers")?;
            front.submit(0, DiskRequest::Read { tag, sector: tag * PAGES as u64 * 8 }, &parts)?;
        }
        front.push()?;
        let mut left = REQUESTS;
        self.until("the answers of a disk", |bus| {
            if let Some(front) = bus.driver(id) {
                let okay = xen_io::blkif::Status::Okay;
                let _ = front.take(|done| left -= usize::from(done.status == okay));
            }
            left == 0
        })
    }
}
