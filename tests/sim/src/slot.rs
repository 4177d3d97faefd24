//! One domain number, and the domain that has it.

use crate::guest::ModelGuest;
use crate::hostile::HostileGuest;

/// The actor in a domain.
pub(crate) enum SlotActor {
    Healthy(Box<ModelGuest>),
    Hostile(HostileGuest),
}

/// The stage of a domain in the toolstack's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DomainStage {
    /// No domain.
    Empty,
    /// The domain is built and not introduced, or no longer introduced.
    ToIntroduce,
    /// The toolstack waits for a reply about the domain.
    Asked,
    Live,
    Suspended,
}

/// A domain number.
pub(crate) struct DomainSlot {
    pub(crate) domid: u16,
    pub(crate) identity: u64,
    pub(crate) actor: Option<SlotActor>,
    pub(crate) stage: DomainStage,
    /// True from the reply to INTRODUCE until the reply to RELEASE.
    pub(crate) is_introduced: bool,
    /// True while INTRODUCE is in flight.
    pub(crate) introduce_asked: bool,
    /// True if the domain is introduced again and its nodes are there.
    pub(crate) keeps_nodes: bool,
    /// True if a domain of this number has died.
    pub(crate) had_identity: bool,
    /// The step before which the domain does not run.
    pub(crate) frozen_until: u64,
    pub(crate) suspended_since: u64,
    /// True if its home was made but not given to it, so that the home is domain 0's.
    pub(crate) home_is_domain_0s: bool,
}

impl DomainSlot {
    pub(crate) fn new(domid: u16) -> Self {
        Self {
            domid,
            identity: 0,
            actor: None,
            stage: DomainStage::Empty,
            is_introduced: false,
            introduce_asked: false,
            keeps_nodes: false,
            had_identity: false,
            frozen_until: 0,
            suspended_since: 0,
            home_is_domain_0s: false,
        }
    }

    /// Returns its number and its identity.
    pub(crate) fn name(&self) -> (u16, u64) {
        (self.domid, self.identity)
    }

    /// True if the toolstack has shut it down.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.suspended_since > 0
    }

    pub(crate) fn may_be_introduced(&self) -> bool {
        self.is_introduced || self.introduce_asked
    }

    pub(crate) fn healthy(&mut self) -> Option<&mut ModelGuest> {
        match &mut self.actor {
            Some(SlotActor::Healthy(guest)) => Some(guest),
            _ => None,
        }
    }

    pub(crate) fn is_hostile(&self) -> bool {
        matches!(self.actor, Some(SlotActor::Hostile(_)))
    }
}
