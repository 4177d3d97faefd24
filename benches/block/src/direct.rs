//! The limit: one thread that reads the file through io_uring, with nothing in between.

use crate::Result;
use crate::load::{DEPTH, Load, Meter, Sectors, Throughput};
use rustix::event::{PollFd, PollFlags, poll};
use std::path::Path;
use std::time::Duration;
use xen_block::RequestPage;
use xen_block::disk::file::{Cache, FileDisk, IoMethod, Options};
use xen_block::disk::{Disk, DiskAccess, DiskIo, DiskOp, Piece};

/// Reads the file at `path` for the given time.
pub(crate) fn read(path: &Path, load: Load, time: Duration) -> Result<Throughput> {
    let (access, cache) = (DiskAccess::ReadOnly, Cache::Direct);
    let mut disk = FileDisk::open(path, Options { access, cache, way: IoMethod::Uring })?;
    let mut sectors = Sectors::new(load, disk.geometry().sectors);
    let page = |_| Piece { page: RequestPage::private(), offset: 0, len: 4096 };
    let request = |_| {
        let mut io = DiskIo::empty();
        (io.op, io.sectors) = (DiskOp::Read, load.pages as u64 * 8);
        io.pieces = (0..load.pages).map(page).collect();
        io
    };
    let mut idle: Vec<Box<DiskIo>> = (0..DEPTH).map(request).collect();
    let (meter, mut count) = (Meter::start(time), 0);
    while meter.running() {
        while let Some(mut io) = idle.pop() {
            io.sector = sectors.next();
            match disk.submit(io) {
                Ok(None) => {}
                Ok(Some((io, _))) => idle.push(io),
                Err(_) => return Err("the ring of a file has no room for 32 requests".into()),
            }
        }
        disk.start();
        if let Some(fd) = disk.fd() {
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None)?;
        }
        while let Some((io, result)) = disk.finished() {
            result?;
            idle.push(io);
            count += 1;
        }
    }
    Ok(meter.throughput(count))
}
