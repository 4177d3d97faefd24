//! The positions of an image's tables, and functions that read them.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`; all numbers are big endian. A header's
//! values are checked against the file: tables lie within the file, and parts of the file that were
//! never written take neither time nor memory.

use super::ImageFault;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt};

/// The most bytes of the table of tables (L1), as in QEMU.
const L1_MAX: u64 = 32 << 20;
/// The most bytes of the table of blocks of counts, as in QEMU.
const COUNTS_MAX: u64 = 8 << 20;
/// The bytes that a table may have in any file.
const TABLE_FREE: u64 = 4 << 20;
/// A larger table may have this many times the bytes that were ever written to the file.
const TABLE_TIMES: u64 = 64;

/// The bits of a table entry that are the offset of a cluster.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The bit for a compressed cluster, whose entry is not the offset of a cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;

/// The positions of an image's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ImageLayout {
    pub(super) cluster_bits: u32,
    /// The offset and the bytes of the table.
    pub(super) l1: (u64, u64),
    pub(super) counts: (u64, u64),
    /// The logarithm of a count's size: a count has `1 << count_order` bits.
    pub(super) count_order: u32,
    pub(super) data_here: bool,
}

impl ImageLayout {
    /// Returns the bytes of the disk whose clusters one table names.
    pub(super) fn table_covers(self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    pub(super) fn counts_in_a_block(self) -> u64 {
        (8 << self.cluster_bits) >> self.count_order
    }

    /// Finds the bytes of the file that hold the cluster at this offset of the disk, if it is
    /// compressed. Returns their offset and their highest possible number. The tables are read from
    /// the file.
    ///
    /// # Errors
    /// Those of reading, and [`ErrorKind::InvalidData`] for faulty tables.
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
        // A compressed cluster is in the image, while its data would be in the other file.
        if !self.data_here {
            return Err(ErrorKind::InvalidData.into());
        }
        // The number of further sectors is in the bits above the offset, which need not be a
        // multiple of the sector size.
        let offset_bits = 62 - (self.cluster_bits - 8);
        let place = entry & ((1 << offset_bits) - 1) & ((1 << 56) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        Ok(Some((place, (sectors + 1) as usize * 512 - (place % 512) as usize)))
    }

    /// Checks the layout against the file.
    ///
    /// # Errors
    /// [`ImageFault::Claim`].
    pub(super) fn check(self, file: &File) -> std::result::Result<(), ImageFault> {
        let stat = file.metadata().map_err(|error| ImageFault::Said(error.to_string()))?;
        let written = stat.blocks().saturating_mul(512);
        let most = TABLE_FREE.max(written.saturating_mul(TABLE_TIMES));
        let cluster = 1_u64 << self.cluster_bits;
        // `stat` gives no size of a block device.
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

/// Reads into `bytes`; past the file's end it gives zeroes.
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

/// Reads the entries of a table whose size [`ImageLayout::check`] has allowed.
pub(super) fn table(file: &File, (offset, bytes): (u64, u64)) -> Result<Vec<u64>> {
    let mut raw = vec![0; usize::try_from(bytes).map_err(|_| ErrorKind::OutOfMemory)?];
    fill(file, &mut raw, offset)?;
    let (entries, _) = raw.as_chunks();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// True if any of these bytes was ever written: all others are zeroes.
pub(super) fn is_written(file: &File, offset: u64, bytes: u64) -> Result<bool> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data < offset.saturating_add(bytes)),
        Err(Errno::NXIO) => Ok(false),
        // A block device, or a file system that does not support the call.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
