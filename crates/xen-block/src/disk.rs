//! What holds a device's sectors.
//!
//! | module | what it is |
//! |---|---|
//! | [`mod@file`] | a file or block device: io_uring, or threads where there is none |
//! | [`memory`] | sectors in this process's memory |
//! | [`qcow2`] | qcow2 images, with backing files |
//! | [`nbd`] | a server of the network block device protocol, over a Unix socket |
//! | [`fault`] | another disk, with faults on cue |
//! | [`image`], [`open`], [`places`] | what can be wrong with an image, opening files, where what images name may lie |
//! | `shown` | a path for a log |
//! | [`target`] | disks by name, as toolstacks write them |
//! | [`pool`] | threads for disks that can only be waited for |

pub mod fault;
pub mod file;
pub mod image;
mod lock;
pub mod memory;
pub mod nbd;
pub mod open;
pub mod places;
pub mod pool;
pub mod qcow2;
mod shown;
pub mod target;

pub use lock::wait_for_locks;

use crate::Page;
use crate::vectors::Vectors;
use rustix::io::Errno;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What a disk is like; fixed while it is open, but for its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in units of 512 bytes; a multiple of the sector size.
    pub sectors: u64,
    /// Bytes of a sector that can be read or written by itself: 512 to 4096.
    pub sector_size: u32,
    /// Bytes that are written at once; a multiple of `sector_size`.
    pub physical_sector_size: u32,
    /// Whether it may be written.
    pub access: DiskAccess,
    /// Bytes of the pieces that can be discarded; `None` where nothing can.
    pub discard_granularity: Option<u32>,
}

/// What may be done with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskAccess {
    /// It is read.
    ReadOnly,
    /// It is read and written, and by nobody else.
    ReadWrite,
}

/// What is asked of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Sectors into the pieces.
    Read,
    /// The pieces onto the sectors.
    Write,
    /// All writes that are done go onto stable storage.
    Flush,
    /// The sectors are not needed any more; they read as anything, here as zeroes where it is cheap.
    Discard,
}

/// Part of a page that a request reads from or writes to.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The page.
    pub page: Page,
    /// Where in it, in bytes.
    pub offset: u16,
    /// How many bytes; `offset + len` is at most 4096.
    pub len: u16,
}

/// One request. It belongs to the disk until that gives it back.
#[derive(Debug)]
pub struct Io {
    /// The asker's name for it.
    pub tag: u64,
    /// What is asked.
    pub op: Op,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// How many sectors; for reads and writes as many as the pieces have.
    pub sectors: u64,
    /// The memory.
    pub pieces: Vec<Piece>,
    pub(crate) vectors: Vectors,
}

impl Io {
    /// A request for nothing, to be filled.
    #[must_use]
    pub fn empty() -> Box<Self> {
        let vectors = Vectors::default();
        let (tag, sector, sectors) = (0, 0, 0);
        Box::new(Self { tag, op: Op::Flush, sector, sectors, pieces: Vec::new(), vectors })
    }

    /// Where it begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.sector.saturating_mul(512)
    }

    /// How many bytes its pieces have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| usize::from(piece.len)).sum()
    }

    /// Has the vectors point at the pieces.
    pub(crate) fn point_at_pieces(&mut self) {
        self.vectors.fill(self.pieces.iter().map(|piece| {
            let base = piece.page.as_ptr().as_ptr().wrapping_add(piece.offset.into());
            (base, piece.len.into())
        }));
    }

    /// How many pieces lay behind their neighbour in memory and were read or written with it.
    pub(crate) fn merges(&mut self) -> u64 {
        self.vectors.take_merged()
    }

    /// Copies the pieces, one behind the other, into `to`, which is as long as they are.
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

    /// Copies `from` into the pieces, one behind the other.
    ///
    /// # Errors
    /// As [`Io::gather`].
    pub fn scatter(&self, from: &[u8]) -> Result<(), Errno> {
        let mut rest = from;
        for piece in &self.pieces {
            let part = rest.split_off(..piece.len.into()).ok_or(Errno::FAULT)?;
            piece.page.copy_in(piece.offset.into(), part).map_err(|_| Errno::FAULT)?;
        }
        Ok(())
    }
}

/// A request with how it ended.
pub type Finished = (Box<Io>, Result<(), Errno>);

/// What holds a device's sectors. Requests are checked by who asks: they lie inside the disk and keep to
/// its sectors. They may end in any order.
pub trait Disk: fmt::Debug {
    /// What it is like.
    fn geometry(&self) -> Geometry;

    /// Takes a request: it is done at once, or later ([`Disk::finished`]).
    ///
    /// # Errors
    /// Gives it back where there is no room for it at the moment: to be tried again when one has finished.
    fn submit(&mut self, io: Box<Io>) -> Result<Option<Finished>, Box<Io>>;

    /// Sets going what was submitted; to be called after a batch.
    fn start(&mut self) {}

    /// As [`Disk::start`], and waits at most `patience` for some of the requests, or for the rest of them: where the
    /// disk can do both with one call to the kernel, and usually is as quick as that.
    fn start_and_wait(&mut self, patience: Duration) {
        let _ = patience;
        self.start();
    }

    /// A request that is done and was not when it was submitted.
    fn finished(&mut self) -> Option<Finished> {
        None
    }

    /// Requests that it holds.
    fn in_flight(&self) -> usize {
        0
    }

    /// Polls readable when [`Disk::finished`] has something; `None` where it never has.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Holds this file, besides its own, until no request is under way any more, also where the process
    /// is killed meanwhile. What is open in the process ends with its last thread, so only a disk whose
    /// requests the kernel does by itself has to do anything.
    ///
    /// # Errors
    /// What the system said.
    fn hold(&mut self, guard: BorrowedFd<'_>) -> Result<(), Errno> {
        let _ = guard;
        Ok(())
    }

    /// Looks whether the server that has the sectors is away: then requests wait for it, in bounds. `None` where there is
    /// no server.
    fn is_away(&mut self) -> Option<bool> {
        None
    }

    /// The disk is about to be closed. It answers what it has, and waits no longer for a server that is away. May be called
    /// again.
    fn give_up(&mut self) {}

    /// Looks whether the size has changed; the new one in sectors of 512 bytes if so.
    fn resized(&mut self) -> Option<u64> {
        None
    }
}
