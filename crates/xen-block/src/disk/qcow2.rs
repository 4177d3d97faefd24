//! qcow2 images, with backing files: through the crate `imago`, on threads.
//!
//! What `imago` 0.2 lacks, and so this does: images that are encrypted, marked dirty or corrupt, or have
//! subclusters are refused; internal snapshots are not made; dirty bitmaps are not kept up. Data goes
//! through a buffer of the thread, one copy more than with a raw file. Reads and writes run side by side,
//! a discard runs alone. `imago` keeps changes of the tables in memory until it is told to write them: here
//! that is before the request that made them is answered. The backing files that an image names are opened for reading as it names them, so
//! an image is to come from somebody who may read the host's files.

mod counts;

use super::file::{OpenError, lock_for_writing};
use super::pool::{Pool, Pooled};
use super::{DiskAccess, Geometry, Io, Op};
use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Format;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate};
use rustix::io::Errno;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Requests that are done at a time.
const THREADS: usize = 4;

/// An image, and whether this process alone knows of changes of its tables.
struct Image {
    access: RwLock<FormatAccess<Storage>>,
    /// Set before a table changes, while `access` is held; taken back by who holds it alone, and writes them.
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
    let image = Arc::new(Image { access: RwLock::new(image), unwritten: AtomicBool::new(false) });
    let worker = || {
        let (image, mut buffer) = (Arc::clone(&image), Vec::new());
        move |io: &mut Io| {
            let wrong = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            image.run(io, &mut buffer).map_err(wrong)
        }
    };
    let pool = Pool::new((0..THREADS).map(|_| worker()).collect())
        .map_err(|errno| OpenError::System(path.to_owned(), errno))?;
    Ok(Pooled::new(pool, geometry, path, lock))
}

impl Image {
    /// Does one request.
    fn run(&self, io: &Io, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        match io.op {
            Op::Read => {
                buffer.resize(io.bytes(), 0);
                self.shared().read(&mut buffer[..], io.offset())?;
                Ok(io.scatter(buffer)?)
            }
            Op::Write => {
                buffer.resize(io.bytes(), 0);
                io.gather(buffer)?;
                self.write(buffer, io.offset())?;
                self.write_tables()
            }
            Op::Discard => {
                let mut access = self.alone();
                self.unwritten.store(true, Ordering::Release);
                access.discard_to_zero(io.offset(), io.sectors * 512)?;
                drop(access);
                self.write_tables()
            }
            _ => {
                self.write_tables()?;
                self.shared().sync()
            }
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let access = self.shared();
        let mut ahead = 0;
        while ahead < bytes.len() as u64 {
            let at = (offset + ahead, bytes.len() as u64 - ahead);
            let (Mapping::Raw { writable: true, .. }, length @ 1..) =
                access.get_mapping(at.0, at.1)?
            else {
                self.unwritten.store(true, Ordering::Release);
                break;
            };
            ahead += length;
        }
        access.write(bytes, offset)
    }

    /// Sees to it that the file has the tables as they are: a process that is killed leaves what its file has, and no guest
    /// is to notice. Nobody writes meanwhile, or a table could be written with a cluster that is not counted yet.
    fn write_tables(&self) -> std::io::Result<()> {
        if !self.unwritten.load(Ordering::Acquire) {
            return Ok(());
        }
        let access = self.alone();
        // Whoever has waited for another that did it for both finds nothing to do.
        if self.unwritten.swap(false, Ordering::AcqRel) {
            access.flush().inspect_err(|_| self.unwritten.store(true, Ordering::Release))?;
        }
        Ok(())
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Storage>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }
}
