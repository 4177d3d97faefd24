//! Grants: pages of arenas, each of which one domain has made for one other.
//!
//! An arena is [`ARENA_PAGES`] pages and a table with an entry for each; a granter that needs more pages for a peer gets
//! further arenas, as all of one is charged to it from the start, whoever touches its pages. A writable arena is one
//! memfd, the table first; one that the peer may only read is two, as both sides write the table.
//!
//! A reference is the arena's number in its granter times [`ARENA_PAGES`], plus the page. So a map
//! is arithmetic: find the arena, set the own bit, look at the entry. An end of a grant is the
//! other way round: clear the entry, look at the bits. Each side writes before it reads (sequentially
//! consistent), so either the end sees the bit or the map sees the cleared entry.
//!
//! [`ARENA_PAGES`]: crate::limits::ARENA_PAGES

mod layout;
mod map;
mod offer;

pub(crate) use layout::{ENDED, PAGES_LEN, TABLE_LEN, entry, entry_offset, holders_offset};
pub use map::Grants;
pub use offer::Offers;
