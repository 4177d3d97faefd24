//! The counts of uses of an image's clusters, put right before the image is written to.
//!
//! A writer that is killed, and more so a machine that loses its power, may leave tables that name a cluster whose count
//! says that it is free. Nothing is read wrongly then, but the next writer would take it. So a cluster that is named and
//! not counted is counted. Those that are counted and not named are lost room and no harm; `qemu-img check -r leaks` gives
//! them back.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`; all numbers are big endian.

use std::collections::BTreeMap;
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
/// Blocks of counts that are kept in memory.
const BLOCKS_MAX: usize = 32;

/// Where the tables are.
#[derive(Clone, Copy)]
struct Layout {
    cluster_bits: u32,
    /// Offset and bytes.
    l1: (u64, u64),
    counts: (u64, u64),
    /// A count has `1 << count_order` bits.
    count_order: u32,
    data_here: bool,
}

/// Counts what is named and not counted; returns how many clusters that were. An image that is not understood is left alone:
/// whoever opens it says what is wrong.
///
/// # Errors
/// What the system said; `InvalidData` where a cluster that is in use has no place to be counted.
pub(super) fn mend(file: &File) -> Result<u64> {
    let Some(layout) = Layout::read(file)? else { return Ok(0) };
    let Some(blocks) = table(file, layout.counts)? else { return Ok(0) };
    let Some(l1) = table(file, layout.l1)? else { return Ok(0) };
    let mut counts = Counts { file, layout, blocks, loaded: BTreeMap::new(), mended: 0 };
    counts.uses(0)?;
    for (offset, bytes) in [layout.l1, layout.counts] {
        for at in (offset..offset.saturating_add(bytes)).step_by(1 << layout.cluster_bits) {
            counts.uses(at)?;
        }
    }
    for block in counts.blocks.clone().into_iter().filter(|block| block & OFFSET != 0) {
        counts.uses(block & OFFSET)?;
    }
    for l2 in l1.iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0) {
        counts.uses(l2)?;
        let entries = table(file, (l2, 1 << layout.cluster_bits))?.unwrap_or_default();
        let whole =
            |entry: &u64| layout.data_here && entry & COMPRESSED == 0 && entry & OFFSET != 0;
        for entry in entries.into_iter().filter(whole) {
            counts.uses(entry & OFFSET)?;
        }
    }
    Ok(counts.mended)
}

impl Layout {
    fn read(file: &File) -> Result<Option<Self>> {
        let mut head = [0; 104];
        match file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
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
        Ok(known.then(|| Self {
            cluster_bits,
            l1: (u64_at(40), u64::from(u32_at(36)) * 8),
            counts: (u64_at(48), u64::from(u32_at(56)) << cluster_bits),
            count_order,
            data_here: features & DATA_FILE == 0,
        }))
    }
}

/// The entries of a table; `None` where there is none of this size.
fn table(file: &File, (offset, bytes): (u64, u64)) -> Result<Option<Vec<u64>>> {
    let Some(mut raw) =
        usize::try_from(bytes).ok().filter(|_| bytes <= TABLE_MAX).map(|bytes| vec![0; bytes])
    else {
        return Ok(None);
    };
    match file.read_exact_at(&mut raw, offset) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (entries, _) = raw.as_chunks();
    Ok(Some(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect()))
}

struct Counts<'a> {
    file: &'a File,
    layout: Layout,
    /// The entries of the table of blocks.
    blocks: Vec<u64>,
    loaded: BTreeMap<u64, Vec<u8>>,
    mended: u64,
}

impl Counts<'_> {
    /// The cluster at this offset is in use.
    fn uses(&mut self, offset: u64) -> Result<()> {
        let Layout { cluster_bits, count_order, .. } = self.layout;
        let per_block = (8_u64 << cluster_bits) >> count_order;
        let cluster = offset >> cluster_bits;
        let (block, count) = (cluster / per_block, cluster % per_block);
        let place = usize::try_from(block)
            .ok()
            .and_then(|block| self.blocks.get(block))
            .map_or(0, |entry| entry & OFFSET);
        if place == 0 {
            let what = format!(
                "the cluster at {offset} is in use, and no block counts its uses; qemu-img check -r all makes one"
            );
            return Err(Error::new(ErrorKind::InvalidData, what));
        }
        if !self.loaded.contains_key(&place) {
            if self.loaded.len() == BLOCKS_MAX {
                self.loaded.clear();
            }
            let mut bytes = vec![0; 1 << cluster_bits];
            self.file.read_exact_at(&mut bytes, place)?;
            self.loaded.insert(place, bytes);
        }
        let Some(bytes) = self.loaded.get_mut(&place) else { return Ok(()) };
        // Its bits: of a count of less than a byte, the lowest of the byte come first.
        let (bit, bits) = (count << count_order, 1_u64 << count_order);
        let (first, shift) = ((bit / 8) as usize, bit % 8);
        let last = first + (bits as usize).div_ceil(8) - 1;
        let mask = ((1_u16 << bits.min(8)) - 1) as u8;
        if bytes[first..=last].iter().all(|byte| (byte >> shift) & mask == 0) {
            bytes[last] |= 1 << shift;
            self.file.write_all_at(&bytes[last..=last], place + last as u64)?;
            self.mended += 1;
        }
        Ok(())
    }
}
