//! One ring of a frontend, and what was asked through it.
//!
//! Each request has a slot until it is answered. The number of the slot is the low half of the request's id; the high
//! half says how often the slot was used, so that an answer to an older request is known for what it is.

use std::fmt;
use xen_io::ring::{FrontRing, RingError};
use xenbus::Error;

/// The id of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RingRequestId(u64);

impl RingRequestId {
    fn new(turn: u32, slot: u32) -> Self {
        Self(u64::from(turn) << 32 | u64::from(slot))
    }

    /// The id as an answer has it.
    #[must_use]
    pub fn from_wire(id: u64) -> Self {
        Self(id)
    }

    /// The id as a request has it.
    #[must_use]
    pub fn wire(self) -> u64 {
        self.0
    }

    fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// An answer to what was not asked, or was answered already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnexpectedResponse(pub RingRequestId);

impl fmt::Display for UnexpectedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the backend has answered request {:#x}, which is not open", self.0.0)
    }
}

impl std::error::Error for UnexpectedResponse {}

impl From<UnexpectedResponse> for Error {
    fn from(unasked: UnexpectedResponse) -> Self {
        Self::Driver(unasked.to_string())
    }
}

/// A place for a request. Its `asked` is kept and used again, with the memory that it has.
struct RequestSlot<T> {
    turn: u32,
    open: bool,
    asked: T,
}

/// A ring; `T` is what its user has to know of a request until that is answered.
pub struct Ring<T> {
    ring: FrontRing,
    slots: Vec<RequestSlot<T>>,
    free: Vec<u32>,
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl<T: Default> Ring<T> {
    /// The ring, nothing asked.
    #[must_use]
    pub fn new(ring: FrontRing) -> Self {
        let count = ring.count();
        let slot = |_| RequestSlot { turn: 0, open: false, asked: T::default() };
        Self { ring, slots: (0..count).map(slot).collect(), free: (0..count).rev().collect() }
    }

    /// The number of requests that it takes before an answer comes.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len().min(self.ring.free() as usize)
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The id of the request that is put next.
    ///
    /// # Errors
    /// [`RingError::Full`].
    pub fn next_id(&self) -> Result<RingRequestId, RingError> {
        let number = self.free.last().ok_or(RingError::Full)?;
        let slot = self.slots.get(*number as usize).ok_or(RingError::Full)?;
        Ok(RingRequestId::new(slot.turn.wrapping_add(1), *number))
    }

    /// Puts a request into the ring, where the backend sees it with [`Ring::push`]. It has the id of [`Ring::next_id`];
    /// what is to be known of it goes into what is returned, which may hold what was known of another.
    ///
    /// # Errors
    /// The ring is full, or the backend has broken it.
    pub fn put(&mut self, request: &[u8]) -> Result<&mut T, RingError> {
        let number = *self.free.last().ok_or(RingError::Full)?;
        self.ring.put(request)?;
        self.free.pop();
        let slot = self.slots.get_mut(number as usize).ok_or(RingError::Full)?;
        slot.turn = slot.turn.wrapping_add(1);
        slot.open = true;
        Ok(&mut slot.asked)
    }

    /// Makes what was put visible to the backend; true if it is to be notified.
    ///
    /// # Errors
    /// The backend has broken the ring.
    pub fn push(&mut self) -> Result<bool, RingError> {
        self.ring.push()
    }

    /// Copies the next answer out of the ring, once; false where there is none.
    ///
    /// # Errors
    /// As [`Ring::push`].
    pub fn take(&mut self, into: &mut [u8]) -> Result<bool, RingError> {
        self.ring.take(into)
    }

    /// The data of an open request, which the backend says to have answered.
    ///
    /// # Errors
    /// [`UnexpectedResponse`].
    pub fn asked(&mut self, id: RingRequestId) -> Result<&mut T, UnexpectedResponse> {
        match self.slots.get_mut(id.slot()) {
            Some(slot) if slot.open && RingRequestId::new(slot.turn, id.slot() as u32) == id => {
                Ok(&mut slot.asked)
            }
            _ => Err(UnexpectedResponse(id)),
        }
    }

    /// An open request has its answer; another may have its slot.
    pub fn end(&mut self, id: RingRequestId) {
        if self.asked(id).is_ok()
            && let Some(slot) = self.slots.get_mut(id.slot())
        {
            slot.open = false;
            self.free.push(id.slot() as u32);
        }
    }

    /// The data of all requests without an answer, in the order of their slots; the ring is of no use then.
    pub fn take_open(&mut self) -> impl Iterator<Item = T> {
        self.slots.iter_mut().filter_map(|slot| {
            std::mem::take(&mut slot.open).then(|| std::mem::take(&mut slot.asked))
        })
    }

    /// Lets the backend notify again. True if there is an answer after all.
    ///
    /// # Errors
    /// As [`Ring::push`].
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        self.ring.final_check()
    }
}
