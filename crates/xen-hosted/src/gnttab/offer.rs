//! The granting side.

use super::layout::{MappedArena, entry, entry_offset, holders_offset, reference};
use crate::counters::Counter;
use crate::errno::from_errno;
use crate::limits::{ARENA_PAGES, ARENAS_MAX};
use crate::link::{Link, lock};
use crate::map::{KeepsMap, Map, page};
use crate::proto::Request;
use std::collections::{HashMap, HashSet};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use xen::gnttab::{Access, GrantOffer, Offered};
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};
use xen::{DomId, Error, GrantRef};

/// Pages of an own arena that are not granted.
#[derive(Debug)]
struct Unused {
    /// May be granted at once.
    free: Vec<u16>,
    /// Their grant has ended, and when last looked at the peer had them mapped.
    lingering: Vec<u16>,
}

/// The first page of an arena that is not granted by the broker, for as long as the domain lives.
fn first_page(slot: u32) -> u32 {
    if slot == 0 { GrantRef::FIRST_FREE.0 } else { 0 }
}

/// An arena of this domain.
#[derive(Debug)]
struct Own {
    arena: MappedArena,
    link: Arc<Link>,
    unused: Mutex<Unused>,
}

impl Own {
    /// The arena `slot`, of which nothing is granted but what the broker has.
    fn new(arena: MappedArena, link: Arc<Link>) -> Self {
        // Taken from the end: low references first.
        let pages = (first_page(arena.slot)..ARENA_PAGES).rev();
        let free = pages.filter_map(|at| u16::try_from(at).ok()).collect();
        Self { arena, link, unused: Mutex::new(Unused { free, lingering: Vec::new() }) }
    }

    /// The number of pages that it can grant in all.
    fn pages(&self) -> usize {
        (ARENA_PAGES - first_page(self.arena.slot)) as usize
    }

    /// A page that is neither granted nor mapped by the peer.
    fn take(&self) -> Option<u16> {
        let mut unused = lock(&self.unused);
        if unused.free.is_empty() {
            self.collect(&mut unused);
        }
        unused.free.pop()
    }

    /// The number of pages that could be taken.
    fn free(&self) -> usize {
        let mut unused = lock(&self.unused);
        self.collect(&mut unused);
        unused.free.len()
    }

    /// Frees the pages that the peer has unmapped since.
    fn collect(&self, Unused { free, lingering }: &mut Unused) {
        lingering.retain(|at| {
            let held = self.is_held(*at);
            if !held {
                free.push(*at);
            }
            held
        });
    }

    fn is_held(&self, at: u16) -> bool {
        self.arena.table.word(holders_offset(at.into())).load(SeqCst) != 0
    }
}

impl KeepsMap for Own {
    fn map(&self) -> &Map {
        &self.arena.pages
    }
}

impl Unmap for Own {
    fn unmap(&self, base: NonNull<u8>) {
        let Ok(at) = u16::try_from(self.arena.pages.page_number(base)) else { return };
        if u32::from(at) < first_page(self.arena.slot) {
            return;
        }
        self.arena.table.word(entry_offset(at.into())).store(0, SeqCst);
        let held = self.is_held(at);
        let mut unused = lock(&self.unused);
        if held {
            unused.lingering.push(at);
        } else {
            unused.free.push(at);
        }
        self.link.count(Counter::Granted, -1);
    }
}

/// The arenas that pages are granted from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Purpose {
    peer: DomId,
    writable: bool,
}

impl Purpose {
    fn new(peer: DomId, access: Access) -> Self {
        Self { peer, writable: access == Access::ReadWrite }
    }
}

/// Grants pages of this domain to others: of one arena for each peer and access, and of a further one when that
/// is full.
#[derive(Debug)]
pub struct Offers {
    link: Arc<Link>,
    arenas: HashMap<Purpose, Vec<Arc<Own>>>,
    /// The numbers of all arenas that there have been: none is taken for a new one a second time, which would grant its
    /// pages twice.
    known: HashSet<u64>,
}

impl Offers {
    /// Grants over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, arenas: HashMap::new(), known: HashSet::new() }
    }

    /// The page that this domain's builder has granted under `grant`, one of the reserved
    /// references.
    ///
    /// # Errors
    /// [`Error::Inval`] for another reference, or what the broker answered.
    pub fn reserved(&mut self, grant: GrantRef) -> Result<SharedPage, Error> {
        if grant >= GrantRef::FIRST_FREE {
            return Err(Error::Inval);
        }
        let purpose = Purpose::new(DomId::DOM0, Access::ReadWrite);
        let arena = match self.living(purpose).first() {
            Some(first) => Arc::clone(first),
            None => self.add_arena(purpose)?,
        };
        if arena.arena.slot != 0 {
            return Err(Error::Inval);
        }
        Ok(page(&arena, grant.0 as usize, Access::ReadWrite))
    }

    /// The arenas whose peer is there still.
    fn living(&mut self, purpose: Purpose) -> &mut Vec<Arc<Own>> {
        let arenas = self.arenas.entry(purpose).or_default();
        arenas.retain(|own| !own.arena.ended());
        arenas
    }

    /// One more arena.
    ///
    /// # Errors
    /// [`Error::Srch`] the peer is gone, or says so: its table tells of an end that the broker does not know.
    fn add_arena(&mut self, purpose: Purpose) -> Result<Arc<Own>, Error> {
        let at = u32::try_from(self.living(purpose).len()).map_err(|_| Error::NoSpc)?;
        let Purpose { peer, writable } = purpose;
        let request = Request::OfferArena { peer, writable: u32::from(writable), at };
        let mut answer = self.link.call(&request)?;
        let (slot, number) = (answer.number(0)?, answer.number::<u64>(1)?);
        let table = answer.fd()?;
        let pages = answer.fds.pop_front();
        let arena = MappedArena::map(slot, &table, pages.as_ref(), Access::ReadWrite)
            .map_err(from_errno)?;
        if pages.is_some() {
            self.link.call(&Request::ArenaMapped { slot })?;
        }
        // The peer can write the table. By an end that is none it has the broker give the same arena once more.
        if arena.ended() || !self.known.insert(number) {
            return Err(Error::Srch);
        }
        let own = Arc::new(Own::new(arena, Arc::clone(&self.link)));
        self.living(purpose).push(Arc::clone(&own));
        Ok(own)
    }

    /// A page that may be granted, of the arenas that there are or of a further one.
    fn take(&mut self, purpose: Purpose) -> Result<(Arc<Own>, u16), Error> {
        let found = self.living(purpose).iter().find_map(|own| Some((own, own.take()?)));
        if let Some((own, at)) = found {
            return Ok((Arc::clone(own), at));
        }
        let own = self.add_arena(purpose).map_err(|error| self.refusal(purpose, 1, error))?;
        let at = own.take().ok_or(Error::NoSpc)?;
        Ok((own, at))
    }

    /// Sees to it that so many pages may be granted.
    fn make_room(&mut self, purpose: Purpose, count: usize) -> Result<(), Error> {
        let free: usize = self.living(purpose).iter().map(|own| own.free()).sum();
        let more = count.saturating_sub(free).div_ceil(ARENA_PAGES as usize);
        if self.living(purpose).len().saturating_add(more) > ARENAS_MAX {
            // None of them is made for what cannot be.
            return Err(self.refusal(purpose, count, Error::NoSpc));
        }
        // A domain's first has fewer pages than others, so it may take one more.
        for _ in 0..=more {
            if self.living(purpose).iter().map(|own| own.free()).sum::<usize>() >= count {
                return Ok(());
            }
            self.add_arena(purpose).map_err(|error| self.refusal(purpose, count, error))?;
        }
        // Only where the peer spoils what is in the tables.
        Err(self.refusal(purpose, count, Error::NoSpc))
    }

    /// The refusal of a further arena, in pages.
    #[cold]
    fn refusal(&mut self, purpose: Purpose, asked: usize, error: Error) -> Error {
        if error != Error::NoSpc {
            return error;
        }
        let arenas = self.living(purpose);
        let sum = |pages: fn(&Own) -> usize| arenas.iter().map(|own| pages(own)).sum();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (free, of) = (number(sum(Own::free)), number(sum(Own::pages)));
        Error::NoPages { asked: number(asked), free, of }
    }
}

impl GrantOffer for Offers {
    fn offer(&mut self, peer: DomId, access: Access) -> Result<Offered, Error> {
        let (own, at) = self.take(Purpose::new(peer, access))?;
        let offered = page(&own, at.into(), Access::ReadWrite);
        // Of what it held for this peer before, the peer may still be looking at the page; what it
        // wrote meanwhile is gone now.
        offered.copy_in(0, &[0; PAGE_SIZE]).map_err(|_| Error::Inval)?;
        self.link.count(Counter::Granted, 1);
        own.arena.table.word(entry_offset(at.into())).store(entry(peer, access), SeqCst);
        Ok(Offered::new(peer, reference(own.arena.slot, at.into()), offered))
    }

    fn offer_batch(
        &mut self,
        peer: DomId,
        access: Access,
        count: usize,
        into: &mut Vec<Offered>,
    ) -> Result<(), Error> {
        self.make_room(Purpose::new(peer, access), count)?;
        let before = into.len();
        for _ in 0..count {
            match self.offer(peer, access) {
                Ok(offered) => into.push(offered),
                Err(error) => {
                    into.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
