//! The counts of runs.

use super::machine::CountedCall;
use std::collections::BTreeMap;

/// The names of the counts.
const COUNTED: [&str; 12] = [
    "backends started",
    "guests built",
    "guests that died",
    "devices that connected",
    "devices that failed",
    "devices made anew",
    "requests answered",
    "indices shown half written",
    "events lost",
    "events late",
    "events that nobody raised",
    "checks",
];

/// The counts of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceTally {
    counts: BTreeMap<&'static str, u64>,
    /// The deaths, by process and call.
    deaths: BTreeMap<(&'static str, CountedCall), u64>,
}

impl DeviceTally {
    pub(super) fn count(&mut self, what: &'static str, by: u64) {
        debug_assert!(COUNTED.contains(&what), "{what}");
        *self.counts.entry(what).or_default() += by;
    }

    pub(super) fn count_death(&mut self, who: &'static str, call: CountedCall) {
        *self.deaths.entry((who, call)).or_default() += 1;
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (String, u64)> {
        let count = |what: &str| self.counts.get(what).copied().unwrap_or_default();
        let counts = COUNTED.iter().map(move |what| ((*what).to_owned(), count(what)));
        let calls = [("backends", CountedCall::OF_A_BACKEND), ("guests", CountedCall::OF_A_GUEST)];
        let deaths =
            calls.into_iter().flat_map(|(who, calls)| calls.iter().map(move |call| (who, *call)));
        counts.chain(deaths.map(|(who, call)| {
            let count = self.deaths.get(&(who, call)).copied().unwrap_or_default();
            (format!("{who} that died at {call:?}"), count)
        }))
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            self.count(what, *count);
        }
        for (death, count) in &other.deaths {
            *self.deaths.entry(*death).or_default() += count;
        }
    }
}
