//! Rings of requests and responses in one or several shared pages, both ends.
//!
//! Source: `xen/include/public/io/ring.h`. The first 64 bytes of the first page hold the indices;
//! the entries follow, each as large as the larger of a request and a response, as many as fit and
//! are a power of two. In a ring of several pages an entry may lie across two of them.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `req_prod`: requests that the frontend has produced |
//! | 4 | 4 | `req_event`: the request upon which the backend wants to be notified |
//! | 8 | 4 | `rsp_prod`: responses that the backend has produced |
//! | 12 | 4 | `rsp_event`: the response upon which the frontend wants to be notified |
//!
//! Indices run freely modulo 2^32. Each end remembers the indices up to which it has taken and
//! produced; from the page it reads only the other's producer index and event index, each once and
//! the former checked.
//!
//! An end that wants to sleep takes entries until there are none, then calls `final_check`, and
//! waits for an event only if that found none either. An end that sends puts entries, then calls
//! `push` and notifies if that returns true.

use std::fmt;
use std::sync::atomic::{Ordering, fence};
use xen::gnttab::{Mapping, OfferedPage};
use xen::shared::{PAGE_SIZE, PageError, SharedPage};

/// Most pages of a ring that this module attaches to; Linux's blkback has 16 (order 4) by default.
pub const PAGES_MAX: usize = 16;

/// Offsets of the indices and the entries in the first page, in bytes.
pub mod offset {
    /// `req_prod`.
    pub const REQ_PROD: usize = 0;
    /// `req_event`.
    pub const REQ_EVENT: usize = 4;
    /// `rsp_prod`.
    pub const RSP_PROD: usize = 8;
    /// `rsp_event`.
    pub const RSP_EVENT: usize = 12;
    /// `ring`: the entries.
    pub const ENTRIES: usize = 64;
}
use offset::{ENTRIES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

/// The ring cannot be used, or not any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RingError {
    /// The peer claims to have produced more than the ring holds, or than was asked for.
    Index {
        /// The index up to which this end has consumed, or has still to answer from.
        own: u32,
        /// The peer's producer index, as read.
        peer: u32,
        /// The largest possible distance of `peer` from `own`.
        ahead_max: u32,
    },
    /// Not 1, 2, 4, 8 or 16 pages, or entries that do not fit.
    Size {
        /// The number of pages.
        pages: usize,
        /// Bytes of an entry.
        entry_bytes: usize,
    },
    /// A put into a full ring, or a response without a request: a fault of this end.
    Full,
    /// An access outside a page, or a page for reading only.
    Page(PageError),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index { own, peer, ahead_max } => write!(
                f,
                "impossible ring index: {peer} produced, at most {ahead_max} after {own} possible"
            ),
            Self::Size { pages, entry_bytes } => {
                write!(f, "no ring of {pages} pages with entries of {entry_bytes} bytes")
            }
            Self::Full => f.write_str("no free entry in the ring"),
            Self::Page(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RingError {}

impl From<PageError> for RingError {
    fn from(error: PageError) -> Self {
        Self::Page(error)
    }
}

/// Returns the number of entries of a ring: the largest power of two that fits.
///
/// # Errors
/// [`RingError::Size`].
pub fn entry_count(pages: usize, entry_bytes: usize) -> Result<u32, RingError> {
    let wrong = RingError::Size { pages, entry_bytes };
    if !pages.is_power_of_two() || pages > PAGES_MAX {
        return Err(wrong);
    }
    let room = pages.saturating_mul(PAGE_SIZE).saturating_sub(ENTRIES);
    let fitting = room.checked_div(entry_bytes).and_then(usize::checked_ilog2).ok_or(wrong)?;
    1_u32.checked_shl(fitting).ok_or(wrong)
}

/// A page that one end of a ring owns.
trait RingPage {
    fn held(&self) -> &SharedPage;
}

impl RingPage for Mapping {
    fn held(&self) -> &SharedPage {
        self.page()
    }
}

impl RingPage for OfferedPage {
    fn held(&self) -> &SharedPage {
        self.page()
    }
}

/// The pages of a ring, and the size and number of its entries.
#[derive(Debug)]
struct RingPages<P> {
    first: P,
    others: Vec<P>,
    entry_bytes: usize,
    count: u32,
}

impl<P: RingPage> RingPages<P> {
    fn new(pages: Vec<P>, entry_bytes: usize) -> Result<Self, RingError> {
        let count = entry_count(pages.len(), entry_bytes)?;
        let wrong = RingError::Size { pages: pages.len(), entry_bytes };
        let mut pages = pages.into_iter();
        let first = pages.next().ok_or(wrong)?;
        Ok(Self { first, others: pages.collect(), entry_bytes, count })
    }

    fn load(&self, offset: usize) -> Result<u32, RingError> {
        Ok(self.first.held().load_u32(offset)?)
    }

    fn store(&self, offset: usize, value: u32) -> Result<(), RingError> {
        Ok(self.first.held().store_u32(offset, value)?)
    }

    fn page(&self, number: usize) -> Result<&SharedPage, RingError> {
        let page = match number.checked_sub(1) {
            None => Some(&self.first),
            Some(number) => self.others.get(number),
        };
        page.map(RingPage::held).ok_or(RingError::Full)
    }

    /// Page and offset of the entry at `index`.
    fn locate(&self, index: u32) -> (usize, usize) {
        let slot = (index & self.count.wrapping_sub(1)) as usize;
        let at = slot.wrapping_mul(self.entry_bytes).wrapping_add(ENTRIES);
        (at / PAGE_SIZE, at % PAGE_SIZE)
    }

    /// Copies the entry at `index`, or the beginning of it, out of the ring.
    fn read(&self, index: u32, into: &mut [u8]) -> Result<(), RingError> {
        let len = into.len().min(self.entry_bytes);
        let (page, at) = self.locate(index);
        let head = len.min(PAGE_SIZE.saturating_sub(at));
        let Some((head, rest)) = into.split_at_mut_checked(head) else { return Ok(()) };
        self.page(page)?.copy_out(at, head)?;
        match rest.get_mut(..len.saturating_sub(head.len())) {
            Some(rest) if !rest.is_empty() => {
                Ok(self.page(page.wrapping_add(1))?.copy_out(0, rest)?)
            }
            _ => Ok(()),
        }
    }

    /// Copies `from` into the entry at `index`.
    fn write(&self, index: u32, from: &[u8]) -> Result<(), RingError> {
        let from = from.get(..self.entry_bytes).unwrap_or(from);
        let (page, at) = self.locate(index);
        let head = from.len().min(PAGE_SIZE.saturating_sub(at));
        let Some((head, rest)) = from.split_at_checked(head) else { return Ok(()) };
        self.page(page)?.copy_in(at, head)?;
        if rest.is_empty() {
            return Ok(());
        }
        Ok(self.page(page.wrapping_add(1))?.copy_in(0, rest)?)
    }

    /// Publishes a producer index; true if the peer wants to be notified of the new entries.
    fn publish(&self, prod: usize, event: usize, old: u32, new: u32) -> Result<bool, RingError> {
        self.store(prod, new)?;
        // The peer stores its event index, then looks at the producer index once more; here it is
        // the other way round. One of the two sees what the other has stored.
        fence(Ordering::SeqCst);
        let event = self.load(event)?;
        Ok(new.wrapping_sub(event) < new.wrapping_sub(old))
    }
}

/// The position of a backend in a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Requests taken so far.
    pub req_cons: u32,
    /// Responses produced so far.
    pub rsp_prod: u32,
}

/// The backend's end: takes requests, puts responses.
#[derive(Debug)]
pub struct BackRing {
    shared: RingPages<Mapping>,
    at: Position,
    /// Responses that the peer has been shown.
    pushed: u32,
    /// Requests produced, as last read.
    req_prod: u32,
}

impl BackRing {
    /// The backend's end of a fresh ring in `pages`, with entries of `entry_bytes`.
    ///
    /// # Errors
    /// [`RingError::Size`].
    pub fn new(pages: Vec<Mapping>, entry_bytes: usize) -> Result<Self, RingError> {
        Self::attach(pages, entry_bytes, Position::default())
    }

    /// As [`BackRing::new`], for a ring that was in use: goes on at `at`.
    ///
    /// # Errors
    /// [`RingError::Size`]; [`RingError::Index`] for more answers to come than the ring holds.
    pub fn attach(
        pages: Vec<Mapping>,
        entry_bytes: usize,
        at: Position,
    ) -> Result<Self, RingError> {
        let shared = RingPages::new(pages, entry_bytes)?;
        let Position { req_cons, rsp_prod } = at;
        if req_cons.wrapping_sub(rsp_prod) > shared.count {
            let ahead_max = shared.count;
            return Err(RingError::Index { own: rsp_prod, peer: req_cons, ahead_max });
        }
        Ok(Self { shared, at, pushed: rsp_prod, req_prod: req_cons })
    }

    /// Returns the responses that the page says were produced: the index at which a successor goes
    /// on.
    ///
    /// # Errors
    /// [`RingError::Size`] without a page.
    pub fn responses_in(page: &SharedPage) -> Result<u32, RingError> {
        Ok(page.load_u32(RSP_PROD)?)
    }

    /// Returns the number of entries of the ring.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.shared.count
    }

    /// Returns the position of this end.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// Returns the number of requests that have been taken and not been answered.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.at.req_cons.wrapping_sub(self.at.rsp_prod)
    }

    /// Takes the next request, or the beginning of it, into `into`; returns its index. `None` where
    /// there is none. What lies in the ring is read once.
    ///
    /// # Errors
    /// [`RingError::Index`]: the frontend claims more requests than the ring holds; the ring is of no
    /// use any more.
    pub fn take(&mut self, into: &mut [u8]) -> Result<Option<u32>, RingError> {
        let index = self.at.req_cons;
        if index == self.req_prod && !self.look()? {
            return Ok(None);
        }
        self.shared.read(index, into)?;
        self.at.req_cons = index.wrapping_add(1);
        Ok(Some(index))
    }

    /// Reads the frontend's producer index; true if there is a request to take.
    fn look(&mut self) -> Result<bool, RingError> {
        let prod = self.shared.load(REQ_PROD)?;
        let (own, ahead_max) = (self.at.rsp_prod, self.shared.count);
        let ahead = prod.wrapping_sub(own);
        if ahead > ahead_max || ahead < self.unanswered() {
            return Err(RingError::Index { own, peer: prod, ahead_max });
        }
        self.req_prod = prod;
        Ok(prod != self.at.req_cons)
    }

    /// Asks to be notified of the next request, before sleeping; true if there is one already.
    ///
    /// # Errors
    /// As [`BackRing::take`].
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        if self.req_prod != self.at.req_cons || self.look()? {
            return Ok(true);
        }
        self.shared.store(REQ_EVENT, self.at.req_cons.wrapping_add(1))?;
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Puts a response into the ring, where the frontend does not see it before [`BackRing::push`]; returns
    /// its index.
    ///
    /// # Errors
    /// [`RingError::Full`]: every request taken has its answer.
    pub fn put(&mut self, response: &[u8]) -> Result<u32, RingError> {
        if self.unanswered() == 0 {
            return Err(RingError::Full);
        }
        let index = self.at.rsp_prod;
        self.shared.write(index, response)?;
        self.at.rsp_prod = index.wrapping_add(1);
        Ok(index)
    }

    /// Shows the frontend all responses put so far; true if it is to be notified.
    ///
    /// # Errors
    /// [`RingError::Page`] where the ring was mapped for reading only.
    #[must_use = "the frontend may be asleep"]
    pub fn push(&mut self) -> Result<bool, RingError> {
        let (old, new) = (self.pushed, self.at.rsp_prod);
        if old == new {
            return Ok(false);
        }
        self.pushed = new;
        self.shared.publish(RSP_PROD, RSP_EVENT, old, new)
    }
}

/// The frontend's end: puts requests, takes responses.
#[derive(Debug)]
pub struct FrontRing {
    shared: RingPages<OfferedPage>,
    req_prod: u32,
    pushed: u32,
    rsp_cons: u32,
    /// Responses produced, as last read.
    rsp_prod: u32,
}

impl FrontRing {
    /// Makes a ring in `pages`, with entries of `entry_bytes`.
    ///
    /// # Errors
    /// [`RingError::Size`].
    pub fn new(pages: Vec<OfferedPage>, entry_bytes: usize) -> Result<Self, RingError> {
        let shared = RingPages::new(pages, entry_bytes)?;
        for (word, value) in [(REQ_PROD, 0), (RSP_PROD, 0), (REQ_EVENT, 1), (RSP_EVENT, 1)] {
            shared.store(word, value)?;
        }
        Ok(Self { shared, req_prod: 0, pushed: 0, rsp_cons: 0, rsp_prod: 0 })
    }

    /// The pages, to name their grants to the backend.
    pub fn pages(&self) -> impl Iterator<Item = &OfferedPage> {
        std::iter::once(&self.shared.first).chain(&self.shared.others)
    }

    /// Returns the number of entries of the ring.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.shared.count
    }

    /// Returns the number of requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Returns the number of requests that can be put.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.shared.count.saturating_sub(self.in_flight())
    }

    /// Puts a request into the ring, where the backend does not see it before [`FrontRing::push`].
    ///
    /// # Errors
    /// [`RingError::Full`].
    pub fn put(&mut self, request: &[u8]) -> Result<(), RingError> {
        if self.free() == 0 {
            return Err(RingError::Full);
        }
        self.shared.write(self.req_prod, request)?;
        self.req_prod = self.req_prod.wrapping_add(1);
        Ok(())
    }

    /// Shows the backend all requests put so far; true if it is to be notified.
    ///
    /// # Errors
    /// None with pages that this end may write, which offered pages are.
    #[must_use = "the backend may be asleep"]
    pub fn push(&mut self) -> Result<bool, RingError> {
        let (old, new) = (self.pushed, self.req_prod);
        if old == new {
            return Ok(false);
        }
        self.pushed = new;
        self.shared.publish(REQ_PROD, REQ_EVENT, old, new)
    }

    /// Takes the next response; false where there is none.
    ///
    /// # Errors
    /// [`RingError::Index`]: the backend claims more responses than there were requests.
    pub fn take(&mut self, into: &mut [u8]) -> Result<bool, RingError> {
        if self.rsp_cons == self.rsp_prod && !self.look()? {
            return Ok(false);
        }
        self.shared.read(self.rsp_cons, into)?;
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(true)
    }

    fn look(&mut self) -> Result<bool, RingError> {
        let prod = self.shared.load(RSP_PROD)?;
        let (own, ahead_max) = (self.rsp_cons, self.pushed.wrapping_sub(self.rsp_cons));
        if prod.wrapping_sub(own) > ahead_max {
            return Err(RingError::Index { own, peer: prod, ahead_max });
        }
        self.rsp_prod = prod;
        Ok(prod != own)
    }

    /// Asks to be notified of the next response, before sleeping; true if there is one already.
    ///
    /// # Errors
    /// As [`FrontRing::take`].
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        if self.rsp_prod != self.rsp_cons || self.look()? {
            return Ok(true);
        }
        self.shared.store(RSP_EVENT, self.rsp_cons.wrapping_add(1))?;
        fence(Ordering::SeqCst);
        self.look()
    }
}

#[cfg(test)]
mod tests;
