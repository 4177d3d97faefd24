//! Connections and domains that come and go.

use super::Server;
use super::event::{INTRODUCE, RELEASE};
use super::rubbish::Thing;
use crate::host::{Attach, Host};
use crate::id::{ConnId, DomId};
use crate::notice::{Ended, Notice};
use crate::quota::Quota;
use crate::server::connection::Transport;
use crate::server::turn::Class;
use crate::wire::Error;
use alloc::format;

impl Server {
    /// Introduces a domain on the daemon's own account (dom0's own ring at start-up).
    ///
    /// # Errors
    /// What [`Host::attach`] answered.
    pub fn introduce(
        &mut self,
        domid: DomId,
        gfn: u64,
        port: u32,
        now: u64,
        host: &mut dyn Host,
    ) -> Result<ConnId, Error> {
        self.content.domains.now = now;
        self.introduce_domain(domid, gfn, port, host)
    }

    /// INTRODUCE: a domain gets its connection, or a new event channel for the one that it has.
    pub(super) fn introduce_domain(
        &mut self,
        domid: DomId,
        gfn: u64,
        port: u32,
        host: &mut dyn Host,
    ) -> Result<ConnId, Error> {
        // The news of a domain's death may come later than its number is used again.
        let identity = host.domain_identity(domid).ok_or(Error::NoEnt)?;
        let known = self.content.domains.get(domid).and_then(|domain| domain.identity);
        if known.is_some_and(|known| known != identity) {
            self.release_domain(domid, host);
        }
        let domain = self.content.domains.know(domid);
        domain.identity = Some(identity);
        let features = domain.features;
        if let Some(conn) = domain.conn {
            host.reattach(Attach { domid, gfn, port, features, conn })?;
            self.clear_connection(conn);
            return Ok(conn);
        }
        let conn = self.conns.add(domid, Transport::Ring);
        if let Err(error) = host.attach(Attach { domid, gfn, port, features, conn }) {
            self.conns.remove(conn);
            return Err(error);
        }
        if let Some(domain) = self.content.domains.get_mut(domid) {
            domain.conn = Some(conn);
            domain.shutdown = false;
        }
        self.fire_special(INTRODUCE, domid);
        Ok(conn)
    }

    /// Watches, transactions, waiting requests and output go; the connection may go on.
    fn clear_connection(&mut self, conn: ConnId) {
        self.forget_waiting(conn);
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.clear_output();
        }
        self.drop_watches(conn);
        self.drop_transactions(conn);
        self.conns.note_unread(conn, None, &self.content.domains);
        if self.conns.get_mut(conn).and_then(|connection| connection.ended.take()).is_some() {
            // It begins anew, or its name will be another's: the daemon must not end that one.
            self.content.domains.notices.withdraw_end(conn);
        }
        self.conns.mark_ready(conn);
    }

    /// Forgets all watches of a connection, and all events that wait there.
    pub(super) fn drop_watches(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let domid = connection.domid;
        let events = connection.take_events();
        let watches = core::mem::take(&mut connection.watches);
        self.content.charge_work(events.len().saturating_add(watches.len()));
        for id in watches.into_values() {
            self.forget_watch(id, domid);
        }
        // It counted as unread until now.
        let weight = events.size() as i64;
        self.content.domains.charge(domid, Quota::Memory, weight);
        self.rubbish.discard(Thing::Events(events), domid, weight, &mut self.content.domains);
    }

    /// Takes a watch out of the index and off the account.
    pub(super) fn forget_watch(&mut self, id: crate::watch::WatchId, domid: DomId) {
        if let Some(watch) = self.watches.remove(id) {
            self.content.domains.charge(domid, Quota::Watches, -1);
            self.content.domains.charge(domid, Quota::Memory, watch.weight().saturating_neg());
        }
    }

    pub(super) fn drop_transactions(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let domid = connection.domid;
        let transactions = core::mem::take(&mut connection.transactions);
        for (id, transaction) in transactions.into_all() {
            self.end_turn(conn, id);
            self.close_snapshot(&transaction.snapshot);
            self.content.domains.charge(domid, Quota::Transactions, -1);
            let weight = transaction.weight();
            self.rubbish.discard(
                Thing::Leftovers(transaction.into_leftovers()),
                domid,
                weight,
                &mut self.content.domains,
            );
        }
    }

    /// The peer is gone: its watches, transactions and waiting requests go with it.
    pub fn disconnect(&mut self, conn: ConnId, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        let Some(connection) = self.conns.get(conn) else { return };
        let domid = connection.domid;
        self.clear_connection(conn);
        self.conns.remove(conn);
        if let Some(domain) = self.content.domains.get_mut(domid)
            && domain.conn == Some(conn)
        {
            domain.conn = None;
        }
        self.run_waiting(Class::Privileged, host);
    }

    /// The transport found the peer in breach of the protocol; as [`Notice::Ended`] afterwards.
    pub fn end(&mut self, conn: ConnId, why: Ended, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        let Some(connection) = self.conns.get(conn) else { return };
        let domid = connection.domid;
        let what = match why {
            Ended::Unread => "it left too much unread",
            Ended::RingIndex => "its ring's indices are not possible",
            Ended::Protocol => "it announced a message longer than the protocol allows",
            Ended::Communication => "its event channel or ring page cannot be used",
        };
        let text = format!(
            "connection {} of domain {} is no longer served: {what}; nobody else is affected",
            conn.0, domid.0
        );
        self.content.domains.notice(Notice::Warn { domid: Some(domid), text });
        self.end_connection(conn, why);
        self.run_waiting(Class::Privileged, host);
    }

    /// A connection is not served any more, but a domain that had it still lives (XSA-325).
    pub(super) fn end_connection(&mut self, conn: ConnId, why: Ended) {
        self.clear_connection(conn);
        let Some(connection) = self.conns.get_mut(conn) else { return };
        connection.ended = Some(why);
        self.content.domains.notice(Notice::Ended { conn, why });
    }

    /// The guest asked for its ring to be reset (ring reconnection): watches, transactions, waiting
    /// requests and unsent output are dropped; the connection lives on.
    pub fn reset(&mut self, conn: ConnId, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        self.clear_connection(conn);
        self.run_waiting(Class::Privileged, host);
    }

    /// The hypervisor reports a shut-down or crashed domain: fires `@releaseDomain` once.
    pub fn domain_shutdown(&mut self, domid: DomId, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        let Some(domain) = self.content.domains.get_mut(domid) else { return };
        if domain.conn.is_some() && !core::mem::replace(&mut domain.shutdown, true) {
            self.fire_special(RELEASE, domid);
        }
        self.run_waiting(Class::Privileged, host);
    }

    /// The hypervisor reports that the domain is no more: connection, nodes, permission entries go.
    /// Where its number is another domain's already, which the store knows, that one is left alone.
    pub fn domain_died(&mut self, domid: DomId, now: u64, host: &mut dyn Host) {
        self.content.domains.now = now;
        let known = self.content.domains.get(domid).and_then(|domain| domain.identity);
        if known.is_none() || host.domain_identity(domid) != known {
            self.release_domain(domid, host);
            self.run_waiting(Class::Privileged, host);
        }
    }

    /// RELEASE, or the death of a domain. What it owned goes; permission entries for it become void with
    /// its incarnation; who had it as a target has none any more.
    pub(super) fn release_domain(&mut self, domid: DomId, host: &mut dyn Host) {
        let Some(domain) = self.content.domains.get_mut(domid) else { return };
        let conn = domain.conn.take();
        if let Some(conn) = conn {
            // First of all, so that it is not told of the end of its own nodes.
            self.clear_connection(conn);
            self.conns.remove(conn);
            host.detach(domid, conn);
        }
        self.remove_nodes_of(domid);
        self.content.domains.forget(domid);
        self.bury_some();
        if conn.is_some() {
            self.fire_special(RELEASE, domid);
        }
    }

    /// The domains that the store knows, as the daemon must compare them with the hypervisor's.
    pub fn domains(&self) -> impl Iterator<Item = DomId> + '_ {
        self.content.domains.iter().map(|(domid, _)| domid)
    }

    /// Books what the last operation changed, which `author` asked for.
    pub(super) fn book(&mut self, author: Option<ConnId>) {
        let churn = self.content.book();
        self.note_replaced(author, churn);
    }
}
