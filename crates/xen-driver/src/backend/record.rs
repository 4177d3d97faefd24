//! Requests that were taken and not answered, in memory that outlives the process.
//!
//! The record of a device is a file in a folder of tmpfs, mapped: each request is copied into it before
//! the ring's consumer index moves on, and taken out once its answer has been shown. A backend that was
//! killed left there exactly what its successor has to do again; doing a read, write, flush or discard
//! twice does no harm. The page of the ring itself says which answers were shown.
//!
//! The file is locked by whoever has requests under way for the device. The lock ends when the last of them has,
//! so a successor that gets it knows that nothing of a dead process reaches the guest's pages any more.
//!
//! A domain may be given memory that outlives it ([`RecordMemory`]). Then the pages lie there, as long as there is
//! room, and the file is for the lock alone: the domain's successor finds the pages, and a file nowhere.
//!
//! First page: magic, version, number of rings, entries of each, format of the requests (four bytes each). Then
//! for each ring a page with its consumer index, and entries of 128 bytes: state, index of the request,
//! index of the answer, nothing, and the request as it lay in the ring.

mod kept;
mod memory;

use memory::map_file;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use xen::shared::{PAGE_SIZE, PageError, SharedPage};

pub use kept::RecordMemory;

const MAGIC: u32 = 0x4649_4258;
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 128;
const ENTRIES_PER_PAGE: usize = PAGE_SIZE / ENTRY_BYTES;
/// The bytes before the request in an entry.
const HEAD_BYTES: usize = 16;
/// Most bytes of a request that a record holds.
pub(super) const REQUEST_BYTES_MAX: usize = ENTRY_BYTES - HEAD_BYTES;
/// Most rings and entries that a record is made for.
const RINGS_MAX: u32 = 64;
const ENTRIES_MAX: u32 = 512;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// The shape of a record. A record of another shape belongs to another device and is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) rings: u32,
    /// Entries of each ring.
    pub(super) entries: u32,
    /// The device type's number for the format of its requests.
    pub(super) format: u32,
}

impl Shape {
    fn words(self) -> [u32; 5] {
        [MAGIC, VERSION, self.rings, self.entries, self.format]
    }

    fn ring_pages(self) -> usize {
        1 + (self.entries as usize).div_ceil(ENTRIES_PER_PAGE)
    }

    fn pages(self) -> usize {
        1 + self.rings as usize * self.ring_pages()
    }
}

/// The place of a device's record.
#[derive(Clone, Debug)]
pub(super) struct RecordPlace {
    /// Its file, whose name is that of the record.
    pub(super) path: PathBuf,
    /// The memory for its pages.
    pub(super) memory: Option<Arc<RecordMemory>>,
}

impl RecordPlace {
    fn name(&self) -> &[u8] {
        self.path.file_name().unwrap_or_default().as_bytes()
    }

    /// Makes the pages of a record: in the memory, or where there is no room in the file.
    fn create(&self, file: &OwnedFd, shape: Shape) -> Result<Vec<SharedPage>, Errno> {
        if let Some(memory) = &self.memory
            && let Ok(pages) = memory.create(self.name(), shape.pages())
        {
            return Ok(pages);
        }
        match allocate(file, shape) {
            // A file system that cannot: then what was written is there.
            Err(Errno::OPNOTSUPP) => {
                for page in 0..shape.pages() {
                    rustix::io::pwrite(file, &[0; PAGE_SIZE], (page * PAGE_SIZE) as u64)?;
                }
            }
            allocated => allocated?,
        }
        map_file(file.as_fd(), 0..shape.pages())
    }

    /// True if the record is in the memory, and no process of this domain has opened it yet.
    pub(super) fn is_inherited(&self) -> bool {
        self.kept().is_some() && !self.path.exists()
    }

    /// Returns the memory where the record is.
    fn kept(&self) -> Option<&RecordMemory> {
        self.memory.as_deref().filter(|memory| memory.has(self.name()))
    }
}

/// The record of one ring.
#[derive(Debug)]
pub(super) struct RingRecord {
    head: SharedPage,
    pages: Vec<SharedPage>,
}

/// The record of a device.
#[derive(Debug)]
pub(super) struct DeviceRecord {
    /// Locked; to be held by all who have requests under way.
    pub(super) guard: OwnedFd,
    pub(super) rings: Vec<RingRecord>,
}

/// A request without an answer, in the slot where it stays until it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnansweredRequest {
    /// Its slot.
    pub slot: u16,
    /// The request as it lay in the ring, with whatever behind it.
    pub request: [u8; REQUEST_BYTES_MAX],
}

/// Makes the record of a device that has just been connected, in place of any that was there.
pub(super) fn create(place: &RecordPlace, shape: Shape) -> Result<DeviceRecord, Errno> {
    if shape.rings > RINGS_MAX || shape.entries > ENTRIES_MAX {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    remove(place)?;
    let file = rustix::fs::open(&place.path, flags, Mode::RUSR | Mode::WUSR)?;
    lock(&file)?;
    let pages = place.create(&file, shape)?;
    let (first, rings) = split(pages, shape);
    for (number, word) in shape.words().into_iter().enumerate() {
        first.store_u32(number * 4, word).map_err(|_| Errno::FAULT)?;
    }
    Ok(DeviceRecord { guard: file, rings })
}

/// Opens the record that a process before this one has left; `EWOULDBLOCK` while that has I/O under way.
pub(super) fn open(place: &RecordPlace, shape: Shape) -> Result<DeviceRecord, Errno> {
    let (file, pages) = match place.kept() {
        Some(memory) => {
            // A domain before this one has left no file.
            let file = existing(place, OFlags::CREATE)?;
            lock(&file)?;
            (file, memory.open(place.name(), shape.pages())?)
        }
        None => open_file(place, shape)?,
    };
    let (first, rings) = split(pages, shape);
    for (number, word) in shape.words().into_iter().enumerate() {
        if first.load_u32(number * 4) != Ok(word) {
            return Err(Errno::INVAL);
        }
    }
    Ok(DeviceRecord { guard: file, rings })
}

/// Opens the pages of a record that are in its file.
fn open_file(place: &RecordPlace, shape: Shape) -> Result<(OwnedFd, Vec<SharedPage>), Errno> {
    let file = existing(place, OFlags::empty())?;
    lock(&file)?;
    let wanted = (shape.pages() * PAGE_SIZE) as u64;
    if u64::try_from(rustix::fs::fstat(&file)?.st_size) != Ok(wanted) {
        return Err(Errno::INVAL);
    }
    // One that a program of before has made may have no room for some.
    match allocate(&file, shape) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    let pages = map_file(file.as_fd(), 0..shape.pages())?;
    Ok((file, pages))
}

/// Takes away what a process before this one has left of a device that is not taken over; `EWOULDBLOCK`
/// as with [`open`].
pub(super) fn discard(place: &RecordPlace) -> Result<(), Errno> {
    match existing(place, OFlags::empty()) {
        Ok(file) => lock(&file).and_then(|()| remove(place)),
        // One may be in the memory.
        Err(Errno::NOENT) => remove(place),
        Err(errno) => Err(errno),
    }
}

/// Gives the file room for all of its pages, which stay as they are: where there is none for a page that is mapped, the
/// process that writes to it is killed.
fn allocate(file: &OwnedFd, shape: Shape) -> Result<(), Errno> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, (shape.pages() * PAGE_SIZE) as u64)
}

/// Opens the file of a record, as it is or with further flags.
fn existing(place: &RecordPlace, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
    rustix::fs::open(&place.path, flags, Mode::RUSR | Mode::WUSR)
}

fn lock(file: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// The device is closed: there is nothing to be taken over.
pub(super) fn remove(place: &RecordPlace) -> Result<(), Errno> {
    if let Some(memory) = &place.memory {
        memory.remove(place.name());
    }
    match rustix::fs::unlink(&place.path) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn split(pages: Vec<SharedPage>, shape: Shape) -> (SharedPage, Vec<RingRecord>) {
    let mut pages = pages.into_iter();
    let mut next = || pages.next().unwrap_or_else(SharedPage::private);
    let first = next();
    let rings = (0..shape.rings).map(|_| {
        let head = next();
        RingRecord { head, pages: (1..shape.ring_pages()).map(|_| next()).collect() }
    });
    let rings = rings.collect();
    (first, rings)
}

impl RingRecord {
    fn entry(&self, slot: usize) -> Result<(&SharedPage, usize), PageError> {
        let at = slot % ENTRIES_PER_PAGE * ENTRY_BYTES;
        let wrong = PageError::OutOfPage { offset: slot, len: ENTRY_BYTES };
        self.pages.get(slot / ENTRIES_PER_PAGE).map(|page| (page, at)).ok_or(wrong)
    }

    /// A request was taken.
    pub(super) fn record_taken(
        &self,
        slot: usize,
        index: u32,
        request: &[u8],
    ) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        let request = request.get(..request.len().min(REQUEST_BYTES_MAX)).unwrap_or_default();
        page.copy_in(at + HEAD_BYTES, request)?;
        page.store_u32(at + 4, index)?;
        page.store_u32(at, TAKEN)?;
        self.head.store_u32(0, index.wrapping_add(1))
    }

    /// Its answer is in the ring, and not shown yet.
    pub(super) fn answered(&self, slot: usize, answer: u32) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        page.store_u32(at + 8, answer)?;
        page.store_u32(at, ANSWERED)
    }

    /// Its answer was shown.
    pub(super) fn record_shown(&self, slot: usize) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        page.store_u32(at, FREE)
    }

    /// Returns the ring's consumer index: the requests taken so far.
    pub(super) fn req_cons(&self) -> Result<u32, PageError> {
        self.head.load_u32(0)
    }

    /// Returns the requests to carry out again, oldest first, where the ring shows `rsp_prod`
    /// responses. Each stays in its slot of the record, so that a successor finds it if this
    /// process is killed too. All other slots are freed.
    pub(super) fn unanswered(&self, rsp_prod: u32) -> Result<Vec<UnansweredRequest>, PageError> {
        let req_cons = self.req_cons()?;
        let mut found = Vec::new();
        for slot in 0..self.pages.len() * ENTRIES_PER_PAGE {
            let (page, at) = self.entry(slot)?;
            let (index, answer) = (page.load_u32(at + 4)?, page.load_u32(at + 8)?);
            let open = match page.load_u32(at)? {
                // One whose index had not moved on lies in the ring still.
                TAKEN => index.wrapping_sub(req_cons).cast_signed() < 0,
                ANSWERED => answer.wrapping_sub(rsp_prod).cast_signed() >= 0,
                _ => false,
            };
            // Before another answer has the index of one that was put and not shown.
            page.store_u32(at, if open { TAKEN } else { FREE })?;
            if open && let Ok(slot) = u16::try_from(slot) {
                let mut request = [0; REQUEST_BYTES_MAX];
                page.copy_out(at + HEAD_BYTES, &mut request)?;
                found.push((req_cons.wrapping_sub(index), UnansweredRequest { slot, request }));
            }
        }
        found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        Ok(found.into_iter().map(|(_, unanswered)| unanswered).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { rings: 2, entries: 64, format: 64 };

    fn request(number: u8) -> [u8; REQUEST_BYTES_MAX] {
        [number; REQUEST_BYTES_MAX]
    }

    /// Tries while the file is locked: a child that another test forks has what is open here for a moment.
    fn free<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match call() {
                Err(Errno::WOULDBLOCK) if std::time::Instant::now() < end => {}
                result => return result,
            }
        }
    }

    fn place(folder: &tempfile::TempDir, memory: Option<Arc<RecordMemory>>) -> RecordPlace {
        RecordPlace { path: folder.path().join("record"), memory }
    }

    #[test]
    fn a_successor_finds_what_was_not_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(&folder, None);
        leave_and_find(&path, &path);
    }

    /// The folder of a domain is gone with it, and what it was given memory for is not.
    #[test]
    fn a_successor_of_a_domain_finds_what_was_not_answered() {
        let file = kept::tests::file(64);
        let memory = |file| Some(Arc::new(RecordMemory::new(file).unwrap()));
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let before = place(&folders[0], memory(file.try_clone().unwrap()));
        let after = place(&folders[1], memory(file));
        leave_and_find(&before, &after);
        drop(create(&before, SHAPE).unwrap());
        assert_eq!((before.is_inherited(), after.is_inherited()), (false, true));
        drop(open(&after, SHAPE).unwrap());
        assert!(!after.is_inherited(), "it is this domain's");
        // One without room for it has the file.
        let small = place(&folders[0], memory(kept::tests::file(9)));
        leave_and_find(&small, &small);
    }

    fn leave_and_find(before: &RecordPlace, path: &RecordPlace) {
        let DeviceRecord { guard, rings } = create(before, SHAPE).unwrap();
        let start = u32::MAX - 1;
        for (number, slot) in [0, 40, 63, 3].into_iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            let index = start.wrapping_add(number.into());
            rings[1].record_taken(slot, index, &request(number)).unwrap();
        }
        // 2 was answered and shown, 0 answered and not shown.
        rings[1].answered(63, start).unwrap();
        rings[1].record_shown(63).unwrap();
        rings[1].answered(0, start.wrapping_add(1)).unwrap();
        drop(rings);
        // Whatever still has I/O under way holds the file.
        assert_eq!(open(before, SHAPE).unwrap_err(), Errno::WOULDBLOCK);
        assert_eq!(discard(before), Err(Errno::WOULDBLOCK));
        drop(guard);
        let DeviceRecord { guard, rings } = free(|| open(path, SHAPE)).unwrap();
        assert_eq!(rings[1].req_cons(), Ok(2));
        let shown = start.wrapping_add(1);
        let left = [(0, 0), (40, 1), (3, 3)];
        let left = left.map(|(slot, number)| UnansweredRequest { slot, request: request(number) });
        assert_eq!(rings[1].unanswered(shown), Ok(left.to_vec()));
        // Another one, killed at this point, leaves as much to the next; and an answer that was put and
        // not shown is no answer, whoever else has its index later.
        assert_eq!(rings[1].unanswered(shown.wrapping_add(9)), Ok(left.to_vec()));
        assert_eq!(rings[0].unanswered(0), Ok(vec![]));
        drop((guard, rings));
        let other = Shape { format: 32, ..SHAPE };
        assert_eq!(free(|| open(path, other)).unwrap_err(), Errno::INVAL);
        free(|| discard(path)).unwrap();
        assert_eq!(discard(path), Ok(()), "there is none any more");
        assert_eq!(open(path, SHAPE).unwrap_err(), Errno::NOENT);
    }
}
