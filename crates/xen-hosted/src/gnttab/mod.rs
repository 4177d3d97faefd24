//! Grants: pages of arenas, each of which one domain has made for one other.
//!
//! An arena is [`ARENA_PAGES`] pages and a table with an entry for each; a granter that needs more pages for a peer gets
//! further arenas, as all of one is charged to it from the start, whoever touches its pages. A writable arena is one
//! memfd, the table first; one that the peer may only read is two, as both sides write the table.
//!
//! | offset in the table | bytes | what |
//! |---|---|---|
//! | 0 | 4 | not 0 once the granter, or the peer, is gone (written by the broker) |
//! | 64 + 8 n | 4 | entry n: flags, and above them the peer's number, as in version 1 of Xen's tables |
//! | 68 + 8 n | 4 | who has page n mapped: one bit for each process of the peer |
//!
//! A reference is the arena's number in its granter times [`ARENA_PAGES`], plus the page. So a map
//! is arithmetic: find the arena, set the own bit, look at the entry. An end of a grant is the
//! other way round: clear the entry, look at the bits. Each side writes before it reads (sequentially
//! consistent), so either the end sees the bit or the map sees the cleared entry.

mod map;
mod offer;

pub use map::Grants;
pub use offer::Offers;

use crate::limits::ARENA_PAGES;
use crate::map::Map;
use rustix::io::Result;
use std::os::fd::OwnedFd;
use xen::gnttab::Access;
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
/// Where the table says that the arena has ended.
pub(crate) const ENDED: usize = 0;

const ENTRIES: usize = 64;

/// Where the entry of a page lies in the table.
pub(crate) fn entry_offset(page: usize) -> usize {
    ENTRIES + 8 * page
}

/// Where the bits of those who have it mapped lie.
pub(crate) fn holders_offset(page: usize) -> usize {
    entry_offset(page) + 4
}

/// The word of an entry that lets `peer` map the page.
pub(crate) fn entry(peer: DomId, access: Access) -> u32 {
    let readonly = match access {
        Access::Read => READONLY,
        Access::ReadWrite => 0,
    };
    u32::from(peer.0) << 16 | PERMIT_ACCESS | readonly
}

/// The reference of a page.
pub(crate) fn reference(slot: u32, page: u32) -> GrantRef {
    GrantRef(slot * ARENA_PAGES + page)
}

/// The arena and the page of a reference.
pub(crate) fn place(grant: GrantRef) -> (u32, usize) {
    (grant.0 / ARENA_PAGES, (grant.0 % ARENA_PAGES) as usize)
}

/// The two parts of an arena, mapped.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) slot: u32,
    pub(crate) table: Map,
    pub(crate) pages: Map,
    /// What the peer may do with its pages.
    pub(crate) access: Access,
}

impl Arena {
    /// Maps an arena from its one or two memfds; its pages as `own` says.
    pub(crate) fn map(
        slot: u32,
        table: &OwnedFd,
        pages: Option<&OwnedFd>,
        own: Access,
    ) -> Result<Self> {
        let access = if pages.is_some() { Access::Read } else { Access::ReadWrite };
        let (fd, offset) = match pages {
            Some(pages) => (pages, 0),
            None => (table, TABLE_LEN as u64),
        };
        let pages = Map::new(fd, offset, PAGES_LEN, own)?;
        Ok(Self { slot, table: Map::new(table, 0, TABLE_LEN, Access::ReadWrite)?, pages, access })
    }

    /// Whether granter or peer is gone.
    pub(crate) fn ended(&self) -> bool {
        self.table.word(ENDED).load(std::sync::atomic::Ordering::Acquire) != 0
    }
}
