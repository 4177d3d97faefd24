//! Frontend and backend of this project: grants and event channels within this process, a real store.

use crate::Result;
use crate::load::{DEPTH, Load, Meter, Order, Sectors, Throughput};
use crate::support::{self, Scene, Setup};
use rustix::event::{PollFd, PollFlags, poll};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use xen::evtchn::EventChannels;
use xen_block::back::{self, OpenDisk};
use xen_block::disk::image_dirs::ImageDirs;
use xen_block::disk::target::DiskTarget;
use xen_block::disk::{Disk, DiskAccess, DiskIo, Finished, Geometry};
use xen_block::front::export::Export;
use xen_block::front::{BufferSectors, DiskRequest};

/// The longest time that any operation outside of a measurement may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

/// A disk that completes each request at once.
#[derive(Debug)]
struct InstantDisk;

impl Disk for InstantDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: 1 << 21,
            sector_size: 512,
            physical_sector_size: 4096,
            access: DiskAccess::ReadWrite,
            discard_granularity: None,
        }
    }

    fn submit(&mut self, io: Box<DiskIo>) -> std::result::Result<Option<Finished>, Box<DiskIo>> {
        Ok(Some((io, Ok(()))))
    }
}

fn opens(target: DiskTarget) -> Box<OpenDisk> {
    Box::new(move |_| Ok(target.open(DiskAccess::ReadOnly, &ImageDirs::default())?))
}

/// A backend in a thread of its own, and a frontend that is connected to it.
struct BackendThread {
    scene: Scene,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl BackendThread {
    fn start(target: &DiskTarget, buffers: usize) -> Result<Self> {
        let mut setup = Setup::new(opens(target.clone()));
        setup.front.buffers = buffers;
        // The scene's own server is not used: the one of the thread serves instead.
        let mut scene = Scene::new(setup).ok_or("there is no store to be had")?;
        let (host, socket) = (scene.host.clone(), scene.daemon.socket());
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, target) = (Arc::clone(&stop), target.clone());
        let serving = std::thread::spawn(move || {
            let options = back::Options::default();
            let mut server = support::server_at(&host, &socket, options, opens(target));
            while !stopped.load(Ordering::Relaxed) {
                server.turn(Duration::from_millis(50)).expect("a store");
            }
        });
        scene.until_front_connected();
        Ok(Self { scene, stop, serving: Some(serving) })
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(serving) = self.serving.take() else { return Ok(()) };
        serving.join().map_err(|_| "the backend's thread has panicked".into())
    }
}

impl Drop for BackendThread {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Sleeps until the backend has notified.
fn wait(scene: &mut Scene) -> Result<()> {
    let mut evtchn = scene.front_evtchn.borrow_mut();
    let fd = PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN);
    if poll(&mut [fd], Some(&WITHIN.try_into()?))? == 0 {
        return Err(format!("waited {WITHIN:?} for an answer of the backend").into());
    }
    while let Some(port) = evtchn.pending()? {
        evtchn.unmask(port)?;
    }
    Ok(())
}

/// Reads through a connected frontend. `between` runs before the frontend looks at the ring again,
/// and gets the number of responses that were taken.
fn read_through(
    scene: &mut Scene,
    load: Load,
    time: Duration,
    mut between: impl FnMut(&mut Scene, usize) -> Result<()>,
) -> Result<Throughput> {
    let parts: Vec<BufferSectors> =
        scene.buffers(DEPTH * load.pages).into_iter().map(BufferSectors::whole).collect();
    let sectors = scene.front().info().ok_or("the device is not connected")?.sectors;
    let mut sectors = Sectors::new(load, sectors);
    let mut idle: Vec<u64> = (0..DEPTH as u64).collect();
    let (meter, mut count, mut wrong) = (Meter::start(time), 0, 0);
    while meter.running() {
        for _ in 0..64 {
            let front = scene.front();
            while let Some(tag) = idle.pop() {
                let want = DiskRequest::Read { tag, sector: sectors.next() };
                let at = tag as usize * load.pages;
                front.submit(0, want, &parts[at..at + load.pages])?;
            }
            front.push()?;
            let took = front.take(|done| {
                wrong += u64::from(done.status != xen_io::blkif::Status::Okay);
                idle.push(done.tag);
            })?;
            count += took as u64;
            between(scene, took)?;
        }
    }
    if wrong > 0 {
        return Err(format!("{wrong} reads of {count} have failed").into());
    }
    Ok(meter.throughput(count))
}

/// Reads through a frontend in this thread and a backend in another.
pub(crate) fn read(target: &DiskTarget, load: Load, time: Duration) -> Result<Throughput> {
    let mut backend = BackendThread::start(target, DEPTH * load.pages)?;
    let throughput = read_through(&mut backend.scene, load, time, |scene, took| {
        if took > 0 || scene.front().final_check()? { Ok(()) } else { wait(scene) }
    })?;
    backend.end()?;
    Ok(throughput)
}

/// Reads 4 KiB at a time from a disk that completes at once; both ends are in this thread.
pub(crate) fn at_once(time: Duration) -> Result<Throughput> {
    let open: Box<OpenDisk> = Box::new(|_| Ok(Box::new(InstantDisk)));
    let mut scene = Scene::connected(Setup::new(open)).ok_or("there is no store to be had")?;
    let load = Load { pages: 1, order: Order::Random };
    read_through(&mut scene, load, time, |scene, _| {
        scene.server.turn(Duration::ZERO)?;
        Ok(())
    })
}

/// Serves a frontend's device over NBD, while `client` uses it from a thread of its own.
pub(crate) fn export(
    target: &DiskTarget,
    socket: PathBuf,
    client: impl FnOnce(PathBuf) -> Result<Throughput> + Send + 'static,
) -> Result<Throughput> {
    let mut backend = BackendThread::start(target, 32 * 64)?;
    let mut export = Export::listen(&socket)?;
    let client = std::thread::spawn(move || client(socket));
    while !client.is_finished() {
        let scene = &mut backend.scene;
        let mut done = Vec::new();
        let moved = scene.front().take(|completion| done.push(completion))?;
        for completion in done {
            export.complete(scene.front(), completion);
        }
        if moved + export.serve(scene.front())? > 0 || scene.front().final_check()? {
            continue;
        }
        let mut evtchn = scene.front_evtchn.borrow_mut();
        let polled = export.polled().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
        let mut fds: Vec<PollFd<'_>> = polled.collect();
        fds.push(PollFd::from_borrowed_fd(evtchn.fd(), PollFlags::IN));
        poll(&mut fds, Some(&Duration::from_millis(50).try_into()?))?;
        while let Some(port) = evtchn.pending()? {
            evtchn.unmask(port)?;
        }
    }
    backend.end()?;
    client.join().map_err(|_| "the client's thread has panicked")?
}
