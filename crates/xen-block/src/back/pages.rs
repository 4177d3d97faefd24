//! The guest's pages: mapped for one request, or for good where the frontend uses its grants again and
//! again.

use crate::sys::Page;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use xen::gnttab::{Access, CopySegment, GrantMap, Mapping};
use xen::{DomId, Error, GrantRef};

/// A hash for grant references, which are small numbers; the table is small too, so that a guest that
/// chooses them badly makes a walk through [`Pages::max`] entries at most, for itself.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
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

struct Entry {
    page: Page,
    used: u64,
    _together: Rc<Together>,
}

/// So many pages that were mapped together: all of them stay mapped until the last is let go.
struct Together {
    pages: usize,
    all: Rc<Cell<usize>>,
}

impl Together {
    fn new(pages: usize, all: &Rc<Cell<usize>>) -> Rc<Self> {
        all.set(all.get().saturating_add(pages));
        Rc::new(Self { pages, all: Rc::clone(all) })
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.pages));
    }
}

/// How a frontend uses its grants (`feature-persistent`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Grants {
    /// Each for one request.
    Once,
    /// The same ones again and again: they stay mapped.
    Persistent,
}

/// The pages of one queue.
pub(super) struct Pages {
    peer: DomId,
    grants: Grants,
    max: usize,
    kept: HashMap<u32, Entry, BuildHasherDefault<Mix>>,
    clock: u64,
    /// Pages that stay mapped, with those that were mapped together with them and are not kept any more.
    all: Rc<Cell<usize>>,
    missing: Vec<GrantRef>,
    mapped: Vec<Result<Mapping, Error>>,
}

impl Pages {
    pub(super) fn new(peer: DomId, grants: Grants, max: usize) -> Self {
        let (kept, all) = (HashMap::default(), Rc::default());
        Self { peer, grants, max, kept, clock: 0, all, missing: Vec::new(), mapped: Vec::new() }
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// A request begins: what it uses counts as used at one time.
    pub(super) fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }

    /// The pages of `grants`, for `access`, each given to `take`. Of what cannot be mapped whole, only persistent grants
    /// stay mapped, those before the wrong one.
    pub(super) fn get(
        &mut self,
        map: &mut dyn GrantMap,
        grants: &[GrantRef],
        access: Access,
        mut take: impl FnMut(Page),
    ) -> Result<(), Error> {
        if self.grants == Grants::Persistent {
            return self.keep(map, grants, take);
        }
        self.mapped.clear();
        map.map_batch(self.peer, grants, access, &mut self.mapped);
        for mapped in self.mapped.drain(..) {
            take(Page::new(mapped?.into_page()));
        }
        Ok(())
    }

    /// Copies the beginning of a page: out of one that stays mapped, else without mapping it.
    pub(super) fn copy_out(
        &mut self,
        map: &mut dyn GrantMap,
        grant: GrantRef,
        to: &mut [u8],
    ) -> Result<(), ()> {
        if self.grants == Grants::Persistent {
            let mut copied = Ok(());
            let copy = |page: Page| copied = page.copy_out(0, to);
            self.keep(map, &[grant], copy).map_err(drop)?;
            return copied.map_err(drop);
        }
        let len = u16::try_from(to.len()).map_err(drop)?;
        let mut copy = [CopySegment::new(self.peer, grant, 0, len, 0)];
        map.copy_out(&mut copy, to).map_err(drop)?;
        copy[0].status.map_err(drop)
    }

    /// Pages that stay mapped, if there is room.
    fn keep(
        &mut self,
        map: &mut dyn GrantMap,
        grants: &[GrantRef],
        mut take: impl FnMut(Page),
    ) -> Result<(), Error> {
        for (at, grant) in grants.iter().enumerate() {
            let Some(entry) = self.kept.get_mut(&grant.0) else {
                return self.keep_more(map, grants.get(at..).unwrap_or_default(), take);
            };
            entry.used = self.clock;
            take(entry.page.clone());
        }
        Ok(())
    }

    /// The same, where some are not mapped yet: these are mapped together, which on Xen is three system calls for all. As
    /// they are unmapped together, too, a page that is used on keeps others: so there are two bounds, `max` for pages that
    /// are kept and twice that for what is mapped together; beyond them pages are mapped one by one.
    fn keep_more(
        &mut self,
        map: &mut dyn GrantMap,
        grants: &[GrantRef],
        mut take: impl FnMut(Page),
    ) -> Result<(), Error> {
        self.missing.clear();
        for grant in grants {
            match self.kept.get_mut(&grant.0) {
                Some(entry) => entry.used = self.clock,
                None => self.missing.push(*grant),
            }
        }
        let count = self.missing.len();
        if self.kept.len().saturating_add(count) > self.max {
            self.evict();
        }
        let room = self.kept.len().saturating_add(count) <= self.max;
        self.mapped.clear();
        // For writing too, as any request may use them next; the frontend has to allow that.
        let access = Access::ReadWrite;
        let together = if room && self.all.get().saturating_add(count) <= self.max.saturating_mul(2)
        {
            map.map_batch(self.peer, &self.missing, access, &mut self.mapped);
            Some(Together::new(count, &self.all))
        } else {
            for grant in &self.missing {
                let mapping = map.map(self.peer, *grant, access);
                let wrong = mapping.is_err();
                self.mapped.push(mapping);
                // What is behind it is not asked for.
                if wrong {
                    break;
                }
            }
            None
        };
        let mut fresh = self.missing.iter().zip(self.mapped.drain(..)).peekable();
        for grant in grants {
            let Some((_, mapping)) = fresh.next_if(|(missing, _)| *missing == grant) else {
                let entry = self.kept.get(&grant.0).ok_or(Error::Inval)?;
                take(entry.page.clone());
                continue;
            };
            let page = Page::new(mapping?.into_page());
            if self.kept.len() < self.max {
                let _together = together.clone().unwrap_or_else(|| Together::new(1, &self.all));
                let entry = Entry { page: page.clone(), used: self.clock, _together };
                self.kept.insert(grant.0, entry);
            }
            take(page);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use xen::shared::SharedPage;

    const PEER: DomId = DomId(5);
    const MAX: usize = 64;

    /// Grants whose pages begin with their numbers; how they were mapped is counted.
    #[derive(Default)]
    struct Numbered {
        single: usize,
        batches: Vec<usize>,
    }

    fn numbered(grant: GrantRef) -> Mapping {
        let page = SharedPage::private();
        page.copy_in(0, &grant.0.to_ne_bytes()).unwrap();
        Mapping::new(PEER, grant, page)
    }

    impl GrantMap for Numbered {
        fn map(&mut self, _: DomId, grant: GrantRef, _: Access) -> Result<Mapping, Error> {
            self.single = self.single.saturating_add(1);
            Ok(numbered(grant))
        }

        fn map_batch(
            &mut self,
            _: DomId,
            grants: &[GrantRef],
            _: Access,
            into: &mut Vec<Result<Mapping, Error>>,
        ) {
            self.batches.push(grants.len());
            into.extend(grants.iter().map(|grant| Ok(numbered(*grant))));
        }
    }

    /// One request: its pages, which must be those that it names, in this order.
    fn request(pages: &mut Pages, map: &mut Numbered, numbers: &[u32]) -> Vec<Page> {
        let grants: Vec<GrantRef> = numbers.iter().copied().map(GrantRef).collect();
        let mut taken = Vec::new();
        pages.tick();
        pages.get(map, &grants, Access::Read, |page| taken.push(page)).unwrap();
        let number = |page: &Page| {
            let mut bytes = [0; 4];
            page.copy_out(0, &mut bytes).unwrap();
            u32::from_ne_bytes(bytes)
        };
        assert_eq!(taken.iter().map(number).collect::<Vec<_>>(), numbers);
        taken
    }

    #[test]
    fn pages_that_are_named_for_the_first_time_are_mapped_together() {
        let (mut pages, mut map) = (Pages::new(PEER, Grants::Persistent, MAX), Numbered::default());
        request(&mut pages, &mut map, &[1, 2, 3, 4]);
        request(&mut pages, &mut map, &[4, 3, 2, 1]);
        // Some are there, and one is named twice.
        request(&mut pages, &mut map, &[5, 2, 6, 6, 1, 7]);
        request(&mut pages, &mut map, &[7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((map.batches, map.single, pages.kept()), (vec![4, 4], 0, 7));
    }

    #[test]
    fn a_page_of_each_batch_that_is_used_on_does_not_keep_the_rest_without_end() {
        let (mut pages, mut map) = (Pages::new(PEER, Grants::Persistent, MAX), Numbered::default());
        let batch = u32::try_from(MAX / 4).unwrap();
        let mut used_on = VecDeque::new();
        for round in 0..200 {
            let fresh = (round * batch)..(round * batch + batch);
            let named: Vec<u32> = used_on.iter().copied().chain(fresh.clone()).collect();
            request(&mut pages, &mut map, &named);
            used_on.push_back(fresh.start);
            if used_on.len() > MAX * 3 / 4 {
                used_on.pop_front();
            }
            assert!(pages.kept() <= MAX, "{}", pages.kept());
            assert!(pages.all.get() <= 3 * MAX, "{} in round {round}", pages.all.get());
        }
        assert!(map.single > 0 && !map.batches.is_empty());
        pages.kept.clear();
        assert_eq!(pages.all.get(), 0);
    }
}
