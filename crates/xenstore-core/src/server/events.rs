//! The events of a connection that have not been encoded yet.

use crate::watch::WatchId;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::Rc;

/// Most waiting events that are looked through for the same one; more are looked up.
const SCAN_MAX: usize = 16;

/// Most events that there is room for in its queue.
const EVENTS_KEPT: usize = 64;

/// A watch event that has not been encoded yet.
pub(super) type Pending = (WatchId, Rc<[u8]>);

/// The events of a connection that have not been encoded yet, in order. One that waits already is not added again.
#[derive(Default)]
pub(super) struct Events {
    /// Each with the bytes that it takes.
    queue: VecDeque<(Pending, usize)>,
    /// All of them sorted, where more than [`SCAN_MAX`] wait.
    known: BTreeSet<Pending>,
    /// Bytes that they take.
    size: usize,
}

impl Events {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes that they take.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Queues an event that takes so many bytes; whether it did not wait already.
    pub(super) fn push(&mut self, event: Pending, size: usize) -> bool {
        let waits = match self.known.is_empty() {
            true => self.queue.iter().any(|(known, _)| *known == event),
            false => self.known.contains(&event),
        };
        if waits {
            return false;
        }
        self.queue.push_back((event.clone(), size));
        self.size = self.size.saturating_add(size);
        match self.queue.len() {
            0..=SCAN_MAX => {}
            _ if self.known.is_empty() => {
                self.known.extend(self.queue.iter().map(|(event, _)| event.clone()));
            }
            _ => drop(self.known.insert(event)),
        }
        true
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Pending> {
        let (event, size) = self.queue.pop_front()?;
        if !self.known.is_empty() {
            self.known.remove(&event);
        }
        self.size = self.size.saturating_sub(size);
        Some(event)
    }

    /// Drops those of a watch. They are few: a connection that leaves much unread is not asked for requests.
    pub(super) fn drop_of(&mut self, watch: WatchId) {
        self.queue.retain(|((id, _), _)| *id != watch);
        self.known.retain(|(id, _)| *id != watch);
        self.size = self.queue.iter().map(|(_, size)| *size).fold(0, usize::saturating_add);
    }

    /// Gives memory back that many events have needed.
    pub(super) fn shrink(&mut self) {
        let used = self.queue.len();
        if self.queue.capacity() > used.saturating_mul(2).saturating_add(EVENTS_KEPT) {
            self.queue.shrink_to(used.saturating_add(EVENTS_KEPT));
        }
    }

    /// Those that wait, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.queue.iter().map(|(event, _)| event)
    }

    /// Frees as many as `left` says; whether none is left.
    pub(super) fn free_some(&mut self, left: &mut u32) -> bool {
        while *left > 0 {
            if self.known.pop_first().is_none() && self.queue.pop_front().is_none() {
                return true;
            }
            *left = left.saturating_sub(1);
        }
        false
    }
}
