//! qcow2 images, with backing files: through the crate `imago`, on threads.
//!
//! What `imago` 0.2 lacks, and so this does: images that are encrypted, marked dirty or corrupt, or have
//! subclusters are refused; internal snapshots are not made; dirty bitmaps are not kept up. Data goes
//! through a buffer of the thread, one copy more than with a raw file. Reads and writes run side by side,
//! a discard runs alone. The backing files that an image names are opened for reading as it names them, so
//! an image is to come from somebody who may read the host's files.

use super::file::{OpenError, lock_for_writing};
use super::pool::{Pool, Pooled};
use super::{DiskAccess, Geometry, Io, Op};
use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Format;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use rustix::io::Errno;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// Requests that are done at a time.
const THREADS: usize = 4;

type Image = Arc<RwLock<FormatAccess<Storage>>>;

/// Opens the image at `path`; for writing it is locked against every other device that writes.
///
/// # Errors
/// [`OpenError`], with what `imago` says of an image that it cannot open.
pub fn open(path: &Path, access: DiskAccess) -> Result<Pooled, OpenError> {
    let lock = match access {
        DiskAccess::ReadOnly => None,
        DiskAccess::ReadWrite => Some(lock_for_writing(path)?),
    };
    let bad = |error: std::io::Error| OpenError::Image(path.to_owned(), error.to_string());
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
    let image: Image = Arc::new(RwLock::new(image));
    let worker = || {
        let (image, mut buffer) = (Arc::clone(&image), Vec::new());
        move |io: &mut Io| run(&image, io, &mut buffer)
    };
    let pool = Pool::new((0..THREADS).map(|_| worker()).collect())
        .map_err(|errno| OpenError::System(path.to_owned(), errno))?;
    Ok(Pooled::new(pool, geometry, path, lock))
}
/// Does one request.
fn run(image: &Image, io: &Io, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    let wrong = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    if io.op == Op::Discard {
        let mut image = image.write().unwrap_or_else(PoisonError::into_inner);
        return image.discard_to_zero(io.offset(), io.sectors * 512).map_err(wrong);
    }
    let image = image.read().unwrap_or_else(PoisonError::into_inner);
    match io.op {
        Op::Read => {
            buffer.resize(io.bytes(), 0);
            image.read(&mut buffer[..], io.offset()).map_err(wrong)?;
            io.scatter(buffer)
        }
        Op::Write => {
            buffer.resize(io.bytes(), 0);
            io.gather(buffer)?;
            image.write(&buffer[..], io.offset()).map_err(wrong)
        }
        // First what the image holds back (its tables), then all of it onto stable storage.
        _ => image.flush().and_then(|()| image.sync()).map_err(wrong),
    }
}
