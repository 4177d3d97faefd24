//! The control of domains that exist, for the toolstack.

use super::answer::{AnswerResult, words};
use super::broker::Broker;
use super::domain::Stage;
use super::poll::PeerId;
use crate::counters::{Counter, read_counter};
use crate::domctl::info_words;
use crate::limits::LISTED_AT_ONCE;
use crate::proto::BrokerRequest;
use xen::domctl::Scheduling;
use xen::{DomId, Error};

impl Broker {
    /// Answers a request for the control of domains.
    pub(super) fn control(&mut self, id: PeerId, request: &BrokerRequest) -> AnswerResult {
        let domains = &mut self.parties.domains;
        match *request {
            BrokerRequest::List { from } => return self.list(from),
            BrokerRequest::Info { domid } => return self.info(domid),
            BrokerRequest::Accounts { domid } => return self.accounts(domid),
            BrokerRequest::Pause { domid } => domains.living_guest(domid)?.pause()?,
            BrokerRequest::Unpause { domid } => domains.living_guest(domid)?.unpause()?,
            BrokerRequest::Shutdown { domid, reason } => self.shut_down(domid, reason)?,
            BrokerRequest::Destroy { domid } => self.destroy(domid)?,
            BrokerRequest::Vacate { domid } => self.vacate(id, domid)?,
            BrokerRequest::SetMemoryMax { domid, kib } => {
                self.arenas.set_memory_max(&mut self.parties, domid, kib)?;
            }
            BrokerRequest::Scheduling { domid } => {
                let Scheduling { weight, cap } = domains.living_guest(domid)?.scheduling;
                return words([weight.into(), cap.into()]);
            }
            BrokerRequest::SetScheduling { domid, weight, cap } => {
                domains.living_guest(domid)?.set_scheduling(Scheduling { weight, cap })?;
            }
            BrokerRequest::Process { domid } => {
                let process = domains.living_guest(domid)?.process.as_ref().ok_or(Error::Srch)?;
                let pidfd = process.pidfd.try_clone().map_err(|_| Error::NoMem)?;
                return Ok(Some((Vec::new(), vec![pidfd])));
            }
            BrokerRequest::Holder { domid } => {
                return words([domains.living_guest(domid)?.holder.map_or(0, PeerId::word)]);
            }
            BrokerRequest::HandOver { domid, holder } => self.hand_over(id, domid, holder)?,
            BrokerRequest::Keep { domid } => {
                // A domain that another connection holds by now stays with that one.
                domains.living_guest(domid)?.holder.take_if(|holder| *holder == id);
            }
            _ => return Err(Error::Inval),
        }
        words([])
    }

    fn list(&self, from: DomId) -> AnswerResult {
        let some = self.parties.domains.from(from).take(LISTED_AT_ONCE);
        let infos = some.map(|(domid, domain)| domain.info(domid, self.arenas.untouched(domid)));
        Ok(Some((infos.flat_map(|info| info_words(&info)).collect(), Vec::new())))
    }

    fn info(&self, domid: DomId) -> AnswerResult {
        let domain = self.parties.domains.get(domid).filter(|domain| domain.stage != Stage::Dead);
        words(info_words(&domain.ok_or(Error::Srch)?.info(domid, self.arenas.untouched(domid))))
    }

    /// Hands a domain that this connection holds to another one.
    fn hand_over(&mut self, id: PeerId, domid: DomId, holder: u64) -> Result<(), Error> {
        let to = PeerId::of(holder);
        let is_there = self.parties.peers.get(to).is_some();
        let domain = self.parties.domains.living_guest(domid)?;
        if domain.holder != Some(id) {
            return Err(Error::Inval);
        }
        domain.holder = Some(to);
        if is_there { Ok(()) } else { self.destroy(domid) }
    }

    fn accounts(&self, domid: DomId) -> AnswerResult {
        let domain = self.parties.domains.get(domid).ok_or(Error::Srch)?;
        let info = domain.info(domid, self.arenas.untouched(domid));
        let count = |counter| {
            let peers = domain.connections().filter_map(|id| self.parties.peers.get(id));
            let counts = peers.map(|peer| read_counter(&peer.counters, counter));
            counts.fold(0, u64::saturating_add)
        };
        words([
            info.cpu_time_ns,
            info.memory_kib,
            self.bindings.count(domid) as u64,
            self.arenas.count(domid) as u64,
            count(Counter::Granted),
            count(Counter::Mapped),
            self.bindings.notified(&self.parties, domid),
            domain.refused.saturating_add(count(Counter::Refused)),
        ])
    }
}
