//! The granting side.

use super::layout::{MappedArena, entry, entry_offset, holders_offset, reference};
use crate::counters::Counter;
use crate::errno::from_errno;
use crate::limits::{ARENA_PAGES, ARENAS_MAX};
use crate::link::{Link, lock};
use crate::map::{Map, MapOwner, page};
use crate::proto::BrokerRequest;
use std::collections::{HashMap, HashSet};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::shared::{PAGE_SIZE, SharedPage, Unmap};
use xen::{DomId, Error, GrantRef};

/// Pages of an own arena that are not granted.
#[derive(Debug)]
struct UnusedPages {
    /// Pages that may be granted at once.
    free: Vec<u16>,
    /// Pages whose grant has ended, and which the peer had mapped at the last look.
    lingering: Vec<u16>,
}

/// Returns the first page of an arena that the broker has not granted for the whole life of the
/// domain.
fn first_page(slot: u32) -> u32 {
    if slot == 0 { GrantRef::FIRST_FREE.0 } else { 0 }
}

/// An arena of this domain.
#[derive(Debug)]
struct OwnArena {
    arena: MappedArena,
    link: Arc<Link>,
    unused: Mutex<UnusedPages>,
}

impl OwnArena {
    /// Makes the arena `slot`, in which nothing is granted but the broker's pages.
    fn new(arena: MappedArena, link: Arc<Link>) -> Self {
        // Taken from the end: low references first.
        let pages = (first_page(arena.slot)..ARENA_PAGES).rev();
        let free = pages.filter_map(|at| u16::try_from(at).ok()).collect();
        Self { arena, link, unused: Mutex::new(UnusedPages { free, lingering: Vec::new() }) }
    }

    /// Returns the number of pages that it can grant in all.
    fn pages(&self) -> usize {
        (ARENA_PAGES - first_page(self.arena.slot)) as usize
    }

    /// Takes a page that is neither granted nor mapped by the peer.
    fn take(&self) -> Option<u16> {
        let mut unused = lock(&self.unused);
        if unused.free.is_empty() {
            self.collect(&mut unused);
        }
        unused.free.pop()
    }

    /// Returns the number of pages that can be taken.
    fn free(&self) -> usize {
        let mut unused = lock(&self.unused);
        self.collect(&mut unused);
        unused.free.len()
    }

    /// Frees the pages that the peer has unmapped since.
    fn collect(&self, UnusedPages { free, lingering }: &mut UnusedPages) {
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

impl MapOwner for OwnArena {
    fn map(&self) -> &Map {
        &self.arena.pages
    }
}

impl Unmap for OwnArena {
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

/// The peer and the access that arenas are made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Purpose {
    peer: DomId,
    writable: bool,
}

impl Purpose {
    fn new(peer: DomId, access: PageAccess) -> Self {
        Self { peer, writable: access == PageAccess::ReadWrite }
    }
}

/// Grants pages of this domain to others: of one arena for each peer and access, and of a further one when that
/// is full.
#[derive(Debug)]
pub struct Offers {
    link: Arc<Link>,
    arenas: HashMap<Purpose, Vec<Arc<OwnArena>>>,
    /// The numbers of all arenas so far. A new arena never has one of them, as its pages would then
    /// be granted twice.
    known: HashSet<u64>,
}

impl Offers {
    /// Makes the grants over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, arenas: HashMap::new(), known: HashSet::new() }
    }

    /// Returns the page that this domain's builder has granted under `grant`, one of the reserved
    /// references.
    ///
    /// # Errors
    /// [`Error::Inval`] for another reference, or the broker's error.
    pub fn reserved(&mut self, grant: GrantRef) -> Result<SharedPage, Error> {
        if grant >= GrantRef::FIRST_FREE {
            return Err(Error::Inval);
        }
        let purpose = Purpose::new(DomId::DOM0, PageAccess::ReadWrite);
        let arena = match self.living(purpose).first() {
            Some(first) => Arc::clone(first),
            None => self.add_arena(purpose)?,
        };
        if arena.arena.slot != 0 {
            return Err(Error::Inval);
        }
        Ok(page(&arena, grant.0 as usize, PageAccess::ReadWrite))
    }

    /// Returns the arenas whose peer is still there.
    fn living(&mut self, purpose: Purpose) -> &mut Vec<Arc<OwnArena>> {
        let arenas = self.arenas.entry(purpose).or_default();
        arenas.retain(|own| !own.arena.ended());
        arenas
    }

    /// Makes one more arena.
    ///
    /// # Errors
    /// [`Error::Srch`] where the peer is gone, or where its table says so although the broker does
    /// not know of an end.
    fn add_arena(&mut self, purpose: Purpose) -> Result<Arc<OwnArena>, Error> {
        let at = u32::try_from(self.living(purpose).len()).map_err(|_| Error::NoSpc)?;
        let Purpose { peer, writable } = purpose;
        let request = BrokerRequest::OfferArena { peer, writable: u32::from(writable), at };
        let mut answer = self.link.call(&request)?;
        let (slot, number) = (answer.number(0)?, answer.number::<u64>(1)?);
        let table = answer.fd()?;
        let pages = answer.fds.pop_front();
        let arena = MappedArena::map(slot, &table, pages.as_ref(), PageAccess::ReadWrite)
            .map_err(from_errno)?;
        if pages.is_some() {
            self.link.call(&BrokerRequest::ArenaMapped { slot })?;
        }
        // The peer can write the table. By a false end it could make the broker give the same arena
        // once more.
        if arena.ended() || !self.known.insert(number) {
            return Err(Error::Srch);
        }
        let own = Arc::new(OwnArena::new(arena, Arc::clone(&self.link)));
        self.living(purpose).push(Arc::clone(&own));
        Ok(own)
    }

    /// Takes a page that may be granted, from an existing arena or from a further one.
    fn take(&mut self, purpose: Purpose) -> Result<(Arc<OwnArena>, u16), Error> {
        let found = self.living(purpose).iter().find_map(|own| Some((own, own.take()?)));
        if let Some((own, at)) = found {
            return Ok((Arc::clone(own), at));
        }
        let own = self.add_arena(purpose).map_err(|error| self.refusal(purpose, 1, error))?;
        let at = own.take().ok_or(Error::NoSpc)?;
        Ok((own, at))
    }

    /// Ensures that `count` pages may be granted.
    fn make_room(&mut self, purpose: Purpose, count: usize) -> Result<(), Error> {
        let free: usize = self.living(purpose).iter().map(|own| own.free()).sum();
        let more = count.saturating_sub(free).div_ceil(ARENA_PAGES as usize);
        if self.living(purpose).len().saturating_add(more) > ARENAS_MAX {
            // No arena is made for a request that cannot be met.
            return Err(self.refusal(purpose, count, Error::NoSpc));
        }
        // A domain's first arena has fewer pages than others, so one more may be needed.
        for _ in 0..=more {
            if self.living(purpose).iter().map(|own| own.free()).sum::<usize>() >= count {
                return Ok(());
            }
            self.add_arena(purpose).map_err(|error| self.refusal(purpose, count, error))?;
        }
        // Reached only where the peer spoils the tables.
        Err(self.refusal(purpose, count, Error::NoSpc))
    }

    /// Returns the error for a refused arena, in pages.
    #[cold]
    fn refusal(&mut self, purpose: Purpose, asked: usize, error: Error) -> Error {
        if error != Error::NoSpc {
            return error;
        }
        let arenas = self.living(purpose);
        let sum = |pages: fn(&OwnArena) -> usize| arenas.iter().map(|own| pages(own)).sum();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (free, of) = (number(sum(OwnArena::free)), number(sum(OwnArena::pages)));
        Error::NoPages { asked: number(asked), free, of }
    }
}

impl GrantOffer for Offers {
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error> {
        let (own, at) = self.take(Purpose::new(peer, access))?;
        let offered = page(&own, at.into(), PageAccess::ReadWrite);
        // The peer may still have the page mapped from an earlier grant; anything that it wrote
        // meanwhile is erased now.
        offered.copy_in(0, &[0; PAGE_SIZE]).map_err(|_| Error::Inval)?;
        self.link.count(Counter::Granted, 1);
        own.arena.table.word(entry_offset(at.into())).store(entry(peer, access), SeqCst);
        Ok(OfferedPage::new(peer, reference(own.arena.slot, at.into()), offered))
    }

    fn offer_batch(
        &mut self,
        peer: DomId,
        access: PageAccess,
        count: usize,
        into: &mut Vec<OfferedPage>,
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
