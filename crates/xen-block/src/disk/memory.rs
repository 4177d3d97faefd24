//! A disk in this process's memory.

use super::{Disk, DiskAccess, DiskIo, DiskOp, Finished, Geometry};
use rustix::io::Errno;

/// A disk whose contents are lost when it is dropped.
#[derive(Debug)]
pub struct Memory {
    bytes: Vec<u8>,
    access: DiskAccess,
    sector_size: u32,
}

impl Memory {
    /// Creates a disk of zeroes.
    #[must_use]
    pub fn new(sectors: u64) -> Self {
        Self::with_contents(vec![0; usize::try_from(sectors * 512).unwrap_or(0)])
    }

    /// Creates a disk with these contents, which are cut down to whole sectors.
    #[must_use]
    pub fn with_contents(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(bytes.len() / 512 * 512);
        Self { bytes, access: DiskAccess::ReadWrite, sector_size: 512 }
    }

    /// Makes the disk read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { access: DiskAccess::ReadOnly, ..self }
    }

    /// Sets a larger sector size, for tests of devices; contents beyond the last whole sector are cut
    /// off.
    #[must_use]
    pub fn with_sector_size(mut self, sector_size: u32) -> Self {
        let whole = self.bytes.len() / sector_size as usize * sector_size as usize;
        self.bytes.truncate(whole);
        Self { sector_size, ..self }
    }

    /// Returns the contents.
    #[must_use]
    pub fn contents(&self) -> &[u8] {
        &self.bytes
    }

    fn run(&mut self, io: &DiskIo) -> Result<(), Errno> {
        let start = usize::try_from(io.offset()).map_err(|_| Errno::INVAL)?;
        let len = match io.op {
            DiskOp::Flush => return Ok(()),
            DiskOp::Discard => usize::try_from(io.sectors * 512).map_err(|_| Errno::INVAL)?,
            DiskOp::Read | DiskOp::Write => io.bytes(),
        };
        let end = start.checked_add(len).ok_or(Errno::INVAL)?;
        let place = self.bytes.get_mut(start..end).ok_or(Errno::INVAL)?;
        match io.op {
            DiskOp::Read => io.scatter(place),
            DiskOp::Write => io.gather(place),
            _ => {
                place.fill(0);
                Ok(())
            }
        }
    }
}

impl Disk for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.bytes.len() as u64 / 512,
            sector_size: self.sector_size,
            physical_sector_size: self.sector_size,
            access: self.access,
            discard_granularity: Some(self.sector_size),
        }
    }

    fn is_in_memory(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("{} bytes of memory", self.bytes.len())
    }

    fn submit(&mut self, io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        let result = self.run(&io);
        Ok(Some((io, result)))
    }
}
