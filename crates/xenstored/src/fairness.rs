//! Who is served when more is asked than one round does: deficit round robin.
//!
//! The core says what each request cost, in units of one simple request. In a round every connection
//! that has input may spend [`QUANTUM`], times its domain's weight; what its last request costs beyond that is a debt, taken off
//! its next rounds. What it does not spend is not saved up. A connection with input left over goes
//! to the end of its queue.
//!
//! Domain 0 (its sockets and its ring) comes first and may spend [`PRIVILEGED_SHARE`] in a round; then
//! the guests' rings may spend [`GUEST_SHARE`]. So a flood from guests delays domain 0 by one guest share at
//! most, and domain 0 at its busiest leaves the guests a fifth. Nobody waits while others idle: what one queue leaves is not
//! kept from the other, as the next round begins at once.
//!
//! A ring holds some 60 requests, so among guests that all want the daemon the quantum is small,
//! [`QUANTUM_BESIDE`]: else weights would mean nothing, and who asks for little would wait for whole rings. For
//! the same reason a guest that begins to ask comes before those that have had a turn and go on, up
//! to [`FRESH_IN_A_ROW`] times for each of these.

use crate::connection::Class;
use std::collections::VecDeque;
use xenstore_core::limits::WEIGHT_DEFAULT;
use xenstore_core::server::ConnId;

/// What one connection may spend in a round.
pub(crate) const QUANTUM: i64 = 256;
/// What a guest may spend in a round beside other guests.
pub(crate) const QUANTUM_BESIDE: i64 = 4;
/// What domain 0 may spend in a round.
pub(crate) const PRIVILEGED_SHARE: i64 = 8192;
/// What all guests together may spend in a round, whatever domain 0 does.
pub(crate) const GUEST_SHARE: i64 = 2048;
/// Guests that begin to ask come so often before one that goes on.
const FRESH_IN_A_ROW: u32 = 8;
/// A guest is beside another for so long after that one was served, in microseconds.
const BESIDE_US: u64 = 1000;

/// Whether others want the daemon, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beside {
    Nobody,
    Others,
}

/// Whether a connection begins to ask, or goes on after a turn that was not enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    Afresh,
    OnAndOn,
}

/// The connections that have something to be read or handed in.
#[derive(Default)]
pub(crate) struct ReadyQueues {
    privileged: VecDeque<ConnId>,
    fresh: VecDeque<ConnId>,
    going_on: VecDeque<ConnId>,
    /// How many of `fresh` came before the first of `going_on`.
    fresh_in_a_row: u32,
    /// The guest that was served last, and when that was another one.
    last: Option<ConnId>,
    last_other: u64,
}

impl ReadyQueues {
    pub(crate) fn push(&mut self, class: Class, asks: Asks, id: ConnId) {
        let queue = match (class, asks) {
            (Class::Privileged, _) => &mut self.privileged,
            (Class::Guest, Asks::Afresh) => &mut self.fresh,
            (Class::Guest, Asks::OnAndOn) => &mut self.going_on,
        };
        queue.push_back(id);
    }

    pub(crate) fn pop(&mut self, class: Class) -> Option<ConnId> {
        if class == Class::Privileged {
            return self.privileged.pop_front();
        }
        let others_turn = self.fresh_in_a_row >= FRESH_IN_A_ROW && !self.going_on.is_empty();
        if let Some(id) = self.fresh.pop_front_if(|_| !others_turn) {
            self.fresh_in_a_row += 1;
            return Some(id);
        }
        self.fresh_in_a_row = 0;
        self.going_on.pop_front()
    }

    pub(crate) fn len(&self, class: Class) -> usize {
        match class {
            Class::Privileged => self.privileged.len(),
            Class::Guest => self.fresh.len() + self.going_on.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.privileged.is_empty() && self.fresh.is_empty() && self.going_on.is_empty()
    }

    /// Who wants the daemon beside this connection, which is served now.
    pub(crate) fn beside(&mut self, class: Class, id: ConnId, now: u64) -> Beside {
        let others = match class {
            Class::Privileged => !self.is_empty(),
            Class::Guest => {
                if self.last.replace(id).is_some_and(|last| last != id) {
                    self.last_other = now.saturating_add(BESIDE_US);
                }
                now < self.last_other || self.len(class) > 0
            }
        };
        if others { Beside::Others } else { Beside::Nobody }
    }
}

/// What a connection may spend now, given what it had. A debt of domain 0's is forgiven when nobody else
/// waits: it would delay its owner to nobody's gain. A guest's is not: what it asks next would delay
/// who comes meanwhile.
pub(crate) fn refill(credit: i64, class: Class, weight: u32, beside: Beside) -> i64 {
    let quantum = match (class, beside) {
        (Class::Guest, Beside::Others) => QUANTUM_BESIDE,
        _ => QUANTUM,
    };
    let quantum = (quantum * i64::from(weight) / i64::from(WEIGHT_DEFAULT)).max(1);
    match (class, beside) {
        (Class::Privileged, Beside::Nobody) => quantum,
        _ => credit.saturating_add(quantum).min(quantum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debts_are_paid_and_savings_lost() {
        let refill = |credit, beside| refill(credit, Class::Privileged, WEIGHT_DEFAULT, beside);
        assert_eq!(refill(0, Beside::Others), QUANTUM);
        assert_eq!(refill(QUANTUM, Beside::Others), QUANTUM);
        assert_eq!(refill(-QUANTUM * 3, Beside::Others), -QUANTUM * 2);
        assert_eq!(refill(-QUANTUM * 3, Beside::Nobody), QUANTUM);
    }

    #[test]
    fn a_heavier_domain_gets_more() {
        let refill = |credit, weight, beside| refill(credit, Class::Guest, weight, beside);
        let (one, four) = (WEIGHT_DEFAULT, 4 * WEIGHT_DEFAULT);
        assert_eq!(refill(0, four, Beside::Others), 4 * QUANTUM_BESIDE);
        assert_eq!(refill(0, 1, Beside::Others), 1);
        assert_eq!(refill(-2 * QUANTUM_BESIDE, four, Beside::Others), 2 * QUANTUM_BESIDE);
        assert_eq!(refill(0, one, Beside::Nobody), QUANTUM);
        assert_eq!(refill(-QUANTUM, one, Beside::Nobody), 0);
    }

    #[test]
    fn guests_keep_a_fifth() {
        assert_eq!(GUEST_SHARE * 5, PRIVILEGED_SHARE + GUEST_SHARE);
    }

    #[test]
    fn who_begins_comes_first_but_not_always() {
        let mut queues = ReadyQueues::default();
        queues.push(Class::Guest, Asks::OnAndOn, ConnId(0));
        for id in 1..=9 {
            queues.push(Class::Guest, Asks::Afresh, ConnId(id));
        }
        assert_eq!(queues.len(Class::Guest), 10);
        let order: Vec<u32> =
            std::iter::from_fn(|| queues.pop(Class::Guest)).map(|id| id.0).collect();
        assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 0, 9]);
        assert!(queues.is_empty());
    }

    #[test]
    fn a_guest_is_beside_another_until_that_has_been_away_for_a_while() {
        let mut queues = ReadyQueues::default();
        let mut beside = |id, now| queues.beside(Class::Guest, ConnId(id), now);
        assert_eq!(beside(1, 0), Beside::Nobody);
        assert_eq!(beside(2, 10), Beside::Others);
        assert_eq!(beside(2, 10 + BESIDE_US - 1), Beside::Others);
        assert_eq!(beside(2, 10 + BESIDE_US), Beside::Nobody);
    }
}
