//! The guest's pages: mapped for one request, or for good where the frontend uses its grants again and
//! again.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod page;

pub use page::RequestPage;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use xen::gnttab::{CopySegment, GrantMap, Mapping, PageAccess};
use xen::{DomId, Error, GrantRef};

/// A hash for grant references, which are small numbers; the table is small too, so that a guest that
/// chooses them badly makes a walk through [`QueuePages::max`] entries at most, for itself.
#[derive(Default)]
struct GrantHasher(u64);

impl Hasher for GrantHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

struct KeptPage {
    page: RequestPage,
    used: u64,
}

/// The use that a frontend makes of its grants (`feature-persistent`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantUse {
    /// Each for one request.
    Once,
    /// Grants that the frontend uses again: they stay mapped.
    Persistent,
}

/// The pages of one queue.
pub struct QueuePages {
    peer: DomId,
    grants: GrantUse,
    max: usize,
    kept: HashMap<u32, KeptPage, BuildHasherDefault<GrantHasher>>,
    clock: u64,
    mapped: Vec<Result<Mapping, Error>>,
}

impl QueuePages {
    /// No page yet, of a frontend in domain `peer`; at most `max` stay mapped.
    #[must_use]
    pub fn new(peer: DomId, grants: GrantUse, max: usize) -> Self {
        let kept = HashMap::default();
        Self { peer, grants, max, kept, clock: 0, mapped: Vec::new() }
    }

    /// The number of pages that stay mapped.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// A request begins: what it uses counts as used at one time.
    pub fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }

    /// The pages of `grants`, for `access`, each given to `take`. Nothing stays mapped of what could not
    /// be mapped whole.
    ///
    /// # Errors
    /// The first grant that cannot be mapped.
    pub fn get(
        &mut self,
        map: &mut dyn GrantMap,
        grants: &[GrantRef],
        access: PageAccess,
        mut take: impl FnMut(RequestPage),
    ) -> Result<(), Error> {
        if self.grants == GrantUse::Persistent {
            return grants.iter().try_for_each(|grant| {
                take(self.keep(map, *grant)?);
                Ok(())
            });
        }
        self.mapped.clear();
        map.map_batch(self.peer, grants, access, &mut self.mapped);
        for mapped in self.mapped.drain(..) {
            take(RequestPage::new(mapped?.into_page()));
        }
        Ok(())
    }

    /// Copies the beginning of a page: out of one that stays mapped, else without mapping it.
    ///
    /// # Errors
    /// It cannot be mapped or copied.
    pub fn copy_out(
        &mut self,
        map: &mut dyn GrantMap,
        grant: GrantRef,
        to: &mut [u8],
    ) -> Result<(), Error> {
        if self.grants == GrantUse::Persistent {
            let page = self.keep(map, grant)?;
            return page.copy_out(0, to).map_err(|_| Error::Inval);
        }
        let len = u16::try_from(to.len()).map_err(|_| Error::Inval)?;
        let mut copy = [CopySegment::new(self.peer, grant, 0, len, 0)];
        map.copy_out(&mut copy, to)?;
        let [copied] = copy;
        copied.status.map_err(Error::Grant)
    }

    /// A page that stays mapped, if there is room.
    fn keep(&mut self, map: &mut dyn GrantMap, grant: GrantRef) -> Result<RequestPage, Error> {
        if let Some(entry) = self.kept.get_mut(&grant.0) {
            entry.used = self.clock;
            return Ok(entry.page.clone());
        }
        // By itself: of several that are mapped together, Linux 6.1 loses count when this process is killed while some are
        // in use ("Bad page map" in domain 0), and the next process's requests fail. For writing too, as any request may
        // use it next; the frontend has to allow that.
        let mapping = map.map(self.peer, grant, PageAccess::ReadWrite)?;
        let page = RequestPage::new(mapping.into_page());
        if self.kept.len() >= self.max {
            self.evict();
        }
        if self.kept.len() < self.max {
            let entry = KeptPage { page: page.clone(), used: self.clock };
            self.kept.insert(grant.0, entry);
        }
        Ok(page)
    }

    /// Lets a quarter go, of those longest not used; never one that a request uses.
    fn evict(&mut self) {
        let mut times: Vec<u64> = self.kept.values().map(|entry| entry.used).collect();
        let quarter = times.len() / 4;
        if quarter == 0 {
            return;
        }
        let (_, oldest, _) = times.select_nth_unstable(quarter);
        let oldest = *oldest;
        self.kept.retain(|_, entry| entry.used >= oldest || entry.page.in_use());
    }
}
