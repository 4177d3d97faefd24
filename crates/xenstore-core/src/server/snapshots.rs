//! The snapshots of open transactions, and the old states of the store that they keep alive.
//!
//! A snapshot shares its parts with the store, so it keeps every replaced part as long as it is
//! open. Parts that its own domain has replaced are charged to that domain. Parts that others have
//! replaced are limited for all snapshots together.

use super::connections::Connections;
use crate::domain::Domains;
use crate::id::ConnId;
use crate::limits::{HOLD_MAX_US, SNAPSHOT_BYTES, SNAPSHOT_BYTES_MAX};
use crate::transaction::Snapshot;
use alloc::collections::BTreeSet;

/// The snapshots of the guests' open transactions.
#[derive(Default)]
pub(super) struct Snapshots {
    /// The snapshots, the oldest first.
    open: BTreeSet<Snapshot>,
    /// The bytes replaced in the store while there was any snapshot.
    replaced: u64,
}

impl Snapshots {
    /// Returns the bytes that this snapshot, and all younger ones, may keep alive.
    pub(super) fn kept_by(&self, snapshot: &Snapshot) -> u64 {
        self.replaced.saturating_sub(snapshot.replaced)
    }

    /// Returns the snapshot for a transaction that starts now.
    pub(super) fn take(
        &self,
        conn: ConnId,
        id: u32,
        conns: &Connections,
        domains: &Domains,
    ) -> Snapshot {
        let replaced_by_owner = conns.get(conn).map_or(0, |conn| conn.retained.replaced());
        let (since, replaced) = (domains.now, self.replaced);
        Snapshot { since, replaced, conn, replaced_by_owner, id }
    }

    /// True if this snapshot is kept.
    pub(super) fn is_open(&self, snapshot: &Snapshot) -> bool {
        self.open.contains(snapshot)
    }

    /// Adds a guest's snapshot.
    pub(super) fn open(&mut self, snapshot: Snapshot, conns: &mut Connections) {
        self.open.insert(snapshot);
        if let Some(connection) = conns.get_mut(snapshot.conn) {
            connection.retained.open(snapshot.replaced_by_owner, snapshot.id);
        }
    }

    /// Removes a snapshot, if it was kept.
    pub(super) fn close(
        &mut self,
        snapshot: &Snapshot,
        conns: &mut Connections,
        domains: &mut Domains,
    ) {
        if !self.open.remove(snapshot) {
            return;
        }
        if let Some(connection) = conns.get_mut(snapshot.conn) {
            connection.retained.close(snapshot.replaced_by_owner, snapshot.id);
            connection.charge_retained(domains);
        }
    }

    /// Counts bytes that have been replaced in the store. Returns true if there is a snapshot that
    /// may keep them.
    pub(super) fn note(&mut self, bytes: u64) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.replaced = self.replaced.saturating_add(bytes);
        true
    }

    /// Returns the oldest snapshot of a guest's transaction, if it has kept old state of the store
    /// alive for too long.
    pub(super) fn stale(&self, now: u64) -> Option<Snapshot> {
        self.open.first().copied().filter(|oldest| {
            let old = now > oldest.since.saturating_add(HOLD_MAX_US);
            let most = if old { SNAPSHOT_BYTES } else { SNAPSHOT_BYTES_MAX };
            self.kept_by(oldest) >= most
        })
    }
}
