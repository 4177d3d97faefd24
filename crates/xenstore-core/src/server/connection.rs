//! One connection: its output, its watches and its transactions.

use super::events::{EventQueue, PendingEvent};
use super::retained_state::RetainedState;
use super::transactions::Transactions;
use crate::domain::Domains;
use crate::id::DomId;
use crate::limits::{EVENT_WEIGHT, HEADER_SIZE, RING_BYTES, UNREAD_SOFT_BYTES};
use crate::notice::EndReason;
use crate::quota::Quota;
use crate::watch::{WatchId, Watches};
use crate::wire::{Error, Header, MsgType, split_message};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The transport to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    /// A socket: its client belongs to the domain of the store.
    Socket,
    /// The domain's ring.
    Ring,
}

/// The most bytes that were sent and stay in front of the unsent output, and the largest buffer of
/// an idle connection.
const SENT_MAX: usize = UNREAD_SOFT_BYTES / 8;

/// One connection.
pub(super) struct Connection {
    pub(super) domid: DomId,
    pub(super) transport: Transport,
    /// The encoded output. It is unsent from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// The events after the encoded output.
    events: EventQueue,
    /// For rings: the end of each unread reply in `out`, in bytes from its start.
    replies: VecDeque<usize>,
    pub(super) watches: BTreeMap<Rc<[u8]>, WatchId>,
    pub(super) transactions: Transactions,
    pub(super) next_transaction: u32,
    /// Its snapshots, and the bytes of replaced state that they keep.
    pub(super) retained: RetainedState,
    /// The numbers of its waiting requests, in the order of arrival.
    pub(super) delayed: VecDeque<u64>,
    /// The bytes of these requests for the quota `memory`.
    delayed_weight: i64,
    /// The cost that is not charged yet: of its transactions' turns, and of deferred work.
    pub(super) owed: u32,
    pub(super) ended: Option<EndReason>,
    /// True if `poll_ready` has returned it since it last got output.
    pub(super) ready: bool,
    /// The time since which output has been unread without progress.
    pub(super) unread_since: Option<u64>,
}

impl Connection {
    pub(super) fn new(domid: DomId, transport: Transport) -> Self {
        Self {
            domid,
            transport,
            out: Vec::new(),
            sent: 0,
            events: EventQueue::default(),
            replies: VecDeque::new(),
            watches: BTreeMap::new(),
            transactions: Transactions::default(),
            next_transaction: 1,
            retained: RetainedState::default(),
            delayed: VecDeque::new(),
            delayed_weight: 0,
            owed: 0,
            ended: None,
            ready: false,
            unread_since: None,
        }
    }

    /// Appends a reply. The payload is known to fit. A connection that its own request has ended,
    /// by events that it left unread, gets no reply.
    pub(super) fn reply(&mut self, request: &Header, kind: MsgType, payload: &[&[u8]]) {
        if self.ended.is_some() {
            return;
        }
        let len = payload.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        let header = Header {
            kind: kind.code(),
            req_id: request.req_id,
            tx_id: request.tx_id,
            len: u32::try_from(len).unwrap_or(u32::MAX),
        };
        self.out.extend_from_slice(&header.to_bytes());
        for part in payload {
            self.out.extend_from_slice(part);
        }
        self.count_reply();
    }

    pub(super) fn reply_error(&mut self, request: &Header, error: Error) {
        self.reply(request, MsgType::Error, &[error.name().as_bytes(), b"\0"]);
    }

    /// Starts a reply whose payload `fill` appends. If the payload is longer than `max` the reply
    /// is dropped.
    pub(super) fn reply_with(
        &mut self,
        request: &Header,
        kind: MsgType,
        max: usize,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Error> {
        if self.ended.is_some() {
            return Ok(());
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0; HEADER_SIZE]);
        let body = self.out.len();
        fill(&mut self.out);
        let len = self.out.len().saturating_sub(body);
        if len > max {
            self.out.truncate(start);
            return Err(Error::TooBig);
        }
        let header = Header {
            kind: kind.code(),
            req_id: request.req_id,
            tx_id: request.tx_id,
            len: u32::try_from(len).unwrap_or(u32::MAX),
        };
        if let Some(to) = self.out.get_mut(start..body) {
            to.copy_from_slice(&header.to_bytes());
        }
        self.count_reply();
        Ok(())
    }

    fn count_reply(&mut self) {
        if self.transport == Transport::Ring {
            self.replies.push_back(self.out.len());
        }
    }

    /// Returns the number of replies that the guest has not read yet.
    pub(super) fn unread_replies(&self) -> usize {
        self.replies.len()
    }

    /// Returns the usage for the quota `outstanding`: on a ring, the requests whose replies are
    /// unread or delayed.
    pub(super) fn outstanding(&self) -> usize {
        match self.transport {
            Transport::Ring => self.replies.len().saturating_add(self.delayed.len()),
            Transport::Socket => 0,
        }
    }

    /// Queues an event, unless an equal one waits already. Returns true if it was queued.
    pub(super) fn push_event(&mut self, watch: WatchId, path: &Rc<[u8]>, len: usize) -> bool {
        self.events.push((watch, path.clone()), len.saturating_add(EVENT_WEIGHT))
    }

    /// Drops the events of a removed watch, and returns the number of events searched.
    pub(super) fn drop_events(&mut self, watch: WatchId) -> usize {
        let looked_through = self.events.len();
        if looked_through > 0 {
            self.events.drop_of(watch);
        }
        looked_through
    }

    /// Takes all events out.
    pub(super) fn take_events(&mut self) -> EventQueue {
        core::mem::take(&mut self.events)
    }

    /// Returns the bytes for the quota `memory` besides its watches and transactions.
    pub(super) fn held(&self) -> i64 {
        self.retained.charged().saturating_add(self.delayed_weight)
    }

    /// Charges its domain for the replaced state that its snapshots keep.
    pub(super) fn charge_retained(&mut self, domains: &mut Domains) {
        let more = self.retained.recharge();
        if more != 0 {
            domains.charge(self.domid, Quota::Memory, more);
        }
    }

    /// Charges its domain for waiting requests. They are never refused: the quota `outstanding`
    /// limits them.
    pub(super) fn charge_delayed(&mut self, weight: i64, domains: &mut Domains) {
        self.delayed_weight = self.delayed_weight.saturating_add(weight);
        domains.charge(self.domid, Quota::Memory, weight);
    }

    /// Returns the number of unsent bytes.
    pub(super) fn unread(&self) -> usize {
        self.out.len().saturating_sub(self.sent).saturating_add(self.events.size())
    }

    /// Takes out the numbers of the waiting requests.
    pub(super) fn take_delayed(&mut self, domains: &mut Domains) -> VecDeque<u64> {
        let weight = self.delayed_weight;
        self.charge_delayed(weight.saturating_neg(), domains);
        core::mem::take(&mut self.delayed)
    }

    /// Returns the encoded output, after encoding as much as one send may take. It encodes no more:
    /// equal events are still merged into one that is not encoded yet.
    pub(super) fn output(&mut self, watches: &Watches) -> &[u8] {
        let enough = match self.transport {
            Transport::Socket => UNREAD_SOFT_BYTES,
            Transport::Ring => RING_BYTES,
        };
        while self.out.len().saturating_sub(self.sent) < enough
            && let Some(event) = self.events.pop()
        {
            encode(&event, watches, &mut self.out);
        }
        self.out.get(self.sent..).unwrap_or_default()
    }

    /// Records that the first `count` bytes of the output have been sent.
    pub(super) fn consume(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.out.len());
        while self.replies.front().is_some_and(|end| *end <= self.sent) {
            self.replies.pop_front();
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= SENT_MAX {
            // The kept bytes begin with a whole message. A part of it may have been sent.
            let gone = message_start(&self.out, self.sent);
            self.out.drain(..gone);
            for end in &mut self.replies {
                *end = end.saturating_sub(gone);
            }
            self.sent = self.sent.saturating_sub(gone);
        }
        // Much output at one time is no reason to keep much memory.
        let used = self.out.len();
        if self.out.capacity() > used.saturating_mul(2).saturating_add(SENT_MAX) {
            self.out.shrink_to(used.saturating_add(SENT_MAX));
        }
        self.events.shrink();
    }

    /// Returns all unsent output, encoded, for the state's stream, and the number of bytes at its
    /// start that belong to a message of which a part has been sent.
    pub(super) fn unsent(&self, watches: &Watches) -> (usize, Vec<u8>) {
        let mut out = Vec::from(self.out.get(self.sent..).unwrap_or_default());
        let start = message_start(&self.out, self.sent);
        let partial = match self.sent.checked_sub(start) {
            None | Some(0) => 0,
            Some(sent) => message_len(self.out.get(start..).unwrap_or_default())
                .map_or(out.len(), |len| len.saturating_sub(sent)),
        };
        for event in self.events.iter() {
            encode(event, watches, &mut out);
        }
        (partial, out)
    }

    /// Restores the output of another store's [`Connection::unsent`].
    ///
    /// # Errors
    /// An error text if it does not consist of messages.
    pub(super) fn restore_output(
        &mut self,
        partial: usize,
        output: &[u8],
    ) -> Result<(), &'static str> {
        const BROKEN: &str = "its output does not consist of messages";
        let (first, mut rest) = output.split_at_checked(partial).ok_or(BROKEN)?;
        if !first.is_empty() {
            // The output must begin with a whole message, so the part gets a header of its own,
            // which counts as sent.
            let len = u32::try_from(first.len()).map_err(|_| BROKEN)?;
            self.out.extend_from_slice(&Header { len, ..Header::default() }.to_bytes());
            self.sent = self.out.len();
            self.out.extend_from_slice(first);
            self.count_reply();
        }
        while !rest.is_empty() {
            let Ok(Some((header, payload, behind))) = split_message(rest) else {
                return Err(BROKEN);
            };
            self.out.extend_from_slice(&header.to_bytes());
            self.out.extend_from_slice(payload);
            if header.kind != MsgType::WatchEvent.code() {
                self.count_reply();
            }
            rest = behind;
        }
        Ok(())
    }

    /// Drops all output except events.
    pub(super) fn clear_output(&mut self) {
        self.out = Vec::new();
        self.sent = 0;
        self.replies.clear();
    }
}

/// Appends the message of an event, if its watch still exists.
fn encode((id, path): &PendingEvent, watches: &Watches, to: &mut Vec<u8>) {
    let Some(watch) = watches.get(*id) else { return };
    let path = path.get(watch.hidden..).unwrap_or_default();
    let len = path.len().saturating_add(watch.token().len()).saturating_add(2);
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let header = Header { kind: MsgType::WatchEvent.code(), req_id: 0, tx_id: 0, len };
    to.extend_from_slice(&header.to_bytes());
    to.extend_from_slice(path);
    to.push(0);
    to.extend_from_slice(watch.token());
    to.push(0);
}

/// Returns the length of the message at the start of `bytes`.
fn message_len(bytes: &[u8]) -> Option<usize> {
    Some(HEADER_SIZE.saturating_add(Header::parse(bytes)?.len as usize))
}

/// Returns the start of the message that contains `at`. `out` begins with a whole message.
fn message_start(out: &[u8], at: usize) -> usize {
    let mut start = 0usize;
    while let Some(len) = message_len(out.get(start..).unwrap_or_default()) {
        let end = start.saturating_add(len);
        if end > at {
            break;
        }
        start = end;
    }
    start
}
