//! The client's end of the protocol as a state machine: requests become bytes to write, and bytes
//! that were read become replies and watch events.
//!
//! Any number of requests may be in flight. Replies are matched by their request id, in whatever
//! order they arrive (`docs/misc/xenstore.txt`: "any order"). The caller owns the transport: it
//! writes the bytes of [`Client::output`], reports the number of bytes written with
//! [`Client::consume_output`], and passes the bytes that it read to [`Client::receive`].

use crate::limits::{HEADER_SIZE, PAYLOAD_MAX};
use crate::wire::{Error, Header, MsgType, OversizedMessage, Strings, split_message};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The id of a request that is in flight, or answered and not yet taken. One machine never uses it
/// twice while its request is unanswered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(u32);

impl RequestId {
    /// Returns the id on the wire.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// The answer of a daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Success, with the reply's payload unchanged.
    Done(Vec<u8>),
    /// An ERROR reply.
    Refused(ErrorName),
}

/// The name in an ERROR reply: one of `io/xs_wire.h`, or another name of a daemon's own (oxenstored
/// has EQUOTA).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ErrorName {
    /// A name of `xs_wire.h`.
    Known(Error),
    /// Any other name. Invalid UTF-8 is replaced.
    Other(String),
}

impl ErrorName {
    fn parse(payload: &[u8]) -> Self {
        let name = Strings::new(payload).next().unwrap_or(payload);
        match Error::from_name(name) {
            Some(error) => Self::Known(error),
            None => Self::Other(String::from_utf8_lossy(name).into_owned()),
        }
    }

    /// Returns the error, if `xs_wire.h` has it.
    #[must_use]
    pub fn known(&self) -> Option<Error> {
        match self {
            Self::Known(error) => Some(*error),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(error) => error.fmt(f),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A watch that fired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The node that changed, or a special path such as `@introduceDomain`.
    pub path: Vec<u8>,
    /// The token with which the watch was set.
    pub token: Vec<u8>,
}

/// A request that was not sent because its payload is over [`PAYLOAD_MAX`]. A daemon would end the
/// connection for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestTooLong {
    /// The kind of request.
    pub kind: MsgType,
    /// Length of its payload in bytes.
    pub len: usize,
}

impl fmt::Display for RequestTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, len } = self;
        write!(f, "{} with {len} bytes of path and value; ", kind.name())?;
        write!(f, "a request holds at most {PAYLOAD_MAX}")
    }
}

impl core::error::Error for RequestTooLong {}

/// A breach of the protocol by the daemon. Nothing more can be read from this connection.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message announces more than [`PAYLOAD_MAX`] bytes. oxenstored sends such a message for a
    /// directory with a long list of children, where C's daemon answers E2BIG.
    ReplyTooLong {
        /// The length that the header announces.
        len: u32,
        /// The request that the message answers, if the header names one.
        request: Option<MsgType>,
    },
    /// A reply to no request that is in flight.
    UnknownRequest {
        /// The request id in the reply.
        req_id: u32,
    },
    /// A reply whose type is neither that of its request nor ERROR.
    WrongType {
        /// The type of the request.
        request: MsgType,
        /// The type code of the reply.
        reply: u32,
    },
    /// A WATCH_EVENT without path and token.
    BadEvent,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplyTooLong { len, request: Some(MsgType::Directory) } => write!(
                f,
                "the list of children is {len} bytes long and a message holds {PAYLOAD_MAX}; \
                 this daemon (oxenstored does so) sends it nevertheless, \
                 and has no other way to list such a directory"
            ),
            Self::ReplyTooLong { len, .. } => fmt::Display::fmt(&OversizedMessage { len: *len }, f),
            Self::UnknownRequest { req_id } => {
                write!(f, "a reply to request {req_id}, which is not in flight")
            }
            Self::WrongType { request, reply } => {
                let reply = MsgType::from_code(*reply).map_or("an unknown type", MsgType::name);
                write!(f, "{} was answered with {reply}", request.name())
            }
            Self::BadEvent => f.write_str("a watch event without a path and a token"),
        }
    }
}

impl core::error::Error for ProtocolError {}

/// A request in flight.
#[derive(Debug)]
struct InFlightRequest {
    kind: MsgType,
    /// True if no caller will take the reply.
    forgotten: bool,
}

/// The state machine of a client.
#[derive(Debug, Default)]
pub struct Client {
    last_id: u32,
    pending: BTreeMap<u32, InFlightRequest>,
    replies: BTreeMap<u32, Reply>,
    events: VecDeque<Event>,
    output: Vec<u8>,
    /// The number of bytes at the start of `output` that have been written.
    written: usize,
    /// The start of a message whose end has not arrived.
    partial: Vec<u8>,
    broken: Option<ProtocolError>,
}

impl Client {
    /// Returns a machine for a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a request. Its payload is `parts` concatenated, with nothing added: the caller adds
    /// the NULs. `tx_id` is 0 outside transactions.
    ///
    /// # Errors
    /// [`RequestTooLong`]; nothing is queued then.
    pub fn send(
        &mut self,
        kind: MsgType,
        tx_id: u32,
        parts: &[&[u8]],
    ) -> Result<RequestId, RequestTooLong> {
        let len = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
        let header_len = match u32::try_from(len) {
            Ok(header_len) if len <= PAYLOAD_MAX => header_len,
            _ => return Err(RequestTooLong { kind, len }),
        };
        let req_id = self.fresh_id();
        let header = Header { kind: kind.code(), req_id, tx_id, len: header_len };
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        self.output.extend_from_slice(&header.to_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
        self.pending.insert(req_id, InFlightRequest { kind, forgotten: false });
        Ok(RequestId(req_id))
    }

    /// Returns an id that is not 0, which events carry, and that is not in use.
    fn fresh_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            let id = self.last_id;
            if id != 0 && !self.pending.contains_key(&id) && !self.replies.contains_key(&id) {
                return id;
            }
        }
    }

    /// Returns the bytes to write next. They are empty when all have been written.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.get(self.written..).unwrap_or_default()
    }

    /// Returns the bytes of [`Client::output`], but only up to the end of the first message. It is
    /// for a transport that takes one message per write, as `/dev/xen/xenbus` does.
    ///
    /// The caller must consume whole messages.
    #[must_use]
    pub fn output_message(&self) -> &[u8] {
        let output = self.output();
        let len = Header::parse(output).map_or(0, |header| header.len as usize);
        output.get(..len.saturating_add(HEADER_SIZE)).unwrap_or(output)
    }

    /// Records that the first `count` bytes of [`Client::output`] have been written.
    pub fn consume_output(&mut self, count: usize) {
        self.written = self.written.saturating_add(count).min(self.output.len());
        // This keeps memory from growing if the writer is always a little behind.
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        } else if self.written >= 64 * 1024 {
            self.output.drain(..self.written);
            self.written = 0;
        }
    }

    /// Takes bytes that were read, split anywhere.
    ///
    /// # Errors
    /// The breach of the protocol by the daemon. Messages before it can still be taken. Later bytes
    /// are refused with the same error.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let result = if self.partial.is_empty() {
            self.take_messages(bytes).map(|rest| self.partial.extend_from_slice(rest))
        } else {
            let mut all = core::mem::take(&mut self.partial);
            all.extend_from_slice(bytes);
            let left = self.take_messages(&all).map(<[u8]>::len);
            left.map(|left| {
                all.drain(..all.len().saturating_sub(left));
                self.partial = all;
            })
        };
        if let Err(error) = &result {
            self.broken = Some(error.clone());
        }
        result
    }

    /// Takes all complete messages and returns the remaining bytes.
    fn take_messages<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        loop {
            match split_message(bytes) {
                Ok(None) => return Ok(bytes),
                Ok(Some((header, payload, rest))) => {
                    self.message(header, payload)?;
                    bytes = rest;
                }
                Err(OversizedMessage { len }) => {
                    let request = Header::parse(bytes)
                        .and_then(|header| self.pending.get(&header.req_id))
                        .map(|pending| pending.kind);
                    return Err(ProtocolError::ReplyTooLong { len, request });
                }
            }
        }
    }

    fn message(&mut self, header: Header, payload: &[u8]) -> Result<(), ProtocolError> {
        if header.kind == MsgType::WatchEvent.code() {
            let mut strings = Strings::new(payload);
            let (Some(path), Some(token)) = (strings.next(), strings.next()) else {
                return Err(ProtocolError::BadEvent);
            };
            self.events.push_back(Event { path: path.to_vec(), token: token.to_vec() });
            return Ok(());
        }
        let Some(pending) = self.pending.remove(&header.req_id) else {
            return Err(ProtocolError::UnknownRequest { req_id: header.req_id });
        };
        let reply = if header.kind == MsgType::Error.code() {
            Reply::Refused(ErrorName::parse(payload))
        } else if header.kind == pending.kind.code() {
            Reply::Done(payload.to_vec())
        } else {
            return Err(ProtocolError::WrongType { request: pending.kind, reply: header.kind });
        };
        if !pending.forgotten {
            self.replies.insert(header.req_id, reply);
        }
        Ok(())
    }

    /// Returns the reply to this request, once; `None` while it has not arrived.
    pub fn take_reply(&mut self, id: RequestId) -> Option<Reply> {
        self.replies.remove(&id.0)
    }

    /// True if the reply to this request can be taken.
    #[must_use]
    pub fn has_reply(&self, id: RequestId) -> bool {
        self.replies.contains_key(&id.0)
    }

    /// True if the request with this id on the wire is unanswered: queued, or in flight.
    #[must_use]
    pub fn awaits(&self, req_id: u32) -> bool {
        self.pending.contains_key(&req_id)
    }

    /// Returns any reply that has arrived and was not taken.
    pub fn poll_reply(&mut self) -> Option<(RequestId, Reply)> {
        self.replies.pop_first().map(|(id, reply)| (RequestId(id), reply))
    }

    /// Drops the reply to this request, now or when it arrives.
    pub fn forget(&mut self, id: RequestId) {
        self.replies.remove(&id.0);
        if let Some(pending) = self.pending.get_mut(&id.0) {
            pending.forgotten = true;
        }
    }

    /// Returns the oldest watch event that was not taken.
    ///
    /// The machine keeps every event until it is taken, as the protocol allows none to be lost.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the number of events waiting for [`Client::poll_event`].
    #[must_use]
    pub fn events_waiting(&self) -> usize {
        self.events.len()
    }

    /// Returns the number of requests whose reply has not arrived.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn message(kind: MsgType, req_id: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = Header { kind: kind.code(), req_id, tx_id: 0, len }.to_bytes().to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_request_is_its_parts_behind_a_header() {
        let mut client = Client::new();
        let id = client.send(MsgType::Write, 7, &[b"/a\0", b"value"]).unwrap();
        let (header, payload, rest) = split_message(client.output()).unwrap().unwrap();
        assert_eq!(header, Header { kind: 11, req_id: id.get(), tx_id: 7, len: 8 });
        assert_eq!((payload, rest), (&b"/a\0value"[..], &b""[..]));
    }

    #[test]
    fn output_goes_out_in_pieces_of_any_size() {
        for step in 1..60 {
            let mut client = Client::new();
            let mut out = Vec::new();
            client.send(MsgType::Read, 0, &[b"/a\0"]).unwrap();
            client.send(MsgType::Read, 0, &[b"/b\0"]).unwrap();
            while !client.output().is_empty() {
                let count = step.min(client.output().len());
                out.extend_from_slice(&client.output()[..count]);
                client.consume_output(count);
            }
            assert_eq!(
                out,
                [message(MsgType::Read, 1, b"/a\0"), message(MsgType::Read, 2, b"/b\0")].concat()
            );
        }
    }

    #[test]
    fn output_message_is_one_message() {
        let mut client = Client::new();
        assert!(client.output_message().is_empty());
        client.send(MsgType::Read, 0, &[b"/a\0"]).unwrap();
        client.send(MsgType::Rm, 0, &[b"/long\0"]).unwrap();
        assert_eq!(client.output_message(), message(MsgType::Read, 1, b"/a\0"));
        client.consume_output(19);
        assert_eq!(client.output_message(), message(MsgType::Rm, 2, b"/long\0"));
    }

    #[test]
    fn payloads_end_at_4096() {
        let mut client = Client::new();
        let half = vec![b'x'; 2048];
        assert!(client.send(MsgType::Write, 0, &[&half, &half]).is_ok());
        let output = client.output().len();
        let refused = client.send(MsgType::Write, 0, &[&half, &half, b"x"]);
        assert_eq!(refused, Err(RequestTooLong { kind: MsgType::Write, len: 4097 }));
        assert_eq!((client.output().len(), client.in_flight()), (output, 1));
    }

    #[test]
    fn replies_and_events_split_at_every_byte() {
        let stream = [
            message(MsgType::WatchEvent, 0, b"/a/b\0token\0"),
            message(MsgType::Read, 2, b"two"),
            message(MsgType::Error, 3, b"EQUOTA\0"),
            message(MsgType::WatchEvent, 0, b"/c\0\0"),
            message(MsgType::Read, 1, b""),
            message(MsgType::Error, 4, b"ENOENT\0"),
        ]
        .concat();
        for cut in 0..=stream.len() {
            for second in cut..=stream.len().min(cut + 20) {
                let mut client = Client::new();
                let ids: Vec<_> =
                    (0..4).map(|_| client.send(MsgType::Read, 0, &[b"/x\0"]).unwrap()).collect();
                for piece in [&stream[..cut], &stream[cut..second], &stream[second..]] {
                    client.receive(piece).unwrap();
                }
                assert_eq!(client.in_flight(), 0);
                assert_eq!(client.take_reply(ids[0]), Some(Reply::Done(vec![])));
                assert_eq!(client.take_reply(ids[0]), None);
                assert_eq!(client.take_reply(ids[1]), Some(Reply::Done(b"two".to_vec())));
                let quota = ErrorName::Other("EQUOTA".into());
                assert_eq!(client.take_reply(ids[2]), Some(Reply::Refused(quota)));
                let absent = Reply::Refused(ErrorName::Known(Error::NoEnt));
                assert_eq!(client.poll_reply(), Some((ids[3], absent)));
                assert_eq!(client.events_waiting(), 2);
                let event = client.poll_event().unwrap();
                assert_eq!((&event.path[..], &event.token[..]), (&b"/a/b"[..], &b"token"[..]));
                let event = client.poll_event().unwrap();
                assert_eq!((&event.path[..], &event.token[..]), (&b"/c"[..], &b""[..]));
                assert_eq!(client.poll_event(), None);
            }
        }
    }

    #[test]
    fn a_forgotten_reply_is_dropped() {
        let mut client = Client::new();
        let id = client.send(MsgType::Read, 0, &[b"/x\0"]).unwrap();
        client.forget(id);
        client.receive(&message(MsgType::Read, id.get(), b"v")).unwrap();
        assert_eq!((client.take_reply(id), client.in_flight()), (None, 0));
    }

    #[test]
    fn protocol_errors_are_told_and_final() {
        let too_long = Header { kind: 1, req_id: 1, tx_id: 0, len: 5000 }.to_bytes().to_vec();
        let cases = [
            (
                too_long,
                ProtocolError::ReplyTooLong { len: 5000, request: Some(MsgType::Directory) },
            ),
            (message(MsgType::Directory, 9, b""), ProtocolError::UnknownRequest { req_id: 9 }),
            (
                message(MsgType::Read, 1, b""),
                ProtocolError::WrongType { request: MsgType::Directory, reply: 2 },
            ),
            (message(MsgType::WatchEvent, 0, b"/a\0token"), ProtocolError::BadEvent),
        ];
        for (bytes, expected) in cases {
            let mut client = Client::new();
            client.send(MsgType::Directory, 0, &[b"/\0"]).unwrap();
            assert_eq!(client.receive(&bytes), Err(expected.clone()));
            assert_eq!(client.receive(b""), Err(expected));
        }
    }

    #[test]
    fn an_oversized_listing_names_the_cause() {
        let error = ProtocolError::ReplyTooLong { len: 9000, request: Some(MsgType::Directory) };
        let text = alloc::format!("{error}");
        assert!(text.contains("9000") && text.contains("oxenstored"), "{text}");
    }

    #[test]
    fn ids_wrap_past_zero_and_past_those_in_use() {
        let mut client = Client { last_id: u32::MAX - 1, ..Client::default() };
        let last = client.send(MsgType::Read, 0, &[b"/\0"]).unwrap();
        let first = client.send(MsgType::Read, 0, &[b"/\0"]).unwrap();
        assert_eq!((last.get(), first.get()), (u32::MAX, 1));
        client.last_id = 0;
        assert_eq!(client.send(MsgType::Read, 0, &[b"/\0"]).unwrap().get(), 2);
    }
}
