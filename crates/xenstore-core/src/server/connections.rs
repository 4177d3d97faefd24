//! All connections, and what is known of them without asking each.

use super::connection::{Connection, Transport};
use crate::domain::Domains;
use crate::id::{ConnId, DomId};
use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

/// The connections by their numbers.
#[derive(Default)]
pub(super) struct Connections {
    slots: Vec<Option<Box<Connection>>>,
    /// The numbers that are to be used again.
    free: Vec<ConnId>,
    /// Those that have got output, or may be asked for requests again.
    ready: VecDeque<ConnId>,
    /// Guests with unread output, by the time since when.
    unread: BTreeSet<(u64, ConnId)>,
}

impl Connections {
    pub(super) fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.slots.get(conn.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(conn.0 as usize)?.as_deref_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection)> {
        let all = self.slots.iter().enumerate();
        all.filter_map(|(at, connection)| {
            Some((ConnId(u32::try_from(at).unwrap_or(u32::MAX)), connection.as_deref()?))
        })
    }

    /// Adds one of a domain's; its number.
    pub(super) fn add(&mut self, domid: DomId, transport: Transport) -> ConnId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            ConnId(u32::try_from(self.slots.len()).unwrap_or(u32::MAX).saturating_sub(1))
        });
        if let Some(slot) = self.slots.get_mut(id.0 as usize) {
            *slot = Some(Box::new(Connection::new(domid, transport)));
        }
        id
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, conn: ConnId) {
        if self.slots.get_mut(conn.0 as usize).and_then(Option::take).is_some() {
            self.free.push(conn);
        }
    }

    /// Has a connection named by [`Connections::pop_ready`].
    pub(super) fn mark_ready(&mut self, conn: ConnId) {
        let Some(connection) = self.get_mut(conn) else { return };
        if !core::mem::replace(&mut connection.ready, true) {
            self.ready.push_back(conn);
        }
    }

    /// Names the next connection that is ready.
    pub(super) fn pop_ready(&mut self) -> Option<ConnId> {
        loop {
            let conn = self.ready.pop_front()?;
            if let Some(connection) = self.get_mut(conn)
                && core::mem::take(&mut connection.ready)
            {
                return Some(conn);
            }
        }
    }

    /// Notes since when a connection's output lies unread without progress. Only guests have a deadline.
    pub(super) fn note_unread(&mut self, conn: ConnId, since: Option<u64>, domains: &Domains) {
        let Self { slots, unread, .. } = self;
        let Some(connection) = slots.get_mut(conn.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if connection.transport == Transport::Socket || domains.is_privileged(connection.domid) {
            return;
        }
        if let Some(old) = core::mem::replace(&mut connection.unread_since, since) {
            unread.remove(&(old, conn));
        }
        if let Some(since) = since {
            unread.insert((since, conn));
        }
    }

    /// The guest that has left something unread for the longest time, and since when.
    pub(super) fn longest_unread(&self) -> Option<(u64, ConnId)> {
        self.unread.first().copied()
    }
}
