//! The storage of a device's sectors.
//!
//! | module | what it is |
//! |---|---|
//! | [`mod@file`] | a file or block device: io_uring, or threads where there is none |
//! | [`memory`] | sectors in this process's memory |
//! | [`qcow2`] | qcow2 images, with backing files |
//! | [`nbd`] | a server of the network block device protocol, over a Unix socket |
//! | [`image`], [`open`], [`image_dirs`] | faults of images, opening files, the permitted folders |
//! | `escaped_path` | a path for a log |
//! | [`target`] | disks by name, as toolstacks write them |
//! | [`pool`] | threads for disks whose calls block |

mod escaped_path;
pub mod file;
pub mod image;
pub mod image_dirs;
mod lock;
pub mod memory;
pub mod nbd;
pub mod open;
pub mod pool;
pub mod qcow2;
pub mod target;

pub use lock::wait_for_locks;

use crate::RequestPage;
use crate::vectors::Vectors;
use rustix::io::Errno;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The properties of a disk; fixed while it is open, except for its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in units of 512 bytes; a multiple of the sector size.
    pub sectors: u64,
    /// The size in bytes of a sector that can be read or written by itself: 512 to 4096.
    pub sector_size: u32,
    /// The size in bytes of a physical write; a multiple of `sector_size`.
    pub physical_sector_size: u32,
    /// The permitted access.
    pub access: DiskAccess,
    /// The size in bytes of the pieces that can be discarded; `None` if discard is not possible.
    pub discard_granularity: Option<u32>,
}

/// The permitted access to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskAccess {
    /// The disk is only read.
    ReadOnly,
    /// The disk is read and written, and nobody else writes to it.
    ReadWrite,
}

/// An operation of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Reads the sectors into the pieces.
    Read,
    /// Writes the pieces onto the sectors.
    Write,
    /// Puts all finished writes onto stable storage.
    Flush,
    /// Discards the sectors. They may read as anything afterwards, here as zeroes where that is
    /// cheap.
    Discard,
}

/// Part of a page that a request reads from or writes to.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The page.
    pub page: RequestPage,
    /// The offset in the page, in bytes.
    pub offset: u16,
    /// The number of bytes; `offset + len` is at most 4096.
    pub len: u16,
}

/// One request. It belongs to the disk until the disk gives it back.
#[derive(Debug)]
pub struct DiskIo {
    /// The caller's name for the request.
    pub tag: u64,
    /// The operation.
    pub op: DiskOp,
    /// The first sector, in units of 512 bytes.
    pub sector: u64,
    /// The number of sectors; reads and writes have as many as the pieces have.
    pub sectors: u64,
    /// The memory of the request.
    pub pieces: Vec<Piece>,
    pub(crate) vectors: Vectors,
}

impl DiskIo {
    /// Creates an empty request, to be filled.
    #[must_use]
    pub fn empty() -> Box<Self> {
        let vectors = Vectors::default();
        let (tag, sector, sectors) = (0, 0, 0);
        Box::new(Self { tag, op: DiskOp::Flush, sector, sectors, pieces: Vec::new(), vectors })
    }

    /// Returns the offset of the first byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.sector.saturating_mul(512)
    }

    /// Returns the number of bytes in the pieces.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| usize::from(piece.len)).sum()
    }

    /// Points the vectors at the pieces.
    pub(crate) fn point_at_pieces(&mut self) {
        self.vectors.fill(self.pieces.iter().map(|piece| {
            let base = piece.page.as_ptr().as_ptr().wrapping_add(piece.offset.into());
            (base, piece.len.into())
        }));
    }

    /// Returns the number of pieces that were contiguous with their neighbour in memory and were
    /// merged with it. Later calls do not count them again.
    pub(crate) fn take_merged(&mut self) -> u64 {
        self.vectors.take_merged()
    }

    /// Copies the pieces, one after the other, into `to`, which is as long as they are.
    ///
    /// # Errors
    /// `EFAULT` for a piece outside its page, which a checked request does not have.
    pub fn gather(&self, to: &mut [u8]) -> Result<(), Errno> {
        let mut rest = to;
        for piece in &self.pieces {
            let part = rest.split_off_mut(..piece.len.into()).ok_or(Errno::FAULT)?;
            piece.page.copy_out(piece.offset.into(), part).map_err(|_| Errno::FAULT)?;
        }
        Ok(())
    }

    /// Copies `from` into the pieces, one after the other.
    ///
    /// # Errors
    /// As [`DiskIo::gather`].
    pub fn scatter(&self, from: &[u8]) -> Result<(), Errno> {
        let mut rest = from;
        for piece in &self.pieces {
            let part = rest.split_off(..piece.len.into()).ok_or(Errno::FAULT)?;
            piece.page.copy_in(piece.offset.into(), part).map_err(|_| Errno::FAULT)?;
        }
        Ok(())
    }
}

/// A finished request with its result.
pub type Finished = (Box<DiskIo>, Result<(), Errno>);

/// The storage of a device's sectors. The caller checks requests: they lie inside the disk and
/// consist of whole sectors. They may end in any order.
pub trait Disk: fmt::Debug {
    /// Returns the properties of the disk.
    fn geometry(&self) -> Geometry;

    /// Returns the disk in words, for a log: its path, and how it is accessed. Empty where there is
    /// nothing to say.
    fn describe(&self) -> String {
        String::new()
    }

    /// True if its sectors are in the memory of this machine, or of this domain, and end with it.
    fn is_in_memory(&self) -> bool {
        false
    }

    /// Takes a request. It ends at once, or later ([`Disk::finished`]).
    ///
    /// # Errors
    /// Gives the request back where there is no room for it at the moment: to be tried again when
    /// one has finished.
    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>>;

    /// Starts the submitted requests; to be called after a batch.
    fn start(&mut self) {}

    /// Does the work of [`Disk::start`], and waits at most `patience` for some or all of the
    /// requests. Only a disk that can do both with one call to the kernel, and usually is fast
    /// enough, waits.
    fn start_and_wait(&mut self, patience: Duration) {
        let _ = patience;
        self.start();
    }

    /// Returns a request that has ended since it was submitted.
    fn finished(&mut self) -> Option<Finished> {
        None
    }

    /// Returns the number of requests that the disk holds.
    fn in_flight(&self) -> usize {
        0
    }

    /// Returns a descriptor that polls readable when [`Disk::finished`] has a request; `None` for a
    /// disk that never has one.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Keeps this file open, besides the disk's own, until no request is under way any more, also
    /// if the process is killed meanwhile. Files of a process are closed with its last thread, so
    /// only a disk whose requests the kernel does by itself has to do anything.
    ///
    /// # Errors
    /// The error of the system.
    fn hold(&mut self, guard: BorrowedFd<'_>) -> Result<(), Errno> {
        let _ = guard;
        Ok(())
    }

    /// Checks if the server of the sectors is away. Requests then wait for it, within limits.
    /// `None` if there is no server.
    fn is_away(&mut self) -> Option<bool> {
        None
    }

    /// Prepares the disk for its end. It answers the requests that it has, and waits no longer for
    /// a server that is away. May be called again.
    fn give_up(&mut self) {}

    /// Checks if the size has changed; returns the new size in sectors of 512 bytes if so.
    fn resized(&mut self) -> Option<u64> {
        None
    }
}
