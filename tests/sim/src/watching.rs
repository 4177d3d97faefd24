//! What a guest's watches must be told, and must not be told.
//!
//! The rules: what a change fires is told at least once after the change was asked for (the daemon may
//! merge it with the same event that still waits), nothing is told that no change has fired, and
//! nothing after the watch was taken away.

use crate::model::{Fired, Op, is_below};
use std::collections::{BTreeMap, BTreeSet};
use xenstore_core::client::Event;

/// A watch that was asked for.
struct Watched {
    /// Below the guest's home, or a shared node.
    place: Place,
    /// What of an absolute path its events do not show.
    hidden: usize,
    /// When it was known to stand.
    since: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    Own(String),
    Shared(usize),
}

/// One watch and one path that it is told.
#[derive(Default)]
struct Tally {
    /// How often it may be told, and was.
    may: u64,
    told: u64,
    /// When it was told last, and what it must have been told after.
    last: u64,
    owed_since: u64,
}

/// All watches of a guest.
pub(crate) struct Watching {
    home: String,
    watches: BTreeMap<String, Watched>,
    retired: BTreeSet<String>,
    tallies: BTreeMap<(String, String), Tally>,
    next_token: u64,
}

impl Watching {
    pub(crate) fn new(home: String) -> Self {
        let (watches, tallies) = (BTreeMap::new(), BTreeMap::new());
        Self { home, watches, retired: BTreeSet::new(), tallies, next_token: 0 }
    }

    fn absolute(&self, place: &Place) -> String {
        match place {
            Place::Own(path) if path.is_empty() => self.home.clone(),
            Place::Own(path) => format!("{}/{path}", self.home),
            Place::Shared(which) => format!("/shared/{which}"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    /// The payload that sets a watch; relative paths show as they were given.
    pub(crate) fn set(&mut self, place: Place, relative: bool, now: u64) -> String {
        self.next_token += 1;
        let token = format!("t{}", self.next_token);
        let absolute = self.absolute(&place);
        let hidden = match &place {
            Place::Own(path) if relative && !path.is_empty() => self.home.len() + 1,
            _ => 0,
        };
        let given = absolute[hidden..].to_owned();
        let tally = Tally { may: 1, owed_since: now, ..Tally::default() };
        self.tallies.insert((token.clone(), given.clone()), tally);
        let payload = format!("{given}\0{token}\0");
        self.watches.insert(token, Watched { place, hidden, since: None });
        payload
    }

    /// The payload that takes a watch away which stands.
    pub(crate) fn unset(&mut self, choice: usize) -> Option<String> {
        let standing = self.watches.iter().filter(|(_, watch)| watch.since.is_some());
        let standing: Vec<_> = standing.map(|(token, _)| token.clone()).collect();
        let token = standing.get(choice.checked_rem(standing.len())?)?;
        let watch = self.watches.get(token)?;
        let payload = format!("{}\0{token}\0", &self.absolute(&watch.place)[watch.hidden..]);
        // From here on nothing is owed; what still comes is allowed until the reply.
        for tally in self.of(token) {
            tally.owed_since = 0;
        }
        if let Some(watch) = self.watches.get_mut(token) {
            watch.since = None;
        }
        Some(payload)
    }

    fn of(&mut self, token: &str) -> impl Iterator<Item = &mut Tally> {
        let tallies = self.tallies.iter_mut();
        tallies.filter(move |((of, _), _)| of == token).map(|(_, tally)| tally)
    }

    /// The watch of this payload stands.
    pub(crate) fn stands(&mut self, payload: &str, now: u64) {
        if let Some(watch) = token_of(payload).and_then(|token| self.watches.get_mut(token)) {
            watch.since = Some(now);
        }
    }

    /// The watch of this payload was taken away.
    pub(crate) fn is_gone(&mut self, payload: &str) {
        if let Some(token) = token_of(payload) {
            self.watches.remove(token);
            self.tallies.retain(|(of, _), _| of != token);
            self.retired.insert(token.to_owned());
        }
    }

    /// The connection was cut, and all watches with it.
    pub(crate) fn cut(&mut self) {
        self.retired.extend(std::mem::take(&mut self.watches).into_keys());
        self.tallies.clear();
    }

    /// A change was asked for: what it may fire from now on.
    pub(crate) fn asked(&mut self, op: &Op) {
        let Some(path) = op.changes() else { return };
        let absolute = self.absolute(&Place::Own(path.to_owned()));
        let removes = matches!(op, Op::Remove(_));
        for (token, watch) in &self.watches {
            let Place::Own(watched) = &watch.place else { continue };
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

    /// A change that was asked for at `asked` was made: who is to be told.
    pub(crate) fn fired(&mut self, fired: &[Fired], asked: u64) {
        for Fired { path, below } in fired {
            let absolute = self.absolute(&Place::Own(path.clone()));
            for (token, watch) in &self.watches {
                let Place::Own(watched) = &watch.place else { continue };
                if watch.since.is_none_or(|since| since >= asked) {
                    continue;
                }
                let told = if path == watched || is_below(path, watched) {
                    absolute[watch.hidden..].to_owned()
                } else if below.contains(watched) {
                    format!("{}/{watched}", self.home)[watch.hidden..].to_owned()
                } else {
                    continue;
                };
                let tally = self.tallies.entry((token.clone(), told)).or_default();
                tally.owed_since = tally.owed_since.max(asked);
            }
        }
    }

    /// A shared node was written, which was asked for at `asked`.
    pub(crate) fn shared_written(&mut self, which: usize, asked: u64) {
        for (token, watch) in &self.watches {
            if watch.place == Place::Shared(which) && watch.since.is_some_and(|at| at < asked) {
                let told = format!("/shared/{which}");
                let tally = self.tallies.entry((token.clone(), told)).or_default();
                tally.owed_since = tally.owed_since.max(asked);
            }
        }
    }

    /// An event came.
    pub(crate) fn event(&mut self, event: &Event, now: u64) -> Result<(), String> {
        let path = String::from_utf8_lossy(&event.path).into_owned();
        let token = String::from_utf8_lossy(&event.token).into_owned();
        if self.retired.contains(&token) {
            return Err(format!("an event at {path} of watch {token}, which is gone"));
        }
        let watch = self.watches.get(&token);
        let watch = watch.ok_or_else(|| format!("an event at {path} of no watch: {token}"))?;
        let shared = matches!(watch.place, Place::Shared(_));
        let tally = self.tallies.get_mut(&(token.clone(), path.clone()));
        let tally = tally.ok_or_else(|| format!("watch {token} is told {path}, not its own"))?;
        tally.last = now;
        tally.told += 1;
        if !shared && tally.told > tally.may {
            let Tally { told, may, .. } = tally;
            return Err(format!("watch {token} was told {path} {told} times for {may} changes"));
        }
        Ok(())
    }

    /// That nothing is owed any more.
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
