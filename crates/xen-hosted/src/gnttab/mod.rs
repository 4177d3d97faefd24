//! Grants: pages of arenas, each of which one domain has made for one other.
//!
//! An arena is [`ARENA_PAGES`] pages and a table with an entry for each. A granter that needs more
//! pages for a peer gets further arenas, as each arena is charged to the granter in full from the
//! start, whoever touches its pages. A writable arena is one memfd, the table first; one that the
//! peer may only read is two, as both sides write the table.
//!
//! A reference is the arena's number in its granter times [`ARENA_PAGES`], plus the page. So a map
//! is arithmetic: find the arena, set the own bit, read the entry. The end of a grant is the
//! reverse: clear the entry, read the bits. Each side writes before it reads (sequentially
//! consistent), so either the end sees the bit or the map sees the cleared entry.
//!
//! [`ARENA_PAGES`]: crate::limits::ARENA_PAGES

mod layout;
mod map;
mod offer;

pub use layout::MEMORY_MIN;
pub(crate) use layout::{ENDED, PAGES_LEN, TABLE_LEN, entry, entry_offset, holders_offset};
pub use map::Grants;
pub use offer::Offers;
