//! The events that a guest's watches must get, and those that they must not.
//!
//! The rules: each change fires at least one event after its request (the daemon may merge it with
//! an equal event that still waits). No event comes without a change, and none after the watch was
//! removed.

use crate::model::{NodeChange, Op, is_below};
use std::collections::{BTreeMap, BTreeSet};
use xenstore_core::client::Event;

/// A watch that was requested.
struct WatchRecord {
    /// A path below the guest's home, or a shared node.
    place: WatchedPlace,
    /// The length of the part of an absolute path that its events omit.
    hidden: usize,
    /// The tick since which the watch is known to exist.
    since: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum WatchedPlace {
    Own(String),
    Shared(usize),
}

/// The count of the events of one watch for one path.
#[derive(Default)]
struct WatchTally {
    /// The number of events that are allowed, and of those that came.
    may: u64,
    told: u64,
    /// The tick of the last event, and the tick after which an event must have come.
    last: u64,
    owed_since: u64,
}

/// The checker of the events of a guest's watches.
pub(crate) struct WatchChecker {
    home: String,
    watches: BTreeMap<String, WatchRecord>,
    retired: BTreeSet<String>,
    tallies: BTreeMap<(String, String), WatchTally>,
    next_token: u64,
}

impl WatchChecker {
    pub(crate) fn new(home: String) -> Self {
        let (watches, tallies) = (BTreeMap::new(), BTreeMap::new());
        Self { home, watches, retired: BTreeSet::new(), tallies, next_token: 0 }
    }

    fn absolute(&self, place: &WatchedPlace) -> String {
        match place {
            WatchedPlace::Own(path) if path.is_empty() => self.home.clone(),
            WatchedPlace::Own(path) => format!("{}/{path}", self.home),
            WatchedPlace::Shared(which) => format!("/shared/{which}"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Returns the payload that sets a watch. Events of relative paths show them as they were
    /// given.
    pub(crate) fn set(&mut self, place: WatchedPlace, relative: bool, now: u64) -> String {
        self.next_token += 1;
        let token = format!("t{}", self.next_token);
        let absolute = self.absolute(&place);
        let hidden = match &place {
            WatchedPlace::Own(path) if relative && !path.is_empty() => self.home.len() + 1,
            _ => 0,
        };
        let given = absolute[hidden..].to_owned();
        let tally = WatchTally { may: 1, owed_since: now, ..WatchTally::default() };
        self.tallies.insert((token.clone(), given.clone()), tally);
        let payload = format!("{given}\0{token}\0");
        self.watches.insert(token, WatchRecord { place, hidden, since: None });
        payload
    }

    /// Returns the payload that removes an existing watch.
    pub(crate) fn unset(&mut self, choice: usize) -> Option<String> {
        let standing = self.watches.iter().filter(|(_, watch)| watch.since.is_some());
        let standing: Vec<_> = standing.map(|(token, _)| token.clone()).collect();
        let token = standing.get(choice.checked_rem(standing.len())?)?;
        let watch = self.watches.get(token)?;
        let payload = format!("{}\0{token}\0", &self.absolute(&watch.place)[watch.hidden..]);
        // From here on no event is owed; further ones are allowed until the reply.
        for tally in self.tallies_of(token) {
            tally.owed_since = 0;
        }
        if let Some(watch) = self.watches.get_mut(token) {
            watch.since = None;
        }
        Some(payload)
    }

    fn tallies_of(&mut self, token: &str) -> impl Iterator<Item = &mut WatchTally> {
        let tallies = self.tallies.iter_mut();
        tallies.filter(move |((of, _), _)| of == token).map(|(_, tally)| tally)
    }

    /// Notes that the watch of this payload exists.
    pub(crate) fn note_set(&mut self, payload: &str, now: u64) {
        if let Some(watch) = token_of(payload).and_then(|token| self.watches.get_mut(token)) {
            watch.since = Some(now);
        }
    }

    /// Notes that the watch of this payload was removed.
    pub(crate) fn note_removed(&mut self, payload: &str) {
        if let Some(token) = token_of(payload) {
            self.watches.remove(token);
            self.tallies.retain(|(of, _), _| of != token);
            self.retired.insert(token.to_owned());
        }
    }

    /// Notes that the connection was cut, which removes all watches.
    pub(crate) fn cut(&mut self) {
        self.retired.extend(std::mem::take(&mut self.watches).into_keys());
        self.tallies.clear();
    }

    /// Notes a request for a change, and the events that are allowed from now on.
    pub(crate) fn note_request(&mut self, op: &Op) {
        let Some(path) = op.changes() else { return };
        let absolute = self.absolute(&WatchedPlace::Own(path.to_owned()));
        let removes = matches!(op, Op::Remove(_));
        for (token, watch) in &self.watches {
            let WatchedPlace::Own(watched) = &watch.place else { continue };
            let above = path == watched || is_below(path, watched);
            let told = if above {
                &absolute[watch.hidden.min(absolute.len())..]
            } else if removes && is_below(watched, path) {
                let full = format!("{}/{watched}", self.home);
                let told = full[watch.hidden..].to_owned();
                self.tallies.entry((token.clone(), told)).or_default().may += 1;
                continue;
            } else {
                continue;
            };
            self.tallies.entry((token.clone(), told.to_owned())).or_default().may += 1;
        }
    }

    /// Notes that a change requested at `asked` was made, and the events that it owes.
    pub(crate) fn note_changes(&mut self, fired: &[NodeChange], asked: u64) {
        for NodeChange { path, removed_below } in fired {
            let absolute = self.absolute(&WatchedPlace::Own(path.clone()));
            for (token, watch) in &self.watches {
                let WatchedPlace::Own(watched) = &watch.place else { continue };
                if watch.since.is_none_or(|since| since >= asked) {
                    continue;
                }
                let told = if path == watched || is_below(path, watched) {
                    absolute[watch.hidden..].to_owned()
                } else if removed_below.contains(watched) {
                    format!("{}/{watched}", self.home)[watch.hidden..].to_owned()
                } else {
                    continue;
                };
                let tally = self.tallies.entry((token.clone(), told)).or_default();
                tally.owed_since = tally.owed_since.max(asked);
            }
        }
    }

    /// Notes that a shared node was written, which was requested at `asked`.
    pub(crate) fn shared_written(&mut self, which: usize, asked: u64) {
        for (token, watch) in &self.watches {
            if watch.place == WatchedPlace::Shared(which)
                && watch.since.is_some_and(|at| at < asked)
            {
                let told = format!("/shared/{which}");
                let tally = self.tallies.entry((token.clone(), told)).or_default();
                tally.owed_since = tally.owed_since.max(asked);
            }
        }
    }

    /// Checks an event against those that are allowed.
    pub(crate) fn check_event(&mut self, event: &Event, now: u64) -> Result<(), String> {
        let path = String::from_utf8_lossy(&event.path).into_owned();
        let token = String::from_utf8_lossy(&event.token).into_owned();
        if self.retired.contains(&token) {
            return Err(format!("an event at {path} of watch {token}, which is gone"));
        }
        let watch = self.watches.get(&token);
        let watch = watch.ok_or_else(|| format!("an event at {path} of no watch: {token}"))?;
        let shared = matches!(watch.place, WatchedPlace::Shared(_));
        let tally = self.tallies.get_mut(&(token.clone(), path.clone()));
        let tally = tally.ok_or_else(|| format!("watch {token} is told {path}, not its own"))?;
        tally.last = now;
        tally.told += 1;
        if !shared && tally.told > tally.may {
            let WatchTally { told, may, .. } = tally;
            return Err(format!("watch {token} was told {path} {told} times for {may} changes"));
        }
        Ok(())
    }

    /// Checks that no event is owed any more.
    pub(crate) fn check(&self) -> Result<(), String> {
        for ((token, path), tally) in &self.tallies {
            let watch = self.watches.get(token);
            if watch.is_some_and(|watch| watch.since.is_some()) && tally.owed_since > tally.last {
                return Err(format!("watch {token} was not told of the last change at {path}"));
            }
        }
        Ok(())
    }
}

fn token_of(payload: &str) -> Option<&str> {
    payload.trim_end_matches('\0').rsplit('\0').next()
}
