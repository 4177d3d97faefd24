//! An arena: its memory, its peer, and the connections that have looked it up.

use super::poll::PeerId;
use crate::errno::from_errno;
use crate::gnttab::{ENDED, PAGES_LEN, TABLE_LEN, entry, entry_offset, holders_offset};
use crate::limits::{ARENA_PAGES, HOLDERS_MAX};
use crate::map::{Map, memfd};
use rustix::fs::{SealFlags, fcntl_add_seals};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use xen::gnttab::PageAccess;
use xen::{DomId, Error, GrantRef};

/// The bytes that an arena takes at most; all of them are charged to its granter.
pub(super) const ARENA_LEN: u64 = (TABLE_LEN + PAGES_LEN) as u64;

/// One domain's pages for one other.
pub(super) struct Arena {
    /// The number that differs from that of other arenas in the same slot.
    pub(super) number: u64,
    /// The connection that grants from it.
    pub(super) owner: PeerId,
    pub(super) peer: DomId,
    peer_identity: u64,
    pub(super) writable: bool,
    table: OwnedFd,
    /// The memfd of a read-only arena's pages.
    pages: Option<OwnedFd>,
    /// True if it may be handed to the peer: only the granter can write the pages that only it may
    /// write.
    ready: bool,
    /// The connections that have looked it up; the index of each is the number of its bit in the
    /// table.
    holders: Vec<Option<PeerId>>,
}

impl Arena {
    /// Makes a new arena of `owner`'s domain for `peer`.
    pub(super) fn new(
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

    /// Returns the descriptors that granter and peer get.
    pub(super) fn descriptors(&self) -> Result<Vec<OwnedFd>, Error> {
        let all = [Some(&self.table), self.pages.as_ref()];
        all.into_iter().flatten().map(|fd| fd.try_clone().map_err(Error::from)).collect()
    }

    /// Returns the number of descriptors that the broker holds for it.
    pub(super) fn descriptors_held(&self) -> usize {
        Self::descriptors_of(self.writable)
    }

    /// Returns the number of descriptors that the broker would hold for a new one.
    pub(super) fn descriptors_of(writable: bool) -> usize {
        if writable { 1 } else { 2 }
    }

    /// Returns its allocated bytes: they are charged to the process that touched them first.
    pub(super) fn touched(&self) -> u64 {
        let all = [Some(&self.table), self.pages.as_ref()];
        let blocks = all.into_iter().flatten().filter_map(|fd| rustix::fs::fstat(fd).ok());
        blocks.map(|stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)).sum()
    }

    fn write_word(&self, offset: usize, word: u32) {
        // The size of the memfd is sealed, so the offset exists.
        let _ = rustix::io::pwrite(&self.table, &word.to_ne_bytes(), offset as u64);
    }

    /// Notes that the broker itself has granted domain 0 this page.
    pub(super) fn grant_to_dom0(&self, grant: GrantRef) {
        let granted = entry(DomId::DOM0, PageAccess::ReadWrite);
        self.write_word(entry_offset(grant.0 as usize), granted);
    }

    /// True if `owner` has made it for this domain, with this access.
    pub(super) fn is_of(&self, owner: PeerId, peer: (DomId, u64), writable: bool) -> bool {
        (self.owner, self.peer, self.peer_identity, self.writable)
            == (owner, peer.0, peer.1, writable)
    }

    /// Gives it to the domain of its peer's number that has this identity.
    pub(super) fn readdress(&mut self, identity: u64) {
        self.peer_identity = identity;
    }

    /// Seals a read-only arena once its granter has mapped it: nobody else can write it from now
    /// on.
    ///
    /// # Errors
    /// Its pages cannot be sealed; then nobody gets it.
    pub(super) fn set_mapped(&mut self) -> Result<(), Error> {
        if let (false, Some(pages)) = (self.ready, &self.pages) {
            let seals = SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            // Refused where the granter has set seals of its own: then nobody gets the arena.
            fcntl_add_seals(pages, seals).map_err(from_errno)?;
        }
        self.ready = true;
        Ok(())
    }

    /// Hands it to a connection of this domain. Returns the connection's bit, true if the
    /// connection did not have it yet, and the descriptors.
    ///
    /// # Errors
    /// [`Error::PageAccess`] it is for another domain, or cannot be handed out yet, [`Error::NoSpc`] as many connections
    /// have it as can.
    pub(super) fn hold(
        &mut self,
        id: PeerId,
        domid: DomId,
        identity: u64,
    ) -> Result<(usize, bool, Vec<OwnedFd>), Error> {
        if (self.peer, self.peer_identity) != (domid, identity) || !self.ready {
            return Err(Error::Access);
        }
        let known = self.holders.iter().position(|holder| *holder == Some(id));
        let bit = known.or_else(|| self.holders.iter().position(Option::is_none));
        let bit = bit.unwrap_or(self.holders.len());
        if bit >= HOLDERS_MAX as usize {
            return Err(Error::NoSpc);
        }
        let fds = self.descriptors()?;
        match self.holders.get_mut(bit) {
            Some(holder) => *holder = Some(id),
            None => self.holders.push(Some(id)),
        }
        Ok((bit, known.is_none(), fds))
    }

    /// True if this connection has looked it up.
    pub(super) fn is_held_by(&self, id: PeerId) -> bool {
        self.holders.contains(&Some(id))
    }

    /// Removes a connection that no longer has it: all its mappings are cleared.
    pub(super) fn let_go(&mut self, id: PeerId) {
        if let Some(bit) = self.holders.iter().position(|holder| *holder == Some(id)) {
            if let Some(holder) = self.holders.get_mut(bit) {
                *holder = None;
            }
            clear_bit(&self.table, bit);
        }
    }

    /// Ends it for both sides. Returns the connections that have it.
    pub(super) fn end(self) -> impl Iterator<Item = PeerId> {
        self.write_word(ENDED, 1);
        self.holders.into_iter().flatten()
    }
}

/// Clears one holder's bit at all pages of a table, as it no longer has any mapped.
fn clear_bit(table: &OwnedFd, bit: usize) {
    let Ok(map) = Map::new(table, 0, TABLE_LEN, PageAccess::ReadWrite) else { return };
    let keep = !(1_u32 << bit);
    for page in 0..ARENA_PAGES as usize {
        let holders = map.word(holders_offset(page));
        if holders.load(Ordering::Relaxed) & !keep != 0 {
            holders.fetch_and(keep, Ordering::SeqCst);
        }
    }
}
