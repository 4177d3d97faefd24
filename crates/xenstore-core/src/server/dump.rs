//! Writes the whole state as a stream of records, for live update; see [`crate::stream`].

use super::announcer::{INTRODUCE, RELEASE};
use super::connection::{Connection, Transport};
use super::store::StoreState;
use crate::domain::{Domain, Domains};
use crate::id::{ConnId, DomId};
use crate::limits::DOMID_ANY;
use crate::notice::EndReason;
use crate::path::Path;
use crate::perms::{Incarnation, Perms};
use crate::quota::{ALL, LimitKind, Quota, QuotaLimits};
use crate::stream::{
    self, ConnectionPeer, DaemonHandles, DomainMore, Quotas, StreamRecord, TransportState,
    WatchDataRecord,
};
use crate::tree::{Node, VisitStep};
use crate::wire::split_message;
use alloc::vec::Vec;

/// The bytes that are collected before they are passed on.
const CHUNK: usize = 32 * 1024;
/// The most input that CONNECTION_DATA can hold.
const INPUT_MAX: usize = u16::MAX as usize;
/// The flag of a void permission entry: it stands for a domain that did not exist.
pub(super) const STALE: u8 = 1;

/// The reasons why connections are no longer served, by their numbers in the stream; 0 means that
/// the connection is served.
pub(super) const ENDED: [EndReason; 4] =
    [EndReason::Unread, EndReason::RingIndex, EndReason::Protocol, EndReason::Communication];

/// Collects records and passes them on in pieces.
struct RecordWriter<S> {
    buffer: Vec<u8>,
    sink: S,
}

impl<E, S: FnMut(&[u8]) -> Result<(), E>> RecordWriter<S> {
    fn put(&mut self, record: &StreamRecord<'_>) -> Result<(), E> {
        record.write(&mut self.buffer);
        if self.buffer.len() < CHUNK { Ok(()) } else { self.pass_on() }
    }

    fn pass_on(&mut self) -> Result<(), E> {
        (self.sink)(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Writes the state to `sink`, piece by piece.
pub(super) fn dump<'a, E>(
    store: &StoreState,
    global: DaemonHandles,
    transport: impl Fn(ConnId) -> TransportState<'a>,
    sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = RecordWriter { buffer: Vec::with_capacity(CHUNK), sink };
    stream::header(&mut out.buffer);
    out.put(&StreamRecord::Global(global))?;
    out.put(&StreamRecord::Generation(store.sessions.content.domains.generation))?;
    let (values, names) = limits(&store.sessions.content.domains.limits);
    out.put(&StreamRecord::GlobalQuota(Quotas::new(&values, &names)))?;
    // Rings come first: C's daemon must know domain 0 before the sockets that belong to it.
    let conns = |wanted: Transport| {
        store.sessions.conns.iter().filter(move |(_, conn)| conn.transport == wanted)
    };
    let conns = conns(Transport::Ring).chain(conns(Transport::Socket));
    for (number, (conn, connection)) in (1..).zip(conns) {
        dump_connection(store, number, conn, connection, transport(conn), &mut out)?;
    }
    let mut entries = Vec::new();
    let mut result = Ok(());
    store.sessions.content.tree.visit(Path::ROOT, |path, node| {
        // A dead domain's nodes count as removed.
        if store.sessions.content.domains.is_orphaned(&node.perms().owner()) {
            return VisitStep::Past;
        }
        result = out.put(&node_record(&store.sessions.content.domains, path, node, &mut entries));
        if result.is_ok() { VisitStep::On } else { VisitStep::Stop }
    });
    result?;
    for name in [RELEASE, INTRODUCE] {
        if let Some(node) = store.sessions.content.tree.special(name) {
            out.put(&node_record(&store.sessions.content.domains, name, node, &mut entries))?;
        }
    }
    for (domid, domain) in store.sessions.content.domains.iter() {
        dump_domain(domid, domain, &mut out)?;
    }
    out.put(&StreamRecord::End)?;
    out.pass_on()
}

fn dump_connection<E, S: FnMut(&[u8]) -> Result<(), E>>(
    store: &StoreState,
    number: u32,
    conn: ConnId,
    connection: &Connection,
    transport: TransportState<'_>,
    out: &mut RecordWriter<S>,
) -> Result<(), E> {
    let domain = store.sessions.content.domains.get(connection.domid);
    let peer = match connection.transport {
        Transport::Socket => ConnectionPeer::Socket { fd: transport.handle },
        Transport::Ring => ConnectionPeer::Ring {
            domid: connection.domid.0,
            // The target counts only as long as it lives.
            target: domain
                .and_then(|domain| domain.target)
                .filter(|(target, known)| {
                    store.sessions.content.domains.incarnation(*target) == *known
                })
                .map(|(target, _)| target.0),
            port: transport.handle,
            identity: domain.and_then(|domain| domain.identity),
        },
    };
    let mut input = Vec::new();
    store.sessions.write_waiting(conn, &mut input);
    input.extend_from_slice(transport.input);
    let (input, more) = input.split_at(first_part(&input));
    let (partial, output) = connection.unsent(&store.announcer.watches);
    out.put(&StreamRecord::Connection(stream::ConnectionRecord {
        id: number,
        peer,
        input,
        partial: u16::try_from(partial).unwrap_or(u16::MAX),
        output: &output,
    }))?;
    let ended = connection.ended.and_then(|why| ENDED.iter().position(|known| *known == why));
    out.put(&StreamRecord::ConnectionMore {
        conn: number,
        next_transaction: connection.next_transaction,
        ended: ended.map_or(0, |at| u32::try_from(at).unwrap_or(0).saturating_add(1)),
    })?;
    if !more.is_empty() {
        out.put(&StreamRecord::Input { conn: number, bytes: more })?;
    }
    // They are written in the order in which those of one path fire.
    let mut ids: Vec<_> = connection.watches.values().copied().collect();
    ids.sort_unstable();
    for watch in ids.into_iter().filter_map(|id| store.announcer.watches.get(id)) {
        out.put(&StreamRecord::Watch(WatchDataRecord {
            conn: number,
            path: watch.path().get(watch.hidden..).unwrap_or_default(),
            token: watch.token(),
            depth: watch.depth.map(|depth| u16::try_from(depth).unwrap_or(u16::MAX)),
        }))?;
    }
    for id in connection.transactions.ids() {
        out.put(&StreamRecord::Transaction { conn: number, id })?;
    }
    Ok(())
}

/// Returns the length of the input that CONNECTION_DATA takes: all, or as many whole messages as
/// fit.
fn first_part(input: &[u8]) -> usize {
    if input.len() <= INPUT_MAX {
        return input.len();
    }
    let mut rest = input;
    while let Ok(Some((_, _, behind))) = split_message(rest)
        && input.len().saturating_sub(behind.len()) <= INPUT_MAX
    {
        rest = behind;
    }
    input.len().saturating_sub(rest.len())
}

fn node_record<'a>(
    domains: &Domains,
    path: &'a [u8],
    node: &'a Node,
    entries: &'a mut Vec<[u8; 4]>,
) -> StreamRecord<'a> {
    put_entries(domains, node.perms(), entries);
    StreamRecord::Node(stream::NodeRecord { path, value: node.value(), entries })
}

/// Appends the entries of living domains, of all domains, and of domains that never existed: those
/// that GET_PERMS shows, and the owner's.
fn put_entries(domains: &Domains, perms: &Perms, to: &mut Vec<[u8; 4]>) {
    to.clear();
    for (at, perm) in perms.entries().enumerate() {
        let any = perm.domid.0 == DOMID_ANY;
        let lives = match perm.incarnation {
            Incarnation::NEVER => any,
            incarnation => domains.incarnation(perm.domid) == incarnation,
        };
        if at == 0 || lives || any || perm.incarnation == Incarnation::NEVER {
            let [low, high] = perm.domid.0.to_ne_bytes();
            let flags = if lives || at == 0 { 0 } else { STALE };
            to.push([perm.access.letter(), flags, low, high]);
        }
    }
}

fn dump_domain<E, S: FnMut(&[u8]) -> Result<(), E>>(
    domid: DomId,
    domain: &Domain,
    out: &mut RecordWriter<S>,
) -> Result<(), E> {
    let (values, names) = limits(&domain.limits);
    let quotas = Quotas::new(&values, &names);
    let record = stream::DomainRecord { domid: domid.0, features: Some(domain.features), quotas };
    // C's daemon ends if it finds DOMAIN_DATA of a domain that it does not know yet.
    out.put(&match domain.conn {
        Some(_) => StreamRecord::Domain(record),
        None => StreamRecord::Unconnected(record),
    })?;
    out.put(&StreamRecord::DomainMore(DomainMore {
        domid: domid.0,
        shutdown: domain.shutdown,
        weight: domain.weight,
        identity: domain.identity,
    }))
}

/// Returns all limits, hard and soft, with their names in GET_QUOTA.
fn limits(limits: &QuotaLimits) -> (Vec<[u8; 4]>, Vec<u8>) {
    let (mut values, mut names) = (Vec::new(), Vec::new());
    let mut put = |prefix: &str, name: &str, quota: Quota, kind: LimitKind| {
        values.push(limits.get(quota, kind).to_ne_bytes());
        names.extend_from_slice(prefix.as_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    };
    for about in ALL {
        put("", about.name, about.quota, LimitKind::Hard);
        if about.soft.is_some() {
            put("soft-", about.name, about.quota, LimitKind::Soft);
        }
    }
    (values, names)
}
