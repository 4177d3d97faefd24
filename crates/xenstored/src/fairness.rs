//! Who is served when more is asked than one round does: deficit round robin.
//!
//! The core says what each request cost, in units of one simple request. In a round every connection
//! that has input may spend [`QUANTUM`], times its domain's weight; what its last request costs beyond that is a debt, taken off
//! its next rounds. What it does not spend is not saved up. A connection with input left over goes
//! to the end of its queue.
//!
//! There are two queues. Domain 0 (its sockets and its ring) comes first and may spend
//! [`PRIVILEGED_SHARE`] in a round; then the guests' rings may spend [`GUEST_SHARE`]. So a flood
//! from guests delays domain 0 by one guest share at most, and domain 0 at its busiest leaves
//! the guests a fifth. Nobody waits while others idle: what one queue leaves is not kept from the
//! other, as the next round begins at once.

use crate::connection::Class;
use std::collections::VecDeque;
use xenstore_core::limits::WEIGHT_DEFAULT;
use xenstore_core::server::ConnId;

/// What one connection may spend in a round.
pub(crate) const QUANTUM: i64 = 256;
/// What domain 0 may spend in a round.
pub(crate) const PRIVILEGED_SHARE: i64 = 8192;
/// What all guests together may spend in a round, whatever domain 0 does.
pub(crate) const GUEST_SHARE: i64 = 2048;

/// The connections that have something to be read or handed in.
#[derive(Default)]
pub(crate) struct ReadyQueues {
    privileged: VecDeque<ConnId>,
    guests: VecDeque<ConnId>,
}

impl ReadyQueues {
    fn of(&mut self, class: Class) -> &mut VecDeque<ConnId> {
        match class {
            Class::Privileged => &mut self.privileged,
            Class::Guest => &mut self.guests,
        }
    }

    pub(crate) fn push(&mut self, class: Class, id: ConnId) {
        self.of(class).push_back(id);
    }

    pub(crate) fn pop(&mut self, class: Class) -> Option<ConnId> {
        self.of(class).pop_front()
    }

    pub(crate) fn len(&mut self, class: Class) -> usize {
        self.of(class).len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.privileged.is_empty() && self.guests.is_empty()
    }
}

/// What a connection may spend now, given what it had. A debt of domain 0's is forgiven when nobody else
/// waits: it would delay its owner to nobody's gain. A guest's is not: what it asks next would delay
/// who comes meanwhile.
pub(crate) fn refill(credit: i64, weight: u32, forgiven: bool) -> i64 {
    let quantum = (QUANTUM * i64::from(weight) / i64::from(WEIGHT_DEFAULT)).max(1);
    if forgiven { quantum } else { credit.saturating_add(quantum).min(quantum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debts_are_paid_and_savings_lost() {
        let refill = |credit, alone| refill(credit, WEIGHT_DEFAULT, alone);
        assert_eq!(refill(0, false), QUANTUM);
        assert_eq!(refill(QUANTUM, false), QUANTUM);
        assert_eq!(refill(-QUANTUM * 3, false), -QUANTUM * 2);
        assert_eq!(refill(-QUANTUM * 3, true), QUANTUM);
    }

    #[test]
    fn a_heavier_domain_gets_more() {
        assert_eq!(refill(0, 2 * WEIGHT_DEFAULT, false), 2 * QUANTUM);
        assert_eq!(refill(0, 1, false), 1);
        assert_eq!(refill(-2 * QUANTUM, 4 * WEIGHT_DEFAULT, false), 2 * QUANTUM);
    }

    #[test]
    fn guests_keep_a_fifth() {
        assert_eq!(GUEST_SHARE * 5, PRIVILEGED_SHARE + GUEST_SHARE);
    }
}
