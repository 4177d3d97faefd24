//! Records in memory that outlives the domain where they are made: its successor finds them there.
//!
//! The first pages are a table of entries of 64 bytes: state, first page, number of pages, length of the name, name.
//! The first entry is a head: magic, version. Behind the table are the pages of the records, each record in one piece.
//! One process at a time uses the memory, as one alone has the lock of its folder of records. What the table says is
//! checked: a domain that has spoiled it has lost its records, and no more.

use super::memory::map_file;
use rustix::fs::{FallocateFlags, fallocate, fstat};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use xen::shared::{PAGE_SIZE, PageError, SharedPage};

const MAGIC: u32 = 0x4b49_4258;
const VERSION: u32 = 1;
/// Pages of the table.
const TABLE_PAGES: usize = 8;
const ENTRY_BYTES: usize = 64;
const ENTRIES_PER_PAGE: usize = PAGE_SIZE / ENTRY_BYTES;
/// Bytes before the name in an entry.
const HEAD_BYTES: usize = 16;
/// Most bytes of a name.
const NAME_MAX: usize = ENTRY_BYTES - HEAD_BYTES;

const FREE: u32 = 0;
const USED: u32 = 1;

/// Memory with the records of a domain's devices.
#[derive(Debug)]
pub struct RecordMemory {
    file: OwnedFd,
    table: Mutex<Vec<SharedPage>>,
    /// All pages, those of the table included.
    pages: usize,
}

/// An entry of the table that is in use.
struct KeptEntry {
    slot: usize,
    name: Vec<u8>,
    pages: Range<usize>,
}

impl RecordMemory {
    /// Takes the memory of a file whose size cannot change. One that is of another format is used as if it were
    /// empty.
    ///
    /// # Errors
    /// It is too small, or cannot be mapped.
    pub fn new(file: OwnedFd) -> Result<Self, Errno> {
        let bytes = usize::try_from(fstat(&file)?.st_size).map_err(|_| Errno::FBIG)?;
        let pages = bytes / PAGE_SIZE;
        if pages <= TABLE_PAGES {
            return Err(Errno::NOSPC);
        }
        // Where there is no room for a page that is mapped, the process that writes to it is killed.
        fallocate(&file, FallocateFlags::empty(), 0, (TABLE_PAGES * PAGE_SIZE) as u64)?;
        let table = map_file(file.as_fd(), 0..TABLE_PAGES)?;
        begin(&table).map_err(|_| Errno::FAULT)?;
        Ok(Self { file, table: Mutex::new(table), pages })
    }

    fn table(&self) -> MutexGuard<'_, Vec<SharedPage>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the entries in use.
    fn entries(&self, table: &[SharedPage]) -> Vec<KeptEntry> {
        let slots = 1..TABLE_PAGES * ENTRIES_PER_PAGE;
        slots.filter_map(|slot| self.entry(table, slot).ok().flatten()).collect()
    }

    fn entry(&self, table: &[SharedPage], slot: usize) -> Result<Option<KeptEntry>, PageError> {
        let (page, at) = place(table, slot)?;
        let word = |number: usize| page.load_u32(at + 4 * number).map(|word| word as usize);
        if page.load_u32(at)? != USED {
            return Ok(None);
        }
        let (first, count, len) = (word(1)?, word(2)?, word(3)?);
        let end = first.saturating_add(count);
        if first < TABLE_PAGES || end > self.pages || len > NAME_MAX {
            return Ok(None);
        }
        let mut name = vec![0; len];
        page.copy_out(at + HEAD_BYTES, &mut name)?;
        Ok(Some(KeptEntry { slot, name, pages: first..end }))
    }

    /// True if there is a record of this name.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.entries(&self.table()).iter().any(|entry| entry.name == name)
    }

    /// Maps the record of this name.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EINVAL` where it has not so many pages.
    pub(super) fn open(&self, name: &[u8], count: usize) -> Result<Vec<SharedPage>, Errno> {
        let entries = self.entries(&self.table());
        let entry = entries.into_iter().find(|entry| entry.name == name).ok_or(Errno::NOENT)?;
        if entry.pages.len() != count {
            return Err(Errno::INVAL);
        }
        map_file(self.file.as_fd(), entry.pages)
    }

    /// Makes a record of this name, of which there is none, and maps its pages, which are zero.
    ///
    /// # Errors
    /// `ENOSPC` where there is no room for it, `ENAMETOOLONG`.
    pub(super) fn create(&self, name: &[u8], count: usize) -> Result<Vec<SharedPage>, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let table = self.table();
        let mut used = self.entries(&table);
        used.sort_by_key(|entry| entry.pages.start);
        let mut slots = 1..TABLE_PAGES * ENTRIES_PER_PAGE;
        let is_free = |slot: &usize| used.iter().all(|entry| entry.slot != *slot);
        let slot = slots.find(is_free).ok_or(Errno::NOSPC)?;
        let mut first = TABLE_PAGES;
        for entry in &used {
            if entry.pages.start.saturating_sub(first) >= count {
                break;
            }
            first = first.max(entry.pages.end);
        }
        let pages = first..first.saturating_add(count);
        if pages.end > self.pages {
            return Err(Errno::NOSPC);
        }
        // Pages that others had before are zero again.
        self.empty(&pages)?;
        fallocate(&self.file, FallocateFlags::empty(), offset(&pages), length(&pages))?;
        let mapped = map_file(self.file.as_fd(), pages.clone())?;
        note(&table, slot, &pages, name).map_err(|_| Errno::FAULT)?;
        Ok(mapped)
    }

    /// Removes the record of this name, if there is one.
    pub(super) fn remove(&self, name: &[u8]) {
        let table = self.table();
        for entry in self.entries(&table).into_iter().filter(|entry| entry.name == name) {
            if let Ok((page, at)) = place(&table, entry.slot) {
                let _ = page.store_u32(at, FREE);
            }
            // Its memory is free at the next use, where this fails.
            let _ = self.empty(&entry.pages);
        }
    }

    fn empty(&self, pages: &Range<usize>) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, offset(pages), length(pages))
    }
}

fn offset(pages: &Range<usize>) -> u64 {
    (pages.start * PAGE_SIZE) as u64
}

fn length(pages: &Range<usize>) -> u64 {
    (pages.len() * PAGE_SIZE) as u64
}

/// Begins an empty table, unless there is one of this format.
fn begin(table: &[SharedPage]) -> Result<(), PageError> {
    let (head, _) = place(table, 0)?;
    if (head.load_u32(0)?, head.load_u32(4)?) == (MAGIC, VERSION) {
        return Ok(());
    }
    for page in table {
        page.copy_in(0, &[0; PAGE_SIZE])?;
    }
    head.store_u32(4, VERSION)?;
    head.store_u32(0, MAGIC)
}

/// Writes an entry; it is in use once all of it is there.
fn note(
    table: &[SharedPage],
    slot: usize,
    pages: &Range<usize>,
    name: &[u8],
) -> Result<(), PageError> {
    let (page, at) = place(table, slot)?;
    page.copy_in(at + HEAD_BYTES, name)?;
    for (number, word) in [pages.start, pages.len(), name.len()].into_iter().enumerate() {
        page.store_u32(at + 4 * (number + 1), u32::try_from(word).unwrap_or(u32::MAX))?;
    }
    page.store_u32(at, USED)
}

fn place(table: &[SharedPage], slot: usize) -> Result<(&SharedPage, usize), PageError> {
    let wrong = PageError::OutOfPage { offset: slot, len: ENTRY_BYTES };
    let page = table.get(slot / ENTRIES_PER_PAGE).ok_or(wrong)?;
    Ok((page, slot % ENTRIES_PER_PAGE * ENTRY_BYTES))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a file of so many pages.
    pub(crate) fn file(pages: usize) -> OwnedFd {
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
        file.set_len((pages * PAGE_SIZE) as u64).unwrap();
        file.into()
    }

    #[test]
    fn records_are_found_again_and_their_room_is_used_again() {
        let file = file(TABLE_PAGES + 10);
        let memory = RecordMemory::new(file.try_clone().unwrap()).unwrap();
        for (name, count) in [(b"a", 4), (b"b", 2), (b"c", 4)] {
            memory.create(name, count).unwrap()[count - 1].store_u32(8, 7).unwrap();
        }
        assert_eq!(memory.create(b"d", 1).unwrap_err(), Errno::NOSPC);
        memory.remove(b"b");
        assert_eq!(memory.create(b"d", 3).unwrap_err(), Errno::NOSPC, "it is in one piece");
        let pages = memory.create(b"d", 2).unwrap();
        assert_eq!(pages[1].load_u32(8), Ok(0), "the one before left nothing");
        drop((memory, pages));
        let next = RecordMemory::new(file).unwrap();
        assert_eq!(
            ["a", "b", "c", "d"].map(|name| next.has(name.as_bytes())),
            [true, false, true, true]
        );
        assert_eq!(next.open(b"a", 4).unwrap()[3].load_u32(8), Ok(7));
        assert_eq!(next.open(b"a", 3).unwrap_err(), Errno::INVAL);
        assert_eq!(next.open(b"b", 2).unwrap_err(), Errno::NOENT);
        assert_eq!(next.create(&[b'x'; NAME_MAX + 1], 1).unwrap_err(), Errno::NAMETOOLONG);
    }

    #[test]
    fn what_a_table_says_is_checked() {
        assert_eq!(RecordMemory::new(file(TABLE_PAGES)).unwrap_err(), Errno::NOSPC);
        let file = file(TABLE_PAGES + 2);
        let memory = RecordMemory::new(file.try_clone().unwrap()).unwrap();
        memory.create(b"a", 1).unwrap();
        let at = |word: u64| ENTRY_BYTES as u64 + 4 * word;
        for (word, value) in [(1, 0_u32), (1, u32::MAX), (2, 3), (2, u32::MAX), (3, 49)] {
            let mut before = [0; 4];
            rustix::io::pread(&file, &mut before, at(word)).unwrap();
            rustix::io::pwrite(&file, &value.to_ne_bytes(), at(word)).unwrap();
            assert!(!memory.has(b"a"), "word {word} is {value}");
            rustix::io::pwrite(&file, &before, at(word)).unwrap();
            assert!(memory.has(b"a"));
        }
        // A table of another format is begun anew.
        rustix::io::pwrite(&file, &[0; 4], 0).unwrap();
        assert!(!RecordMemory::new(file).unwrap().has(b"a"));
    }
}
