//! Where an image has its tables, and reading them.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`; all numbers are big endian. A header is believed in what it
//! says of the file only as far as the file has it: tables lie within the file, and what of a file was never written
//! takes neither time nor memory.

use super::ImageFault;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Most bytes of the table of tables (L1), as QEMU has it.
const L1_MAX: u64 = 32 << 20;
/// Most bytes of the table of blocks of counts, as QEMU has it.
const COUNTS_MAX: u64 = 8 << 20;
/// A table may have so many bytes in any file,
const TABLE_FREE: u64 = 4 << 20;
/// and so many times as many as were ever written to the file.
const TABLE_TIMES: u64 = 64;

/// Bits of an entry of the tables that are the offset of a cluster.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed, and its entry no offset of a cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;

/// Where the tables of an image are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) cluster_bits: u32,
    /// Offset and bytes.
    pub(super) l1: (u64, u64),
    pub(super) counts: (u64, u64),
    /// A count has `1 << count_order` bits.
    pub(super) count_order: u32,
    pub(super) data_here: bool,
}

impl Layout {
    /// Bytes of the disk whose clusters one table names.
    pub(super) fn table_covers(self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    pub(super) fn counts_in_a_block(self) -> u64 {
        (8 << self.cluster_bits) >> self.count_order
    }

    /// The bytes of the file that hold the cluster at this offset of the disk, if it is compressed: their offset, and how many
    /// they are at most. The tables are read from the file.
    ///
    /// # Errors
    /// Those of reading, and [`ErrorKind::InvalidData`] for tables that make no sense.
    pub(super) fn compressed(self, file: &File, offset: u64) -> Result<Option<(u64, usize)>> {
        let entry = |at| -> Result<u64> {
            let mut bytes = [0; 8];
            fill(file, &mut bytes, at)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let index = offset / self.table_covers();
        if index >= self.l1.1 / 8 {
            return Ok(None);
        }
        let table = entry(self.l1.0 + index * 8)? & OFFSET;
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(1 << self.cluster_bits) {
            return Err(ErrorKind::InvalidData.into());
        }
        let entry = entry(table + ((offset % self.table_covers()) >> self.cluster_bits) * 8)?;
        if entry & COMPRESSED == 0 {
            return Ok(None);
        }
        // Such a cluster is in the image, and its data would be elsewhere.
        if !self.data_here {
            return Err(ErrorKind::InvalidData.into());
        }
        // The number of further sectors is above the offset, which need not be one of a sector.
        let offset_bits = 62 - (self.cluster_bits - 8);
        let place = entry & ((1 << offset_bits) - 1) & ((1 << 56) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        Ok(Some((place, (sectors + 1) as usize * 512 - (place % 512) as usize)))
    }

    /// Compares it with the file.
    ///
    /// # Errors
    /// [`ImageFault::Claim`].
    pub(super) fn check(self, file: &File) -> std::result::Result<(), ImageFault> {
        let stat = file.metadata().map_err(|error| ImageFault::Said(error.to_string()))?;
        let written = stat.blocks().saturating_mul(512);
        let most = TABLE_FREE.max(written.saturating_mul(TABLE_TIMES));
        let cluster = 1_u64 << self.cluster_bits;
        // A block device has no size here.
        let len = if stat.is_file() { stat.len().next_multiple_of(cluster) } else { u64::MAX };
        let within = |(offset, bytes): (u64, u64)| {
            offset.is_multiple_of(cluster)
                && offset.checked_add(bytes).is_some_and(|end| end <= len)
        };
        let claim = |holds: bool, what| if holds { Ok(()) } else { Err(ImageFault::Claim(what)) };
        claim(within(self.l1), "its L1 table does not lie in the file")?;
        claim(within(self.counts), "its table of refcount blocks does not lie in the file")?;
        claim(self.l1.1 <= L1_MAX.min(most), "its L1 table is larger than such a file's can be")?;
        let counts_fit = self.counts.1 <= COUNTS_MAX.max(cluster).min(most);
        claim(counts_fit, "its table of refcount blocks is larger than such a file's can be")
    }
}

/// Reads; behind the file's end are zeroes.
pub(super) fn fill(file: &File, mut bytes: &mut [u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        let read = match file.read_at(bytes, at) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            bytes.fill(0);
            break;
        }
        (bytes, at) = (&mut bytes[read..], at + read as u64);
    }
    Ok(())
}

/// The entries of a table, of which [`Layout::check`] has seen that they may be taken into memory.
pub(super) fn table(file: &File, (offset, bytes): (u64, u64)) -> Result<Vec<u64>> {
    let mut raw = vec![0; usize::try_from(bytes).map_err(|_| ErrorKind::OutOfMemory)?];
    fill(file, &mut raw, offset)?;
    let (entries, _) = raw.as_chunks();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// True where any of these bytes was ever written: all others are zeroes.
pub(super) fn is_written(file: &File, offset: u64, bytes: u64) -> Result<bool> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data < offset.saturating_add(bytes)),
        Err(Errno::NXIO) => Ok(false),
        // A block device, or a file system that does not say.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
