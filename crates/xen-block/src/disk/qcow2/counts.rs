//! The counts of uses of an image's clusters, put right before the image is written to.
//!
//! A writer that is killed, and more so a machine that loses its power, may leave tables that name a cluster whose count
//! says that it is free. Nothing is read wrongly then, but the next writer would take it. So a cluster that is named and
//! not counted is counted, if it is a whole one: compressed ones are not written here. Those that are counted and not
//! named are lost room and no harm; `qemu-img check -r leaks` gives them back.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`; all numbers are big endian.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// Bits of an entry of the tables that are the offset of a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed, and its entry no offset of a cluster.
const COMPRESSED: u64 = 1 << 62;
/// The guest's data is in another file.
const DATA_FILE: u64 = 1 << 2;
/// The guest's clusters may be compressed in another way.
const COMPRESSION: u64 = 1 << 3;
/// Larger tables are nobody's: so many bytes, as QEMU has it for the first one.
const TABLE_MAX: u64 = 32 << 20;

/// Where the tables of an image are.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    cluster_bits: u32,
    /// Offset and bytes.
    l1: (u64, u64),
    counts: (u64, u64),
    /// A count has `1 << count_order` bits.
    count_order: u32,
    data_here: bool,
}

/// Counts what is named whole and not counted; returns how many clusters that were.
///
/// # Errors
/// What the system said; `InvalidData` where a cluster that is in use has no place to be counted.
pub(super) fn mend(file: &File, layout: Layout) -> Result<u64> {
    let (Some(blocks), Some(l1)) = (table(file, layout.counts)?, table(file, layout.l1)?) else {
        return Ok(0);
    };
    let mut used = Used { layout, blocks, named: BTreeMap::new() };
    used.name(0)?;
    for (offset, bytes) in [layout.l1, layout.counts] {
        for at in (offset..offset.saturating_add(bytes)).step_by(1 << layout.cluster_bits) {
            used.name(at)?;
        }
    }
    for block in used.blocks.clone().into_iter().filter(|block| block & OFFSET != 0) {
        used.name(block & OFFSET)?;
    }
    // Each once, however often it is named.
    let tables: BTreeSet<u64> =
        l1.into_iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0).collect();
    for offset in tables {
        used.name(offset)?;
        let entries = table(file, (offset, 1 << layout.cluster_bits))?.unwrap_or_default();
        let whole =
            |entry: &u64| layout.data_here && entry & COMPRESSED == 0 && entry & OFFSET != 0;
        for entry in entries.into_iter().filter(whole) {
            used.name(entry & OFFSET)?;
        }
    }
    used.count(file)
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

    fn counts_in_a_block(self) -> u64 {
        (8 << self.cluster_bits) >> self.count_order
    }
}

/// Reads; behind the file's end are zeroes.
fn fill(file: &File, mut bytes: &mut [u8], mut at: u64) -> Result<()> {
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
fn table(file: &File, (offset, bytes): (u64, u64)) -> Result<Option<Vec<u64>>> {
    let bytes = usize::try_from(bytes).ok().filter(|_| bytes <= TABLE_MAX);
    let Some(mut raw) = bytes.map(|bytes| vec![0; bytes]) else { return Ok(None) };
    fill(file, &mut raw, offset)?;
    let (entries, _) = raw.as_chunks();
    Ok(Some(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect()))
}

/// The clusters that tables name.
struct Used {
    layout: Layout,
    /// The entries of the table of blocks of counts.
    blocks: Vec<u64>,
    /// For the blocks by their offsets, in whose clusters there are some, a bit for each count.
    named: BTreeMap<u64, Vec<u8>>,
}

impl Used {
    /// The cluster at this offset is in use.
    fn name(&mut self, offset: u64) -> Result<()> {
        let cluster = offset >> self.layout.cluster_bits;
        let in_a_block = self.layout.counts_in_a_block();
        let (block, count) = (cluster / in_a_block, (cluster % in_a_block) as usize);
        let block = usize::try_from(block).ok().and_then(|block| self.blocks.get(block));
        let place = block.map_or(0, |entry| entry & OFFSET);
        if place == 0 {
            let what = format!(
                "the cluster at {offset} is in use, and no block counts it; qemu-img check -r all makes one"
            );
            return Err(Error::new(ErrorKind::InvalidData, what));
        }
        let named =
            self.named.entry(place).or_insert_with(|| vec![0; in_a_block.div_ceil(8) as usize]);
        named[count / 8] |= 1 << (count % 8);
        Ok(())
    }

    /// Counts those that are not; returns how many that were.
    fn count(&self, file: &File) -> Result<u64> {
        let mut mended = 0;
        let mut bytes = vec![0; 1 << self.layout.cluster_bits];
        let bits = 1_usize << self.layout.count_order;
        let mask = ((1_u16 << bits.min(8)) - 1) as u8;
        for (place, named) in &self.named {
            fill(file, &mut bytes, *place)?;
            let before = mended;
            for count in
                (0..named.len() * 8).filter(|count| named[count / 8] >> (count % 8) & 1 == 1)
            {
                // Of a count of less than a byte, the lowest of the byte come first.
                let (first, shift) = (count * bits / 8, count * bits % 8);
                let last = first + bits.div_ceil(8) - 1;
                if bytes[first..=last].iter().all(|byte| (byte >> shift) & mask == 0) {
                    bytes[last] |= 1 << shift;
                    mended += 1;
                }
            }
            if mended > before {
                file.write_all_at(&bytes, *place)?;
            }
        }
        Ok(mended)
    }
}
