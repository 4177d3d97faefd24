//! qcow2 images, with backing files: through the crate `imago`, on threads.
//!
//! What `imago` 0.2 lacks, and so this does: images that are encrypted, marked dirty or corrupt, or have
//! subclusters are refused; internal snapshots are not made; dirty bitmaps are not kept up. Data goes
//! through a buffer of the thread, one copy more than with a raw file. Reads and writes run side by side,
//! a discard runs alone. `imago` keeps changes of the tables in memory until it is told to write them: here
//! that is before the request that made them is answered. The backing files that an image names are opened for
//! reading as it names them, so an image is to come from somebody who may read the host's files.

mod counts;

use super::file::{OpenError, lock_for_writing};
use super::pool::{Pool, Pooled, Ran, Work};
use super::{DiskAccess, Geometry, Io, Op};
use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Format;
use imago::{
    FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate, StorageExt as _,
};
use rustix::io::Errno;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Requests that are done at a time.
const THREADS: usize = 4;

/// An image, and whether this process alone knows of changes of its tables.
struct Image {
    /// A discard has it alone.
    access: RwLock<FormatAccess<Storage>>,
    /// Shared by those who may change tables, while they do; who writes them has it alone. Taken behind `access`.
    tables: RwLock<()>,
    /// Set before a table changes, while `tables` or `access` is held; taken back by who has `tables` alone, and writes them.
    unwritten: AtomicBool,
}

/// Opens the image at `path`; for writing it is locked against every other device that writes.
///
/// # Errors
/// [`OpenError`], with what `imago` says of an image that it cannot open.
pub fn open(path: &Path, access: DiskAccess) -> Result<Pooled, OpenError> {
    let bad = |error: std::io::Error| OpenError::Image(path.to_owned(), error.to_string());
    let lock = match access {
        DiskAccess::ReadOnly => None,
        DiskAccess::ReadWrite => {
            let file = std::fs::File::from(lock_for_writing(path)?);
            counts::mend(&file).map_err(bad)?;
            Some(file.into())
        }
    };
    let image = Format::<Storage>::builder_path(path)
        .write(access == DiskAccess::ReadWrite)
        .open(PermissiveImplicitOpenGate::default())
        .map_err(bad)?;
    let image = FormatAccess::new(image);
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
    let image = Arc::new(Image {
        access: RwLock::new(image),
        tables: RwLock::new(()),
        unwritten: AtomicBool::new(false),
    });
    let worker = || Worker { image: Arc::clone(&image), buffer: Vec::new() };
    let pool = Pool::new((0..THREADS).map(|_| worker()).collect())
        .map_err(|errno| OpenError::System(path.to_owned(), errno))?;
    Ok(Pooled::new(pool, geometry, path, lock))
}

/// One thread's.
struct Worker {
    image: Arc<Image>,
    buffer: Vec<u8>,
}

impl Work for Worker {
    fn run(&mut self, io: &mut Io) -> Result<Ran, Errno> {
        let Self { image, buffer } = self;
        match io.op {
            Op::Read => {
                buffer.resize(io.bytes(), 0);
                image.shared().read(&mut buffer[..], io.offset()).map_err(errno)?;
                io.scatter(buffer)?;
                return Ok(Ran::Settled);
            }
            Op::Write => {
                buffer.resize(io.bytes(), 0);
                io.gather(buffer)?;
                image.write(buffer, io.offset()).map_err(errno)?;
            }
            Op::Discard => image.discard(io.offset(), io.sectors * 512).map_err(errno)?,
            _ => {
                image.write_tables().and_then(|()| image.shared().sync()).map_err(errno)?;
                return Ok(Ran::Settled);
            }
        }
        Ok(if image.is_written() { Ran::Settled } else { Ran::Unsettled })
    }

    fn settle(&mut self) -> Result<(), Errno> {
        self.image.write_tables().map_err(errno)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

impl Image {
    /// Where the image has the clusters already, their bytes are all that changes.
    fn write(&self, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
        let access = self.shared();
        while !bytes.is_empty() {
            let mapped = access.get_mapping(offset, bytes.len() as u64)?;
            let (Mapping::Raw { storage, offset: place, writable: true, .. }, length @ 1..) =
                mapped
            else {
                let _changing = self.tables.read().unwrap_or_else(PoisonError::into_inner);
                self.unwritten.store(true, Ordering::Release);
                return access.write(bytes, offset);
            };
            let (here, rest) = bytes.split_at(bytes.len().min(length as usize));
            storage.write(here, place)?;
            (bytes, offset) = (rest, offset + length);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        self.unwritten.store(true, Ordering::Release);
        access.discard_to_zero(offset, bytes)
    }

    fn is_written(&self) -> bool {
        !self.unwritten.load(Ordering::Acquire)
    }

    /// Sees to it that the file has the tables as they are: a process that is killed leaves what its file has, and no guest
    /// is to notice. Nobody changes them meanwhile, or one could be written with a cluster that is not counted yet.
    fn write_tables(&self) -> std::io::Result<()> {
        if self.is_written() {
            return Ok(());
        }
        let access = self.shared();
        let _alone = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever has waited for another that did it for both finds nothing to do.
        if !self.is_written() {
            access.flush()?;
            // Not before: others may write into clusters that only now have their place in the file's tables.
            self.unwritten.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }
}
