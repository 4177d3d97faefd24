//! Where an image has its tables, and reading them.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`; all numbers are big endian.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// The guest's data is in another file.
const DATA_FILE: u64 = 1 << 2;
/// The guest's clusters may be compressed in another way.
const COMPRESSION: u64 = 1 << 3;
/// Larger tables are nobody's: so many bytes, as QEMU has it for the first one.
const TABLE_MAX: u64 = 32 << 20;

/// Where the tables of an image are.
#[derive(Clone, Copy)]
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
    /// `None` for an image that is not understood: whoever opens it says what is wrong.
    ///
    /// # Errors
    /// What the system said; `InvalidData` for an encrypted image, which would be taken for plain.
    pub(super) fn read(file: &File) -> Result<Option<Self>> {
        let mut head = [0; 104];
        fill(file, &mut head, 0)?;
        let u32_at =
            |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let u64_at =
            |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap_or_default());
        let (features, count_order) = match u32_at(4) {
            2 => (0, 4),
            3 => (u64_at(72), u32_at(96)),
            _ => return Ok(None),
        };
        let cluster_bits = u32_at(20);
        let known = head.starts_with(b"QFI\xfb")
            && features & !(DATA_FILE | COMPRESSION) == 0
            && (9..=21).contains(&cluster_bits)
            && count_order <= 6;
        if known && u32_at(32) != 0 {
            return Err(Error::new(ErrorKind::InvalidData, "the image is encrypted"));
        }
        Ok(known.then(|| Self {
            cluster_bits,
            l1: (u64_at(40), u64::from(u32_at(36)) * 8),
            counts: (u64_at(48), u64::from(u32_at(56)) << cluster_bits),
            count_order,
            data_here: features & DATA_FILE == 0,
        }))
    }

    /// Bytes of the disk whose clusters one table names.
    pub(super) fn table_covers(self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    pub(super) fn counts_in_a_block(self) -> u64 {
        (8 << self.cluster_bits) >> self.count_order
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

/// The entries of a table; `None` where there is none of this size.
pub(super) fn table(file: &File, (offset, bytes): (u64, u64)) -> Result<Option<Vec<u64>>> {
    let bytes = usize::try_from(bytes).ok().filter(|_| bytes <= TABLE_MAX);
    let Some(mut raw) = bytes.map(|bytes| vec![0; bytes]) else { return Ok(None) };
    fill(file, &mut raw, offset)?;
    let (entries, _) = raw.as_chunks();
    Ok(Some(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect()))
}
