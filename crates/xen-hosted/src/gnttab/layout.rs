//! The layout of an arena: its table, its references, and its two parts as a process maps them.
//!
//! | offset in the table | bytes | what |
//! |---|---|---|
//! | 0 | 4 | not 0 once the granter, or the peer, is gone (written by the broker) |
//! | 64 + 8 n | 4 | entry n: flags, and above them the peer's number, as in version 1 of Xen's tables |
//! | 68 + 8 n | 4 | who has page n mapped: one bit for each process of the peer |

use crate::limits::ARENA_PAGES;
use crate::map::Map;
use rustix::io::Result;
use std::os::fd::OwnedFd;
use xen::gnttab::PageAccess;
use xen::shared::PAGE_SIZE;
use xen::{DomId, GrantRef};

/// The page may be mapped (`GTF_permit_access`).
pub(crate) const PERMIT_ACCESS: u32 = 1;
/// For reading alone (`GTF_readonly`).
pub(crate) const READONLY: u32 = 4;
/// Bytes of a table, in whole pages.
pub(crate) const TABLE_LEN: usize =
    (ENTRIES + 8 * ARENA_PAGES as usize).next_multiple_of(PAGE_SIZE);
/// Bytes of the pages that an arena grants.
pub(crate) const PAGES_LEN: usize = ARENA_PAGES as usize * PAGE_SIZE;

/// Bytes of memory of a domain at least: those of an arena, and as many for its processes.
pub const MEMORY_MIN: u64 = 2 * (TABLE_LEN + PAGES_LEN) as u64;
/// The offset of the word that says that the arena has ended.
pub(crate) const ENDED: usize = 0;

const ENTRIES: usize = 64;

/// Returns the offset of a page's entry in the table.
pub(crate) fn entry_offset(page: usize) -> usize {
    ENTRIES + 8 * page
}

/// Returns the offset of the bits of those who have the page mapped.
pub(crate) fn holders_offset(page: usize) -> usize {
    entry_offset(page) + 4
}

/// Returns the word of an entry that lets `peer` map the page.
pub(crate) fn entry(peer: DomId, access: PageAccess) -> u32 {
    let readonly = match access {
        PageAccess::Read => READONLY,
        PageAccess::ReadWrite => 0,
    };
    u32::from(peer.0) << 16 | PERMIT_ACCESS | readonly
}

/// Returns the reference of a page.
pub(crate) fn reference(slot: u32, page: u32) -> GrantRef {
    GrantRef(slot * ARENA_PAGES + page)
}

/// Returns the arena and the page of a reference.
pub(crate) fn place(grant: GrantRef) -> (u32, usize) {
    (grant.0 / ARENA_PAGES, (grant.0 % ARENA_PAGES) as usize)
}

/// The two parts of an arena, mapped.
#[derive(Debug)]
pub(crate) struct MappedArena {
    pub(crate) slot: u32,
    pub(crate) table: Map,
    pub(crate) pages: Map,
    /// The peer's access to its pages.
    pub(crate) access: PageAccess,
}

impl MappedArena {
    /// Maps an arena from its one or two memfds, its pages with the access in `own`.
    pub(crate) fn map(
        slot: u32,
        table: &OwnedFd,
        pages: Option<&OwnedFd>,
        own: PageAccess,
    ) -> Result<Self> {
        let access = if pages.is_some() { PageAccess::Read } else { PageAccess::ReadWrite };
        let (fd, offset) = match pages {
            Some(pages) => (pages, 0),
            None => (table, TABLE_LEN as u64),
        };
        let pages = Map::new(fd, offset, PAGES_LEN, own)?;
        Ok(Self {
            slot,
            table: Map::new(table, 0, TABLE_LEN, PageAccess::ReadWrite)?,
            pages,
            access,
        })
    }

    /// True if the granter or the peer is gone.
    pub(crate) fn ended(&self) -> bool {
        self.table.word(ENDED).load(std::sync::atomic::Ordering::Acquire) != 0
    }
}
