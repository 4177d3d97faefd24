//! Block devices: `xen-block`'s ends, and a disk in this host's memory that does requests late and
//! out of order.

use super::kind::{RequestRecord, TestedDevice};
use crate::rng::Rng;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use xen_block::back::{self, BlockBackend, OpenMethod};
use xen_block::disk::{Disk, DiskAccess, DiskIo, DiskOp, Finished, Geometry};
use xen_block::front::{self, BlockFrontend, Buffer, BufferSectors, Completion, DiskRequest};
use xen_driver::backend::{self, rings};
use xen_driver::frontend;
use xen_io::blkif::Status;
use xenbus::negotiate::QueueLimits;
use xenbus::toolstack::NewDevice;
use xenbus::{Device, Error};

/// The number of sectors of a disk.
const SECTORS: usize = 64;
/// The size of a sector in bytes.
const SECTOR: usize = 512;
/// The largest number of requests that a guest has in flight to a disk.
const OPEN_MAX: usize = 12;

/// The disks of the host, by the nodes that name them.
type SharedDisks = Rc<RefCell<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Block devices.
pub(super) struct BlockDevice;

impl TestedDevice for BlockDevice {
    type Front = BlockFrontend;
    type Back = BlockBackend;
    type Media = SharedDisks;
    type Ledger = KnownSectors;

    const NAME: &'static str = "vbd";

    fn describe(device: &mut NewDevice, serial: u64) {
        let node = |name: &str, value: String| (name.to_owned(), value);
        device.backend_nodes.push(node("params", format!("disk-{serial}")));
        device.backend_nodes.push(node("mode", "w".to_owned()));
    }

    fn front(platform: frontend::Platform) -> BlockFrontend {
        let frontend::Platform { evtchn, grants } = platform;
        let rings = QueueLimits { order_max: 1, queues_max: 2 };
        let options = front::Options { rings, buffers: 32, ..front::Options::default() };
        BlockFrontend::new(Rc::new(front::FrontendContext { evtchn, grants, options }))
    }

    fn backs(
        platform: backend::Platform,
        options: rings::RingOptions,
        disks: SharedDisks,
    ) -> Box<dyn Fn() -> BlockBackend> {
        let backend::Platform { evtchn, grants } = platform;
        let open = OpenMethod::Here(Box::new(move |device: &mut Device<'_>| {
            let path = device.own("params")?.unwrap_or_default();
            let new = || vec![0; SECTORS * SECTOR];
            disks.borrow_mut().entry(path.clone()).or_insert_with(new);
            let disks = Rc::clone(&disks);
            Ok(Box::new(SlowDisk { disks, path, under_way: VecDeque::new(), looks: 0 }) as _)
        }));
        let options = back::Options { rings: options, ..back::Options::default() };
        let platform = Rc::new(back::BackendContext { evtchn, grants, open, options });
        Box::new(move || BlockBackend::new(Rc::clone(&platform)))
    }

    fn channels(front: &BlockFrontend) -> usize {
        front.queue_count()
    }
}

/// A disk that does some requests at once, some later and in another order. Requests that are not
/// done when its process dies are never done; those that are done may not be answered.
struct SlowDisk {
    disks: SharedDisks,
    path: Vec<u8>,
    under_way: VecDeque<Finished>,
    looks: u32,
}

impl std::fmt::Debug for SlowDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowDisk").finish_non_exhaustive()
    }
}

impl SlowDisk {
    fn run(&self, io: &DiskIo) -> Result<(), Errno> {
        let mut disks = self.disks.borrow_mut();
        let disk = disks.get_mut(&self.path).ok_or(Errno::NODEV)?;
        let start = usize::try_from(io.offset()).map_err(|_| Errno::INVAL)?;
        let len = match io.op {
            DiskOp::Flush | DiskOp::Discard => return Ok(()),
            DiskOp::Read | DiskOp::Write => io.bytes(),
        };
        let place = disk.get_mut(start..start + len).ok_or(Errno::INVAL)?;
        if io.op == DiskOp::Read { io.scatter(place) } else { io.gather(place) }
    }
}

impl Disk for SlowDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: SECTORS as u64,
            sector_size: SECTOR as u32,
            physical_sector_size: SECTOR as u32,
            access: DiskAccess::ReadWrite,
            discard_granularity: None,
        }
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        if io.tag.is_multiple_of(3) {
            let result = self.run(&io);
            return Ok(Some((io, result)));
        }
        if io.tag % 3 == 1 {
            let result = self.run(&io);
            self.under_way.push_back((io, result));
        } else {
            self.under_way.push_front((io, Err(Errno::INPROGRESS)));
        }
        Ok(None)
    }

    fn finished(&mut self) -> Option<Finished> {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(3) {
            return None;
        }
        let (io, result) = self.under_way.pop_front()?;
        let result = if result == Err(Errno::INPROGRESS) { self.run(&io) } else { result };
        Some((io, result))
    }

    fn in_flight(&self) -> usize {
        self.under_way.len()
    }
}

/// A request without an answer.
enum SectorRequest {
    Read(usize, Buffer),
    Write(usize, Buffer, u64),
    Flush,
}

/// The sectors of one disk, as its user knows them: the possible contents of each.
pub(super) struct KnownSectors {
    may_hold: Vec<Vec<u64>>,
    open: BTreeMap<u64, SectorRequest>,
    next: u64,
    answered: u64,
    wrong: Option<String>,
}

impl Default for KnownSectors {
    fn default() -> Self {
        let may_hold = vec![vec![0]; SECTORS];
        Self { may_hold, open: BTreeMap::new(), next: 1, answered: 0, wrong: None }
    }
}

impl KnownSectors {
    fn is_busy(&self, sector: usize) -> bool {
        self.open.values().any(|asked| match asked {
            SectorRequest::Read(at, _) | SectorRequest::Write(at, ..) => *at == sector,
            SectorRequest::Flush => false,
        })
    }

    /// Makes one request; false if that is not possible now.
    fn ask_one(&mut self, front: &mut BlockFrontend, rng: &mut Rng) -> bool {
        let (tag, sector) = (self.next, rng.index(SECTORS));
        let queue = rng.index(front.queue_count().max(1));
        if rng.chance(100) {
            let asked = front.submit(queue, DiskRequest::Flush { tag }, &[]).is_ok();
            if asked {
                self.open.insert(tag, SectorRequest::Flush);
                self.next += 1;
            }
            return asked;
        }
        if self.is_busy(sector) {
            return false;
        }
        let Some(buffer) = front.take_buffer() else { return false };
        let first_sector = sector as u64;
        let (want, asked) = if rng.chance(500) {
            let bytes: Vec<u8> = tag.to_le_bytes().repeat(SECTOR / 8);
            if let Some(page) = front.page(buffer) {
                let _ = page.copy_in(0, &bytes);
            }
            (
                DiskRequest::Write { tag, sector: first_sector },
                SectorRequest::Write(sector, buffer, tag),
            )
        } else {
            (DiskRequest::Read { tag, sector: first_sector }, SectorRequest::Read(sector, buffer))
        };
        if front.submit(queue, want, &[BufferSectors { buffer, first: 0, last: 0 }]).is_err() {
            front.give_back(buffer);
            return false;
        }
        self.open.insert(tag, asked);
        self.next += 1;
        true
    }

    fn take(&mut self, front: &mut BlockFrontend, Completion { tag, status }: Completion) {
        self.answered += 1;
        let Some(asked) = self.open.remove(&tag) else {
            self.wrong = Some(format!("request {tag} was answered before"));
            return;
        };
        if status != Status::Okay {
            self.wrong = Some(format!("request {tag} is answered {status:?}"));
        }
        match asked {
            SectorRequest::Flush => {}
            SectorRequest::Write(sector, buffer, value) => {
                self.may_hold[sector] = vec![value];
                front.give_back(buffer);
            }
            SectorRequest::Read(sector, buffer) => {
                let mut bytes = [0; SECTOR];
                if let Some(page) = front.page(buffer) {
                    let _ = page.copy_out(0, &mut bytes);
                }
                let (words, _) = bytes.as_chunks::<8>();
                let value = u64::from_le_bytes(words[0]);
                let whole = words.iter().all(|word| *word == words[0]);
                if !whole || !self.may_hold[sector].contains(&value) {
                    let may = &self.may_hold[sector];
                    self.wrong = Some(format!("sector {sector} holds {value}, not one of {may:?}"));
                }
                front.give_back(buffer);
            }
        }
    }
}

impl RequestRecord for KnownSectors {
    type Front = BlockFrontend;

    fn ask(&mut self, front: &mut BlockFrontend, rng: &mut Rng) {
        while self.open.len() < OPEN_MAX && rng.chance(700) && self.ask_one(front, rng) {}
    }

    fn work(&mut self, front: &mut BlockFrontend) -> Result<usize, Error> {
        let mut done = Vec::new();
        let taken = front.take(|completion| done.push(completion));
        for completion in done {
            self.take(front, completion);
        }
        front.push()?;
        taken
    }

    fn final_check(&mut self, front: &mut BlockFrontend) -> Result<bool, Error> {
        front.final_check()
    }

    fn lose(&mut self) {
        for asked in std::mem::take(&mut self.open).into_values() {
            if let SectorRequest::Write(sector, _, value) = asked {
                self.may_hold[sector].push(value);
            }
        }
    }

    fn open(&self) -> usize {
        self.open.len()
    }

    fn answered(&self) -> u64 {
        self.answered
    }

    fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }
}
