//! The watch on the life of domains, as the broker reports it.

use crate::link::Link;
use crate::proto::BrokerRequest;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use xen::domwatch::{DomainEvent, DomainWatch, OwnRing, ShutdownReason};
use xen::{DomId, Error};

/// The watch on the domains of a host.
#[derive(Debug)]
pub struct BrokerWatch {
    link: Arc<Link>,
    pending: VecDeque<DomainEvent>,
    /// True if the last answer contained all changes.
    is_complete: bool,
}

/// Encodes a change in a word: the domain, and in the bits above it the kind of change.
pub(crate) fn encode(event: DomainEvent) -> u64 {
    let (domid, what) = match event {
        DomainEvent::Came(domid) => (domid, 1),
        DomainEvent::Shutdown(domid, reason) => (domid, 2 | u64::from(reason.code()) << 8),
        DomainEvent::Died(domid) => (domid, 3),
        // Later kinds of the trait are added here.
        _ => (DomId::INVALID, 0),
    };
    what << 16 | u64::from(domid.0)
}

/// Decodes the change in a word.
pub(crate) fn decode(word: u64) -> Option<DomainEvent> {
    let domid = DomId(u16::try_from(word & 0xffff).ok()?);
    let code = u8::try_from(word >> 24).ok()?;
    match word >> 16 & 0xff {
        1 => Some(DomainEvent::Came(domid)),
        2 => Some(DomainEvent::Shutdown(domid, ShutdownReason::from_code(code))),
        3 => Some(DomainEvent::Died(domid)),
        _ => None,
    }
}

impl BrokerWatch {
    /// Makes a watch over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, pending: VecDeque::new(), is_complete: false }
    }
}

impl DomainWatch for BrokerWatch {
    fn identity(&mut self, domid: DomId) -> Option<u64> {
        let identities = self.link.identities.as_ref()?;
        if !domid.is_real() {
            return None;
        }
        let identity = identities.long(usize::from(domid.0) * 8).load(Acquire);
        (identity != 0).then_some(identity)
    }

    fn poll_change(&mut self) -> Result<Option<DomainEvent>, Error> {
        if self.pending.is_empty() && !std::mem::take(&mut self.is_complete) {
            let answer = self.link.call(&BrokerRequest::Changes)?;
            let (more, changes) = answer.words.split_first().ok_or(Error::Inval)?;
            self.pending.extend(changes.iter().filter_map(|word| decode(*word)));
            self.is_complete = *more == 0 && !self.pending.is_empty();
        }
        Ok(self.pending.pop_front())
    }

    fn own_ring(&mut self) -> Result<Option<OwnRing>, Error> {
        // Domain 0's processes reach the store through its socket; there is no kernel that would
        // not.
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_round_trip() {
        let domid = DomId(32751);
        for event in [
            DomainEvent::Came(domid),
            DomainEvent::Died(domid),
            DomainEvent::Shutdown(domid, ShutdownReason::Watchdog),
            DomainEvent::Shutdown(DomId(1), ShutdownReason::Other(255)),
        ] {
            assert_eq!(decode(encode(event)), Some(event));
        }
        assert_eq!(decode(0), None);
    }
}
