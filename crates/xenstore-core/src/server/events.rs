//! The events of a connection that have not been encoded yet.

use crate::watch::WatchId;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::rc::Rc;

/// The most waiting events that are searched one by one for an equal one. More are searched in a
/// sorted set.
const SCAN_MAX: usize = 16;

/// The largest capacity that an emptied queue keeps, in events.
const EVENTS_KEPT: usize = 64;

/// A watch event that has not been encoded yet.
pub(super) type PendingEvent = (WatchId, Rc<[u8]>);

/// The events of a connection that have not been encoded yet, in order. An event that waits already
/// is not added again.
#[derive(Default)]
pub(super) struct EventQueue {
    /// Each event with its bytes.
    queue: VecDeque<(PendingEvent, usize)>,
    /// All events sorted, if more than [`SCAN_MAX`] wait.
    known: BTreeSet<PendingEvent>,
    /// The bytes of all events.
    size: usize,
}

impl EventQueue {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns the bytes of all events.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Queues an event of so many bytes. Returns true if no equal one waited.
    pub(super) fn push(&mut self, event: PendingEvent, size: usize) -> bool {
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

    /// Takes the first event.
    pub(super) fn pop(&mut self) -> Option<PendingEvent> {
        let (event, size) = self.queue.pop_front()?;
        if !self.known.is_empty() {
            self.known.remove(&event);
        }
        self.size = self.size.saturating_sub(size);
        Some(event)
    }

    /// Drops the events of a watch. They are few: the requests of a connection that leaves much
    /// unread are not read.
    pub(super) fn drop_of(&mut self, watch: WatchId) {
        self.queue.retain(|((id, _), _)| *id != watch);
        self.known.retain(|(id, _)| *id != watch);
        self.size = self.queue.iter().map(|(_, size)| *size).fold(0, usize::saturating_add);
    }

    /// Releases memory that many events have needed.
    pub(super) fn shrink(&mut self) {
        let used = self.queue.len();
        if self.queue.capacity() > used.saturating_mul(2).saturating_add(EVENTS_KEPT) {
            self.queue.shrink_to(used.saturating_add(EVENTS_KEPT));
        }
    }

    /// Returns the waiting events in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &PendingEvent> {
        self.queue.iter().map(|(event, _)| event)
    }

    /// Frees as many as `left` allows. Returns true if none is left.
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
