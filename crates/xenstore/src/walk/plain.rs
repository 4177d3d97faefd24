//! The plain walk: READ, GET_PERMS and DIRECTORY for each node, many in flight.
//!
//! The nodes to visit are a list in the order of the visit. Its entries are nodes whose requests
//! may be in flight, and remainders of directories, from which nodes are taken only shortly before
//! their turn. A listing that arrives early is put behind its node at once, so that a deep narrow
//! tree keeps as many requests in flight as a broad one.

use super::node::{Node, join};
use super::options::{NodeParts, Options};
use crate::client::{Client, Ticket};
use crate::error::Error;
use crate::store::{directory_bytes, parse_perms};
use crate::transaction::Transaction;
use std::collections::VecDeque;
use std::rc::Rc;
use xenstore_core::wire::{self, MsgType, Strings};

/// The number of entries at the front that are searched for requests to send.
const WINDOW: usize = 256;
/// The most nodes that have been requested and not visited. Each holds at most three replies of
/// 4096 bytes: 12 MiB in all, and hardly ever more than some 100 KiB.
const REQUESTED_MAX: usize = 1024;

/// Children of one node.
struct ChildNames {
    path: Vec<u8>,
    /// The depth of the children.
    depth: usize,
    /// The names, each with a NUL after it.
    names: Vec<u8>,
}

/// A node on the list.
struct Item {
    path: Vec<u8>,
    depth: usize,
    state: ItemState,
    /// True if the bulk read has visited the node: only its children are visited now.
    silent: bool,
}

enum ItemState {
    Unasked,
    Requested { value: Option<Ticket>, perms: Option<Ticket>, listing: Listing },
}

enum Listing {
    Awaited(Ticket),
    /// The listing is behind its node on the list.
    Placed,
    /// The error is handled when the node's turn comes.
    Refused(Error),
}

enum ListEntry {
    Item(Box<Item>),
    /// The children from this offset on.
    Rest(Rc<ChildNames>, usize),
}

/// A plain walk.
pub(super) struct PlainWalk {
    options: Options,
    /// The last node, in sorted order, that the bulk read has visited.
    after: Option<Vec<u8>>,
    list: VecDeque<ListEntry>,
    /// The number of nodes on the list whose requests have been sent.
    requested: usize,
}

impl PlainWalk {
    pub(super) fn new(options: Options, after: Option<Vec<u8>>) -> Self {
        Self { options, after, list: VecDeque::new(), requested: 0 }
    }

    pub(super) fn run<E: From<Error>>(
        mut self,
        client: &mut Client,
        root: &[u8],
        visit: &mut impl FnMut(Node) -> Result<(), E>,
    ) -> Result<(), E> {
        let names = self.list_now(client, root)?;
        self.insert(0, root.to_vec(), 0, names);
        let result = self.visit_all(client, visit);
        // A reply that no caller takes would stay with the connection.
        for entry in self.list {
            if let ListEntry::Item(item) = entry {
                forget(client, item.state);
            }
        }
        result
    }

    fn visit_all<E: From<Error>>(
        &mut self,
        client: &mut Client,
        visit: &mut impl FnMut(Node) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            self.send(client)?;
            // `send` has made sure that the first entry is no remainder of a directory.
            let Some(ListEntry::Item(item)) = self.list.pop_front() else { return Ok(()) };
            self.finish(client, *item, visit)?;
        }
    }

    /// Lists a directory of any length, and waits for the listing.
    fn list_now(&self, client: &mut Client, path: &[u8]) -> Result<Vec<u8>, Error> {
        directory_bytes(&mut Transaction::within(client, self.options.tx), path)
    }

    /// Puts the children of a directory on the list.
    fn insert(&mut self, at: usize, path: Vec<u8>, depth: usize, names: Vec<u8>) {
        if !names.is_empty() {
            self.list.insert(at, ListEntry::Rest(Rc::new(ChildNames { path, depth, names }), 0));
        }
    }

    /// Keeps enough requests in flight, for the first nodes of the list.
    fn send(&mut self, client: &mut Client) -> Result<(), Error> {
        let front_asked = matches!(self.list.front(), Some(ListEntry::Item(item))
            if !matches!(item.state, ItemState::Unasked));
        if front_asked && client.in_flight() > self.options.in_flight_max / 2 {
            return Ok(());
        }
        let mut at = 0;
        // The requests of the first node are sent regardless of the bounds, as its replies are
        // awaited next.
        while at == 0 || self.may_request_more(client, at) {
            match self.list.get_mut(at) {
                None => break,
                Some(ListEntry::Rest(dir, from)) => {
                    let (dir, from) = (Rc::clone(dir), *from);
                    self.take_child(at, &dir, from);
                }
                Some(ListEntry::Item(item)) => {
                    if matches!(item.state, ItemState::Unasked) {
                        item.state = request_node(client, self.options, item)?;
                        self.requested += 1;
                    } else {
                        self.place_listing(client, at)?;
                    }
                    at += 1;
                }
            }
        }
        client.flush()
    }

    fn may_request_more(&self, client: &Client, at: usize) -> bool {
        at < WINDOW
            && self.requested < REQUESTED_MAX
            && client.in_flight() < self.options.in_flight_max
    }

    /// Replaces the remainder of a directory at `at` by its first child and the remainder after
    /// that child.
    fn take_child(&mut self, at: usize, dir: &Rc<ChildNames>, from: usize) {
        let mut strings = Strings::new(dir.names.get(from..).unwrap_or_default());
        let Some(name) = strings.next() else {
            self.list.remove(at);
            return;
        };
        let next = dir.names.len().saturating_sub(strings.rest().len());
        if let Some(ListEntry::Rest(_, from)) = self.list.get_mut(at) {
            *from = next;
        }
        let path = join(&dir.path, name);
        let silent = match self.visited_part(&path) {
            VisitedPart::Not => false,
            VisitedPart::Above => true,
            VisitedPart::Wholly => return,
        };
        let item = Item { path, depth: dir.depth, state: ItemState::Unasked, silent };
        self.list.insert(at, ListEntry::Item(Box::new(item)));
    }

    fn visited_part(&self, path: &[u8]) -> VisitedPart {
        let Some(last) = &self.after else { return VisitedPart::Not };
        let below = last.strip_prefix(path);
        if below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")) {
            return VisitedPart::Above;
        }
        let parts = |path| <[u8]>::split(path, |byte| *byte == b'/');
        if parts(path).lt(parts(last)) { VisitedPart::Wholly } else { VisitedPart::Not }
    }

    /// Puts the listing of the node at `at` behind it, if the listing has arrived before the node's
    /// turn.
    fn place_listing(&mut self, client: &mut Client, at: usize) -> Result<(), Error> {
        let Some(ListEntry::Item(item)) = self.list.get_mut(at) else { return Ok(()) };
        let ItemState::Requested { listing, .. } = &mut item.state else { return Ok(()) };
        if !matches!(listing, Listing::Awaited(ticket) if client.is_ready(ticket)) {
            return Ok(());
        }
        let Listing::Awaited(ticket) = std::mem::replace(listing, Listing::Placed) else {
            return Ok(());
        };
        match pass_refusal(client.wait(ticket))? {
            Ok(names) => {
                let (path, depth) = (item.path.clone(), item.depth + 1);
                self.insert(at + 1, path, depth, names);
            }
            Err(refused) => *listing = Listing::Refused(refused),
        }
        Ok(())
    }

    /// Visits the first node of the list, and puts its children in its place.
    fn finish<E: From<Error>>(
        &mut self,
        client: &mut Client,
        item: Item,
        visit: &mut impl FnMut(Node) -> Result<(), E>,
    ) -> Result<(), E> {
        let Item { path, depth, state, silent } = item;
        let ItemState::Requested { value, perms, listing } = state else { return Ok(()) };
        self.requested = self.requested.saturating_sub(1);
        if let (Some(value), false) = (value, silent) {
            let value = pass_refusal(client.wait(value))?;
            let perms = match perms {
                Some(ticket) => {
                    let reply = pass_refusal(client.wait(ticket))?;
                    Some(reply.and_then(|reply| parse_perms(&path, reply)))
                }
                None => None,
            };
            if let Err(error) = visit(Node { path: path.clone(), depth, value, perms }) {
                forget(client, ItemState::Requested { value: None, perms: None, listing });
                return Err(error);
            }
        }
        let names = match listing {
            Listing::Placed => return Ok(()),
            Listing::Refused(error) => Err(error),
            Listing::Awaited(ticket) => client.wait(ticket),
        };
        let names = match names {
            Err(error) if error.refusal() == Some(wire::Error::TooBig) => {
                self.list_now(client, &path)
            }
            result => result,
        };
        match names {
            Ok(names) => self.insert(0, path, depth + 1, names),
            // The node has vanished meanwhile.
            Err(error) if error.refusal() == Some(wire::Error::NoEnt) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The part of a node's subtree that the bulk read has visited.
enum VisitedPart {
    Not,
    /// The node, and some of the nodes below it.
    Above,
    Wholly,
}

/// Passes on a refusal, which is about the node. Any other error ends the walk.
fn pass_refusal(result: Result<Vec<u8>, Error>) -> Result<Result<Vec<u8>, Error>, Error> {
    match result {
        Err(error @ Error::Refused { .. }) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(reply) => Ok(Ok(reply)),
    }
}

fn forget(client: &mut Client, state: ItemState) {
    let ItemState::Requested { value, perms, listing } = state else { return };
    let listing = match listing {
        Listing::Awaited(ticket) => Some(ticket),
        Listing::Placed | Listing::Refused(_) => None,
    };
    for ticket in [value, perms, listing].into_iter().flatten() {
        client.forget(ticket);
    }
}

/// Sends the requests about one node.
fn request_node(client: &mut Client, options: Options, item: &Item) -> Result<ItemState, Error> {
    let parts: [&[u8]; 2] = [&item.path, b"\0"];
    let mut submit = |kind| client.submit(options.tx, kind, &parts);
    let (mut value, mut perms) = (None, None);
    if !item.silent {
        value = Some(submit(MsgType::Read)?);
        if options.parts == NodeParts::ValuesAndPerms {
            perms = Some(submit(MsgType::GetPerms)?);
        }
    }
    let listing = Listing::Awaited(submit(MsgType::Directory)?);
    Ok(ItemState::Requested { value, perms, listing })
}
