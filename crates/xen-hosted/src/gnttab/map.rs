//! The mapping side.

use super::layout::{MappedArena, PERMIT_ACCESS, READONLY, entry_offset, holders_offset, place};
use crate::counters::Counter;
use crate::errno::from_errno;
use crate::limits::ARENA_PAGES;
use crate::link::{ArenaFollower, Link, lock};
use crate::map::{Map, MapOwner, page};
use crate::proto::BrokerRequest;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, Weak};
use xen::gnttab::{GrantMap, GrantStatus, Mapping, PageAccess};
use xen::shared::Unmap;
use xen::{DomId, Error, GrantRef};

/// An arena of another domain, as this process has it mapped.
#[derive(Debug)]
struct ForeignArena {
    granter: DomId,
    /// The number by which the broker tells it from other arenas that have had its slot.
    number: u64,
    arena: MappedArena,
    /// This process's bit in the holders of each page.
    bit: u32,
    link: Arc<Link>,
    /// The number of mappings of each page in this process. It changes with the bit, so both are
    /// under one lock.
    mapped: Mutex<Box<[u16]>>,
}

impl ForeignArena {
    /// Maps page `at`, if its entry lets domain `me` do so.
    fn pin(&self, at: usize, me: DomId, access: PageAccess) -> Result<(), GrantStatus> {
        let mut mapped = lock(&self.mapped);
        let count = mapped.get_mut(at).ok_or(GrantStatus::BadGntref)?;
        let holders = self.arena.table.word(holders_offset(at));
        if *count == 0 {
            holders.fetch_or(self.bit, SeqCst);
        }
        let entry = self.arena.table.word(entry_offset(at)).load(SeqCst);
        // Once the page is mapped, the grant may end without an end to the mapping, as with Xen.
        let granted =
            *count > 0 || (entry & 0xffff & PERMIT_ACCESS != 0 && entry >> 16 == u32::from(me.0));
        let more = access == PageAccess::ReadWrite
            && (self.arena.access == PageAccess::Read || entry & READONLY != 0);
        let next = count.checked_add(1);
        let (true, false, Some(next)) = (granted, more, next) else {
            if *count == 0 {
                holders.fetch_and(!self.bit, SeqCst);
            }
            return Err(GrantStatus::GeneralError);
        };
        *count = next;
        Ok(())
    }
}

impl MapOwner for ForeignArena {
    fn map(&self) -> &Map {
        &self.arena.pages
    }
}

impl Unmap for ForeignArena {
    fn unmap(&self, base: NonNull<u8>) {
        let at = self.arena.pages.page_number(base);
        let mut mapped = lock(&self.mapped);
        if let Some(count) = mapped.get_mut(at) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.arena.table.word(holders_offset(at)).fetch_and(!self.bit, SeqCst);
            }
        }
        self.link.count(Counter::Mapped, -1);
    }

    fn write_refused(&self) {
        self.link.count_refusal();
    }
}

impl Drop for ForeignArena {
    fn drop(&mut self) {
        let Self { granter, number, arena, .. } = self;
        self.link.tell(&BrokerRequest::Release {
            granter: *granter,
            slot: arena.slot,
            number: *number,
        });
    }
}

/// The arenas that one [`Grants`] has looked up; those that end are taken out.
#[derive(Debug, Default)]
struct ForeignArenas(Mutex<HashMap<(DomId, u32), Arc<ForeignArena>>>);

impl ForeignArenas {
    fn get(&self, granter: DomId, slot: u32) -> Option<Arc<ForeignArena>> {
        lock(&self.0).get(&(granter, slot)).map(Arc::clone)
    }

    fn insert(&self, granter: DomId, slot: u32, arena: Arc<ForeignArena>) {
        lock(&self.0).insert((granter, slot), arena);
    }

    /// Takes an arena out; it is dropped without the lock, as that tells the broker.
    fn remove(&self, granter: DomId, slot: u32) {
        let removed = lock(&self.0).remove(&(granter, slot));
        drop(removed);
    }
}

impl ArenaFollower for ForeignArenas {
    fn arena_ended(&self, granter: DomId, slot: u32) {
        self.remove(granter, slot);
    }
}

/// Maps pages that other domains have granted to this one.
#[derive(Debug)]
pub struct Grants {
    link: Arc<Link>,
    arenas: Arc<ForeignArenas>,
}

impl Grants {
    /// Grants over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let arenas = Arc::<ForeignArenas>::default();
        let follower: Weak<ForeignArenas> = Arc::downgrade(&arenas);
        link.follow(follower);
        Self { link, arenas }
    }

    /// The arena, looked up once and kept.
    fn arena(&mut self, granter: DomId, slot: u32) -> Result<Arc<ForeignArena>, Error> {
        match self.arenas.get(granter, slot) {
            Some(known) if !known.arena.ended() => return Ok(known),
            Some(_) => self.arenas.remove(granter, slot),
            None => {}
        }
        let mut answer =
            self.link.call(&BrokerRequest::FindArena { granter, slot }).map_err(refusal)?;
        let table = answer.fd()?;
        let pages = answer.fds.pop_front();
        let own = if pages.is_some() { PageAccess::Read } else { PageAccess::ReadWrite };
        let arena = MappedArena::map(slot, &table, pages.as_ref(), own).map_err(from_errno)?;
        let bit = 1_u32.checked_shl(answer.number(0)?).ok_or(Error::Inval)?;
        let number = answer.number(1)?;
        let mapped = Mutex::new(vec![0; ARENA_PAGES as usize].into_boxed_slice());
        let link = Arc::clone(&self.link);
        let arena = Arc::new(ForeignArena { granter, number, arena, bit, link, mapped });
        self.arenas.insert(granter, slot, Arc::clone(&arena));
        Ok(arena)
    }
}

/// Maps an error of the broker's look-up of an arena to a grant operation's status.
fn refusal(error: Error) -> Error {
    match error {
        Error::Srch => Error::Grant(GrantStatus::BadDomain),
        Error::NoEnt => Error::Grant(GrantStatus::BadGntref),
        Error::Access => Error::Grant(GrantStatus::GeneralError),
        Error::NoSpc => Error::Grant(GrantStatus::NoSpace),
        other => other,
    }
}

impl GrantMap for Grants {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> Result<Mapping, Error> {
        let (slot, at) = place(grant);
        let arena = self.arena(domid, slot)?;
        if let Err(status) = arena.pin(at, self.link.domid, access) {
            self.link.count_refusal();
            return Err(Error::Grant(status));
        }
        self.link.count(Counter::Mapped, 1);
        Ok(Mapping::new(domid, grant, page(&arena, at, access)))
    }
}
