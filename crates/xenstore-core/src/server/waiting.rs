//! Requests that wait for the end of another's turn, or for a turn of their own ([`super::turn`]).
//!
//! Domain 0 and the guests have separate queues. A queue is searched only after a turn has ended,
//! and the guests' only in the guests' time, some requests in each round. A waiting request holds
//! up only those other requests of its connection whose answers would show the difference.

use super::class::CallerClass;
use super::connection::Connection;
use crate::id::{ConnId, DomId};
use crate::limits::DELAYED_WEIGHT;
use crate::path::{Path, SpecialPaths, resolve};
use crate::transaction::Touch;
use crate::tree::Tree;
use crate::wire::{Header, MsgType, Strings};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// A request that waits.
pub(super) struct WaitingRequest {
    pub(super) conn: ConnId,
    pub(super) header: Header,
    pub(super) payload: Box<[u8]>,
    /// The path in its payload, made absolute.
    path: Option<Box<[u8]>>,
    pub(super) since: u64,
    pub(super) why: WaitCause,
}

/// The cause for which a request waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WaitCause {
    /// The end of another's turn, or of an earlier request that waits for one.
    AnEnd,
    /// A turn of its own.
    ATurn,
}

/// The outcome of an attempt to run a request.
pub(super) enum Attempt {
    Done,
    Wait(WaitCause),
}

/// Returns the first path in a request's payload, made absolute, if its kind has one. Relative
/// paths begin at `home`'s home.
fn first_path<'a>(
    home: DomId,
    header: &Header,
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Option<Path<'a>> {
    let given = match MsgType::from_code(header.kind)? {
        MsgType::Read
        | MsgType::Write
        | MsgType::Mkdir
        | MsgType::Rm
        | MsgType::Directory
        | MsgType::DirectoryPart
        | MsgType::GetPerms
        | MsgType::SetPerms => Strings::new(payload).next()?,
        _ => return None,
    };
    resolve(given, home.0, SpecialPaths::Allowed, scratch).ok()
}

impl WaitingRequest {
    /// Returns a request of a connection of this domain.
    pub(super) fn new(
        (conn, domid): (ConnId, DomId),
        header: &Header,
        payload: &[u8],
        why: WaitCause,
        since: u64,
    ) -> Self {
        let mut scratch = Vec::new();
        let path = first_path(domid, header, payload, &mut scratch);
        let path = path.map(|path| Box::from(path.as_bytes()));
        Self { conn, header: *header, payload: Box::from(payload), path, since, why }
    }

    /// Returns its bytes for the quota `memory`.
    pub(super) fn weight(&self) -> i64 {
        let path = self.path.as_deref().map_or(0, <[u8]>::len);
        (self.payload.len().saturating_add(path) as i64).saturating_add(DELAYED_WEIGHT)
    }

    /// True if a later request of its connection must wait behind it, as the order would show in
    /// one of the answers.
    fn holds_up(&self, header: &Header, path: Option<Path<'_>>, tree: &Tree) -> bool {
        if self.header.tx_id != header.tx_id {
            return false;
        }
        let Some((one, two)) = self.path.as_deref().map(Path::checked).zip(path) else {
            return header.tx_id != 0;
        };
        let second = MsgType::from_code(header.kind);
        if header.tx_id != 0 || one == two {
            return true;
        }
        if !one.overlaps(two) {
            return false;
        }
        let removes_or_permits = matches!(second, Some(MsgType::Rm | MsgType::SetPerms));
        let is_below = two.as_bytes().len() > one.as_bytes().len();
        removes_or_permits
            || match self.touch(one, tree) {
                Touch::Value => false,
                // Nodes made below inherit the permissions. Existing nodes have their own.
                Touch::Perms => is_below && tree.get(two).is_none(),
                Touch::Existence { nearest } => {
                    let lists = matches!(second, Some(MsgType::Directory | MsgType::DirectoryPart));
                    is_below
                        || two.as_bytes().len() > nearest
                        || (two.as_bytes().len() == nearest && lists)
                }
            }
    }

    /// Returns the effect on its path, if it is a change.
    fn touch(&self, path: Path<'_>, tree: &Tree) -> Touch {
        match MsgType::from_code(self.header.kind) {
            Some(MsgType::SetPerms) => Touch::Perms,
            Some(MsgType::Write | MsgType::Mkdir) if tree.get(path).is_some() => Touch::Value,
            _ => Touch::existence(tree, path),
        }
    }
}

/// The waiting requests of one class of callers.
#[derive(Default)]
pub(super) struct ClassQueue {
    /// The requests by number, in the order of arrival.
    waiting: BTreeMap<u64, WaitingRequest>,
    /// The number of the next request.
    next: u64,
    /// True if a turn has ended that some requests may have waited for, and the tries are not
    /// planned yet.
    turn_ended: bool,
    /// The requests that are still to be tried since then, in order.
    to_try: VecDeque<u64>,
    /// True if one of them is being tried.
    trying: bool,
}

impl ClassQueue {
    /// Records that a turn has ended.
    pub(super) fn record_turn_end(&mut self) {
        self.turn_ended = true;
    }

    /// True if some requests are to be tried.
    pub(super) fn is_due(&self) -> bool {
        !self.waiting.is_empty() && (self.turn_ended || !self.to_try.is_empty())
    }

    /// True if the requests that have waited for a turn come before the one at hand, which wants a
    /// turn.
    pub(super) fn comes_first(&self) -> bool {
        !self.trying && !self.to_try.is_empty()
    }

    /// Adds a request, and returns its number.
    pub(super) fn push(&mut self, waiting: WaitingRequest) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.waiting.insert(number, waiting);
        if !self.to_try.is_empty() {
            // It has waited for the same turn, only not as long.
            self.to_try.push_back(number);
        }
        number
    }

    /// Adds a request again that has been tried.
    pub(super) fn put_back(&mut self, number: u64, waiting: WaitingRequest) {
        self.waiting.insert(number, waiting);
    }

    /// Drops requests.
    pub(super) fn forget(&mut self, numbers: VecDeque<u64>) {
        for number in numbers {
            self.waiting.remove(&number);
        }
    }

    /// Returns the requests of a connection, in the order of arrival.
    fn of<'q>(
        &'q self,
        connection: &'q Connection,
    ) -> impl Iterator<Item = (u64, &'q WaitingRequest)> {
        let numbers = connection.delayed.iter().copied();
        numbers.filter_map(|number| Some((number, self.waiting.get(&number)?)))
    }

    /// True if a new request must wait behind one of its connection.
    pub(super) fn holds_up(
        &self,
        connection: &Connection,
        header: &Header,
        payload: &[u8],
        tree: &Tree,
    ) -> bool {
        let mut scratch = Vec::new();
        let path = first_path(connection.domid, header, payload, &mut scratch);
        self.of(connection).any(|(_, waiting)| waiting.holds_up(header, path, tree))
    }

    /// Appends the requests of a connection, in the order of arrival.
    pub(super) fn write_input(&self, connection: &Connection, to: &mut Vec<u8>) {
        for (_, waiting) in self.of(connection) {
            to.extend_from_slice(&waiting.header.to_bytes());
            to.extend_from_slice(&waiting.payload);
        }
    }

    /// True if a turn has ended since the last call. Then the tries have to be planned.
    pub(super) fn take_end(&mut self) -> bool {
        core::mem::take(&mut self.turn_ended)
    }

    /// Plans the tries after the end of a turn: first all requests that wait for an end, then those
    /// that want a turn. A guest whose last turn ended long ago comes before one that has just had
    /// a turn. Returns the number of requests.
    pub(super) fn plan(&mut self, class: CallerClass, last_turn: impl Fn(ConnId) -> u64) -> usize {
        let of_kind = |why: WaitCause| {
            self.waiting
                .iter()
                .filter(move |(_, waiting)| waiting.why == why)
                .map(|(number, _)| *number)
        };
        let mut seekers: Vec<u64> = of_kind(WaitCause::ATurn).collect();
        if class == CallerClass::Guest {
            seekers.sort_by_cached_key(|number| {
                let waiting = self.waiting.get(number);
                (waiting.map_or(0, |waiting| last_turn(waiting.conn)), *number)
            });
        }
        self.to_try = of_kind(WaitCause::AnEnd).chain(seekers).collect();
        self.to_try.len()
    }

    /// Returns the number of the next request to be tried, once.
    pub(super) fn next_to_try(&mut self) -> Option<u64> {
        self.to_try.pop_front()
    }

    pub(super) fn get(&self, number: u64) -> Option<&WaitingRequest> {
        self.waiting.get(&number)
    }

    /// True if an earlier request of the connection waits and holds this one up.
    pub(super) fn is_held_up(
        &self,
        number: u64,
        waiting: &WaitingRequest,
        connection: &Connection,
        tree: &Tree,
    ) -> bool {
        let path = waiting.path.as_deref().map(Path::checked);
        let mut before = self.of(connection).take_while(|(other, _)| *other < number);
        before.any(|(_, first)| first.holds_up(&waiting.header, path, tree))
    }

    /// Takes a request out to try it, until [`ClassQueue::end_try`].
    pub(super) fn begin_try(&mut self, number: u64) -> Option<WaitingRequest> {
        let waiting = self.waiting.remove(&number)?;
        self.trying = true;
        Some(waiting)
    }

    /// Records that the try is over: the request is done, or waits again.
    pub(super) fn end_try(&mut self) {
        self.trying = false;
    }

    /// Plans tries of those requests of a connection that came after one that is done now: they may
    /// have waited for it.
    pub(super) fn try_followers(&mut self, connection: &Connection, number: u64) {
        let behind = self
            .of(connection)
            .filter(|(other, waiting)| *other > number && waiting.why == WaitCause::AnEnd);
        let behind: Vec<u64> = behind.map(|(number, _)| number).collect();
        self.to_try.extend(behind);
    }
}
