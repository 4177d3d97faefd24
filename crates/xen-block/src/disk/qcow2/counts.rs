//! Repairs the reference counts of an image's clusters before the image is written to.
//!
//! A writer that is killed, or a machine that loses power, may leave tables that name a cluster
//! whose count says that it is free. Reading still gives the right data, but the next writer would
//! reuse the cluster. Each cluster that is named and not counted is therefore counted, unless it is
//! compressed: compressed clusters are not written here. Clusters that are counted and not named
//! only waste space; `qemu-img check -r leaks` frees them.

use super::ImageFault;
use super::layout::{COMPRESSED, ImageLayout, OFFSET, fill, is_written, table};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The most bytes of memory for named clusters: one bit for each count of each block of counts.
/// With clusters of 64 KiB that is enough for 32 TiB.
const MEMORY_MAX: usize = 64 << 20;

/// Counts the whole clusters that are named and not counted.
///
/// # Errors
/// [`ImageFault`]; then nothing was written, except where the system has failed.
pub(super) fn repair(file: &File, layout: ImageLayout) -> Result<(), ImageFault> {
    let said = |error: std::io::Error| ImageFault::Said(error.to_string());
    let (blocks, l1) = (table(file, layout.counts), table(file, layout.l1));
    let (blocks, l1) = (blocks.map_err(said)?, l1.map_err(said)?);
    let mut clusters = NamedClusters { layout, blocks, named: BTreeMap::new(), bytes: 0 };
    clusters.add(0)?;
    for (offset, bytes) in [layout.l1, layout.counts] {
        for at in (offset..offset.saturating_add(bytes)).step_by(1 << layout.cluster_bits) {
            clusters.add(at)?;
        }
    }
    for block in clusters.blocks.clone().into_iter().filter(|block| block & OFFSET != 0) {
        clusters.add(block & OFFSET)?;
    }
    // Each table once, however often it is named.
    let tables: BTreeSet<u64> =
        l1.into_iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0).collect();
    let cluster = 1 << layout.cluster_bits;
    for offset in tables {
        if !offset.is_multiple_of(cluster) {
            return Err(ImageFault::Claim("a table does not begin where a cluster does"));
        }
        clusters.add(offset)?;
        if !is_written(file, offset, cluster).map_err(said)? {
            // A table that was never written names nothing.
            continue;
        }
        let entries = table(file, (offset, cluster)).map_err(said)?;
        let whole =
            |entry: &u64| layout.data_here && entry & COMPRESSED == 0 && entry & OFFSET != 0;
        for entry in entries.into_iter().filter(whole) {
            clusters.add(entry & OFFSET)?;
        }
    }
    clusters.update_counts(file, |_, _| Ok(()))?;
    clusters.update_counts(file, |bytes, place| file.write_all_at(bytes, place).map_err(said))
}

/// The set of clusters that tables name.
struct NamedClusters {
    layout: ImageLayout,
    /// The entries of the table of blocks of counts.
    blocks: Vec<u64>,
    /// The bits of named clusters, one for each count, by the offset of the block of counts; only
    /// for blocks with a named cluster.
    named: BTreeMap<u64, Vec<u8>>,
    /// The bytes of these bits.
    bytes: usize,
}

impl NamedClusters {
    /// Notes that the cluster at this offset is in use.
    fn add(&mut self, offset: u64) -> Result<(), ImageFault> {
        let cluster = offset >> self.layout.cluster_bits;
        let in_a_block = self.layout.counts_in_a_block();
        let (block, count) = (cluster / in_a_block, (cluster % in_a_block) as usize);
        let block = usize::try_from(block).ok().and_then(|block| self.blocks.get(block));
        let place = block.map_or(0, |entry| entry & OFFSET);
        if place == 0 {
            return Err(ImageFault::Uncounted(offset));
        }
        let bytes = in_a_block.div_ceil(8) as usize;
        let named = self.named.entry(place).or_insert_with(|| {
            self.bytes += bytes;
            vec![0; bytes]
        });
        if self.bytes > MEMORY_MAX {
            return Err(ImageFault::Claim("it has more refcount blocks than are looked through"));
        }
        named[count / 8] |= 1 << (count % 8);
        Ok(())
    }

    /// Calls `write` for each block in which a cluster is to be counted, with the block's place in
    /// the file.
    fn update_counts(
        &self,
        file: &File,
        mut write: impl FnMut(&[u8], u64) -> Result<(), ImageFault>,
    ) -> Result<(), ImageFault> {
        let said = |error: std::io::Error| ImageFault::Said(error.to_string());
        let cluster = 1_u64 << self.layout.cluster_bits;
        let mut bytes = vec![0; 1 << self.layout.cluster_bits];
        let bits = 1_usize << self.layout.count_order;
        let mask = ((1_u16 << bits.min(8)) - 1) as u8;
        for (place, named) in &self.named {
            fill(file, &mut bytes, *place).map_err(said)?;
            let mut mended = false;
            for count in
                (0..named.len() * 8).filter(|count| named[count / 8] >> (count % 8) & 1 == 1)
            {
                // Counts smaller than a byte start at the lowest bit.
                let (first, shift) = (count * bits / 8, count * bits % 8);
                let last = first + bits.div_ceil(8) - 1;
                if bytes[first..=last].iter().all(|byte| (byte >> shift) & mask == 0) {
                    bytes[last] |= 1 << shift;
                    mended = true;
                }
            }
            if !mended {
                continue;
            }
            // A block must be written before it is named, and must not make the file larger.
            if !is_written(file, *place, cluster).map_err(said)? {
                let what = "a refcount block that it needs was never written";
                return Err(ImageFault::Claim(what));
            }
            write(&bytes, *place)?;
        }
        Ok(())
    }
}
