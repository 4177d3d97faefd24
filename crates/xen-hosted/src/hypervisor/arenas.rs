//! Grants, as far as the broker is in them: making arenas, handing them to the one peer of each,
//! ending them.

use super::answer::{Answered, words};
use super::{Broker, PeerId, Stage};
use crate::errno::from_errno;
use crate::gnttab::{ENDED, PAGES_LEN, TABLE_LEN, entry, entry_offset, holders_offset};
use crate::limits::{ARENA_PAGES, ARENAS_MAX, DOM0_ARENAS_MAX, HOLDERS_MAX};
use crate::map::{Map, memfd};
use crate::proto::Message;
use rustix::fs::{SealFlags, fcntl_add_seals};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use xen::gnttab::Access;
use xen::{DomId, Error, GrantRef};

/// What an arena takes at most, in bytes; all of it is charged to its granter.
pub(super) const ARENA_LEN: u64 = (TABLE_LEN + PAGES_LEN) as u64;

/// One domain's pages for one other.
pub(super) struct Arena {
    /// What tells it from others that have had its slot.
    number: u64,
    /// The connection that grants from it.
    owner: PeerId,
    peer: DomId,
    peer_identity: u64,
    writable: bool,
    table: OwnedFd,
    /// The pages of a read-only one, which have a memfd of their own.
    pages: Option<OwnedFd>,
    /// It may be handed to the peer: nobody but the granter can write what only it may.
    ready: bool,
    /// Who has looked it up: the place is the number of the bit in the table.
    holders: Vec<Option<PeerId>>,
}

impl Arena {
    /// A new arena of `owner`'s domain for `peer`.
    fn new(
        number: u64,
        owner: PeerId,
        (peer, peer_identity): (DomId, u64),
        writable: bool,
    ) -> Result<Self, Error> {
        let make = |len| {
            let fd = memfd("arena", len).map_err(from_errno)?;
            fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(from_errno)?;
            Ok::<_, Error>(fd)
        };
        let (table, pages) = if writable {
            (make(TABLE_LEN + PAGES_LEN)?, None)
        } else {
            (make(TABLE_LEN)?, Some(make(PAGES_LEN)?))
        };
        fcntl_add_seals(&table, SealFlags::SEAL).map_err(from_errno)?;
        let holders = Vec::new();
        Ok(Self {
            number,
            owner,
            peer,
            peer_identity,
            writable,
            table,
            pages,
            ready: writable,
            holders,
        })
    }

    fn descriptors(&self) -> Result<Vec<OwnedFd>, Error> {
        let all = [Some(&self.table), self.pages.as_ref()];
        all.into_iter().flatten().map(|fd| fd.try_clone().map_err(Error::from)).collect()
    }

    /// How many descriptors the broker holds for it.
    fn descriptors_held(&self) -> usize {
        Self::descriptors_of(self.writable)
    }

    /// How many it would hold.
    fn descriptors_of(writable: bool) -> usize {
        if writable { 1 } else { 2 }
    }

    /// Bytes of it that are there already: they are on the account of who touched them first.
    pub(super) fn touched(&self) -> u64 {
        let all = [Some(&self.table), self.pages.as_ref()];
        let blocks = all.into_iter().flatten().filter_map(|fd| rustix::fs::fstat(fd).ok());
        blocks.map(|stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)).sum()
    }

    fn write_word(&self, offset: usize, word: u32) {
        // A memfd of a sealed size: the offset exists.
        let _ = rustix::io::pwrite(&self.table, &word.to_ne_bytes(), offset as u64);
    }
}

impl Broker {
    /// Makes the first arena of a new domain: for domain 0, with console and store page granted.
    pub(super) fn first_arena(&mut self, domid: DomId, owner: PeerId) -> Result<(), Error> {
        let identity = self.domains.get(&DomId::DOM0).ok_or(Error::Srch)?.identity;
        let arena = Arena::new(self.take_identity(), owner, (DomId::DOM0, identity), true)?;
        let granted = entry(DomId::DOM0, Access::ReadWrite);
        for grant in [GrantRef::CONSOLE, GrantRef::XENSTORE] {
            arena.write_word(entry_offset(grant.0 as usize), granted);
        }
        let domain = self.domains.get_mut(&domid).ok_or(Error::Srch)?;
        domain.arenas.push(Some(arena));
        self.note_arena_for(DomId::DOM0, domid, 0);
        Ok(())
    }

    fn note_arena_for(&mut self, peer: DomId, granter: DomId, slot: u32) {
        // Domain 0 does not end before the broker.
        if peer != DomId::DOM0
            && let Some(domain) = self.domains.get_mut(&peer)
        {
            domain.arenas_for.push((granter, slot));
        }
    }

    /// What a domain's processes may have, if it is to have `max` bytes: its arenas are taken off, as others
    /// may be who touches their pages first. For the same reason those that it has looked up are added:
    /// their granter may leave or make them empty, and that must not cost their user its life.
    pub(super) fn left_of(&self, domid: DomId, max: u64) -> u64 {
        let peer = self.domains.get(&domid).and_then(|domain| domain.peer);
        let mapped = peer.and_then(|id| self.peers.get(id)).map_or(0, |peer| peer.mapped.len());
        let left = max.saturating_sub(self.charged(domid));
        left.saturating_add(ARENA_LEN.saturating_mul(mapped as u64))
    }

    /// Memory that a domain's arenas may take.
    pub(super) fn charged(&self, domid: DomId) -> u64 {
        let arenas =
            self.domains.get(&domid).map_or(0, |domain| domain.arenas.iter().flatten().count());
        ARENA_LEN * arenas as u64
    }

    /// The arena number `nth` of those of this connection for `peer`, which is made where it is not there.
    pub(super) fn offer_arena(
        &mut self,
        id: PeerId,
        peer: DomId,
        writable: bool,
        nth: u32,
    ) -> Answered {
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let peer_identity = self.living(peer).ok_or(Error::Srch)?.identity;
        let domain = self.domains.get(&domid).ok_or(Error::Srch)?;
        let same = |arena: &Arena| {
            (arena.owner, arena.peer, arena.peer_identity, arena.writable)
                == (id, peer, peer_identity, writable)
        };
        let arenas = domain.arenas.iter().enumerate();
        let mut alike = arenas
            .filter_map(|(at, arena)| Some((at, arena.as_ref().filter(|arena| same(arena))?)));
        if let Some((at, arena)) = alike.nth(nth as usize) {
            // A read-only one is sealed by now, and could not be mapped for its granter to write.
            let fds = if arena.writable { arena.descriptors()? } else { return Err(Error::Exist) };
            return Ok(Some((vec![at as u64], fds)));
        }
        let at = domain.arenas.iter().position(Option::is_none).unwrap_or(domain.arenas.len());
        let dom0 = domid == DomId::DOM0;
        let max = if dom0 { DOM0_ARENAS_MAX } else { ARENAS_MAX };
        if at >= max || nth as usize >= ARENAS_MAX {
            return Err(Error::NoSpc);
        }
        if !dom0 {
            let held: usize = domain.arenas.iter().flatten().map(Arena::descriptors_held).sum();
            if held + Arena::descriptors_of(writable) > self.arena_descriptors_max {
                return Err(Error::NoSpc);
            }
            self.charge_arena(domid)?;
        }
        let arena = Arena::new(self.take_identity(), id, (peer, peer_identity), writable)?;
        let fds = arena.descriptors()?;
        let slot = u32::try_from(at).map_err(|_| Error::NoSpc)?;
        let Some(domain) = self.domains.get_mut(&domid) else { return Err(Error::Srch) };
        match domain.arenas.get_mut(at) {
            Some(place) => *place = Some(arena),
            None => domain.arenas.push(Some(arena)),
        }
        if dom0 && let Some(owner) = self.peers.get_mut(id) {
            // Another process of domain 0 goes on without it; a guest's arenas stay until the guest
            // is destroyed, as Xen keeps the memory of one that has crashed.
            owner.offered.push(slot);
        }
        self.note_arena_for(peer, domid, slot);
        Ok(Some((vec![slot.into()], fds)))
    }

    /// Takes one more arena off the memory that the domain's processes may have.
    fn charge_arena(&mut self, domid: DomId) -> Result<(), Error> {
        let domain = self.domains.get(&domid).ok_or(Error::Srch)?;
        let max = (domain.config.memory_max_kib * 1024).saturating_sub(ARENA_LEN);
        let left = self.left_of(domid, max);
        if max.saturating_sub(self.charged(domid)) < ARENA_LEN {
            return Err(Error::NoSpc);
        }
        let Some(group) = &domain.group else { return Ok(()) };
        // The pages that it touches itself are on its processes' account as well: that must not be their end.
        let has_room = group.memory().is_none_or(|used| used.saturating_add(ARENA_LEN) <= left);
        if !has_room {
            // Unless the kernel takes back enough. EBUSY: the arena would take the domain's own memory.
            group.set_memory(left.saturating_sub(ARENA_LEN)).map_err(|_| Error::NoSpc)?;
        }
        group.set_memory(left).map_err(|_| Error::NoSpc)
    }

    /// The granter of a read-only arena has mapped it: nobody else can write it from now on.
    pub(super) fn arena_mapped(&mut self, id: PeerId, slot: u32) -> Answered {
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let domain = self.domains.get_mut(&domid).ok_or(Error::Srch)?;
        let arena = domain.arenas.get_mut(slot as usize).and_then(Option::as_mut);
        let arena = arena.filter(|arena| arena.owner == id).ok_or(Error::Inval)?;
        if let (false, Some(pages)) = (arena.ready, &arena.pages) {
            let seals = SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            // Refused where the granter has set seals of its own: then nobody gets the arena.
            fcntl_add_seals(pages, seals).map_err(from_errno)?;
        }
        arena.ready = true;
        words([])
    }

    pub(super) fn find_arena(&mut self, id: PeerId, granter: DomId, slot: u32) -> Answered {
        let domid = self.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let identity = self.domains.get(&domid).ok_or(Error::Srch)?.identity;
        self.living(granter).ok_or(Error::Srch)?;
        let domain = self.domains.get_mut(&granter).ok_or(Error::Srch)?;
        let arena = domain.arenas.get_mut(slot as usize).and_then(Option::as_mut);
        let arena = arena.ok_or(Error::NoEnt)?;
        if (arena.peer, arena.peer_identity) != (domid, identity) || !arena.ready {
            return Err(Error::Access);
        }
        let known = arena.holders.iter().position(|holder| *holder == Some(id));
        let bit = known.or_else(|| arena.holders.iter().position(Option::is_none));
        let bit = bit.unwrap_or(arena.holders.len());
        if bit >= HOLDERS_MAX as usize {
            return Err(Error::NoSpc);
        }
        let fds = arena.descriptors()?;
        match arena.holders.get_mut(bit) {
            Some(holder) => *holder = Some(id),
            None => arena.holders.push(Some(id)),
        }
        let number = arena.number;
        if known.is_none() {
            domain.named += 1;
            if let Some(peer) = self.peers.get_mut(id) {
                peer.mapped.insert((granter, slot, number));
            }
            self.apply_memory(domid);
        }
        Ok(Some((vec![bit as u64, number], fds)))
    }

    /// A peer has let go of an arena, maybe of one that was there before the one that is; false where it
    /// had none such.
    pub(super) fn release(&mut self, id: PeerId, arena: (DomId, u32, u64)) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let domid = peer.domid;
        let had = peer.mapped.remove(&arena);
        if had {
            self.drop_holder(id, arena);
            self.apply_memory(domid);
        }
        had
    }

    /// `id` has the arena no more, whether it said so or died: its bits are cleared.
    pub(super) fn drop_holder(&mut self, id: PeerId, (granter, slot, number): (DomId, u32, u64)) {
        let Some(domain) = self.domains.get_mut(&granter) else { return };
        domain.named = domain.named.saturating_sub(1);
        if let Some(arena) = domain.arenas.get_mut(slot as usize).and_then(Option::as_mut)
            && arena.number == number
            && let Some(bit) = arena.holders.iter().position(|holder| *holder == Some(id))
        {
            if let Some(holder) = arena.holders.get_mut(bit) {
                *holder = None;
            }
            clear_bit(&arena.table, bit);
        }
        self.forget(granter);
    }

    /// Nobody finds this arena any more, and both sides are told.
    pub(super) fn end_arena(&mut self, granter: DomId, slot: u32) {
        let Some(domain) = self.domains.get_mut(&granter) else { return };
        let Some(arena) = domain.arenas.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        arena.write_word(ENDED, 1);
        if let Some(peer) = self.domains.get_mut(&arena.peer) {
            peer.arenas_for.retain(|place| *place != (granter, slot));
        }
        for holder in arena.holders.iter().flatten() {
            let message = Message::ArenaEnded { granter, slot };
            let _ = self.push(*holder, &message, &[], super::peers::Keep::Always);
        }
    }

    /// Ends all arenas of a domain that is going, and those that others have made for it.
    pub(super) fn end_all_arenas(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        let for_it = std::mem::take(&mut domain.arenas_for);
        let slots = u32::try_from(domain.arenas.len()).unwrap_or(0);
        for slot in 0..slots {
            self.end_arena(domid, slot);
        }
        for (granter, slot) in for_it {
            self.end_arena(granter, slot);
            let stage = self.domains.get(&granter).map(|granter| granter.stage);
            if granter != DomId::DOM0 && matches!(stage, Some(Stage::Running | Stage::Built)) {
                self.apply_memory(granter);
            }
        }
    }

    /// Sets what a domain's processes may have.
    pub(super) fn apply_memory(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get(&domid)
            && let Some(group) = &domain.group
        {
            let max = domain.config.memory_max_kib.saturating_mul(1024);
            // Where it has more than that by now, the bound stays what it was.
            let _ = group.set_memory(self.left_of(domid, max));
        }
    }
}

/// Clears one holder's bit at all pages of a table: what it had mapped it has no more.
fn clear_bit(table: &OwnedFd, bit: usize) {
    let Ok(map) = Map::new(table, 0, TABLE_LEN, Access::ReadWrite) else { return };
    let keep = !(1_u32 << bit);
    for page in 0..ARENA_PAGES as usize {
        let holders = map.word(holders_offset(page));
        if holders.load(Ordering::Relaxed) & !keep != 0 {
            holders.fetch_and(keep, Ordering::SeqCst);
        }
    }
}
