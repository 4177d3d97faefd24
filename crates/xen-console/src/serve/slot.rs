//! A domain, and how far its console has come.

use super::console::ServedConsole;
use super::nodes::{ConsoleNodes, DomainNodes};
use crate::fifo::OutputFifo;
use crate::service::ConsoleId;
use std::time::{Duration, Instant};

/// The interval between two writes of a window's size: a client cannot flood the store.
const WINDOW_INTERVAL: Duration = Duration::from_millis(100);

/// A domain, and how far its console has come.
#[derive(Debug)]
pub(super) struct ConsoleSlot {
    pub(super) id: ConsoleId,
    /// The domain's name.
    pub(super) name: Vec<u8>,
    pub(super) state: ConsoleState,
    /// The console whose ring has ended, for the one that follows.
    pub(super) kept: Option<Box<ServedConsole>>,
    /// The domain's nodes when it last had a console.
    pub(super) about: DomainNodes,
    /// The FIFO that it prints into, until a console has it.
    pub(super) fifo: Option<OutputFifo>,
    /// The name by which that was last looked for.
    pub(super) fifo_tried: Option<Vec<u8>>,
    /// The size of its clients' window.
    pub(super) window: WindowSize,
}

/// The state of a domain's console.
#[derive(Default, Debug)]
pub(super) enum ConsoleState {
    /// Its nodes are not there, or not for this daemon.
    #[default]
    Absent,
    /// It could not be connected; it is tried again until then.
    Retrying { until: Instant },
    /// It is served.
    Served {
        nodes: ConsoleNodes,
        console: Box<ServedConsole>,
        ring: RingState,
        /// The store does not say yet that it is served.
        announcement_due: bool,
    },
    /// Its ring is broken. With other nodes it is tried again.
    Failed { nodes: ConsoleNodes },
}

/// The state of the ring of a served console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RingState {
    /// It is served.
    Served,
    /// It is broken; the console has its FIFO alone. With other nodes it is tried again.
    Broken,
    /// It could not be had; the same. With any event of its nodes it is tried again.
    Missing,
}

/// The console of a domain that is gone.
#[derive(Debug)]
pub(super) struct EndedConsole {
    pub(super) id: ConsoleId,
    /// The domain's name.
    pub(super) name: Vec<u8>,
    pub(super) console: Box<ServedConsole>,
    pub(super) until: Instant,
}

impl ConsoleSlot {
    pub(super) fn new(id: ConsoleId) -> Self {
        Self {
            id,
            name: Vec::new(),
            state: ConsoleState::Absent,
            kept: None,
            about: DomainNodes::default(),
            fifo: None,
            fifo_tried: None,
            window: WindowSize::default(),
        }
    }

    /// Returns the console, served or kept for a ring that follows.
    pub(super) fn console(&self) -> Option<&ServedConsole> {
        match &self.state {
            ConsoleState::Served { console, .. } => Some(console),
            _ => self.kept.as_deref(),
        }
    }

    pub(super) fn console_mut(&mut self) -> Option<&mut ServedConsole> {
        match &mut self.state {
            ConsoleState::Served { console, .. } => Some(console),
            _ => self.kept.as_deref_mut(),
        }
    }

    /// Takes the console, whose domain is gone.
    pub(super) fn take_console(&mut self) -> Option<Box<ServedConsole>> {
        match std::mem::take(&mut self.state) {
            ConsoleState::Served { console, .. } => Some(console),
            _ => self.kept.take(),
        }
    }

    /// Returns the FIFO that the domain prints into.
    pub(super) fn fifo(&self) -> Option<&OutputFifo> {
        self.console().and_then(ServedConsole::fifo).or(self.fifo.as_ref())
    }

    /// Ends the ring that is served, and keeps all else of the console.
    pub(super) fn end(&mut self) {
        match std::mem::take(&mut self.state) {
            ConsoleState::Served { mut console, .. } => {
                console.end_ring();
                self.kept = Some(console);
            }
            // When the tries end is not for another try to say.
            retrying @ ConsoleState::Retrying { .. } => self.state = retrying,
            ConsoleState::Absent | ConsoleState::Failed { .. } => {}
        }
    }
}

/// The size of a window, in columns and rows, on its way into the store.
#[derive(Default, Debug)]
pub(super) struct WindowSize {
    /// The size that a client has said last, if it is not in the store yet.
    wanted: Option<(u16, u16)>,
    /// The time from which on it may be written.
    next_at: Option<Instant>,
}

impl WindowSize {
    /// Takes a size that a client has said: the last one counts.
    pub(super) fn set(&mut self, size: (u16, u16)) {
        self.wanted = Some(size);
    }

    /// Takes the size that is to be written now; none if there is none.
    ///
    /// # Errors
    /// The time at which there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<Option<(u16, u16)>, Instant> {
        if let Some(next) = self.next_at.filter(|next| *next > now && self.wanted.is_some()) {
            return Err(next);
        }
        let size = self.wanted.take();
        if size.is_some() {
            self.next_at = Some(now + WINDOW_INTERVAL);
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_sizes_is_ten_a_second_and_the_last_one_arrives() {
        let (start, mut window) = (Instant::now(), WindowSize::default());
        assert_eq!(window.take(start), Ok(None));
        let mut written = Vec::new();
        for step in 0..=1000 {
            window.set((80, step + 1));
            if let Ok(Some(size)) = window.take(start + Duration::from_millis(step.into())) {
                written.push(size);
            }
        }
        assert_eq!(written.len(), 11);
        assert_eq!((written[0], written[10]), ((80, 1), (80, 1001)));
        let now = start + Duration::from_millis(1001);
        window.set((132, 50));
        assert_eq!(window.take(now), Err(start + Duration::from_millis(1100)));
        assert_eq!(window.take(start + Duration::from_millis(1100)), Ok(Some((132, 50))));
        assert_eq!(window.take(now), Ok(None));
    }
}
