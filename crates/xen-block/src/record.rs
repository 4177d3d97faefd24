//! What has been taken and not been answered, in memory that outlives the process.
//!
//! The record of a device is a file in a folder of tmpfs, mapped: each request is copied into it before
//! the ring's consumer index moves on, and taken out once its answer has been shown. A backend that was
//! killed left there exactly what its successor has to do again; doing a read, write, flush or discard
//! twice does no harm. The page of the ring itself says which answers were shown.
//!
//! First page: magic, version, number of queues, entries of each, request layout (four bytes each). Then
//! for each queue a page with its consumer index, and entries of 128 bytes: state, index of the request,
//! index of the answer, nothing, and the request as it lay in the ring.

use crate::sys::map_file;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::path::Path;
use xen::shared::{PAGE_SIZE, PageError, SharedPage};
use xen_io::blkif::{Layout, REQUEST_SIZE_MAX, RequestBytes};

const MAGIC: u32 = 0x4649_4258;
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 128;
const ENTRIES_PER_PAGE: usize = PAGE_SIZE / ENTRY_BYTES;
/// Most queues and entries that a record is made for.
const QUEUES_MAX: u32 = 64;
const ENTRIES_MAX: u32 = 512;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// What a record is for; another device's is not taken for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    pub(crate) queues: u32,
    /// Entries of each ring.
    pub(crate) entries: u32,
    pub(crate) layout: Layout,
}

impl Shape {
    fn words(self) -> [u32; 5] {
        let layout = match self.layout {
            Layout::X86_32 => 32,
            Layout::X86_64 => 64,
        };
        [MAGIC, VERSION, self.queues, self.entries, layout]
    }

    fn queue_pages(self) -> usize {
        1 + (self.entries as usize).div_ceil(ENTRIES_PER_PAGE)
    }

    fn pages(self) -> usize {
        1 + self.queues as usize * self.queue_pages()
    }
}

/// The record of one queue.
#[derive(Debug)]
pub(crate) struct QueueRecord {
    head: SharedPage,
    pages: Vec<SharedPage>,
}

/// Makes the record of a device that has just been connected, in place of any that was there.
pub(crate) fn create(path: &Path, shape: Shape) -> Result<Vec<QueueRecord>, Errno> {
    if shape.queues > QUEUES_MAX || shape.entries > ENTRIES_MAX {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    remove(path)?;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::ftruncate(&file, (shape.pages() * PAGE_SIZE) as u64)?;
    let pages = map_file(file.as_fd(), shape.pages())?;
    let (first, queues) = split(pages, shape);
    for (number, word) in shape.words().into_iter().enumerate() {
        first.store_u32(number * 4, word).map_err(|_| Errno::FAULT)?;
    }
    Ok(queues)
}

/// Opens the record that a process before this one has left.
pub(crate) fn open(path: &Path, shape: Shape) -> Result<Vec<QueueRecord>, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let wanted = (shape.pages() * PAGE_SIZE) as u64;
    if u64::try_from(rustix::fs::fstat(&file)?.st_size) != Ok(wanted) {
        return Err(Errno::INVAL);
    }
    let (first, queues) = split(map_file(file.as_fd(), shape.pages())?, shape);
    for (number, word) in shape.words().into_iter().enumerate() {
        if first.load_u32(number * 4) != Ok(word) {
            return Err(Errno::INVAL);
        }
    }
    Ok(queues)
}

/// The device is closed: there is nothing to be taken over.
pub(crate) fn remove(path: &Path) -> Result<(), Errno> {
    match rustix::fs::unlink(path) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn split(pages: Vec<SharedPage>, shape: Shape) -> (SharedPage, Vec<QueueRecord>) {
    let mut pages = pages.into_iter();
    let mut next = || pages.next().unwrap_or_else(SharedPage::private);
    let first = next();
    let queues = (0..shape.queues).map(|_| {
        let head = next();
        QueueRecord { head, pages: (1..shape.queue_pages()).map(|_| next()).collect() }
    });
    let queues = queues.collect();
    (first, queues)
}

impl QueueRecord {
    fn entry(&self, slot: usize) -> Result<(&SharedPage, usize), PageError> {
        let at = slot % ENTRIES_PER_PAGE * ENTRY_BYTES;
        let wrong = PageError::OutOfPage { offset: slot, len: ENTRY_BYTES };
        self.pages.get(slot / ENTRIES_PER_PAGE).map(|page| (page, at)).ok_or(wrong)
    }

    /// A request was taken.
    pub(crate) fn taken(
        &self,
        slot: usize,
        index: u32,
        request: &RequestBytes,
    ) -> Result<(), PageError> {
        self.again(slot, index, request)?;
        self.head.store_u32(0, index.wrapping_add(1))
    }

    /// Its answer is in the ring, and not shown yet.
    pub(crate) fn answered(&self, slot: usize, answer: u32) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        page.store_u32(at + 8, answer)?;
        page.store_u32(at, ANSWERED)
    }

    /// Its answer was shown.
    pub(crate) fn shown(&self, slot: usize) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        page.store_u32(at, FREE)
    }

    /// How many requests were taken.
    pub(crate) fn req_cons(&self) -> Result<u32, PageError> {
        self.head.load_u32(0)
    }

    /// What has to be done again, oldest first, where the ring shows `rsp_prod` answers. Empties the
    /// record.
    pub(crate) fn unanswered(&self, rsp_prod: u32) -> Result<Vec<RequestBytes>, PageError> {
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
            if open {
                let mut bytes = [0; REQUEST_SIZE_MAX];
                page.copy_out(at + 16, &mut bytes)?;
                found.push((req_cons.wrapping_sub(index), RequestBytes(bytes)));
            }
            page.store_u32(at, FREE)?;
        }
        found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        Ok(found.into_iter().map(|(_, request)| request).collect())
    }

    /// As [`QueueRecord::taken`], for a request that is done again: the consumer index stays.
    pub(crate) fn again(
        &self,
        slot: usize,
        index: u32,
        request: &RequestBytes,
    ) -> Result<(), PageError> {
        let (page, at) = self.entry(slot)?;
        page.copy_in(at + 16, &request.0)?;
        page.store_u32(at + 4, index)?;
        page.store_u32(at, TAKEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { queues: 2, entries: 64, layout: Layout::X86_64 };

    fn request(number: u8) -> RequestBytes {
        RequestBytes([number; REQUEST_SIZE_MAX])
    }

    #[test]
    fn a_successor_finds_what_was_not_answered() {
        let path = std::env::temp_dir().join(format!("xen-block-record-{}", std::process::id()));
        let queues = create(&path, SHAPE).unwrap();
        let start = u32::MAX - 1;
        for (number, slot) in [0, 40, 63, 3].into_iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            let index = start.wrapping_add(number.into());
            queues[1].taken(slot, index, &request(number)).unwrap();
        }
        // 2 was answered and shown, 0 answered and not shown.
        queues[1].answered(63, start).unwrap();
        queues[1].shown(63).unwrap();
        queues[1].answered(0, start.wrapping_add(1)).unwrap();
        drop(queues);
        let queues = open(&path, SHAPE).unwrap();
        assert_eq!(queues[1].req_cons(), Ok(2));
        let shown = start.wrapping_add(1);
        assert_eq!(queues[1].unanswered(shown), Ok(vec![request(0), request(1), request(3)]));
        assert_eq!(queues[1].unanswered(shown), Ok(vec![]));
        assert_eq!(queues[0].unanswered(0), Ok(vec![]));
        let other = Shape { layout: Layout::X86_32, ..SHAPE };
        assert_eq!(open(&path, other).unwrap_err(), Errno::INVAL);
        remove(&path).unwrap();
        assert_eq!(open(&path, SHAPE).unwrap_err(), Errno::NOENT);
    }
}
