//! A file or a block device.
//!
//! Requests go through io_uring if the kernel has it; otherwise threads do them with
//! `preadv` and `pwritev`. The pages are the guest's own, so nothing is copied. With direct I/O
//! (`O_DIRECT`), where the file allows it, the host's page cache is not used either. A file on
//! tmpfs is in memory: the kernel would give each request to a kernel thread that copies, so the
//! data is copied here, at submission.

use super::escaped_path::EscapedPath;
use super::lock::FileUse;
use super::open::{OpenError, OpenFile, in_memory};
use super::pool::Pool;
use super::{Disk, DiskAccess, DiskIo, Finished, Geometry};
use crate::sys::{Uring, transfer};
use rustix::fs::{FileType, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xen::shared::PAGE_SIZE;

/// The most requests that the kernel has at a time.
const DEPTH: u32 = 256;
/// The number of threads where there is no io_uring.
const THREADS: usize = 8;

/// The use of the host's page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// The page cache is bypassed where the file allows that.
    Direct,
    /// The page cache is used.
    PageCache,
}

/// The mechanism that does the requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMethod {
    /// Synchronous calls on tmpfs; else io_uring where the kernel has it, else threads.
    Best,
    /// io_uring where the kernel has it, else threads.
    Uring,
    /// Threads.
    Threads,
}

/// The options for opening a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The access to the file.
    pub access: DiskAccess,
    /// The use of the page cache.
    pub cache: Cache,
    /// The mechanism that does the requests.
    pub way: IoMethod,
}

enum Engine {
    AtOnce(OwnedFd),
    Uring(Box<Uring>),
    Threads(Pool, Arc<OwnedFd>),
}

/// A file or block device as a disk.
pub struct FileDisk {
    engine: Engine,
    cache: Cache,
    geometry: Geometry,
    path: PathBuf,
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("FileDisk");
        f.field("path", &self.path).field("way", &self.way()).field("cache", &self.cache).finish()
    }
}

impl FileDisk {
    /// Returns the method of its requests in a word.
    fn way(&self) -> &'static str {
        match self.engine {
            Engine::AtOnce(_) => "at once",
            Engine::Uring(_) => "io_uring",
            Engine::Threads(..) => "threads",
        }
    }

    /// Opens `path`. A file that is opened for writing is locked against everybody else who writes
    /// it or needs it unchanged.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let system = |errno| OpenError::System(path.to_owned(), errno);
        let (opened, cache) = open_file(path, options)?;
        opened.lock(match options.access {
            DiskAccess::ReadOnly => FileUse::Reading,
            DiskAccess::ReadWrite => FileUse::Writing,
        })?;
        let file = opened.file;
        let geometry = geometry(&file, options.access, cache).map_err(system)?;
        let geometry = geometry.ok_or_else(|| OpenError::NotADisk(path.to_owned()))?;
        let engine = engine(file, options.way).map_err(system)?;
        Ok(Self { engine, cache, geometry, path: path.to_owned() })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.engine {
            Engine::AtOnce(file) => file.as_fd(),
            Engine::Uring(ring) => ring.file(),
            Engine::Threads(_, file) => file.as_fd(),
        }
    }
}

/// Opens a file, and returns its actual use of the page cache.
fn open_file(path: &Path, options: Options) -> Result<(OpenFile, Cache), OpenError> {
    let flags = match options.access {
        DiskAccess::ReadOnly => OFlags::RDONLY,
        DiskAccess::ReadWrite => OFlags::RDWR,
    };
    if options.cache == Cache::Direct {
        match OpenFile::open(path, flags | OFlags::DIRECT) {
            Err(OpenError::System(_, Errno::INVAL)) => {}
            opened => {
                let opened = opened?;
                // A file system that takes the flag may still require sectors larger than a
                // frontend can have.
                match alignment(&opened.file) {
                    Some(bytes) if bytes <= 4096 => return Ok((opened, Cache::Direct)),
                    _ => {}
                }
            }
        }
    }
    Ok((OpenFile::open(path, flags)?, Cache::PageCache))
}

/// Returns the alignment that direct I/O on a file requires, in bytes; `None` if direct I/O is not
/// possible.
fn alignment(file: &OwnedFd) -> Option<u32> {
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    match rustix::fs::statx(file, c"", flags, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let bytes = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
            (bytes > 0).then_some(bytes.max(512))
        }
        // Kernels before 6.1, and file systems that do not report it.
        _ => tried_alignment(file),
    }
}

/// Finds the alignment for direct I/O by trial reads, with offset and memory aligned to no more
/// than the tried value.
fn tried_alignment(file: &OwnedFd) -> Option<u32> {
    let mut buffer = vec![0; 3 * PAGE_SIZE];
    let page = buffer.as_ptr().align_offset(PAGE_SIZE);
    [512, PAGE_SIZE].into_iter().find_map(|bytes| {
        let part = buffer.get_mut(page + bytes..page + 2 * bytes)?;
        // The kernel checks no alignment past the end of a file.
        let whole = rustix::io::pread(file, part, bytes as u64) == Ok(bytes);
        whole.then(|| u32::try_from(bytes).ok()).flatten()
    })
}

fn size(file: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let stat = rustix::fs::fstat(file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(u64::try_from(stat.st_size).ok()),
        FileType::BlockDevice => rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).map(Some),
        _ => Ok(None),
    }
}

fn geometry(file: &OwnedFd, access: DiskAccess, cache: Cache) -> Result<Option<Geometry>, Errno> {
    let Some(bytes) = size(file.as_fd())? else { return Ok(None) };
    let stat = rustix::fs::fstat(file)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    let (sector_size, block) = match cache {
        // The sizes of the device are used with the page cache too: frontends need the properties
        // of the storage, not of the access to it.
        _ if is_device => (rustix::fs::ioctl_blksszget(file)?, rustix::fs::ioctl_blkpbszget(file)?),
        Cache::Direct => {
            (alignment(file).unwrap_or(512), u32::try_from(stat.st_blksize).unwrap_or(4096))
        }
        Cache::PageCache => (512, u32::try_from(stat.st_blksize).unwrap_or(4096)),
    };
    let (sector_size, block) = (sector_size.clamp(512, 4096), block.clamp(512, 4096));
    let whole = bytes / u64::from(sector_size) * u64::from(sector_size);
    if whole == 0 {
        return Ok(None);
    }
    let divides = whole.is_multiple_of(block.into());
    let physical_sector_size = if divides { block.max(sector_size) } else { sector_size };
    Ok(Some(Geometry {
        sectors: whole / 512,
        sector_size,
        physical_sector_size,
        access,
        discard_granularity: Some(physical_sector_size),
    }))
}

fn engine(file: OwnedFd, way: IoMethod) -> Result<Engine, Errno> {
    if way == IoMethod::Best && in_memory(&file)? {
        return Ok(Engine::AtOnce(file));
    }
    if way != IoMethod::Threads
        && let Ok(ring) = Uring::new(file.try_clone().map_err(|_| Errno::MFILE)?, DEPTH)
    {
        return Ok(Engine::Uring(Box::new(ring)));
    }
    let file = Arc::new(file);
    let worker = || {
        let file = Arc::clone(&file);
        move |io: &mut DiskIo| transfer(file.as_fd(), io, 0)
    };
    let pool = Pool::new((0..THREADS).map(|_| worker()).collect())?;
    Ok(Engine::Threads(pool, file))
}

impl Disk for FileDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn describe(&self) -> String {
        let cache = match self.cache {
            Cache::Direct => "direct I/O",
            Cache::PageCache => "page cache",
        };
        format!("{}, {}, {cache}", EscapedPath(&self.path), self.way())
    }

    fn is_in_memory(&self) -> bool {
        in_memory(self.fd()).unwrap_or(false)
    }

    fn submit(&mut self, mut io: Box<DiskIo>) -> Result<Option<Finished>, Box<DiskIo>> {
        match &mut self.engine {
            Engine::AtOnce(file) => {
                let result = transfer(file.as_fd(), &mut io, 0);
                Ok(Some((io, result)))
            }
            Engine::Uring(ring) => match ring.push(io) {
                Ok(()) => Ok(None),
                Err((io, Errno::AGAIN)) => Err(io),
                Err((io, errno)) => Ok(Some((io, Err(errno)))),
            },
            Engine::Threads(pool, _) => pool.submit(io).map(|()| None),
        }
    }

    fn start(&mut self) {
        if let Engine::Uring(ring) = &mut self.engine {
            // A request that the kernel did not take now is taken with the next call; none was
            // refused.
            let _ = ring.submit();
        }
    }

    fn start_and_wait(&mut self, patience: Duration) {
        if let Engine::Uring(ring) = &mut self.engine {
            ring.submit_and_wait(patience);
        }
    }

    fn finished(&mut self) -> Option<Finished> {
        match &mut self.engine {
            Engine::AtOnce(_) => None,
            Engine::Uring(ring) => ring.pop(),
            Engine::Threads(pool, _) => pool.finished(),
        }
    }

    fn in_flight(&self) -> usize {
        match &self.engine {
            Engine::AtOnce(_) => 0,
            Engine::Uring(ring) => ring.in_flight(),
            Engine::Threads(pool, _) => pool.in_flight(),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.engine {
            Engine::AtOnce(_) => None,
            Engine::Uring(ring) => Some(ring.as_fd()),
            Engine::Threads(pool, _) => Some(pool.as_fd()),
        }
    }

    fn hold(&mut self, guard: BorrowedFd<'_>) -> Result<(), Errno> {
        match &mut self.engine {
            Engine::Uring(ring) => ring.hold(guard),
            Engine::AtOnce(_) | Engine::Threads(..) => Ok(()),
        }
    }

    fn resized(&mut self) -> Option<u64> {
        let bytes = size(Self::fd(self)).ok()??;
        let sector_size = u64::from(self.geometry.physical_sector_size);
        let sectors = bytes / sector_size * sector_size / 512;
        if sectors == self.geometry.sectors || sectors == 0 {
            return None;
        }
        self.geometry.sectors = sectors;
        Some(sectors)
    }
}
