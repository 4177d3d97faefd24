//! `xen-blkfront`: the frontend of one disk of this guest, without a kernel driver. It copies a
//! file onto the disk, or the disk into a file, as fast as the backend answers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::shared::PAGE_SIZE;
use xen_block::front::{
    BlockFrontend, Buffer, BufferSectors, Completion, DiskRequest, FrontendContext, Offer, Options,
};
use xen_block::vbd;
use xen_driver::GuestDevices;
use xen_driver::frontend::{self, guest};
use xen_driver::process::guest::GuestConnections;
use xen_io::blkif::Status;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::{Bus, Id, Side, State};
use xenstore::{Client, Event};

const USAGE: &str = "\
usage: xen-blkfront write VDEV FILE   copies the file onto the disk, from its first sector on, and flushes
       xen-blkfront read VDEV FILE    copies the disk into the file
       xen-blkfront --help | --version
VDEV is the disk's name or number: xvdb or 51728. In a guest, whose kernel must not use the disk.";

/// The longest time that the backend may take to connect, to answer, or to close.
const PATIENCE: Duration = Duration::from_secs(60);
/// The number of pages of a request; fewer where the backend takes fewer.
const REQUEST_PAGES: usize = 32;
/// The most requests without an answer.
const DEPTH: usize = 8;

/// The result of a step; the caller reports its error once.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The result of reading the state of a device.
type DeviceResult<T> = std::result::Result<T, xenbus::Error>;

/// The direction of the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CopyDirection {
    ToDisk,
    FromDisk,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["write", vdev, file] => copy(vdev, file, CopyDirection::ToDisk),
        ["read", vdev, file] => copy(vdev, file, CopyDirection::FromDisk),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["--version"] => {
            println!(concat!("xen-blkfront ", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(said) => {
            println!("xen-blkfront: {said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xen-blkfront: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Copies, and returns a summary of the speed.
fn copy(vdev: &str, path: &str, direction: CopyDirection) -> Result<String> {
    let devid = vdev.parse().or_else(|_| vbd::number(vdev))?;
    let file = match direction {
        CopyDirection::ToDisk => File::open(path),
        CopyDirection::FromDisk => File::create(path),
    };
    let file = file.map_err(|error| format!("{path}: {error}"))?;
    let mut guest = DiskGuest::connect(devid)?;
    let front = guest.front()?;
    let info = front.info().ok_or("the device is connected and says nothing of itself")?;
    let disk = info.bytes();
    let bytes = match direction {
        CopyDirection::ToDisk => file.metadata()?.len(),
        CopyDirection::FromDisk => disk,
    };
    if bytes > disk || !bytes.is_multiple_of(info.sector_size.into()) {
        let size = info.sector_size;
        return Err(
            format!("{path} has {bytes} bytes; the disk has {disk}, in sectors of {size}").into()
        );
    }
    let begin = Instant::now();
    let pages = usize::from(info.segments_max).min(REQUEST_PAGES);
    FileCopy { file, direction, bytes, pages, pending: Vec::new(), next: 0 }.run(&mut guest)?;
    if direction == CopyDirection::ToDisk && info.flush == Offer::Taken {
        guest.front()?.submit(0, DiskRequest::Flush { tag: 0 }, &[])?;
        guest.answers(|_, done| match done.status {
            Status::Okay => Ok(()),
            _ => Err("the backend has failed the flush".into()),
        })?;
    }
    let took = begin.elapsed().as_millis();
    guest.close()?;
    Ok(format!("{bytes} bytes in {took} ms, {pages} pages a request"))
}

/// A request without an answer.
struct PendingCopy {
    tag: u64,
    bytes: u64,
    buffers: Vec<Buffer>,
}

/// One pass through a file.
struct FileCopy {
    file: File,
    direction: CopyDirection,
    bytes: u64,
    pages: usize,
    pending: Vec<PendingCopy>,
    /// The first byte that is not requested yet.
    next: u64,
}

impl FileCopy {
    fn run(mut self, guest: &mut DiskGuest) -> Result<()> {
        loop {
            while self.pending.len() < DEPTH && self.next < self.bytes {
                self.submit_next(guest.front()?)?;
            }
            if self.pending.is_empty() {
                return Ok(());
            }
            guest.answers(|front, done| self.complete(front, done))?;
        }
    }

    /// Puts the next request into the ring; its tag is the byte offset where it begins.
    fn submit_next(&mut self, front: &mut BlockFrontend) -> Result<()> {
        let tag = self.next;
        let bytes = (self.bytes - tag).min((self.pages * PAGE_SIZE) as u64);
        let (mut buffers, mut parts) = (Vec::new(), Vec::new());
        for start in (0..bytes).step_by(PAGE_SIZE) {
            let here = (bytes - start).min(PAGE_SIZE as u64);
            let buffer = front.take_buffer().ok_or("no buffer is left")?;
            let page = front.page(buffer).ok_or("a buffer without a page")?;
            if self.direction == CopyDirection::ToDisk {
                let mut data = vec![0; here as usize];
                self.file.read_exact_at(&mut data, tag + start)?;
                page.copy_in(0, &data)?;
            }
            parts.push(BufferSectors { buffer, first: 0, last: (here / 512 - 1) as u8 });
            buffers.push(buffer);
        }
        let sector = tag / 512;
        let want = match self.direction {
            CopyDirection::ToDisk => DiskRequest::Write { tag, sector },
            CopyDirection::FromDisk => DiskRequest::Read { tag, sector },
        };
        front.submit(0, want, &parts)?;
        self.pending.push(PendingCopy { tag, bytes, buffers });
        self.next += bytes;
        Ok(())
    }

    fn complete(&mut self, front: &mut BlockFrontend, done: Completion) -> Result<()> {
        let at = self.pending.iter().position(|request| request.tag == done.tag);
        let PendingCopy { tag, bytes, buffers } =
            self.pending.swap_remove(at.ok_or("an answer to no request")?);
        if done.status != Status::Okay {
            return Err(format!("the backend has failed the request at byte {tag}").into());
        }
        for (start, buffer) in (0..bytes).step_by(PAGE_SIZE).zip(buffers) {
            if self.direction == CopyDirection::FromDisk {
                let page = front.page(buffer).ok_or("a buffer without a page")?;
                let mut data = vec![0; (bytes - start).min(PAGE_SIZE as u64) as usize];
                page.copy_out(0, &mut data)?;
                self.file.write_all_at(&data, tag + start)?;
            }
            front.give_back(buffer);
        }
        Ok(())
    }
}

/// The disk, and the answers that were not processed yet.
struct SingleDisk {
    bus: Bus<BlockFrontend>,
    done: Vec<Completion>,
}

impl GuestDevices for SingleDisk {
    fn note(&mut self, store: &mut Client, event: &Event) -> DeviceResult<bool> {
        self.bus.note(store, event)
    }

    fn look_next(&mut self, store: &mut Client) -> DeviceResult<bool> {
        self.bus.look_next(store)
    }

    fn take_news(&mut self) -> Vec<DeviceNews> {
        self.bus.take_news()
    }

    fn work(&mut self, store: &mut Client) -> DeviceResult<usize> {
        let (mut moved, done) = (0, &mut self.done);
        guest::each(&mut self.bus, store, |front| {
            moved += front.take(|completion| done.push(completion))?;
            Ok(())
        })?;
        Ok(moved)
    }

    fn final_check(&mut self, store: &mut Client) -> DeviceResult<bool> {
        let mut more = false;
        let failed = guest::each(&mut self.bus, store, |front| {
            more |= front.final_check()?;
            Ok(())
        })?;
        Ok(more || failed)
    }
}

/// This guest, with one disk.
struct DiskGuest {
    guest: xen_driver::Guest,
    disk: SingleDisk,
    id: Id,
}

impl DiskGuest {
    /// Connects the disk `devid`.
    fn connect(devid: u32) -> Result<Self> {
        let mut open = GuestConnections::open()?;
        let frontend::Platform { evtchn, grants } = open.platform.clone();
        let options = Options { buffers: DEPTH * REQUEST_PAGES, ..Options::default() };
        let platform = Rc::new(FrontendContext { evtchn, grants, options });
        let make = move |_| BlockFrontend::new(Rc::clone(&platform));
        let id = Id { frontend: open.domid, devid };
        let bus = Bus::start(&mut open.store, Side::Frontend, open.domid, "vbd", make)?.only(id);
        let disk = SingleDisk { bus, done: Vec::new() };
        let mut guest = Self { guest: open.guest(), disk, id };
        guest.until(State::Connected)?;
        Ok(guest)
    }

    fn front(&mut self) -> Result<&mut BlockFrontend> {
        Ok(self.disk.bus.driver(self.id).ok_or("the disk is gone")?)
    }

    /// Closes the disk, so that others may use it.
    fn close(mut self) -> Result<()> {
        self.disk.bus.leave(self.guest.store(), self.id)?;
        self.until(State::Closed)
    }

    /// Waits until this end has the given state.
    fn until(&mut self, state: State) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.disk.bus.state(self.id) != Some(state) {
            if Instant::now() > end {
                let (devid, own) = (self.id.devid, self.disk.bus.state(self.id));
                return Err(format!(
                    "disk {} is {}, not {state}, after {} s",
                    vbd::name(devid),
                    own.unwrap_or(State::Unknown),
                    PATIENCE.as_secs()
                )
                .into());
            }
            self.turn(end)?;
        }
        Ok(())
    }

    /// Shows the requests to the backend, waits, and takes at least one answer.
    fn answers(
        &mut self,
        mut each: impl FnMut(&mut BlockFrontend, Completion) -> Result<()>,
    ) -> Result<()> {
        self.front()?.push()?;
        let end = Instant::now() + PATIENCE;
        while self.disk.done.is_empty() {
            if self.disk.bus.state(self.id) != Some(State::Connected) {
                return Err("the backend has closed the disk".into());
            }
            if Instant::now() > end {
                return Err(
                    format!("the backend does not answer within {} s", PATIENCE.as_secs()).into()
                );
            }
            self.turn(end)?;
        }
        for completion in std::mem::take(&mut self.disk.done) {
            each(self.front()?, completion)?;
        }
        Ok(())
    }

    /// Processes pending events, or waits for one until `end`.
    fn turn(&mut self, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        for (_, news) in self.guest.turn(&mut [&mut self.disk], left, &[])?.news {
            if let (true, DeviceEvent::Error(error)) = (news.id == self.id, news.event) {
                return Err(error.into());
            }
        }
        Ok(())
    }
}
