//! Images whose compressed clusters are zstd's: `imago` reads and writes all but these.
//!
//! A compressed cluster is decoded here, by the crate `ruzstd`. One that is written in part is first written whole and
//! plain, as QEMU does it; compressed ones are never made. Which bytes of the file such a cluster has is read from the
//! tables in the file: `imago` does not say it. So nobody changes tables while one is read.

// Some of the trait's methods are `unsafe`; their callers' promises are passed on.
#![allow(unsafe_code)]

use super::ImageFile;
use super::header::Header;
use super::layout::{Layout, fill};
use imago::format::drivers::FormatDriverInstance;
use imago::format::{Format, PreallocateMode};
use imago::io_buffers::IoVectorMut;
use imago::qcow2::Qcow2;
use imago::{PreparedDataMapping, ShallowMapping, StorageExt as _};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::fmt;
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Result};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Largest window of a frame, in bytes. That of QEMU's frames is a cluster, of 2 MiB at most.
const WINDOW_MAX: u64 = 2 << 20;
/// Most blocks of a cluster: one for so many bytes, and some. A block of 16 bytes can need tables of 1280 entries.
const BLOCK_BYTES: usize = 512;
const BLOCKS: usize = 64;
/// Decoded clusters that are kept for a chain of images, each with the decoder that made it.
const KEPT: usize = 4;

/// An image with zstd.
pub(super) struct ZstdImage {
    /// It is shown another header, see [`Mask`](super::storage::Mask).
    inner: Qcow2<ImageFile>,
    file: File,
    layout: Layout,
    /// Bytes of the disk; `inner` has whole clusters.
    size: u64,
    /// Shared by those who read compressed clusters; who changes the file's tables has it alone. So no cluster is written with
    /// something else between a look at its entry and the end of reading it.
    tables: RwLock<()>,
    kept: Kept,
    /// Its number in `kept`.
    number: usize,
}

/// The decoded clusters of a chain's images; the one that was used last is the last.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<Cluster>>>);

/// A decoded cluster.
struct Cluster {
    decoder: FrameDecoder,
    packed: Vec<u8>,
    bytes: Vec<u8>,
    /// The image and the place that it is of. What is there remains: compressed clusters are not written.
    of: Option<(usize, Place)>,
}

/// Offset in the file, and most bytes.
type Place = (u64, usize);

/// Why a cluster cannot be decoded.
#[derive(Debug)]
enum Fault {
    Frame(ruzstd::decoding::errors::FrameDecoderError),
    /// The frames have more bytes than a cluster.
    Long,
    /// The frames have more blocks than a cluster needs.
    Blocks,
    /// The tables in the file are none, or other ones than those in memory.
    Tables,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => write!(f, "a compressed cluster cannot be decoded: {error}"),
            Self::Long => f.write_str("a compressed cluster is longer than a cluster"),
            Self::Blocks => f.write_str("a compressed cluster is in too many pieces"),
            Self::Tables => f.write_str("the tables that name a compressed cluster are broken"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::new(ErrorKind::InvalidData, fault)
    }
}

/// True where a cluster could not be decoded: nothing was changed for that.
pub(super) fn is_fault(error: &Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Fault>)
}

impl Kept {
    /// The cluster, if it is among them; else one that is of something else.
    fn take(&self, of: (usize, Place)) -> Cluster {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|cluster| cluster.of == Some(of)) {
            Some(at) => kept.remove(at),
            None if kept.len() == KEPT => kept.remove(0),
            None => Cluster::new(),
        }
    }

    fn put(&self, cluster: Cluster) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(cluster);
        }
    }
}

impl Cluster {
    fn new() -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_MAX);
        Self { decoder, packed: Vec::new(), bytes: Vec::new(), of: None }
    }

    /// Has the cluster of this many bytes that is compressed at that place of the file.
    ///
    /// # Errors
    /// Those of reading, and [`Fault`].
    fn load(&mut self, file: &File, of: (usize, Place), bytes: usize) -> Result<()> {
        if self.of == Some(of) {
            return Ok(());
        }
        let (offset, length) = of.1;
        self.of = None;
        self.packed.resize(length, 0);
        fill(file, &mut self.packed, offset)?;
        self.bytes.resize(bytes, 0);
        self.decode()?;
        self.of = Some(of);
        Ok(())
    }

    /// Decodes as many frames as fill the cluster; what is behind them belongs to another.
    fn decode(&mut self) -> std::result::Result<(), Fault> {
        let Self { decoder, packed, bytes, .. } = self;
        let (mut source, mut filled) = (&packed[..], 0);
        let mut blocks = bytes.len() / BLOCK_BYTES + BLOCKS;
        while filled < bytes.len() {
            decoder.reset(&mut source).map_err(Fault::Frame)?;
            while !decoder.is_finished() {
                blocks = blocks.checked_sub(1).ok_or(Fault::Blocks)?;
                // One at a time: a few bytes may stand for 128 KiB.
                let one = BlockDecodingStrategy::UptoBlocks(1);
                decoder.decode_blocks(&mut source, one).map_err(Fault::Frame)?;
                filled += decoder.read(&mut bytes[filled..]).unwrap_or_default();
                if decoder.can_collect() > 0 {
                    return Err(Fault::Long);
                }
            }
        }
        Ok(())
    }
}

impl ZstdImage {
    /// The image as `imago` has it, its file, and its number in what its chain keeps.
    pub(super) fn new(
        inner: Qcow2<ImageFile>,
        file: File,
        header: &Header,
        kept: Kept,
        number: usize,
    ) -> Self {
        let (layout, size) = (header.layout, header.size);
        Self { inner, file, layout, size, tables: RwLock::new(()), kept, number }
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.layout.cluster_bits
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> RwLockWriteGuard<'_, ()> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// True where the cluster at `offset` of the disk is compressed.
    fn is_compressed(&self, offset: u64) -> Result<bool> {
        Ok(matches!(self.inner.get_mapping(offset, 1)?.0, ShallowMapping::Special { .. }))
    }

    /// Gives `take` the bytes of the cluster at `offset` of the disk. `None` where it is compressed no more.
    fn decoded<T>(&self, offset: u64, take: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let place = match self.layout.compressed(&self.file, offset) {
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(Fault::Tables.into()),
            place => place,
        };
        let Some(place) = place? else {
            // The file may be ahead of the tables in memory only where the disk's data lie upon them: that is an image which
            // somebody has made so.
            return if self.is_compressed(offset)? { Err(Fault::Tables.into()) } else { Ok(None) };
        };
        let of = (self.number, place);
        let mut cluster = self.kept.take(of);
        cluster.load(&self.file, of, 1 << self.layout.cluster_bits)?;
        let taken = take(&cluster.bytes);
        self.kept.put(cluster);
        Ok(Some(taken))
    }

    /// Bytes of a range that a request to make zeroes may have: one to the end of the disk is of whole clusters.
    fn to_the_end(&self, offset: u64, length: u64) -> u64 {
        match offset.checked_add(length) {
            Some(end) if end == self.size => self.inner.size().saturating_sub(offset),
            _ => length,
        }
    }

    /// Has a range made zeroes; `call` is given its offset and length, and returns what it has done of it.
    fn zero(
        &self,
        (offset, length): (u64, u64),
        call: impl FnOnce(&Qcow2<ImageFile>, u64, u64) -> Result<(u64, u64)>,
    ) -> Result<(u64, u64)> {
        let _alone = self.changing();
        let (done, bytes) = call(&self.inner, offset, self.to_the_end(offset, length))?;
        Ok((done, bytes.min(offset.saturating_add(length).saturating_sub(done))))
    }

    /// Writes plain what is compressed of the clusters that a write of this range changes in part, or, unless it overwrites
    /// them, in whole. The caller has the tables alone.
    fn unpack(&self, offset: u64, length: u64, overwrite: bool) -> Result<()> {
        let cluster = self.cluster_bytes();
        let end = offset.saturating_add(length);
        let mut at = offset - offset % cluster;
        while at < end {
            let partly = at < offset || at + cluster > end;
            let is_needed = (partly || !overwrite) && self.is_compressed(at)?;
            if is_needed && let Some(bytes) = self.decoded(at, <[u8]>::to_vec)? {
                let mapping = self.inner.prepare_data_mapping(at, cluster, true)?;
                mapping.storage().write(&bytes[..], mapping.offset())?;
                self.inner.commit_data_mapping(mapping)?;
            }
            at += cluster;
        }
        Ok(())
    }
}

impl FormatDriverInstance for ZstdImage {
    type Storage = ImageFile;

    fn format(&self) -> Format {
        self.inner.format()
    }

    unsafe fn probe(_: &ImageFile) -> Result<bool> {
        // Nothing is probed.
        Ok(false)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn zero_granularity(&self) -> Option<u64> {
        self.inner.zero_granularity()
    }

    fn collect_storage_dependencies(&self) -> Vec<&ImageFile> {
        self.inner.collect_storage_dependencies()
    }

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    fn get_mapping(
        &self,
        offset: u64,
        max_length: u64,
    ) -> Result<(ShallowMapping<'_, ImageFile>, u64)> {
        // Behind the end of a disk of whole clusters there is nothing either.
        let left = self.size.saturating_sub(offset);
        let offset = if left == 0 { u64::MAX } else { offset };
        let (mapping, length) = self.inner.get_mapping(offset, max_length.min(left))?;
        Ok((mapping, length.min(left)))
    }

    fn prepare_data_mapping(
        &self,
        offset: u64,
        length: u64,
        overwrite: bool,
    ) -> Result<PreparedDataMapping<'_, ImageFile>> {
        let _alone = self.changing();
        self.unpack(offset, length, overwrite)?;
        self.inner.prepare_data_mapping(offset, length, overwrite)
    }

    fn commit_data_mapping(&self, mapping: PreparedDataMapping<'_, ImageFile>) -> Result<()> {
        // Nobody is waited for: who prepares another mapping has the tables alone, and may wait for this one. What becomes
        // free is taken by nobody before the tables are flushed.
        self.inner.commit_data_mapping(mapping)
    }

    fn ensure_zero_mapping(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        self.zero((offset, length), Qcow2::ensure_zero_mapping)
    }

    unsafe fn discard_to_zero_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that it is used by nobody else.
        self.zero((offset, length), |inner, at, bytes| unsafe {
            inner.discard_to_zero_unsafe(at, bytes)
        })
    }

    unsafe fn discard_to_any_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that it is used by nobody else.
        self.zero((offset, length), |inner, at, bytes| unsafe {
            inner.discard_to_any_unsafe(at, bytes)
        })
    }

    unsafe fn discard_to_backing_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that it is used by nobody else.
        self.zero((offset, length), |inner, at, bytes| unsafe {
            inner.discard_to_backing_unsafe(at, bytes)
        })
    }

    fn try_readv_special<'a>(
        &self,
        mut bytes: IoVectorMut<'a>,
        mut offset: u64,
    ) -> Result<Option<(IoVectorMut<'a>, u64)>> {
        let _whole = self.reading();
        while !bytes.is_empty() {
            let within = offset % self.cluster_bytes();
            let length = (self.cluster_bytes() - within).min(bytes.len());
            let range = within as usize..(within + length) as usize;
            let (mut here, rest) = bytes.split_at(length);
            let read = self.decoded(offset, |cluster| here.copy_from_slice(&cluster[range]))?;
            if read.is_none() {
                // It was written meanwhile.
                here.append(rest);
                return Ok(Some((here, offset)));
            }
            (bytes, offset) = (rest, offset + length);
        }
        Ok(None)
    }

    fn flush(&self) -> Result<()> {
        let _alone = self.changing();
        self.inner.flush()
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    unsafe fn invalidate_cache(&self) -> Result<()> {
        let _alone = self.changing();
        // SAFETY: the caller has promised that the file is as it is known.
        unsafe { self.inner.invalidate_cache() }
    }

    fn resize_grow(&self, _: u64, _: PreallocateMode) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn resize_shrink(&mut self, _: u64) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

impl fmt::Debug for ZstdImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdImage").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for ZstdImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
