//! The file of an image, as it is presented to `imago`.
//!
//! `imago` refuses an image whose header says that its clusters are compressed with zstd. It is
//! therefore given a header with other fields ([`HeaderMask`]); when it writes its header, the true
//! fields are put back.

// The trait's own methods are `unsafe`: their callers promise aligned requests, and each request is
// passed on unchanged.
#![allow(unsafe_code)]

use super::header::{COMPRESSION, COMPRESSION_AT, FEATURES_AT, ImageHeader, SIZE_AT};
use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};
use std::fmt;
use std::io::Result;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file, and the fields that are presented with other values.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    mask: Option<HeaderMask>,
}

/// The fields of a header that are presented with other values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeaderMask([HeaderField; 3]);

#[derive(Clone, PartialEq, Eq, Debug)]
struct HeaderField {
    at: usize,
    real: Vec<u8>,
    shown: Vec<u8>,
}

impl HeaderMask {
    /// Creates the mask of an image with zstd. The size is rounded up to whole clusters, as the
    /// last cluster is written as a whole too.
    pub(super) fn zstd(header: &ImageHeader) -> Self {
        let size = header.rounded_size();
        let field = |at, real: &[u8], shown: &[u8]| {
            let (real, shown) = (real.to_vec(), shown.to_vec());
            HeaderField { at, real, shown }
        };
        let (features, shown) = (header.features, header.features & !COMPRESSION);
        Self([
            field(SIZE_AT, &header.size.to_be_bytes(), &size.to_be_bytes()),
            field(FEATURES_AT, &features.to_be_bytes(), &shown.to_be_bytes()),
            field(COMPRESSION_AT, &[1], &[0]),
        ])
    }

    /// Returns the range of the file that contains all fields.
    fn bytes(&self) -> Range<usize> {
        0..self.0.iter().map(|field| field.at + field.real.len()).max().unwrap_or(0)
    }

    /// Replaces the parts of fields that lie in `bytes`, which are the file's from `offset` on.
    fn put(&self, bytes: &mut [u8], offset: u64, of: impl Fn(&HeaderField) -> &[u8]) {
        for field in &self.0 {
            for (at, byte) in (field.at as u64..).zip(of(field)) {
                let index = at.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
                if let Some(there) = index.and_then(|index| bytes.get_mut(index)) {
                    *there = *byte;
                }
            }
        }
    }
}

impl ImageFile {
    /// Wraps the file at `path`, opened by the caller.
    ///
    /// # Errors
    /// Those of reading the file's properties.
    pub(super) fn new(
        file: std::fs::File,
        path: &Path,
        writes: bool,
        mask: Option<HeaderMask>,
    ) -> Result<Self> {
        let options = StorageOpenOptions::new().write(writes).filename(path);
        Ok(Self { file: File::from_open_file(file, options)?, mask })
    }

    /// Returns the mask, if a request at `offset` reaches masked fields.
    fn mask_at(&self, offset: u64) -> Option<&HeaderMask> {
        self.mask.as_ref().filter(|mask| offset < mask.bytes().end as u64)
    }
}

impl Storage for ImageFile {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> Result<u64> {
        self.file.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> Result<PathBuf> {
        self.file.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.file.get_filename()
    }

    unsafe fn pure_readv(&self, mut bytes: IoVectorMut<'_>, offset: u64) -> Result<()> {
        let Some(mask) = self.mask_at(offset) else {
            // SAFETY: the caller has promised what the file asks for.
            return unsafe { self.file.pure_readv(bytes, offset) };
        };
        let mut shown = vec![0; bytes.len() as usize];
        // SAFETY: the caller has promised what the file asks for, except the position of the bytes:
        // they are in memory of this function, aligned to 1, which is enough as the file is not
        // opened with O_DIRECT.
        unsafe { self.file.pure_readv(IoVectorMut::from(&mut shown[..]), offset) }?;
        mask.put(&mut shown, offset, |field| &field.shown);
        bytes.copy_from_slice(&shown);
        Ok(())
    }

    unsafe fn pure_writev(&self, bytes: IoVector<'_>, offset: u64) -> Result<()> {
        let Some(mask) = self.mask_at(offset) else {
            // SAFETY: the caller has promised what the file asks for.
            return unsafe { self.file.pure_writev(bytes, offset) };
        };
        let mut real = vec![0; bytes.len() as usize];
        bytes.copy_into_slice(&mut real);
        mask.put(&mut real, offset, |field| &field.real);
        // SAFETY: as for reading.
        unsafe { self.file.pure_writev(IoVector::from(&real[..]), offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        // SAFETY: the caller has promised what the file asks for.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        // SAFETY: the caller has promised what the file asks for.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> Result<()> {
        // SAFETY: the caller has promised what the file asks for.
        unsafe { self.file.pure_discard(offset, length) }
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> Result<()> {
        self.file.sync()
    }

    fn settle_writes(&self) -> Result<()> {
        self.file.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> Result<()> {
        // SAFETY: the caller has promised that the file is as it is known.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> Result<()> {
        self.file.resize(new_size, mode)
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}
