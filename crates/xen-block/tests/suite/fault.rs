//! A wrapper of another disk that injects faults.

use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use xen_block::disk::{Disk, DiskIo, DiskOp, Finished, Geometry};

/// The treatment of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultAction {
    /// The request goes to the disk.
    Pass,
    /// The request ends with this error, and does not get to the disk.
    Fail(Errno),
    /// The request is never done: the process that made it is to be killed.
    Hold,
}

/// A layer between a device and its disk that decides the treatment of each request.
pub(crate) struct FaultInjector {
    disk: Box<dyn Disk>,
    decide: Box<dyn FnMut(DiskOp, u64) -> FaultAction>,
    #[expect(clippy::vec_box, reason = "they go to the disk and back in their boxes")]
    held: Vec<Box<DiskIo>>,
}

impl std::fmt::Debug for FaultInjector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl FaultInjector {
    /// Wraps `disk`. `decide` is called for each request, with its operation and its first sector.
    pub(crate) fn new(
        disk: Box<dyn Disk>,
        decide: impl FnMut(DiskOp, u64) -> FaultAction + 'static,
    ) -> Self {
        Self { disk, decide: Box::new(decide), held: Vec::new() }
    }
}

impl Disk for FaultInjector {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        match (self.decide)(io.op, io.sector) {
            FaultAction::Pass => self.disk.submit(io),
            FaultAction::Fail(errno) => Ok(Some((io, Err(errno)))),
            FaultAction::Hold => {
                self.held.push(io);
                Ok(None)
            }
        }
    }

    fn start(&mut self) {
        self.disk.start();
    }

    fn finished(&mut self) -> Option<Finished> {
        self.disk.finished()
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight() + self.held.len()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.disk.fd()
    }

    fn hold(&mut self, guard: BorrowedFd<'_>) -> Result<(), Errno> {
        self.disk.hold(guard)
    }

    fn resized(&mut self) -> Option<u64> {
        self.disk.resized()
    }
}
