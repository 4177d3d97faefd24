//! One ring: requests are taken, answered, and the answers shown.
//!
//! Each request has a slot from the moment when it is taken until its answer is shown. The record, where one is kept,
//! has it as long.
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::record::RingRecord;
pub use super::record::UnansweredRequest;
use std::fmt;
use std::time::Instant;
use xen_io::ring::{BackRing, RingError};

/// The backend's end of one ring.
pub struct Ring {
    ring: BackRing,
    record: Option<RingRecord>,
    slots: usize,
    free: Vec<u16>,
    /// Answered, and the answer not shown yet.
    answered: Vec<u16>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Answers that were shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShownResponses {
    /// When.
    pub at: Instant,
    /// The number of answers.
    pub count: u32,
    /// True if the frontend is to be notified.
    pub notify: bool,
}

impl Ring {
    pub(super) fn new(ring: BackRing, record: Option<RingRecord>) -> Self {
        let slots = ring.count() as usize;
        let free = (0..slots).rev().filter_map(|slot| u16::try_from(slot).ok()).collect();
        Self { ring, record, slots, free, answered: Vec::with_capacity(slots) }
    }

    /// The number of slots: as many as the ring has entries.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// True if there is no slot for another request before some answers are shown.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Requests that were taken and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.saturating_sub(self.free.len()).saturating_sub(self.answered.len())
    }

    /// Answers that are not shown yet.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.len()
    }

    /// Copies the next request out of the ring, once, and gives it a slot; `None` where there is none, or no slot for it.
    /// `into` is as long as an entry.
    ///
    /// # Errors
    /// The frontend has broken the ring.
    pub fn take(&mut self, into: &mut [u8]) -> Result<Option<u16>, RingError> {
        let Some(slot) = self.free.last().copied() else { return Ok(None) };
        let Some(index) = self.ring.take(into)? else { return Ok(None) };
        self.free.pop();
        if let Some(record) = &self.record {
            record.record_taken(slot.into(), index, into)?;
        }
        Ok(Some(slot))
    }

    /// Puts the answer to the request of a slot into the ring, where [`Ring::show`] shows it.
    ///
    /// # Errors
    /// As [`Ring::take`].
    pub fn answer(&mut self, slot: u16, response: &[u8]) -> Result<(), RingError> {
        let index = self.ring.put(response)?;
        if let Some(record) = &self.record {
            record.answered(slot.into(), index)?;
        }
        self.answered.push(slot);
        Ok(())
    }

    /// Shows the frontend what was answered; `None` where there is nothing. `each` is told of each slot, which is free
    /// then, and of the time.
    ///
    /// # Errors
    /// As [`Ring::take`].
    pub fn show(
        &mut self,
        mut each: impl FnMut(u16, Instant),
    ) -> Result<Option<ShownResponses>, RingError> {
        if self.answered.is_empty() {
            return Ok(None);
        }
        let notify = self.ring.push()?;
        // One look at the clock for all of them: what is done while they are asked for takes time too.
        let at = Instant::now();
        let mut count = 0_u32;
        for slot in self.answered.drain(..) {
            each(slot, at);
            if let Some(record) = &self.record {
                record.record_shown(slot.into())?;
            }
            count = count.wrapping_add(1);
            self.free.push(slot);
        }
        Ok(Some(ShownResponses { at, count, notify }))
    }

    /// Lets the frontend notify again. True if there is something to take after all.
    ///
    /// # Errors
    /// As [`Ring::take`].
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        self.ring.final_check()
    }

    /// Requests that a process before this one has taken and not answered, oldest first, each in the slot that it had;
    /// to be done again before anything is taken. They stay in the record all the time.
    ///
    /// # Errors
    /// As [`Ring::take`].
    pub fn unanswered(&mut self) -> Result<Vec<UnansweredRequest>, RingError> {
        let rsp_prod = self.ring.position().rsp_prod;
        let Some(record) = &self.record else { return Ok(Vec::new()) };
        let unanswered = record.unanswered(rsp_prod)?;
        self.free.retain(|slot| unanswered.iter().all(|open| open.slot != *slot));
        Ok(unanswered)
    }
}
