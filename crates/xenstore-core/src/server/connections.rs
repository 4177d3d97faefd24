//! All connections, and the queues and deadlines of all.

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
    /// The numbers that are to be reused.
    free: Vec<ConnId>,
    /// The connections that have new output, or whose requests may be read again.
    ready: VecDeque<ConnId>,
    /// The guests with unread output, by the time since when.
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

    /// Adds a connection of a domain, and returns its number.
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

    /// Removes a connection.
    pub(super) fn remove(&mut self, conn: ConnId) {
        if self.slots.get_mut(conn.0 as usize).and_then(Option::take).is_some() {
            self.free.push(conn);
        }
    }

    /// Makes [`Connections::pop_ready`] return a connection.
    pub(super) fn mark_ready(&mut self, conn: ConnId) {
        let Some(connection) = self.get_mut(conn) else { return };
        if !core::mem::replace(&mut connection.ready, true) {
            self.ready.push_back(conn);
        }
    }

    /// Returns the next ready connection.
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

    /// Records the time since which a connection's output has been unread without progress. Only
    /// guests have a deadline.
    pub(super) fn record_unread(&mut self, conn: ConnId, since: Option<u64>, domains: &Domains) {
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

    /// Returns the guest whose output has been unread for the longest time, and since when.
    pub(super) fn longest_unread(&self) -> Option<(u64, ConnId)> {
        self.unread.first().copied()
    }
}
