//! Images whose clusters are compressed with zstd. `imago` does everything but reading and writing
//! these clusters.
//!
//! A compressed cluster is decoded here, by the crate `ruzstd`. Before a cluster is written in
//! part, it is written whole and uncompressed, as QEMU does; compressed clusters are never made.
//! The position of a cluster in the file is read from the tables in the file, as `imago` does not
//! give it. No thread changes tables while a cluster is read.

// Some of the trait's methods are `unsafe`; their callers' promises are passed on.
#![allow(unsafe_code)]

use super::ImageFile;
use super::header::ImageHeader;
use super::layout::{ImageLayout, fill};
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

/// The largest window of a frame, in bytes. The window of QEMU's frames is a cluster, at most 2
/// MiB.
const WINDOW_MAX: u64 = 2 << 20;
/// The bytes of a cluster for which one block is allowed; [`BLOCKS`] more are allowed. A block of
/// 16 bytes can need tables of 1280 entries.
const BLOCK_BYTES: usize = 512;
const BLOCKS: usize = 64;
/// The number of decoded clusters that are kept for a chain of images, each with the decoder that
/// made it.
const CACHED_CLUSTERS: usize = 4;

/// An image with zstd.
pub(super) struct ZstdImage {
    /// The image with the header of a [`HeaderMask`](super::storage::HeaderMask).
    inner: Qcow2<ImageFile>,
    file: File,
    layout: ImageLayout,
    /// The bytes of the disk; `inner` has whole clusters.
    size: u64,
    /// The lock of the tables: shared by threads that read compressed clusters, exclusive for a
    /// thread that changes the file's tables. A cluster's place is therefore not overwritten
    /// between the look at its entry and the end of reading it.
    tables: RwLock<()>,
    cache: ClusterCache,
    /// The image's number in `cache`.
    number: usize,
}

/// The decoded clusters of a chain's images; the most recently used is the last.
#[derive(Clone, Default)]
pub(super) struct ClusterCache(Arc<Mutex<Vec<Cluster>>>);

/// A decoded cluster.
struct Cluster {
    decoder: FrameDecoder,
    packed: Vec<u8>,
    bytes: Vec<u8>,
    /// The image and the place of the cluster. The bytes there do not change, as compressed
    /// clusters are not written.
    of: Option<(usize, CompressedRange)>,
}

/// The offset in the file, and the most bytes.
type CompressedRange = (u64, usize);

/// The reason why a cluster cannot be decoded.
#[derive(Debug)]
enum DecodeError {
    Frame(ruzstd::decoding::errors::FrameDecoderError),
    /// The frames have more bytes than a cluster.
    Long,
    /// The frames have more blocks than a cluster needs.
    Blocks,
    /// The tables in the file are faulty, or differ from those in memory.
    Tables,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => write!(f, "a compressed cluster cannot be decoded: {error}"),
            Self::Long => f.write_str("a compressed cluster is longer than a cluster"),
            Self::Blocks => f.write_str("a compressed cluster is in too many pieces"),
            Self::Tables => f.write_str("the tables that name a compressed cluster are broken"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for Error {
    fn from(fault: DecodeError) -> Self {
        Self::new(ErrorKind::InvalidData, fault)
    }
}

/// True if the error is a cluster that could not be decoded: then nothing was changed.
pub(super) fn is_fault(error: &Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<DecodeError>)
}

impl ClusterCache {
    /// Returns the cluster if it is cached; otherwise one to be loaded.
    fn take(&self, of: (usize, CompressedRange)) -> Cluster {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.iter().position(|cluster| cluster.of == Some(of)) {
            Some(at) => cache.remove(at),
            None if cache.len() == CACHED_CLUSTERS => cache.remove(0),
            None => Cluster::new(),
        }
    }

    fn put(&self, cluster: Cluster) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() < CACHED_CLUSTERS {
            cache.push(cluster);
        }
    }
}

impl Cluster {
    fn new() -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_MAX);
        Self { decoder, packed: Vec::new(), bytes: Vec::new(), of: None }
    }

    /// Loads the cluster of this many bytes that is compressed at that place of the file.
    ///
    /// # Errors
    /// Those of reading, and [`DecodeError`].
    fn load(&mut self, file: &File, of: (usize, CompressedRange), bytes: usize) -> Result<()> {
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

    /// Decodes as many frames as fill the cluster; the bytes behind them belong to another one.
    fn decode(&mut self) -> std::result::Result<(), DecodeError> {
        let Self { decoder, packed, bytes, .. } = self;
        let (mut source, mut filled) = (&packed[..], 0);
        let mut blocks = bytes.len() / BLOCK_BYTES + BLOCKS;
        while filled < bytes.len() {
            decoder.reset(&mut source).map_err(DecodeError::Frame)?;
            while !decoder.is_finished() {
                blocks = blocks.checked_sub(1).ok_or(DecodeError::Blocks)?;
                // One block at a time: a few bytes may decode to 128 KiB.
                let one = BlockDecodingStrategy::UptoBlocks(1);
                decoder.decode_blocks(&mut source, one).map_err(DecodeError::Frame)?;
                filled += decoder.read(&mut bytes[filled..]).unwrap_or_default();
                if decoder.can_collect() > 0 {
                    return Err(DecodeError::Long);
                }
            }
        }
        Ok(())
    }
}

impl ZstdImage {
    /// Wraps `imago`'s image, with its file and its number among the clusters that the chain keeps.
    pub(super) fn new(
        inner: Qcow2<ImageFile>,
        file: File,
        header: &ImageHeader,
        cache: ClusterCache,
        number: usize,
    ) -> Self {
        let (layout, size) = (header.layout, header.size);
        Self { inner, file, layout, size, tables: RwLock::new(()), cache, number }
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

    /// True if the cluster at `offset` of the disk is compressed.
    fn is_compressed(&self, offset: u64) -> Result<bool> {
        Ok(matches!(self.inner.get_mapping(offset, 1)?.0, ShallowMapping::Special { .. }))
    }

    /// Gives `take` the bytes of the cluster at `offset` of the disk. `None` if it is no longer
    /// compressed.
    fn decoded<T>(&self, offset: u64, take: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let place = match self.layout.compressed(&self.file, offset) {
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(DecodeError::Tables.into()),
            place => place,
        };
        let Some(place) = place? else {
            // The file's tables can be newer than those in memory only if the disk's data overlaps
            // them, in a deliberately made image.
            return if self.is_compressed(offset)? {
                Err(DecodeError::Tables.into())
            } else {
                Ok(None)
            };
        };
        let of = (self.number, place);
        let mut cluster = self.cache.take(of);
        cluster.load(&self.file, of, 1 << self.layout.cluster_bits)?;
        let taken = take(&cluster.bytes);
        self.cache.put(cluster);
        Ok(Some(taken))
    }

    /// Returns the length of a request to zero a range: a range to the end of the disk is extended
    /// to whole clusters.
    fn extended_length(&self, offset: u64, length: u64) -> u64 {
        match offset.checked_add(length) {
            Some(end) if end == self.size => self.inner.size().saturating_sub(offset),
            _ => length,
        }
    }

    /// Zeroes a range. `call` gets the offset and the length, and returns the part that it has
    /// done.
    fn zero(
        &self,
        (offset, length): (u64, u64),
        call: impl FnOnce(&Qcow2<ImageFile>, u64, u64) -> Result<(u64, u64)>,
    ) -> Result<(u64, u64)> {
        let _alone = self.changing();
        let (done, bytes) = call(&self.inner, offset, self.extended_length(offset, length))?;
        Ok((done, bytes.min(offset.saturating_add(length).saturating_sub(done))))
    }

    /// Writes compressed clusters of this range uncompressed: those that the write changes in part
    /// and, unless it overwrites them, those that it changes as a whole. The caller has the tables
    /// exclusively.
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
        // No image is probed.
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
        // Past the end of a disk of whole clusters there is nothing either.
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
        // No lock is taken: a thread that prepares another mapping has the tables exclusively, and
        // may wait for this one. A cluster that becomes free is not used again before the tables
        // are flushed.
        self.inner.commit_data_mapping(mapping)
    }

    fn ensure_zero_mapping(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        self.zero((offset, length), Qcow2::ensure_zero_mapping)
    }

    unsafe fn discard_to_zero_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that nobody else uses the image.
        self.zero((offset, length), |inner, at, bytes| unsafe {
            inner.discard_to_zero_unsafe(at, bytes)
        })
    }

    unsafe fn discard_to_any_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that nobody else uses the image.
        self.zero((offset, length), |inner, at, bytes| unsafe {
            inner.discard_to_any_unsafe(at, bytes)
        })
    }

    unsafe fn discard_to_backing_unsafe(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        // SAFETY: the caller has promised that nobody else uses the image.
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
                // The cluster was written meanwhile.
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
        // SAFETY: the caller has promised that the file is in the known state.
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
