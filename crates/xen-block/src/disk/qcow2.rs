//! qcow2 images with backing files: through the crate `imago`, on threads.
//!
//! Some features that `imago` 0.2 lacks are handled here. Images that are encrypted, marked dirty
//! or corrupt, or have subclusters are refused. Internal snapshots are not made, and dirty bitmaps
//! are not kept up. Clusters that are compressed with zstd are read here (`qcow2/zstd.rs`). Data
//! goes through a buffer of the thread, one copy more than with a raw file. Reads and writes run in
//! parallel; a discard runs alone. `imago` keeps changes of the tables in memory until it is told
//! to write them: here that happens before the request that made them is answered. The files that
//! an image needs are found here, and each is opened here if [`ImageDirs`] allows it
//! (`qcow2/chain.rs`); `imago` opens none by itself.

mod chain;
mod counts;
mod header;
mod layout;
mod storage;
mod zstd;

use super::escaped_path::EscapedPath;
use super::image::ImageFault;
use super::image_dirs::ImageDirs;
use super::open::OpenError;
use super::pool::{Pool, PooledDisk, RequestHandler, RunOutcome};
use super::{DiskAccess, DiskIo, DiskOp, Geometry};
use chain::{Chain, ChainFile, ChainPurpose};
use header::Compression;
use imago::qcow2::Qcow2 as Format;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping, StorageExt as _,
};
use layout::ImageLayout;
use rustix::io::Errno;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use storage::{HeaderMask, ImageFile};
use zstd::{ClusterCache, ZstdImage};

/// The number of requests that are done at a time.
const THREADS: usize = 4;

/// An image, with the state of changes of its tables that only this process knows.
struct Qcow2Image {
    /// The access through `imago`, which a discard has exclusively.
    access: RwLock<FormatAccess<ImageFile>>,
    /// The lock for changes of the tables: shared by threads while they change tables; exclusive
    /// for a thread that writes the tables or frees a cluster. Taken after `access`.
    tables: RwLock<()>,
    /// True while the tables have changes that are not in the file. Set before a change, with
    /// `tables` or `access` held; cleared by a thread that holds one of them exclusively and writes
    /// the tables.
    unwritten: AtomicBool,
    /// True once a change has failed: `imago` may know of tables that the file will never name, so
    /// nothing more is written until the image is opened again.
    failed: AtomicBool,
    /// The bytes of a cluster, and the bytes of the disk in one table.
    cluster: u64,
    table_covers: u64,
}

/// Opens the image at `path`, and the files that it names as far as `image_dirs` allow that. An image
/// opened for writing is locked against everybody else who writes it or needs it unchanged. One
/// opened for reading, and every file behind the image, is locked against writers.
///
/// # Errors
/// [`OpenError`], with the message of `imago` for an image that it cannot open.
pub fn open(
    path: &Path,
    access: DiskAccess,
    image_dirs: &ImageDirs,
) -> Result<PooledDisk, OpenError> {
    let chain = Chain::open(path, ChainPurpose::Use(access), image_dirs, |_| ())?;
    let writes = access == DiskAccess::ReadWrite;
    let (mut layout, mut held, mut behind) = (None, None, None);
    let cache = ClusterCache::default();
    let top = chain.0.len().saturating_sub(1);
    for (at, link) in chain.0.into_iter().rev().enumerate() {
        let ChainFile { path, file, header, data } = link;
        let bad = |error: std::io::Error| {
            OpenError::Image(path.clone(), ImageFault::Said(error.to_string()))
        };
        let writes = writes && at == top;
        if writes && let Some(header) = &header {
            counts::repair(&file, header.layout)
                .map_err(|fault| OpenError::Image(path.clone(), fault))?;
        }
        if at == top {
            layout = header.as_ref().map(|header| header.layout);
            held = Some(file.try_clone().map_err(bad)?.into());
        }
        behind = Some(match header {
            Some(header) => {
                let is_zstd = header.compression == Compression::Zstd;
                let own = is_zstd.then(|| file.try_clone()).transpose().map_err(bad)?;
                let mask = is_zstd.then(|| HeaderMask::zstd(&header));
                let image = ImageFile::new(file, &path, writes, mask).map_err(bad)?;
                let data = data.map(|(path, file)| ImageFile::new(file, &path, writes, None));
                let builder = Format::<ImageFile>::builder(image).write(writes);
                let builder =
                    builder.backing(behind.take()).data_file(data.transpose().map_err(bad)?);
                let image = builder.open(DenyImplicitOpenGate::default()).map_err(bad)?;
                match own {
                    Some(own) => {
                        FormatAccess::new(ZstdImage::new(image, own, &header, cache.clone(), at))
                    }
                    None => FormatAccess::new(image),
                }
            }
            None => {
                let image = ImageFile::new(file, &path, writes, None).map_err(bad)?;
                let raw = Raw::<ImageFile>::builder(image).open(DenyImplicitOpenGate::default());
                FormatAccess::new(raw.map_err(bad)?)
            }
        });
    }
    let image = behind.ok_or_else(|| OpenError::NotADisk(path.to_owned()))?;
    let sectors = image.size() / 512;
    if sectors == 0 {
        return Err(OpenError::NotADisk(path.to_owned()));
    }
    let geometry = Geometry {
        sectors,
        sector_size: 512,
        physical_sector_size: if sectors.is_multiple_of(8) { 4096 } else { 512 },
        access,
        discard_granularity: Some(65536),
    };
    let image = Arc::new(Qcow2Image {
        access: RwLock::new(image),
        tables: RwLock::new(()),
        unwritten: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        cluster: layout.map_or(u64::MAX, |layout| 1 << layout.cluster_bits),
        table_covers: layout.map_or(u64::MAX, ImageLayout::table_covers),
    });
    let worker = || Worker { image: Arc::clone(&image), buffer: Vec::new() };
    let pool = Pool::new((0..THREADS).map(|_| worker()).collect())
        .map_err(|errno| OpenError::System(path.to_owned(), errno))?;
    Ok(PooledDisk::new(pool, geometry, path, held))
}

/// Checks the image at `path` and the files that it names, without using them. Returns a line for
/// each file that may be used.
///
/// # Errors
/// The reason why the image would not be served, with the lines up to that point.
pub fn look(path: &Path, image_dirs: &ImageDirs) -> (Vec<String>, Result<(), OpenError>) {
    let mut lines = Vec::new();
    let chain = Chain::open(path, ChainPurpose::Look, image_dirs, |link| {
        let format = if link.header.is_some() { "qcow2" } else { "raw" };
        lines.push(format!("{}: {format}", EscapedPath(&link.path)));
        if let Some((path, _)) = &link.data {
            lines.push(format!("{}: data of the one above", EscapedPath(path)));
        }
    });
    (lines, chain.map(drop))
}

/// The state of one thread.
struct Worker {
    image: Arc<Qcow2Image>,
    buffer: Vec<u8>,
}

impl RequestHandler for Worker {
    fn run(&mut self, io: &mut DiskIo) -> Result<RunOutcome, Errno> {
        let Self { image, buffer } = self;
        match io.op {
            DiskOp::Read => {
                buffer.resize(io.bytes(), 0);
                image.shared().read(&mut buffer[..], io.offset()).map_err(errno)?;
                io.scatter(buffer)?;
                return Ok(RunOutcome::Settled);
            }
            DiskOp::Write => {
                buffer.resize(io.bytes(), 0);
                io.gather(buffer)?;
                image.write(buffer, io.offset()).map_err(errno)?;
            }
            DiskOp::Discard => image.discard(io.offset(), io.sectors * 512).map_err(errno)?,
            _ => {
                image.write_tables().and_then(|()| image.shared().sync()).map_err(errno)?;
                return Ok(RunOutcome::Settled);
            }
        }
        Ok(if image.is_written() { RunOutcome::Settled } else { RunOutcome::Unsettled })
    }

    fn settle(&mut self) -> Result<(), Errno> {
        self.image.write_tables().map_err(errno)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn errno(error: std::io::Error) -> Errno {
    match error.kind() {
        // The old version of the format does not support it.
        std::io::ErrorKind::Unsupported => Errno::OPNOTSUPP,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}

impl Qcow2Image {
    fn write(&self, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
        self.check()?;
        let access = self.shared();
        while !bytes.is_empty() {
            let (mapping, mut length) = access.get_shallow_mapping(offset, bytes.len() as u64)?;
            if matches!(mapping, ShallowMapping::Special { .. }) {
                // One compressed cluster at a time: the next one must not be written to the old
                // place of this one before the file's tables name its new place.
                length = length.min(self.cluster - offset % self.cluster);
                if length < self.cluster {
                    // A cluster that cannot be decoded is not changed: a failed change would stop
                    // all later ones.
                    access.read(&mut [0][..], offset)?;
                }
            }
            let (here, rest) = bytes.split_at(bytes.len().min(length as usize));
            match mapping {
                // Past the end of the disk, or a faulty table: `imago` returns the error.
                _ if here.is_empty() => return access.write(bytes, offset),
                // The image has the clusters already, so only their bytes change.
                ShallowMapping::Raw { storage, offset: place, writable: true, .. } => {
                    storage.write(here, place)?;
                }
                ShallowMapping::Indirect { .. } | ShallowMapping::Zero { explicit: false, .. } => {
                    let _changing = self.tables.read().unwrap_or_else(PoisonError::into_inner);
                    self.change(|| access.write(here, offset))?;
                }
                // A cluster that the file's tables name may become free. It must not be used again
                // while they name it.
                _ => {
                    let _alone = self.tables.write().unwrap_or_else(PoisonError::into_inner);
                    self.change(|| access.write(here, offset))?;
                    self.flush(&access)?;
                }
            }
            (bytes, offset) = (rest, offset + length);
        }
        Ok(())
    }

    fn discard(&self, mut offset: u64, bytes: u64) -> std::io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        let end = offset.saturating_add(bytes);
        // One table at a time: the next may be new, and must not be written to the old place of a
        // cluster of this one.
        while offset < end {
            let here = (self.table_covers - offset % self.table_covers).min(end - offset);
            let changed = self.change(|| access.discard_to_zero(offset, here));
            // Also after a failure midway: some clusters may be free.
            let flushed = self.flush(&access);
            changed.and(flushed)?;
            offset += here;
        }
        Ok(())
    }

    /// Makes a change of the tables.
    fn change(&self, call: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        self.check()?;
        self.unwritten.store(true, Ordering::Release);
        call().inspect_err(|error| {
            let unchanged =
                error.kind() == std::io::ErrorKind::Unsupported || zstd::is_fault(error);
            self.failed.fetch_or(!unchanged, Ordering::AcqRel);
        })
    }

    fn is_written(&self) -> bool {
        !self.unwritten.load(Ordering::Acquire)
    }

    /// Writes the tables to the file, so that the guest loses nothing if this process is killed. No
    /// other thread changes the tables meanwhile: a table could be written that names a cluster
    /// which is not counted yet.
    fn write_tables(&self) -> std::io::Result<()> {
        if self.is_written() {
            return Ok(());
        }
        let access = self.shared();
        let _alone = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have written the tables while this one waited.
        if self.is_written() { Ok(()) } else { self.flush(&access) }
    }

    /// Fails after a failed change. Changes that were under way with the failed one count as failed
    /// too.
    fn check(&self) -> std::io::Result<()> {
        if self.failed.load(Ordering::Acquire) { Err(Errno::IO.into()) } else { Ok(()) }
    }

    /// Writes the tables; the caller has them exclusively.
    fn flush(&self, access: &FormatAccess<ImageFile>) -> std::io::Result<()> {
        self.check()?;
        access.flush().inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        // Not earlier: other threads may write into clusters that the file's tables do not name
        // before this.
        self.unwritten.store(false, Ordering::Release);
        Ok(())
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<ImageFile>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }
}
