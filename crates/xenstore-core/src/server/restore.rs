//! A store from the stream that another one wrote; see [`crate::stream`].

use super::Server;
use super::config::Config;
use super::connection::Transport;
use super::dump::{ENDED, STALE};
use super::manage::quota_named;
use crate::id::{ConnId, DomId};
use crate::limits::{DOMID_ANY, DOMID_FIRST_RESERVED, PAYLOAD_MAX, WEIGHT_MAX};
use crate::notice::Ended;
use crate::path::{Path, Special, is_relative, resolve};
use crate::perms::{Access, Incarnation, Perm, Perms};
use crate::quota::{Limits, Quota};
use crate::stream::{self, Connection, Error, Global, Node, Peer, Quotas, Reader, Record, Watch};
use crate::transaction::Transaction;
use crate::watch;
use crate::wire::feature;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// A store, and what the daemon needs to go on where the other one ended.
pub struct Restored {
    /// The store.
    pub server: Server,
    /// The daemon's own descriptors, if the stream had them.
    pub global: Option<Global>,
    /// All connections.
    pub connections: Vec<RestoredConnection>,
}

/// A connection that the stream had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredConnection {
    /// Its name in the new store.
    pub conn: ConnId,
    /// The domain whose ring it is; `None` for a socket.
    pub ring: Option<DomId>,
    /// A socket's descriptor, a ring's event channel port.
    pub handle: u32,
    /// Why it is no longer served, if it is not.
    pub ended: Option<Ended>,
    /// What is to be taken for read from it: whole messages, then a part of one.
    pub input: Vec<u8>,
}

type Outcome = Result<(), &'static str>;

struct Restoring {
    restored: Restored,
    /// Which of `connections` bears a number of the stream's.
    numbers: BTreeMap<u32, usize>,
}

impl Server {
    /// Makes a store from what [`Server::dump`], or the C daemon, has written. Rings and sockets are the
    /// caller's to take up again, and [`Server::end`] is for those that cannot be; then it compares
    /// [`Server::domains`] with the hypervisor's, as some may have died meanwhile.
    ///
    /// # Errors
    /// Where the stream is not one, or holds what no store could: which record, where, and why.
    pub fn restore(config: Config, stream: &[u8], now: u64) -> Result<Restored, Error> {
        let mut reader = Reader::new(stream)?;
        let restored =
            Restored { server: Self::emptied(config, now), global: None, connections: Vec::new() };
        let mut restoring = Restoring { restored, numbers: BTreeMap::new() };
        loop {
            match reader.next()? {
                Record::End => break,
                record => restoring.take(record).map_err(|what| reader.error(what))?,
            }
        }
        let mut restored = restoring.restored;
        // What the records said before the limits did.
        restored.server.content.domains.notices.clear();
        Ok(restored)
    }

    /// A store without any node but `/` and the special ones.
    fn emptied(config: Config, now: u64) -> Self {
        let mut server = Self::new(config);
        server.content.domains.now = now;
        let own = server.content.domains.caller(server.content.domains.priv_domain);
        // The privileged are refused nothing.
        let _ = server
            .content
            .with_ledger(|tree, ledger| tree.remove(&own, Path::checked(b"/tool"), ledger));
        server.book(None);
        server
    }
}

impl Restoring {
    fn take(&mut self, record: Record<'_>) -> Outcome {
        let domains = &mut self.restored.server.content.domains;
        match record {
            Record::Global(global) => self.restored.global = Some(global),
            Record::Generation(generation) => {
                domains.generation = domains.generation.max(generation);
            }
            Record::GlobalQuota(quotas) => set_limits(&mut domains.limits, quotas),
            Record::Connection(connection) => self.connection(&connection)?,
            Record::ConnectionMore { conn, next_transaction, ended } => {
                self.connection_more(conn, next_transaction, ended)?;
            }
            Record::Input { conn, bytes } => {
                self.numbered(conn)?.input.extend_from_slice(bytes);
            }
            Record::Watch(watch) => self.watch(&watch)?,
            Record::Transaction { conn, id } => self.transaction(conn, id)?,
            Record::Node(node) => self.node(&node)?,
            Record::Domain(record) | Record::Unconnected(record) => self.domain(&record),
            Record::DomainMore(more) => {
                let domain = domains.know(DomId(more.domid));
                if !(1..=WEIGHT_MAX).contains(&more.weight) {
                    return Err("its weight is none");
                }
                (domain.weight, domain.shutdown) = (more.weight, more.shutdown);
                domain.identity = more.identity;
            }
            Record::Other | Record::End => {}
        }
        Ok(())
    }

    fn domain(&mut self, record: &stream::Domain<'_>) {
        let domain = self.restored.server.content.domains.know(DomId(record.domid));
        if let Some(features) = record.features {
            domain.features = features & feature::ALL;
        }
        set_limits(&mut domain.limits, record.quotas);
    }

    fn numbered(&mut self, number: u32) -> Result<&mut RestoredConnection, &'static str> {
        let at = self.numbers.get(&number).copied();
        at.and_then(|at| self.restored.connections.get_mut(at)).ok_or("its connection is not there")
    }

    fn connection(&mut self, record: &Connection<'_>) -> Outcome {
        if record.id == 0 || self.numbers.contains_key(&record.id) {
            return Err("its number is 0, or another's");
        }
        let server = &mut self.restored.server;
        let (ring, handle) = match record.peer {
            Peer::Socket { fd } => (None, fd),
            Peer::Ring { domid, port, .. } => (Some(DomId(domid)), port),
        };
        let conn = match record.peer {
            Peer::Socket { .. } => server.connect_socket(),
            Peer::Ring { domid, target, identity, .. } => {
                let domid = DomId(domid);
                let numbers = [Some(domid.0), target];
                if numbers.iter().flatten().any(|domid| *domid >= DOMID_FIRST_RESERVED) {
                    return Err("its domain is none");
                }
                if server.introduced(domid) {
                    return Err("its domain has a ring already");
                }
                if let Some(target) = target {
                    server.content.domains.know(DomId(target));
                    server.content.domains.know(domid);
                    server.content.domains.set_target(domid, DomId(target));
                }
                let conn = server.conns.add(domid, Transport::Ring);
                let domain = server.content.domains.know(domid);
                domain.conn = Some(conn);
                domain.identity = identity;
                conn
            }
        };
        if let Some(connection) = server.conns.get_mut(conn) {
            connection.restore_output(usize::from(record.partial), record.output)?;
        }
        if !record.output.is_empty() {
            server.conns.note_unread(
                conn,
                Some(server.content.domains.now),
                &server.content.domains,
            );
            server.conns.mark_ready(conn);
        }
        let input = Vec::from(record.input);
        self.numbers.insert(record.id, self.restored.connections.len());
        let connection = RestoredConnection { conn, ring, handle, ended: None, input };
        self.restored.connections.push(connection);
        Ok(())
    }

    fn connection_more(&mut self, number: u32, next_transaction: u32, ended: u32) -> Outcome {
        let ended = match ended.checked_sub(1) {
            None => None,
            Some(at) => Some(*ENDED.get(at as usize).ok_or("why it ended is not known")?),
        };
        let known = self.numbered(number)?;
        known.ended = ended;
        let conn = known.conn;
        if let Some(connection) = self.restored.server.conns.get_mut(conn) {
            connection.next_transaction = next_transaction;
            connection.ended = ended;
        }
        Ok(())
    }

    fn watch(&mut self, record: &Watch<'_>) -> Outcome {
        let conn = self.numbered(record.conn)?.conn;
        let server = &mut self.restored.server;
        let domid = server.conns.get(conn).map(|conn| conn.domid).unwrap_or_default();
        let mut scratch = Vec::new();
        let path = resolve(record.path, domid.0, Special::Allowed, &mut scratch)
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
        let known =
            server.conns.get(conn).is_some_and(|conn| conn.watches.contains_key(key.as_slice()));
        if known {
            return Err("the connection has it already");
        }
        server.add_watch(conn, domid, path, Rc::from(key), hidden, depth);
        Ok(())
    }

    /// The transaction itself ended with the store that it was in. Its number stays until its client has
    /// been told so, with EAGAIN.
    fn transaction(&mut self, number: u32, id: u32) -> Outcome {
        let conn = self.numbered(number)?.conn;
        let server = &mut self.restored.server;
        let snapshot = server.snapshot(conn, id);
        let mut transaction =
            Transaction::new(&server.content.tree, server.content.domains.deaths, snapshot);
        drop(transaction.give_up());
        transaction.torn = true;
        let weight = transaction.weight();
        let Some(connection) = server.conns.get_mut(conn) else { return Ok(()) };
        let domid = connection.domid;
        if id == 0 || !connection.transactions.open(id, transaction) {
            return Err("its number is 0, or another's");
        }
        server.content.domains.charge(domid, Quota::Transactions, 1);
        server.content.domains.charge(domid, Quota::Memory, weight);
        Ok(())
    }

    fn node(&mut self, record: &Node<'_>) -> Outcome {
        if record.value.len() > PAYLOAD_MAX {
            return Err("its value is longer than a message");
        }
        let mut scratch = Vec::new();
        if is_relative(record.path) {
            return Err("its path is relative");
        }
        let path = resolve(record.path, 0, Special::Allowed, &mut scratch)
            .map_err(|_| "its path is none")?;
        let perms = self.perms(record.entries)?;
        let server = &mut self.restored.server;
        let result = server
            .content
            .with_ledger(|tree, ledger| tree.restore(path, record.value, perms, ledger));
        server.book(None);
        result
    }

    fn perms(&mut self, entries: &[[u8; 4]]) -> Result<Perms, &'static str> {
        let domains = &mut self.restored.server.content.domains;
        let perm = |[letter, flags, low, high]: [u8; 4]| {
            let domid = DomId(u16::from_ne_bytes([low, high]));
            let incarnation = match (domid.0, flags & STALE != 0) {
                (DOMID_ANY, true) => Incarnation::VOID,
                (DOMID_ANY, false) | (_, true) => Incarnation::NEVER,
                _ => domains.know(domid).incarnation,
            };
            let access = Access::from_letter(letter).ok_or("it has an unknown permission")?;
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

/// Sets those limits that are known here.
fn set_limits(limits: &mut Limits, quotas: Quotas<'_>) {
    for (name, value) in quotas.iter() {
        if let Ok((quota, kind)) = quota_named(name) {
            // A soft limit's name is known only where there is one.
            let _ = limits.set(quota, kind, value);
        }
    }
}
