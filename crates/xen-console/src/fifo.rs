//! The FIFO that a hosted guest prints into: read so that bytes leave it only once they are kept.
//!
//! A hosted guest has a folder of its name, with the FIFO `output`: the standard output and error of
//! its first process. Bytes are copied from it by tee(2) into a pipe of the daemon's, and leave the
//! FIFO when whoever has taken the copy says so. A daemon that is killed in between has lost none.
//!
//! A guest that prints wakes nobody while what it has printed is still to be read, so that a flood
//! of short writes costs no more than one of long ones.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use rustix::event::{Timespec, epoll};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, pipe_with, tee};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use xen_driver::backend::DescriptorId;

/// The most bytes of a copy: a page, which is what a FIFO gives back to its writer at a time.
pub const CHUNK_MAX: usize = 4096;
/// The name of the FIFO in a guest's folder.
const OUTPUT: &str = "output";
/// The longest name of a file.
const NAME_MAX: usize = 255;
/// FIFOs that one look at their set finds.
const FOUND_MAX: usize = 64;

/// The reason why a guest's FIFO cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum FifoError {
    /// The guest's name is no name of a folder: it is empty or too long, begins with a dot, or
    /// leads elsewhere.
    Name,
    /// The folder or the FIFO cannot be opened: it is not there, or a link.
    Open(io::Error),
    /// The file of that name is no FIFO.
    Kind,
}

impl fmt::Display for FifoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("its name cannot be that of a folder"),
            Self::Open(error) => write!(f, "output in its folder cannot be opened: {error}"),
            Self::Kind => f.write_str("output in its folder is no FIFO"),
        }
    }
}

impl std::error::Error for FifoError {}

/// The folder of all guests of a hosted host, each in a folder of its name.
#[derive(Debug)]
pub struct OutputFolder {
    folder: OwnedFd,
    name: DescriptorId,
    set: Rc<FifoSet>,
}

impl OutputFolder {
    /// Opens the folder, and what all its FIFOs share.
    ///
    /// # Errors
    /// The folder or a pipe cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { folder, name: DescriptorId::new(), set: Rc::new(FifoSet::new()?) })
    }

    /// Returns the descriptor that is readable while [`OutputFolder::take_ready`] finds a FIFO.
    #[must_use]
    pub fn stream(&self) -> (DescriptorId, BorrowedFd<'_>) {
        (self.name, self.set.epoll.as_fd())
    }

    /// Returns the inodes of some FIFOs that can be read again; none if there are no more.
    #[must_use]
    pub fn take_ready(&self) -> Vec<u64> {
        let data = epoll::EventData::new_u64(0);
        let mut found = [epoll::Event { flags: epoll::EventFlags::empty(), data }; FOUND_MAX];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = loop {
            match epoll::wait(&self.set.epoll, &mut found[..], Some(&at_once)) {
                Err(Errno::INTR) => {}
                count => break count.unwrap_or(0),
            }
        };
        found.iter().take(count).map(|event| event.data.u64()).collect()
    }

    /// Opens the FIFO of the guest of this name. The name leads to no other folder, and no link is
    /// followed.
    ///
    /// # Errors
    /// [`FifoError`].
    pub fn open_fifo(&self, guest: &[u8]) -> Result<OutputFifo, FifoError> {
        if !is_folder_name(guest) {
            return Err(FifoError::Name);
        }
        let open = |errno: Errno| FifoError::Open(errno.into());
        let common = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = common | OFlags::DIRECTORY;
        let folder =
            openat(&self.folder, OsStr::from_bytes(guest), flags, Mode::empty()).map_err(open)?;
        let flags = common | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fifo = openat(&folder, OUTPUT, flags, Mode::empty()).map_err(open)?;
        let about = fstat(&fifo).map_err(open)?;
        if FileType::from_raw_mode(about.st_mode) != FileType::Fifo {
            return Err(FifoError::Kind);
        }
        OutputFifo::new(fifo.into(), about.st_ino, Rc::clone(&self.set)).map_err(FifoError::Open)
    }
}

/// True if the name is one component of a path, and none that is hidden or leads upwards.
fn is_folder_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with(b".")
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The state of a FIFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FifoState {
    /// It has these many bytes, at least.
    Bytes(usize),
    /// It is empty.
    Empty,
    /// It is empty, and nobody has it open for writing now.
    NoWriter,
}

/// The news that the set of FIFOs gives of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FifoNews {
    /// That it can be read: once, and then none.
    Once,
    /// Every write. A FIFO without a writer has news at all times, but for this way.
    Each,
}

/// The FIFO that a guest prints into.
#[derive(Debug)]
pub struct OutputFifo {
    fifo: File,
    inode: u64,
    set: Rc<FifoSet>,
    news: FifoNews,
    /// There may be bytes.
    ready: bool,
    /// False if it was empty when it was last read, and nobody had it open for writing.
    has_writer: bool,
}

impl OutputFifo {
    fn new(fifo: File, inode: u64, set: Rc<FifoSet>) -> io::Result<Self> {
        let news = FifoNews::Once;
        epoll::add(&set.epoll, &fifo, epoll::EventData::new_u64(inode), news.flags())?;
        Ok(Self { fifo, inode, set, news, ready: true, has_writer: true })
    }

    /// Returns the number of the file, which no other FIFO of the folder has.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Takes the news that it can be read again, or that its last writer is gone.
    pub fn note_ready(&mut self) {
        self.ready = true;
    }

    /// True if there may be bytes in it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// True unless it was empty when it was last read, and nobody had it open for writing.
    #[must_use]
    pub fn has_writer(&self) -> bool {
        self.has_writer
    }

    /// Returns the most bytes that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        fcntl_getpipe_size(&self.fifo).unwrap_or(CHUNK_MAX)
    }

    /// Copies its first bytes, at most `into.len()` and [`CHUNK_MAX`], and leaves them in it. The copy
    /// is safe from the guest, which cannot change it any more.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn peek(&mut self, into: &mut [u8]) -> io::Result<FifoState> {
        self.ready = false;
        let state = self.set.copy(self.fifo.as_fd(), into)?;
        self.ready = matches!(state, FifoState::Bytes(_));
        self.has_writer = state != FifoState::NoWriter;
        match (state, self.news) {
            (FifoState::Bytes(_), _) | (FifoState::NoWriter, FifoNews::Each) => {}
            (FifoState::NoWriter, FifoNews::Once) => self.ask_for(FifoNews::Each)?,
            (FifoState::Empty, _) => self.ask_for(FifoNews::Once)?,
        }
        Ok(state)
    }

    /// Has the set tell when it can be read again. What has come meanwhile is told at once.
    fn ask_for(&mut self, news: FifoNews) -> io::Result<()> {
        self.news = news;
        let data = epoll::EventData::new_u64(self.inode);
        Ok(epoll::modify(&self.set.epoll, &self.fifo, data, news.flags())?)
    }

    /// Takes away its first `count` bytes, which were copied.
    pub fn consume(&mut self, count: usize) {
        let mut bytes = [0; CHUNK_MAX];
        let mut left = count.min(CHUNK_MAX);
        while let Some(into) = bytes.get_mut(..left).filter(|into| !into.is_empty()) {
            match self.fifo.read(into) {
                Ok(count) if count > 0 => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The guest has read its own output: it has harmed its own log.
                _ => return,
            }
        }
    }
}

impl FifoNews {
    fn flags(self) -> epoll::EventFlags {
        let how = match self {
            Self::Once => epoll::EventFlags::ONESHOT,
            Self::Each => epoll::EventFlags::ET,
        };
        epoll::EventFlags::IN | how
    }
}

/// The parts that all FIFOs share.
#[derive(Debug)]
struct FifoSet {
    /// Those that can be read, by their inodes. One that is closed is gone from it by itself.
    epoll: OwnedFd,
    /// The ends of the pipe that copies pass through. It is empty between two calls.
    near: File,
    far: OwnedFd,
}

impl FifoSet {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (near, far) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { epoll, near: near.into(), far })
    }

    /// Copies the first bytes of a FIFO, at most `into.len()` and [`CHUNK_MAX`].
    fn copy(&self, fifo: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<FifoState> {
        let wanted = into.len().min(CHUNK_MAX);
        let count = loop {
            match tee(fifo, &self.far, wanted, SpliceFlags::NONBLOCK) {
                Ok(0) => return Ok(FifoState::NoWriter),
                Ok(count) => break count,
                Err(Errno::AGAIN) => return Ok(FifoState::Empty),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let copy = into.get_mut(..count).ok_or(io::ErrorKind::InvalidData)?;
        (&self.near).read_exact(copy)?;
        Ok(FifoState::Bytes(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mknodat};
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// Makes the folder of a guest with a FIFO, which is open for writing.
    fn guest(dir: &TempDir, name: &str) -> File {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join(OUTPUT);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn bytes_stay_until_they_are_taken_away() {
        let dir = TempDir::new().unwrap();
        let mut writer = guest(&dir, "web");
        let folder = OutputFolder::open(dir.path()).unwrap();
        let mut fifo = folder.open_fifo(b"web").unwrap();
        let mut bytes = [0; 8];
        assert!(fifo.is_ready());
        assert_eq!(fifo.peek(&mut bytes).unwrap(), FifoState::Empty);
        assert!(!fifo.is_ready());
        writer.write_all(b"one two three").unwrap();
        fifo.note_ready();
        for _ in 0..3 {
            assert_eq!(fifo.peek(&mut bytes).unwrap(), FifoState::Bytes(8));
            assert_eq!(&bytes, b"one two ");
        }
        fifo.consume(4);
        assert_eq!(fifo.peek(&mut bytes).unwrap(), FifoState::Bytes(8));
        assert_eq!(&bytes, b"two thre");
        fifo.consume(4);
        fifo.consume(100);
        assert_eq!(fifo.peek(&mut bytes).unwrap(), FifoState::Empty, "and no wait for more");
        drop(writer);
        assert_eq!(fifo.peek(&mut bytes).unwrap(), FifoState::NoWriter);
        assert!(!fifo.is_ready() && !fifo.has_writer());
    }

    #[test]
    fn a_guest_that_prints_wakes_nobody_until_that_is_read() {
        let dir = TempDir::new().unwrap();
        let mut writer = guest(&dir, "web");
        let folder = OutputFolder::open(dir.path()).unwrap();
        let mut fifo = folder.open_fifo(b"web").unwrap();
        let mut other = guest(&dir, "other");
        let mut second = folder.open_fifo(b"other").unwrap();
        let mut bytes = [0; CHUNK_MAX];
        let mut read = |fifo: &mut OutputFifo| {
            while let FifoState::Bytes(count) = fifo.peek(&mut bytes).unwrap() {
                fifo.consume(count);
            }
        };
        read(&mut fifo);
        read(&mut second);
        assert_eq!(folder.take_ready(), []);
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            assert_eq!(folder.take_ready(), [fifo.inode()]);
            for _ in 0..100 {
                writer.write_all(b"x").unwrap();
                assert_eq!(folder.take_ready(), [], "it is known");
            }
            other.write_all(b"x").unwrap();
            assert_eq!(folder.take_ready(), [second.inode()]);
            read(&mut fifo);
            read(&mut second);
        }
        // Between the last look and the question.
        assert_eq!(folder.take_ready(), []);
        drop(writer);
        assert_eq!(folder.take_ready(), [fifo.inode()]);
        for expected in [&[fifo.inode()][..], &[], &[]] {
            read(&mut fifo);
            assert_eq!(folder.take_ready(), expected, "no writer is no work");
        }
        // Somebody writes again.
        let path = dir.path().join("web/output");
        let mut writer = File::options().read(true).write(true).open(path).unwrap();
        for _ in 0..3 {
            writer.write_all(b"again").unwrap();
            assert_eq!(folder.take_ready(), [fifo.inode()]);
            read(&mut fifo);
            assert!(fifo.has_writer());
        }
        drop(fifo);
        writer.write_all(b"for nobody").unwrap();
        assert_eq!(folder.take_ready(), []);
    }

    #[test]
    fn every_size_of_write_is_copied_whole() {
        let dir = TempDir::new().unwrap();
        let mut writer = guest(&dir, "web");
        let mut fifo = OutputFolder::open(dir.path()).unwrap().open_fifo(b"web").unwrap();
        let stream: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        for size in [1, 7, 700, 4095, 4096, 4097, 30_000] {
            let (mut written, mut seen) = (0, Vec::new());
            while seen.len() < stream.len() {
                // One write a turn: more of the smallest ones than a pipe has places for pages.
                let end = (written + size).min(stream.len());
                writer.write_all(&stream[written..end]).unwrap();
                written = end;
                let mut bytes = [0; CHUNK_MAX];
                while let FifoState::Bytes(count) = fifo.peek(&mut bytes).unwrap() {
                    seen.extend_from_slice(&bytes[..count]);
                    fifo.consume(count);
                }
            }
            assert!(seen == stream, "writes of {size} bytes");
        }
        assert_eq!(fifo.capacity(), 64 << 10);
    }

    #[test]
    fn nothing_but_a_fifo_in_a_folder_of_the_guest_is_opened() {
        let dir = TempDir::new().unwrap();
        let guests = dir.path().join("guests");
        std::fs::create_dir_all(guests.join("file")).unwrap();
        let _outside = guest(&dir, "outside");
        std::fs::write(guests.join("file/output"), "plain").unwrap();
        for name in ["link", "device", "none"] {
            std::fs::create_dir(guests.join(name)).unwrap();
        }
        symlink("../../outside/output", guests.join("link/output")).unwrap();
        symlink("/dev/zero", guests.join("device/output")).unwrap();
        symlink("../outside", guests.join("elsewhere")).unwrap();
        let folder = OutputFolder::open(&guests).unwrap();
        let long = [b'x'; 256];
        for name in
            [&b""[..], b".", b"..", b"../outside", b"/etc", b".hidden", b"file/..", b"a\0b", &long]
        {
            assert!(matches!(folder.open_fifo(name), Err(FifoError::Name)), "{name:?}");
        }
        for name in [&b"link"[..], b"device", b"none", b"elsewhere", b"absent"] {
            assert!(matches!(folder.open_fifo(name), Err(FifoError::Open(_))), "{name:?}");
        }
        assert!(matches!(folder.open_fifo(b"file"), Err(FifoError::Kind)));
    }
}
