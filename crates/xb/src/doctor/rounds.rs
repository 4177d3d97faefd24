//! The domains of a host, examined one after the other, some at a time.

use super::examine::{SECOND_LOOK_AFTER, glance, retain_agreed};
use super::judge::Finding;
use crate::Error;
use crate::devices::disk::stats::DiskStats;
use crate::host::Host;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use xen::DomId;

/// A domain, and what tells it from others of its number.
type VisitedDomain = (DomId, [u8; 16]);

/// A visit to a domain.
#[derive(Debug)]
struct Visit {
    at: Instant,
    /// The findings.
    found: Vec<Finding>,
    /// The word on it: a finding of this visit that is no matter of progress, or that the visit
    /// before had, too.
    word: Option<String>,
}

/// The rounds of a doctor: how a domain was at the last visit.
#[derive(Debug, Default)]
pub(crate) struct DoctorRounds {
    visits: BTreeMap<VisitedDomain, Visit>,
    /// The domain that was visited last.
    last: Option<VisitedDomain>,
}

impl DoctorRounds {
    /// Visits some of these domains, in turn, until `budget` is over: at least one. The one that is
    /// `favoured` comes first each time.
    ///
    /// # Errors
    /// The store or the hypervisor does not answer.
    pub(crate) fn visit(
        &mut self,
        host: &mut Host,
        domains: &[VisitedDomain],
        favoured: Option<VisitedDomain>,
        counted: &[DiskStats],
        budget: Duration,
    ) -> Result<(), Error> {
        self.visits.retain(|domain, _| domains.contains(domain));
        let end = Instant::now() + budget;
        let favoured = favoured.filter(|domain| domains.contains(domain));
        for domain in favoured.into_iter().chain(turns(domains, self.last)) {
            // Whoever was visited this moment would not be found to have made progress.
            let is_soon = |visit: &Visit| visit.at.elapsed() < SECOND_LOOK_AFTER;
            if self.visits.get(&domain).is_some_and(is_soon) {
                continue;
            }
            let found = glance(host, domain.0, counted)?;
            self.note(domain, found);
            if Some(domain) != favoured {
                self.last = Some(domain);
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Notes what a visit has found.
    fn note(&mut self, domain: VisitedDomain, found: Vec<Finding>) {
        let mut agreed = found.clone();
        let before = self.visits.remove(&domain).map(|visit| visit.found);
        retain_agreed(&mut agreed, &before.unwrap_or_default());
        let word = agreed.first().map(Finding::advice);
        self.visits.insert(domain, Visit { at: Instant::now(), found, word });
    }

    /// Returns what is said of each domain that is not well.
    pub(crate) fn words(&self) -> BTreeMap<VisitedDomain, String> {
        let words = self.visits.iter().map(|(domain, visit)| Some((*domain, visit.word.clone()?)));
        words.flatten().collect()
    }
}

/// Returns the domains from the one behind `last` on, round to that.
fn turns(
    domains: &[VisitedDomain],
    last: Option<VisitedDomain>,
) -> impl Iterator<Item = VisitedDomain> {
    let first = last.map_or(0, |last| domains.partition_point(|domain| *domain <= last));
    let (before, behind) = domains.split_at(first);
    behind.iter().chain(before).copied().collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::cause::{FaultCause, GuestFault};
    use crate::doctor::subject::FaultSubject;

    fn domain(number: u16) -> VisitedDomain {
        (DomId(number), [0; 16])
    }

    #[test]
    fn each_domain_has_its_turn() {
        let domains = [domain(0), domain(2), domain(5)];
        let order = |last| turns(&domains, last).map(|(domid, _)| domid.0).collect::<Vec<_>>();
        assert_eq!(order(None), [0, 2, 5]);
        assert_eq!(order(Some(domain(0))), [2, 5, 0]);
        assert_eq!(order(Some(domain(3))), [5, 0, 2], "it is gone");
        assert_eq!(order(Some(domain(5))), [0, 2, 5]);
    }

    #[test]
    fn a_matter_of_progress_is_said_at_the_second_visit() {
        let finding = |cause| Finding {
            subject: FaultSubject { device: Some("xvda".into()), ..FaultSubject::default() },
            cause: FaultCause::Guest(cause),
            evidence: Vec::new(),
        };
        let mut rounds = DoctorRounds::default();
        let said = |rounds: &DoctorRounds| rounds.words().contains_key(&domain(1));
        rounds.note(domain(1), vec![finding(GuestFault::NoDriver)]);
        assert!(!said(&rounds));
        rounds.note(domain(1), vec![finding(GuestFault::NoDriver)]);
        assert!(said(&rounds));
        rounds.note(domain(1), vec![finding(GuestFault::Paused)]);
        assert!(said(&rounds), "it is no matter of progress");
        rounds.note(domain(1), Vec::new());
        assert!(!said(&rounds));
    }
}
