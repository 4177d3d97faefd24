//! A client machine with its requests in flight. Replies must be to its own requests, in the right
//! order.

use std::collections::VecDeque;
use xenstore_core::client::{Client, Event, Reply, RequestId};
use xenstore_core::wire::{MsgType, split_message};

/// The order in which replies come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReplyOrder {
    /// Replies come in the order of the requests.
    Sent,
    /// Replies may overtake each other: transactions that have the turn may delay requests.
    Any,
}

/// A message that was received.
#[derive(Debug)]
pub(crate) enum ReceivedMessage<T> {
    Reply(T, Reply),
    Event(Event),
}

/// A client that remembers its requests in flight.
pub(crate) struct QueuedClient<T> {
    client: Client,
    order: ReplyOrder,
    in_flight: VecDeque<(RequestId, T)>,
    /// The start of a message that has not come completely.
    partial: Vec<u8>,
}

impl<T> QueuedClient<T> {
    pub(crate) fn new(order: ReplyOrder) -> Self {
        let (in_flight, partial) = (VecDeque::new(), Vec::new());
        Self { client: Client::new(), order, in_flight, partial }
    }

    /// Sends a request; `about` is returned with its reply.
    pub(crate) fn send(&mut self, kind: MsgType, tx: u32, payload: &str, about: T) {
        if let Ok(id) = self.client.send(kind, tx, &[payload.as_bytes()]) {
            self.in_flight.push_back((id, about));
        }
    }

    pub(crate) fn output(&self) -> &[u8] {
        self.client.output()
    }

    pub(crate) fn consume_output(&mut self, count: usize) {
        self.client.consume_output(count);
    }

    /// Returns the number of requests without a reply.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Returns the requests without a reply.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &T> {
        self.in_flight.iter().map(|(_, about)| about)
    }

    /// True if part of a message has come.
    pub(crate) fn has_partial_message(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Resets the client after its connection was cut. Returns the requests that had no reply.
    pub(crate) fn cut(&mut self) -> Vec<T> {
        self.client = Client::new();
        self.partial.clear();
        self.in_flight.drain(..).map(|(_, about)| about).collect()
    }

    /// Handles the bytes that were read, one message at a time, so that their order is seen.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<Vec<ReceivedMessage<T>>, String> {
        self.partial.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut taken = 0;
        loop {
            let rest = &self.partial[taken..];
            let split = split_message(rest).map_err(|error| error.to_string())?;
            let Some((.., behind)) = split else { break };
            let len = rest.len() - behind.len();
            let received = self.client.receive(&rest[..len]);
            received.map_err(|error| error.to_string())?;
            taken += len;
            if let Some(event) = self.client.poll_event() {
                messages.push(ReceivedMessage::Event(event));
            }
            if let Some((id, reply)) = self.client.poll_reply() {
                let at = self.in_flight.iter().position(|(known, _)| *known == id);
                if self.order == ReplyOrder::Sent && at != Some(0) {
                    return Err(format!("the reply to request {} came out of order", id.get()));
                }
                let found = at.and_then(|at| self.in_flight.remove(at));
                let (_, about) = found.ok_or("a reply to nothing that was asked")?;
                messages.push(ReceivedMessage::Reply(about, reply));
            }
        }
        self.partial.drain(..taken);
        Ok(messages)
    }
}
