//! One domain number, and who has it.

use crate::guest::Guest;
use crate::hostile::Hostile;

/// Who runs in a domain.
pub(crate) enum Actor {
    Healthy(Box<Guest>),
    Hostile(Hostile),
}

/// How far its toolstack is with a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// There is none.
    Empty,
    /// It is built and not introduced, or not any more.
    ToIntroduce,
    /// The toolstack waits for an answer about it.
    Asked,
    Live,
    Suspended,
}

/// A domain number.
pub(crate) struct Slot {
    pub(crate) domid: u16,
    pub(crate) identity: u64,
    pub(crate) actor: Option<Actor>,
    pub(crate) stage: Stage,
    /// INTRODUCE was answered, RELEASE was not.
    pub(crate) is_introduced: bool,
    /// INTRODUCE is in flight.
    pub(crate) introduce_asked: bool,
    /// It is introduced again, and its nodes are there.
    pub(crate) keeps_nodes: bool,
    /// A domain of this number has died.
    pub(crate) had_identity: bool,
    /// It does not run before this step.
    pub(crate) frozen_until: u64,
    pub(crate) suspended_since: u64,
    /// Its home was made, and not given to it: it is domain 0's.
    pub(crate) home_is_domain_0s: bool,
}

impl Slot {
    pub(crate) fn new(domid: u16) -> Self {
        Self {
            domid,
            identity: 0,
            actor: None,
            stage: Stage::Empty,
            is_introduced: false,
            introduce_asked: false,
            keeps_nodes: false,
            had_identity: false,
            frozen_until: 0,
            suspended_since: 0,
            home_is_domain_0s: false,
        }
    }

    /// Its number and its identity.
    pub(crate) fn name(&self) -> (u16, u64) {
        (self.domid, self.identity)
    }

    /// Whether it stands still for its toolstack.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.suspended_since > 0
    }

    pub(crate) fn may_be_introduced(&self) -> bool {
        self.is_introduced || self.introduce_asked
    }

    pub(crate) fn healthy(&mut self) -> Option<&mut Guest> {
        match &mut self.actor {
            Some(Actor::Healthy(guest)) => Some(guest),
            _ => None,
        }
    }

    pub(crate) fn is_hostile(&self) -> bool {
        matches!(self.actor, Some(Actor::Hostile(_)))
    }
}
