//! Divides a round among connections that request more than fits in it: deficit round robin.
//!
//! The core reports the cost of each request, in units of one simple request. In a round every
//! connection with input may spend [`QUANTUM`] times its domain's weight. If its last request costs
//! more than the rest of that, the excess is a debt, deducted from its next rounds. An unspent rest
//! is not saved. A connection with input left over goes to the end of its queue.
//!
//! Domain 0 (its sockets and its ring) comes first and may spend [`PRIVILEGED_SHARE`] in a round.
//! Then the guests' rings may spend [`GUEST_SHARE`]. Therefore a flood from guests delays domain 0
//! by at most one guest share, and domain 0 at its busiest leaves the guests a fifth. No connection
//! waits while the daemon is idle: the next round begins at once, so the unused share of one queue
//! is not lost to the other.
//!
//! A ring holds some 60 requests, so the quantum among guests that all want service is small,
//! [`QUANTUM_COMPETING`]. With a large one weights would have no effect, and a guest with few
//! requests would wait for whole rings. For the same reason a guest with new requests comes before
//! those that have had a turn and continue, up to [`FRESH_IN_A_ROW`] times for each of these.

use crate::connection::ConnectionClass;
use std::collections::VecDeque;
use xenstore_core::limits::WEIGHT_DEFAULT;
use xenstore_core::server::ConnId;

/// The most that one connection may spend in a round.
pub(crate) const QUANTUM: i64 = 256;
/// The most that a guest may spend in a round while other guests want service.
pub(crate) const QUANTUM_COMPETING: i64 = 4;
/// The most that domain 0 may spend in a round.
pub(crate) const PRIVILEGED_SHARE: i64 = 8192;
/// The most that all guests together may spend in a round, whatever domain 0 does.
pub(crate) const GUEST_SHARE: i64 = 2048;
/// The most guests with new requests that are served in a row before one that continues.
const FRESH_IN_A_ROW: u32 = 8;
/// The time for which a guest counts as competing after another one was served, in microseconds.
const COMPETITION_US: u64 = 1000;

/// The competition for the daemon: other connections want service too, or none does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Competition {
    None,
    Others,
}

/// The state of a connection in its queue: new requests, or more of them after a turn that was too
/// short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Demand {
    New,
    Continued,
}

/// The queues of connections with input to read or to give to the core.
#[derive(Default)]
pub(crate) struct ReadyQueues {
    privileged: VecDeque<ConnId>,
    new: VecDeque<ConnId>,
    continued: VecDeque<ConnId>,
    /// The number of connections from `new` served since the last one from `continued`.
    fresh_in_a_row: u32,
    /// The guest that was served last, and the time until which the guests count as competing.
    last: Option<ConnId>,
    last_other: u64,
}

impl ReadyQueues {
    pub(crate) fn push(&mut self, class: ConnectionClass, demand: Demand, id: ConnId) {
        let queue = match (class, demand) {
            (ConnectionClass::Privileged, _) => &mut self.privileged,
            (ConnectionClass::Guest, Demand::New) => &mut self.new,
            (ConnectionClass::Guest, Demand::Continued) => &mut self.continued,
        };
        queue.push_back(id);
    }

    pub(crate) fn pop(&mut self, class: ConnectionClass) -> Option<ConnId> {
        if class == ConnectionClass::Privileged {
            return self.privileged.pop_front();
        }
        let others_turn = self.fresh_in_a_row >= FRESH_IN_A_ROW && !self.continued.is_empty();
        if let Some(id) = self.new.pop_front_if(|_| !others_turn) {
            self.fresh_in_a_row += 1;
            return Some(id);
        }
        self.fresh_in_a_row = 0;
        self.continued.pop_front()
    }

    pub(crate) fn len(&self, class: ConnectionClass) -> usize {
        match class {
            ConnectionClass::Privileged => self.privileged.len(),
            ConnectionClass::Guest => self.new.len() + self.continued.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.privileged.is_empty() && self.new.is_empty() && self.continued.is_empty()
    }

    /// Returns the competition for the daemon while this connection is served.
    pub(crate) fn competition(
        &mut self,
        class: ConnectionClass,
        id: ConnId,
        now: u64,
    ) -> Competition {
        let others = match class {
            ConnectionClass::Privileged => !self.is_empty(),
            ConnectionClass::Guest => {
                if self.last.replace(id).is_some_and(|last| last != id) {
                    self.last_other = now.saturating_add(COMPETITION_US);
                }
                now < self.last_other || self.len(class) > 0
            }
        };
        if others { Competition::Others } else { Competition::None }
    }
}

/// Returns the budget of a connection for this turn, from its remaining budget. A debt of domain
/// 0's is forgiven if no other connection waits: it would delay domain 0 without a benefit to
/// others. A guest's debt is kept: its next requests would delay connections that arrive meanwhile.
pub(crate) fn refill(
    credit: i64,
    class: ConnectionClass,
    weight: u32,
    competition: Competition,
) -> i64 {
    let quantum = match (class, competition) {
        (ConnectionClass::Guest, Competition::Others) => QUANTUM_COMPETING,
        _ => QUANTUM,
    };
    let quantum = (quantum * i64::from(weight) / i64::from(WEIGHT_DEFAULT)).max(1);
    match (class, competition) {
        (ConnectionClass::Privileged, Competition::None) => quantum,
        _ => credit.saturating_add(quantum).min(quantum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debts_are_paid_and_savings_lost() {
        let refill = |credit, competition| {
            refill(credit, ConnectionClass::Privileged, WEIGHT_DEFAULT, competition)
        };
        assert_eq!(refill(0, Competition::Others), QUANTUM);
        assert_eq!(refill(QUANTUM, Competition::Others), QUANTUM);
        assert_eq!(refill(-QUANTUM * 3, Competition::Others), -QUANTUM * 2);
        assert_eq!(refill(-QUANTUM * 3, Competition::None), QUANTUM);
    }

    #[test]
    fn a_heavier_domain_gets_more() {
        let refill = |credit, weight, competition| {
            refill(credit, ConnectionClass::Guest, weight, competition)
        };
        let (one, four) = (WEIGHT_DEFAULT, 4 * WEIGHT_DEFAULT);
        assert_eq!(refill(0, four, Competition::Others), 4 * QUANTUM_COMPETING);
        assert_eq!(refill(0, 1, Competition::Others), 1);
        assert_eq!(
            refill(-2 * QUANTUM_COMPETING, four, Competition::Others),
            2 * QUANTUM_COMPETING
        );
        assert_eq!(refill(0, one, Competition::None), QUANTUM);
        assert_eq!(refill(-QUANTUM, one, Competition::None), 0);
    }

    #[test]
    fn guests_keep_a_fifth() {
        assert_eq!(GUEST_SHARE * 5, PRIVILEGED_SHARE + GUEST_SHARE);
    }

    #[test]
    fn who_begins_comes_first_but_not_always() {
        let mut queues = ReadyQueues::default();
        queues.push(ConnectionClass::Guest, Demand::Continued, ConnId(0));
        for id in 1..=9 {
            queues.push(ConnectionClass::Guest, Demand::New, ConnId(id));
        }
        assert_eq!(queues.len(ConnectionClass::Guest), 10);
        let order: Vec<u32> =
            std::iter::from_fn(|| queues.pop(ConnectionClass::Guest)).map(|id| id.0).collect();
        assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 0, 9]);
        assert!(queues.is_empty());
    }

    #[test]
    fn a_guest_is_beside_another_until_that_has_been_away_for_a_while() {
        let mut queues = ReadyQueues::default();
        let mut competition = |id, now| queues.competition(ConnectionClass::Guest, ConnId(id), now);
        assert_eq!(competition(1, 0), Competition::None);
        assert_eq!(competition(2, 10), Competition::Others);
        assert_eq!(competition(2, 10 + COMPETITION_US - 1), Competition::Others);
        assert_eq!(competition(2, 10 + COMPETITION_US), Competition::None);
    }
}
