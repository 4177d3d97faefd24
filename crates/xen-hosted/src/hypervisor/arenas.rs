//! The broker's part in grants: making arenas, handing each to its one peer, ending them, and
//! charging them to their domains' memory.

use super::answer::{AnswerResult, words};
use super::arena::{ARENA_LEN, Arena};
use super::domain::{Domain, Stage};
use super::parties::Parties;
use super::peer::DeliveryPolicy;
use super::poll::PeerId;
use crate::limits::{ARENAS_MAX, DOM0_ARENAS_MAX, MAPPED_ARENAS_MAX};
use crate::proto::BrokerMessage;
use std::collections::BTreeMap;
use xen::{DomId, Error, GrantRef};

/// The arenas of one domain.
#[derive(Default)]
struct DomainArenas {
    /// The arenas that it grants from.
    own: Vec<Option<Arena>>,
    /// The granter and slot of the arenas that others have made for it.
    received: Vec<(DomId, u32)>,
}

impl DomainArenas {
    fn get_mut(&mut self, slot: u32) -> Option<&mut Arena> {
        self.own.get_mut(slot as usize)?.as_mut()
    }

    /// Puts an arena at the lowest free slot, which is `slot`.
    fn insert(&mut self, slot: usize, arena: Arena) {
        match self.own.get_mut(slot) {
            Some(place) => *place = Some(arena),
            None => self.own.push(Some(arena)),
        }
    }

    fn free_slot(&self) -> usize {
        self.own.iter().position(Option::is_none).unwrap_or(self.own.len())
    }
}

/// The broker's descriptors for a connection: its socket and its counters.
pub(super) const PROCESS_DESCRIPTORS: usize = 2;

/// Returns the number of arenas that the connections of a guest have looked up.
fn mapped_count(parties: &Parties, domid: DomId) -> usize {
    let connections = parties.domains.get(domid).into_iter().flat_map(Domain::connections);
    connections.filter_map(|id| parties.peers.get(id)).map(|peer| peer.mapped.len()).sum()
}

/// The arenas of all domains.
pub(super) struct Arenas {
    tables: BTreeMap<DomId, DomainArenas>,
    /// The limit of descriptors for the arenas of a domain other than domain 0.
    descriptors_max: usize,
}

impl Arenas {
    /// Makes an empty table; the arenas of a domain may take `descriptors_max` descriptors.
    pub(super) fn new(descriptors_max: usize) -> Self {
        Self { tables: BTreeMap::new(), descriptors_max }
    }

    fn own(&self, domid: DomId) -> impl Iterator<Item = &Arena> {
        self.tables.get(&domid).into_iter().flat_map(|table| table.own.iter().flatten())
    }

    /// True if the broker has so many more descriptors for the arenas and processes of a guest.
    pub(super) fn has_descriptors(&self, parties: &Parties, domid: DomId, more: usize) -> bool {
        let arenas: usize = self.own(domid).map(Arena::descriptors_held).sum();
        let others = parties.domains.get(domid).map_or(0, |domain| {
            domain.processes.len() * PROCESS_DESCRIPTORS + usize::from(domain.keepsake.is_some())
        });
        arenas + others + more <= self.descriptors_max
    }

    /// Returns the number of arenas that a domain grants from.
    pub(super) fn count(&self, domid: DomId) -> usize {
        self.own(domid).count()
    }

    /// Returns the memory that a domain's arenas may take and have not taken yet.
    pub(super) fn untouched(&self, domid: DomId) -> u64 {
        self.own(domid).map(|arena| ARENA_LEN.saturating_sub(arena.touched())).sum()
    }

    /// Returns the memory that a domain's arenas may take.
    pub(super) fn charged(&self, domid: DomId) -> u64 {
        ARENA_LEN * self.count(domid) as u64
    }

    /// Returns the memory that a domain's processes may have, if the domain is to have `max` bytes.
    /// Its arenas are subtracted, as another domain may be charged for pages that it touches first.
    /// For the same reason the arenas that it has looked up are added: their granter may leave or
    /// empty them, and that must not kill the domain that uses them.
    pub(super) fn process_memory(&self, parties: &Parties, domid: DomId, max: u64) -> u64 {
        let mapped = mapped_count(parties, domid);
        let left = max.saturating_sub(self.charged(domid));
        left.saturating_add(ARENA_LEN.saturating_mul(mapped as u64))
    }

    /// Sets the memory that a domain's processes may have.
    pub(super) fn apply_memory(&self, parties: &Parties, domid: DomId) {
        if let Some(domain) = parties.domains.get(domid)
            && let Some(group) = &domain.group
        {
            // Where they have more than that by now, the limit stays as it was.
            let _ = group.set_memory(self.process_memory(parties, domid, domain.memory_max()));
        }
    }

    /// Subtracts one more arena from the memory that the domain's processes may have.
    fn charge(&self, parties: &Parties, domid: DomId) -> Result<(), Error> {
        let domain = parties.domains.get(domid).ok_or(Error::Srch)?;
        let max = domain.memory_max().saturating_sub(ARENA_LEN);
        let left = self.process_memory(parties, domid, max);
        if max.saturating_sub(self.charged(domid)) < ARENA_LEN {
            return Err(Error::NoSpc);
        }
        let Some(group) = &domain.group else { return Ok(()) };
        // The pages that it touches itself are charged to its processes as well: that must not kill
        // them.
        if group.memory_needed().is_some_and(|used| used.saturating_add(ARENA_LEN) > left) {
            return Err(Error::NoSpc);
        }
        // EBUSY: the arena would take the domain's own memory.
        group.set_memory(left).map_err(|_| Error::NoSpc)
    }

    /// Makes the first arena of a new domain: for domain 0, with console and store page granted.
    pub(super) fn first(
        &mut self,
        parties: &mut Parties,
        domid: DomId,
        owner: PeerId,
    ) -> Result<(), Error> {
        let identity = parties.domains.get(DomId::DOM0).ok_or(Error::Srch)?.identity;
        let number = parties.domains.take_identity();
        let arena = Arena::new(number, owner, (DomId::DOM0, identity), true)?;
        for grant in [GrantRef::CONSOLE, GrantRef::XENSTORE] {
            arena.grant_to_dom0(grant);
        }
        self.tables.entry(domid).or_default().own.push(Some(arena));
        Ok(())
    }

    /// Returns the arena number `nth` of those of this connection for `peer`, which is made where
    /// it does not exist.
    pub(super) fn offer(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        peer: DomId,
        writable: bool,
        nth: u32,
    ) -> AnswerResult {
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let peer_identity = parties.domains.living(peer).ok_or(Error::Srch)?.identity;
        let table = self.tables.entry(domid).or_default();
        let arenas = table.own.iter().enumerate();
        let mut alike = arenas.filter_map(|(at, arena)| {
            Some((
                at,
                arena.as_ref().filter(|arena| arena.is_of(id, (peer, peer_identity), writable))?,
            ))
        });
        if let Some((at, arena)) = alike.nth(nth as usize) {
            // A read-only arena is sealed by now, and its granter could not map it for writing.
            let fds = if arena.writable { arena.descriptors()? } else { return Err(Error::Exist) };
            return Ok(Some((vec![at as u64, arena.number], fds)));
        }
        let at = table.free_slot();
        let dom0 = domid == DomId::DOM0;
        let max = if dom0 { DOM0_ARENAS_MAX } else { ARENAS_MAX };
        if at >= max || nth as usize >= ARENAS_MAX {
            return Err(Error::NoSpc);
        }
        if !dom0 {
            if !self.has_descriptors(parties, domid, Arena::descriptors_of(writable)) {
                return Err(Error::NoSpc);
            }
            self.charge(parties, domid)?;
        }
        let number = parties.domains.take_identity();
        let slot = u32::try_from(at).map_err(|_| Error::NoSpc)?;
        let made = Arena::new(number, id, (peer, peer_identity), writable)
            .and_then(|arena| Ok((arena.descriptors()?, arena)));
        let (fds, arena) = made.inspect_err(|_| {
            if !dom0 {
                // The memory was charged already.
                self.apply_memory(parties, domid);
            }
        })?;
        self.tables.entry(domid).or_default().insert(at, arena);
        if dom0 && let Some(owner) = parties.peers.get_mut(id) {
            // Another process of domain 0 continues without it. A guest's arenas stay until the
            // guest is destroyed, as Xen keeps the memory of a crashed guest.
            owner.offered.push(slot);
        }
        // Domain 0 does not end before the broker.
        if peer != DomId::DOM0 {
            self.tables.entry(peer).or_default().received.push((domid, slot));
        }
        Ok(Some((vec![slot.into(), number], fds)))
    }

    /// Notes that the granter of a read-only arena has mapped it.
    pub(super) fn set_mapped(&mut self, parties: &Parties, id: PeerId, slot: u32) -> AnswerResult {
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let arena = self.tables.get_mut(&domid).and_then(|table| table.get_mut(slot));
        arena.filter(|arena| arena.owner == id).ok_or(Error::Inval)?.set_mapped()?;
        words([])
    }

    pub(super) fn find(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        granter: DomId,
        slot: u32,
    ) -> AnswerResult {
        let domid = parties.peers.get(id).ok_or(Error::NoEnt)?.domid;
        let identity = parties.domains.get(domid).ok_or(Error::Srch)?.identity;
        parties.domains.living(granter).ok_or(Error::Srch)?;
        let arena = self.tables.get_mut(&granter).and_then(|table| table.get_mut(slot));
        let arena = arena.ok_or(Error::NoEnt)?;
        let held = mapped_count(parties, domid);
        if domid != DomId::DOM0 && held >= MAPPED_ARENAS_MAX && !arena.is_held_by(id) {
            return Err(Error::NoSpc);
        }
        let (bit, is_new, fds) = arena.hold(id, domid, identity)?;
        let number = arena.number;
        if is_new {
            parties.domains.name(granter, None);
            if let Some(peer) = parties.peers.get_mut(id) {
                peer.mapped.insert((granter, slot, number));
            }
            self.apply_memory(parties, domid);
        }
        Ok(Some((vec![bit as u64, number], fds)))
    }

    /// Releases a peer's hold of an arena, which may be an earlier one of the same slot. Returns
    /// false where it had no such arena.
    pub(super) fn release(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        arena: (DomId, u32, u64),
    ) -> bool {
        let Some(peer) = parties.peers.get_mut(id) else { return false };
        let domid = peer.domid;
        let had = peer.mapped.remove(&arena);
        if had {
            self.drop_holder(parties, id, arena);
            self.apply_memory(parties, domid);
        }
        had
    }

    /// Clears the bits of `id`, which no longer has the arena, by its own release or by its end.
    pub(super) fn drop_holder(
        &mut self,
        parties: &mut Parties,
        id: PeerId,
        (granter, slot, number): (DomId, u32, u64),
    ) {
        let arena = self.tables.get_mut(&granter).and_then(|table| table.get_mut(slot));
        if let Some(arena) = arena.filter(|arena| arena.number == number) {
            arena.let_go(id);
        }
        parties.domains.unname(granter, None);
    }

    /// Removes an arena from the table, and tells both sides.
    pub(super) fn end(&mut self, parties: &mut Parties, granter: DomId, slot: u32) {
        let place =
            self.tables.get_mut(&granter).and_then(|table| table.own.get_mut(slot as usize));
        let Some(arena) = place.and_then(Option::take) else { return };
        if let Some(table) = self.tables.get_mut(&arena.peer) {
            table.received.retain(|place| *place != (granter, slot));
        }
        for holder in arena.end() {
            let message = BrokerMessage::ArenaEnded { granter, slot };
            let _ = parties.peers.push(holder, &message, &[], DeliveryPolicy::Always);
        }
    }

    /// Ends the arenas of a domain that is being destroyed.
    pub(super) fn end_own(&mut self, parties: &mut Parties, domid: DomId) {
        let slots = self.tables.get(&domid).map_or(0, |table| table.own.len());
        for slot in 0..u32::try_from(slots).unwrap_or(0) {
            self.end(parties, domid, slot);
        }
        if let Some(table) = self.tables.get_mut(&domid) {
            table.own.clear();
        }
    }

    /// Gives a successor, which has this identity, the arenas that others have made for its
    /// predecessor.
    pub(super) fn readdress(&mut self, domid: DomId, identity: u64) {
        let received = self.tables.get(&domid).map(|table| table.received.clone());
        for (granter, slot) in received.unwrap_or_default() {
            let arena = self.tables.get_mut(&granter).and_then(|table| table.get_mut(slot));
            if let Some(arena) = arena {
                arena.readdress(identity);
            }
        }
    }

    /// Ends the arenas that others have made for a domain that is gone, and for which no successor
    /// is awaited.
    pub(super) fn end_received(&mut self, parties: &mut Parties, domid: DomId) {
        let Some(table) = self.tables.remove(&domid) else { return };
        for (granter, slot) in table.received {
            self.end(parties, granter, slot);
            let stage = parties.domains.get(granter).map(|granter| granter.stage);
            if granter != DomId::DOM0 && matches!(stage, Some(Stage::Running | Stage::Built)) {
                self.apply_memory(parties, granter);
            }
        }
    }

    /// Sets the memory that a domain may have.
    ///
    /// # Errors
    /// [`Error::Inval`] where `max` is less than its arenas and as much again, or the error of its
    /// group.
    pub(super) fn set_memory_max(
        &self,
        parties: &mut Parties,
        domid: DomId,
        kib: u64,
    ) -> Result<(), Error> {
        let charged = self.charged(domid);
        let left = self.process_memory(parties, domid, kib.saturating_mul(1024));
        let domain = parties.domains.living_guest(domid)?;
        let bytes = kib.checked_mul(1024).ok_or(Error::NoMem)?;
        bytes.checked_sub(charged).filter(|left| *left >= ARENA_LEN).ok_or(Error::Inval)?;
        if let Some(group) = &domain.group {
            group.set_memory(left)?;
        }
        domain.config.memory_max_kib = kib;
        Ok(())
    }
}
