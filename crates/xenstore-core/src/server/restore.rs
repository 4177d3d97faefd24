//! Restores a store from the stream that another one wrote; see [`crate::stream`].

use super::config::Config;
use super::connection::Transport;
use super::dump::{ENDED, STALE};
use super::sessions::Sessions;
use super::store::StoreState;
use crate::id::{ConnId, DomId};
use crate::limits::{DOMID_ANY, DOMID_FIRST_RESERVED, PAYLOAD_MAX, WEIGHT_MAX};
use crate::notice::EndReason;
use crate::path::{Path, SpecialPaths, is_relative, resolve};
use crate::perms::{AccessRights, Incarnation, Perm, Perms};
use crate::quota::{Quota, QuotaLimits};
use crate::stream::{
    self, ConnectionPeer, ConnectionRecord, DaemonHandles, Error, NodeRecord, Quotas, RecordReader,
    StreamRecord, WatchDataRecord,
};
use crate::transaction::Change;
use crate::watch;
use crate::wire::feature;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A connection in the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredConnection {
    /// Its id in the new store.
    pub conn: ConnId,
    /// The domain whose ring it is; `None` for a socket.
    pub ring: Option<DomId>,
    /// The descriptor of a socket, or the event channel port of a ring.
    pub handle: u32,
    /// The reason why it is no longer served, if it is not.
    pub ended: Option<EndReason>,
    /// The bytes to be processed as if read from it: whole messages, then a part of one.
    pub input: Vec<u8>,
}

type RestoreResult = Result<(), &'static str>;

/// A store that is being restored from a stream.
pub(super) struct Restorer {
    store: StoreState,
    global: Option<DaemonHandles>,
    connections: Vec<RestoredConnection>,
    /// The index in `connections` of each connection number of the stream.
    numbers: BTreeMap<u32, usize>,
}

/// A store from a stream, the stream's data on the daemon, and the connections.
type RestoredParts = (StoreState, Option<DaemonHandles>, Vec<RestoredConnection>);

impl Restorer {
    /// Restores a store from another one's stream.
    pub(super) fn run(config: Config, stream: &[u8], now: u64) -> Result<RestoredParts, Error> {
        let mut reader = RecordReader::new(stream)?;
        let mut restoring = Self::new(config, now);
        loop {
            match reader.next()? {
                StreamRecord::End => break,
                record => restoring.take(record).map_err(|what| reader.error(what))?,
            }
        }
        let Self { mut store, global, connections, .. } = restoring;
        // The records before the limits may have caused notices about quotas.
        store.sessions.content.domains.notices.clear();
        Ok((store, global, connections))
    }

    /// Returns the initial state: a store without any node but `/` and the special ones.
    fn new(config: Config, now: u64) -> Self {
        let mut store = StoreState::new(config);
        let content = &mut store.sessions.content;
        content.domains.now = now;
        let own = content.own_caller();
        // A privileged caller is never refused.
        let _ = content.change(&own, Path::checked(b"/tool"), &Change::Remove);
        store.sessions.book(None);
        Self { store, global: None, connections: Vec::new(), numbers: BTreeMap::new() }
    }

    fn take(&mut self, record: StreamRecord<'_>) -> RestoreResult {
        let domains = &mut self.store.sessions.content.domains;
        match record {
            StreamRecord::Global(global) => self.global = Some(global),
            StreamRecord::Generation(generation) => {
                domains.generation = domains.generation.max(generation);
            }
            StreamRecord::GlobalQuota(quotas) => set_limits(&mut domains.limits, quotas),
            StreamRecord::Connection(connection) => self.connection(&connection)?,
            StreamRecord::ConnectionMore { conn, next_transaction, ended } => {
                self.connection_more(conn, next_transaction, ended)?;
            }
            StreamRecord::Input { conn, bytes } => {
                self.numbered(conn)?.input.extend_from_slice(bytes);
            }
            StreamRecord::Watch(watch) => self.watch(&watch)?,
            StreamRecord::Transaction { conn, id } => self.transaction(conn, id)?,
            StreamRecord::Node(node) => self.node(&node)?,
            StreamRecord::Domain(record) | StreamRecord::Unconnected(record) => {
                self.domain(&record);
            }
            StreamRecord::DomainMore(more) => {
                let domain = domains.get_or_insert(DomId(more.domid));
                if !(1..=WEIGHT_MAX).contains(&more.weight) {
                    return Err("its weight is none");
                }
                (domain.weight, domain.shutdown) = (more.weight, more.shutdown);
                domain.identity = more.identity;
            }
            StreamRecord::Other | StreamRecord::End => {}
        }
        Ok(())
    }

    fn domain(&mut self, record: &stream::DomainRecord<'_>) {
        let domain = self.store.sessions.content.domains.get_or_insert(DomId(record.domid));
        if let Some(features) = record.features {
            domain.features = features & feature::ALL;
        }
        set_limits(&mut domain.limits, record.quotas);
    }

    fn numbered(&mut self, number: u32) -> Result<&mut RestoredConnection, &'static str> {
        let at = self.numbers.get(&number).copied();
        at.and_then(|at| self.connections.get_mut(at)).ok_or("its connection is not there")
    }

    fn connection(&mut self, record: &ConnectionRecord<'_>) -> RestoreResult {
        if record.id == 0 || self.numbers.contains_key(&record.id) {
            return Err("its number is 0, or another's");
        }
        let Sessions { content, conns, .. } = &mut self.store.sessions;
        let (ring, handle) = match record.peer {
            ConnectionPeer::Socket { fd } => (None, fd),
            ConnectionPeer::Ring { domid, port, .. } => (Some(DomId(domid)), port),
        };
        let conn = match record.peer {
            ConnectionPeer::Socket { .. } => {
                conns.add(content.domains.store_domain, Transport::Socket)
            }
            ConnectionPeer::Ring { domid, target, identity, .. } => {
                let domid = DomId(domid);
                let numbers = [Some(domid.0), target];
                if numbers.iter().flatten().any(|domid| *domid >= DOMID_FIRST_RESERVED) {
                    return Err("its domain is none");
                }
                if content.domains.is_introduced(domid) {
                    return Err("its domain has a ring already");
                }
                if let Some(target) = target {
                    content.domains.get_or_insert(DomId(target));
                    content.domains.get_or_insert(domid);
                    content.domains.set_target(domid, DomId(target));
                }
                let conn = conns.add(domid, Transport::Ring);
                let domain = content.domains.get_or_insert(domid);
                domain.conn = Some(conn);
                domain.identity = identity;
                conn
            }
        };
        if let Some(connection) = conns.get_mut(conn) {
            connection.restore_output(usize::from(record.partial), record.output)?;
        }
        if !record.output.is_empty() {
            conns.record_unread(conn, Some(content.domains.now), &content.domains);
            conns.mark_ready(conn);
        }
        let input = Vec::from(record.input);
        self.numbers.insert(record.id, self.connections.len());
        let connection = RestoredConnection { conn, ring, handle, ended: None, input };
        self.connections.push(connection);
        Ok(())
    }

    fn connection_more(&mut self, number: u32, next_transaction: u32, ended: u32) -> RestoreResult {
        let ended = match ended.checked_sub(1) {
            None => None,
            Some(at) => Some(*ENDED.get(at as usize).ok_or("why it ended is not known")?),
        };
        let known = self.numbered(number)?;
        known.ended = ended;
        let conn = known.conn;
        if let Some(connection) = self.store.sessions.conns.get_mut(conn) {
            connection.next_transaction = next_transaction;
            connection.ended = ended;
        }
        Ok(())
    }

    fn watch(&mut self, record: &WatchDataRecord<'_>) -> RestoreResult {
        let conn = self.numbered(record.conn)?.conn;
        let conns = &self.store.sessions.conns;
        let domid = conns.get(conn).map(|conn| conn.domid).unwrap_or_default();
        let mut scratch = Vec::new();
        let path = resolve(record.path, domid.0, SpecialPaths::Allowed, &mut scratch)
            .map_err(|_| "its path is none")?;
        let hidden = match is_relative(record.path) {
            true => path.as_bytes().len().saturating_sub(record.path.len()),
            false => 0,
        };
        let mut key = Vec::new();
        watch::key(path, record.token, &mut key);
        if key.len() > PAYLOAD_MAX {
            return Err("its path and token are longer than a message");
        }
        let depth = record.depth.map(u32::from);
        let known = conns.get(conn).is_some_and(|conn| conn.watches.contains_key(key.as_slice()));
        if known {
            return Err("the connection has it already");
        }
        let StoreState { sessions, announcer, .. } = &mut self.store;
        announcer.set((conn, domid), path, Rc::from(key), hidden, depth, sessions);
        Ok(())
    }

    /// Restores the number of a transaction. The transaction itself ended with the store that it
    /// was in. Its number stays until its client has got EAGAIN.
    fn transaction(&mut self, number: u32, id: u32) -> RestoreResult {
        let conn = self.numbered(number)?.conn;
        match self.store.sessions.open_torn(conn, id) {
            true => Ok(()),
            false => Err("its number is 0, or another's"),
        }
    }

    fn node(&mut self, record: &NodeRecord<'_>) -> RestoreResult {
        if record.value.len() > PAYLOAD_MAX {
            return Err("its value is longer than a message");
        }
        let mut scratch = Vec::new();
        if is_relative(record.path) {
            return Err("its path is relative");
        }
        let path = resolve(record.path, 0, SpecialPaths::Allowed, &mut scratch)
            .map_err(|_| "its path is none")?;
        let perms = self.perms(record.entries)?;
        let sessions = &mut self.store.sessions;
        let content = &mut sessions.content;
        let result =
            content.with_ledger(|tree, ledger| tree.restore(path, record.value, perms, ledger));
        sessions.book(None);
        result
    }

    fn perms(&mut self, entries: &[[u8; 4]]) -> Result<Perms, &'static str> {
        let domains = &mut self.store.sessions.content.domains;
        let perm = |[letter, flags, low, high]: [u8; 4]| {
            let domid = DomId(u16::from_ne_bytes([low, high]));
            let incarnation = match (domid.0, flags & STALE != 0) {
                (DOMID_ANY, true) => Incarnation::VOID,
                (DOMID_ANY, false) | (_, true) => Incarnation::NEVER,
                _ => domains.get_or_insert(domid).incarnation,
            };
            let access = AccessRights::from_letter(letter).ok_or("it has an unknown permission")?;
            Ok(Perm { domid, access, incarnation })
        };
        let mut perms = entries.iter().copied().map(perm);
        let owner = perms.next().ok_or("it has no owner")??;
        if owner.incarnation == Incarnation::NEVER && owner.domid.0 != DOMID_ANY {
            return Err("its owner is no domain");
        }
        Ok(Perms::new(owner, perms.collect::<Result<_, _>>()?))
    }
}

/// Sets those limits whose names are known.
fn set_limits(limits: &mut QuotaLimits, quotas: Quotas<'_>) {
    for (name, value) in quotas.iter() {
        if let Ok((quota, kind)) = Quota::named(name) {
            // A soft limit's name is known only if the quota has one.
            let _ = limits.set(quota, kind, value);
        }
    }
}
