//! The granting side.

use super::{Arena, entry, entry_offset, holders_offset, reference};
use crate::counters::Counter;
use crate::errno::from_errno;
use crate::limits::ARENA_PAGES;
use crate::link::{Link, lock};
use crate::map::{KeepsMap, Map, page};
use crate::proto::Request;
use std::collections::HashMap;
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

/// An arena of this domain.
#[derive(Debug)]
struct Own {
    arena: Arena,
    link: Arc<Link>,
    unused: Mutex<Unused>,
}

impl Own {
    /// The arena `slot`, of which nothing is granted but what the broker has.
    fn new(arena: Arena, link: Arc<Link>) -> Self {
        let first = if arena.slot == 0 { GrantRef::FIRST_FREE.0 } else { 0 };
        // Taken from the end: low references first.
        let free = (first..ARENA_PAGES).rev().filter_map(|at| u16::try_from(at).ok()).collect();
        Self { arena, link, unused: Mutex::new(Unused { free, lingering: Vec::new() }) }
    }

    /// A page that is neither granted nor mapped by the peer.
    fn take(&self) -> Option<u16> {
        let mut unused = lock(&self.unused);
        if unused.free.is_empty() {
            let Unused { free, lingering } = &mut *unused;
            lingering.retain(|at| {
                let held = self.is_held(*at);
                if !held {
                    free.push(*at);
                }
                held
            });
        }
        unused.free.pop()
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
        if self.arena.slot == 0 && u32::from(at) < GrantRef::FIRST_FREE.0 {
            // Granted by the broker, for as long as the domain lives.
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

/// Grants pages of this domain to others.
#[derive(Debug)]
pub struct Offers {
    link: Arc<Link>,
    arenas: HashMap<(DomId, bool), Arc<Own>>,
}

impl Offers {
    /// Grants over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, arenas: HashMap::new() }
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
        let arena = self.arena(DomId::DOM0, Access::ReadWrite)?;
        if arena.arena.slot != 0 {
            return Err(Error::Inval);
        }
        Ok(page(&arena, grant.0 as usize, Access::ReadWrite))
    }

    fn arena(&mut self, peer: DomId, access: Access) -> Result<Arc<Own>, Error> {
        let key = (peer, access == Access::ReadWrite);
        if let Some(own) = self.arenas.get(&key) {
            if !own.arena.ended() {
                return Ok(Arc::clone(own));
            }
            self.arenas.remove(&key);
        }
        let request = Request::OfferArena { peer, writable: u32::from(key.1) };
        let mut answer = self.link.call(&request)?;
        let slot = answer.number(0)?;
        let table = answer.fd()?;
        let pages = answer.fds.pop_front();
        let arena =
            Arena::map(slot, &table, pages.as_ref(), Access::ReadWrite).map_err(from_errno)?;
        if pages.is_some() {
            self.link.call(&Request::ArenaMapped { slot })?;
        }
        let own = Arc::new(Own::new(arena, Arc::clone(&self.link)));
        self.arenas.insert(key, Arc::clone(&own));
        Ok(own)
    }
}

impl GrantOffer for Offers {
    fn offer(&mut self, peer: DomId, access: Access) -> Result<Offered, Error> {
        let own = self.arena(peer, access)?;
        let at = own.take().ok_or(Error::NoSpc)?;
        let offered = page(&own, at.into(), Access::ReadWrite);
        // Of what it held for this peer before, the peer may still be looking at the page; what it
        // wrote meanwhile is gone now.
        offered.copy_in(0, &[0; PAGE_SIZE]).map_err(|_| Error::Inval)?;
        self.link.count(Counter::Granted, 1);
        own.arena.table.word(entry_offset(at.into())).store(entry(peer, access), SeqCst);
        Ok(Offered::new(peer, reference(own.arena.slot, at.into()), offered))
    }
}
