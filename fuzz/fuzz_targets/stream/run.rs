//! The clients of a run.

use crate::messages::{Bytes, message};
use std::collections::{BTreeMap, BTreeSet};
use xenstore_core::limits::{
    HEADER_SIZE, HOLD_MAX_US, PAYLOAD_MAX, UNREAD_MAX_BYTES, UNREAD_SOFT_BYTES,
};
use xenstore_core::server::{
    AttachRequest, Config, ConnId, DomId, EndReason, Notice, Server, StoreHost,
};
use xenstore_core::wire::{Error, Header, MsgType, Strings, split_message};

/// The most bytes that can wait for one reader: the limit of its unread bytes, and the replies of
/// requests that were taken before the limit was reached (64 of them may have been delayed).
const WAITING_MAX: usize = UNREAD_MAX_BYTES + UNREAD_SOFT_BYTES + 66 * (HEADER_SIZE + PAYLOAD_MAX);

/// An action of the store on a ring.
#[derive(Clone, Copy)]
enum RingEvent {
    Attached(ConnId, u16),
    Reattached(ConnId),
    Detached(ConnId),
}

/// The machine around the store.
#[derive(Default)]
pub(crate) struct FuzzHost {
    pub(crate) existing: BTreeSet<u16>,
    lives: BTreeMap<u16, u64>,
    refuses: bool,
    ring_events: Vec<RingEvent>,
}

impl StoreHost for FuzzHost {
    fn domain_identity(&mut self, domid: DomId) -> Option<u64> {
        let lives = self.lives.get(&domid.0).copied().unwrap_or_default();
        self.existing.contains(&domid.0).then_some(lives)
    }
    fn attach(&mut self, at: AttachRequest) -> Result<(), Error> {
        if self.refuses {
            return Err(Error::Inval);
        }
        self.ring_events.push(RingEvent::Attached(at.conn, at.domid.0));
        Ok(())
    }
    fn reattach(&mut self, at: AttachRequest) -> Result<(), Error> {
        if self.refuses {
            return Err(Error::Inval);
        }
        self.ring_events.push(RingEvent::Reattached(at.conn));
        Ok(())
    }
    fn detach(&mut self, _domid: DomId, conn: ConnId) {
        self.ring_events.push(RingEvent::Detached(conn));
    }
    fn control(&mut self, command: &[u8], args: &[&[u8]]) -> Option<Result<Vec<u8>, Error>> {
        (command == b"print").then(|| Ok(args.concat()))
    }
}

/// A request that has not been answered.
#[derive(Debug)]
struct PendingRequest {
    header: Header,
    delayed: bool,
}

/// One client.
pub(crate) struct FuzzClient {
    pub(crate) conn: ConnId,
    /// The domain, if it is a ring.
    pub(crate) domid: Option<u16>,
    /// The bytes that were read and are no whole message yet.
    read: Vec<u8>,
    pending: Vec<PendingRequest>,
    transactions: Vec<u32>,
    ended: bool,
}

impl FuzzClient {
    fn new(conn: ConnId, domid: Option<u16>) -> Self {
        let (read, pending, transactions) = Default::default();
        Self { conn, domid, read, pending, transactions, ended: false }
    }

    /// Forgets all requests: none of them will be answered.
    fn forget(&mut self) {
        *self = Self::new(self.conn, self.domid);
    }

    /// Checks all whole messages that were read.
    fn check_messages(&mut self) {
        let read = std::mem::take(&mut self.read);
        let mut rest = &read[..];
        while let Some((header, payload, behind)) =
            split_message(rest).expect("no message is longer than the protocol allows")
        {
            if header.kind == MsgType::WatchEvent.code() {
                let mut strings = Strings::new(payload);
                assert!(strings.next().is_some() && strings.next().is_some());
                assert!(strings.rest().is_empty() && header.req_id == 0 && header.tx_id == 0);
            } else {
                self.check_reply(&header, payload);
            }
            rest = behind;
        }
        self.read = rest.to_vec();
    }

    fn check_reply(&mut self, header: &Header, payload: &[u8]) {
        let at = self.pending.iter().position(|request| request.header.req_id == header.req_id);
        let at = at.unwrap_or_else(|| panic!("nothing was asked that {header:?} answers"));
        let request = self.pending.remove(at).header;
        assert_eq!(request.tx_id, header.tx_id);
        if header.kind == MsgType::Error.code() {
            let name = payload.strip_suffix(b"\0").expect("an error's name ends with a NUL");
            assert!(Error::from_name(name).is_some(), "{name:?} is no error of the protocol");
            return;
        }
        assert_eq!(request.kind, header.kind, "the reply is of another type than the request");
        if header.kind == MsgType::TransactionStart.code() {
            let id = std::str::from_utf8(payload).expect("ids are text").trim_end_matches('\0');
            self.transactions.push(id.parse().expect("ids are numbers"));
        } else if header.kind == MsgType::TransactionEnd.code() {
            self.transactions.retain(|id| *id != header.tx_id);
        }
    }
}

/// The store and its clients.
pub(crate) struct Run {
    pub(crate) server: Server,
    pub(crate) machine: FuzzHost,
    pub(crate) now: u64,
    pub(crate) peers: Vec<FuzzClient>,
    pub(crate) warnings: Vec<String>,
    next_id: u32,
    last: Option<(usize, u32, u32, Vec<u8>)>,
}

impl Run {
    pub(crate) fn new() -> Self {
        let mut run = Self {
            server: Server::new(Config::default()),
            machine: FuzzHost::default(),
            now: 0,
            peers: Vec::new(),
            warnings: Vec::new(),
            next_id: 1,
            last: None,
        };
        run.socket();
        run.socket();
        run.introduce_domain(1);
        run
    }

    /// Performs the next action; returns `None` when the bytes are used up.
    pub(crate) fn step(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        self.now += 50;
        match bytes.below(32)? {
            0 if self.peers.len() < 8 => drop(self.socket()),
            1 => {
                let at = bytes.below(self.peers.len().max(1))?;
                self.close(at);
            }
            2 => {
                let domid = 1 + bytes.below(3)? as u16;
                if self.machine.existing.contains(&domid) {
                    self.destroy_domain(domid);
                } else {
                    self.introduce_domain(domid);
                }
            }
            3 => {
                let domid = bytes.below(8)? as u16;
                if domid < 4 {
                    self.server.domain_shutdown(DomId(domid), self.now, &mut self.machine);
                } else {
                    self.machine.existing.insert(domid - 4);
                }
            }
            4 => self.break_connection(bytes)?,
            5 => {
                self.now += [100, 5_000, HOLD_MAX_US, 1_000_000, 20_000_000][bytes.below(5)?];
                self.server.tick(self.now, &mut self.machine);
            }
            6 => self.machine.refuses = !self.machine.refuses,
            7..=10 => {
                let (at, count) = (bytes.below(self.peers.len().max(1))?, bytes.byte()?);
                self.read(at, usize::from(count) * usize::from(count) / 8);
            }
            11 | 12 => {
                let at = bytes.below(self.peers.len().max(1))?;
                self.drain(at);
            }
            13 => {
                for _ in 0..bytes.byte()? {
                    let Some((at, kind, tx_id, payload)) = self.last.clone() else { break };
                    self.ask(at, kind, tx_id, &payload);
                }
            }
            14 | 15 => self.contest(bytes)?,
            _ => self.request(bytes)?,
        }
        self.settle();
        Some(())
    }

    /// Causes a conflict: a transaction is refused because another client wrote a node that it had
    /// read. Another transaction of the same client then takes its turn, and the writes of other
    /// clients to that node wait from now on.
    fn contest(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        const CONTESTED: [&str; 4] =
            ["/a", "/local/domain/1/d", "/local/domain/2/d", "/local/domain/1/d/e"];
        let (at, other) = (bytes.below(self.peers.len().max(1))?, bytes.below(4)?);
        let path = CONTESTED[bytes.below(CONTESTED.len())?];
        for step in 0..2 {
            self.ask(at, MsgType::TransactionStart.code(), 0, b"\0");
            self.drain(at);
            let Some(peer) = self.peers.get(at) else { break };
            let Some(tx_id) = peer.transactions.last().copied() else { break };
            self.ask(at, MsgType::Read.code(), tx_id, format!("{path}\0").as_bytes());
            self.ask(at, MsgType::Write.code(), tx_id, b"h\0");
            let value = self.next_id;
            self.ask(other, MsgType::Write.code(), 0, format!("{path}\0{value}").as_bytes());
            if step == 0 {
                self.ask(at, MsgType::TransactionEnd.code(), tx_id, b"T\0");
            }
        }
        Some(())
    }

    fn request(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let at = bytes.below(self.peers.len().max(1))?;
        let tx = bytes.byte()?;
        let (kind, payload) = message(bytes)?;
        let known = self.peers.get(at).map_or(&[][..], |peer| &peer.transactions);
        let tx_id = match tx {
            0..=0x4f => 0,
            0xf8..=0xff => bytes.word()?,
            // The first transactions of a connection get small numbers, whether the replies to
            // their starts were read or not.
            _ => {
                let guess = u32::from(tx) % 4;
                known.get(usize::from(tx) % known.len().max(1)).copied().unwrap_or(guess)
            }
        };
        self.ask(at, kind, tx_id, &payload);
        self.last = Some((at, kind, tx_id, payload));
        Some(())
    }

    /// Sends a request, if the store would take one from this client now.
    pub(crate) fn ask(&mut self, at: usize, kind: u32, tx_id: u32, payload: &[u8]) {
        let Some(peer) = self.peers.get(at) else { return };
        let conn = peer.conn;
        if !self.server.wants_input(conn) {
            return;
        }
        assert!(!peer.ended, "requests are wanted of a connection that has ended");
        let (req_id, len) = (self.next_id, payload.len() as u32);
        self.next_id += 1;
        let header = Header { kind, req_id, tx_id, len };
        let before = self.server.counters().delayed;
        self.server.request(conn, &header, payload, self.now, &mut self.machine);
        let delayed = self.server.counters().delayed > before;
        self.apply_ring_events();
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.conn == conn) {
            peer.pending.push(PendingRequest { header, delayed });
        }
        self.settle();
    }

    fn break_connection(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let at = bytes.below(self.peers.len().max(1))?;
        let how = bytes.below(4)?;
        let Some(peer) = self.peers.get_mut(at) else { return Some(()) };
        let conn = peer.conn;
        let why = match how {
            0 if peer.domid.is_some() => {
                peer.forget();
                self.server.reset(conn, self.now, &mut self.machine);
                return Some(());
            }
            0 | 1 => EndReason::Protocol,
            2 => EndReason::RingIndex,
            _ => EndReason::Communication,
        };
        self.server.end(conn, why, self.now, &mut self.machine);
        Some(())
    }

    /// Reads at most `count` bytes of the output for a client.
    fn read(&mut self, at: usize, count: usize) -> usize {
        let Some(peer) = self.peers.get_mut(at) else { return 0 };
        let output = self.server.output(peer.conn);
        let count = count.min(output.len());
        peer.read.extend_from_slice(&output[..count]);
        self.server.consume_output(peer.conn, count, self.now);
        peer.check_messages();
        count
    }

    /// Reads all output for a client.
    pub(crate) fn drain(&mut self, at: usize) {
        let mut total = 0;
        loop {
            let count = self.read(at, usize::MAX);
            total += count;
            if count == 0 {
                break;
            }
        }
        assert!(total <= WAITING_MAX, "{total} bytes waited for one reader");
        let Some(peer) = self.peers.get(at) else { return };
        assert!(peer.read.is_empty(), "the output ends in the middle of a message");
        let missing: Vec<&PendingRequest> =
            peer.pending.iter().filter(|pending| !pending.delayed).collect();
        assert!(missing.is_empty(), "not answered: {missing:?}");
    }

    /// True if some client waits for an answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.peers.iter().any(|peer| !peer.pending.is_empty())
    }

    /// Adds a socket client; returns its index.
    pub(crate) fn socket(&mut self) -> usize {
        let conn = self.server.connect_socket();
        assert!(self.server.output(conn).is_empty(), "a new connection has output");
        self.peers.push(FuzzClient::new(conn, None));
        self.peers.len() - 1
    }

    /// Closes a socket, or resets a ring.
    pub(crate) fn close(&mut self, at: usize) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        let conn = peer.conn;
        if peer.domid.is_some() {
            peer.forget();
            self.server.reset(conn, self.now, &mut self.machine);
        } else {
            self.peers.remove(at);
            self.server.disconnect(conn, self.now, &mut self.machine);
        }
        self.settle();
    }

    /// Makes and introduces a domain, whose account must start at 0.
    pub(crate) fn introduce_domain(&mut self, domid: u16) {
        let known = self.server.domains().any(|known| known == DomId(domid));
        self.machine.existing.insert(domid);
        let introduced =
            self.server.introduce(DomId(domid), 0, 1, self.now, &mut self.machine).is_ok();
        assert_eq!(introduced, !self.machine.refuses);
        self.settle();
        if introduced && !known {
            self.check_account_is_empty(domid);
        }
        let home = format!("/local/domain/{domid}\0");
        if let Some(dom0) = self.peers.iter().position(|peer| peer.domid.is_none()) {
            self.ask(dom0, MsgType::Mkdir.code(), 0, home.as_bytes());
        }
        if let Some(dom0) = self.peers.iter().position(|peer| peer.domid.is_none()) {
            let perms = format!("{home}n{domid}\0");
            self.ask(dom0, MsgType::SetPerms.code(), 0, perms.as_bytes());
        }
    }

    pub(crate) fn destroy_domain(&mut self, domid: u16) {
        self.machine.existing.remove(&domid);
        *self.machine.lives.entry(domid).or_default() += 1;
        self.server.domain_died(DomId(domid), self.now, &mut self.machine);
        self.settle();
        assert!(self.server.domains().all(|known| known != DomId(domid)));
        assert!(self.peers.iter().all(|peer| peer.domid != Some(domid)));
    }

    /// Records the store's actions on rings; returns the connections that are new or reset.
    fn apply_ring_events(&mut self) -> Vec<ConnId> {
        let mut fresh = Vec::new();
        for ring in std::mem::take(&mut self.machine.ring_events) {
            match ring {
                RingEvent::Attached(conn, domid) => {
                    assert!(self.peers.iter().all(|peer| peer.conn != conn), "{conn:?} is in use");
                    self.peers.push(FuzzClient::new(conn, Some(domid)));
                    fresh.push(conn);
                }
                RingEvent::Reattached(conn) => {
                    self.peers
                        .iter_mut()
                        .filter(|peer| peer.conn == conn)
                        .for_each(FuzzClient::forget);
                    fresh.push(conn);
                }
                RingEvent::Detached(conn) => self.peers.retain(|peer| peer.conn != conn),
            }
        }
        fresh
    }

    /// Records all changes of connections that the store reports.
    pub(crate) fn settle(&mut self) {
        let fresh = self.apply_ring_events();
        let mut ended = Vec::new();
        while let Some(notice) = self.server.poll_notice() {
            match notice {
                Notice::Warn { text, .. } => self.warnings.push(text),
                Notice::Ended { conn, .. } => ended.push(conn),
                _ => {}
            }
        }
        for conn in ended {
            let Some(at) = self.peers.iter().position(|peer| peer.conn == conn) else { continue };
            if fresh.contains(&conn) {
                self.close(at);
                continue;
            }
            let output = self.server.output(conn).len();
            assert_eq!(output, 0, "a connection that has ended has output");
            self.peers[at].forget();
            if self.peers[at].domid.is_none() {
                self.close(at);
            } else {
                self.peers[at].ended = true;
            }
        }
    }
}
