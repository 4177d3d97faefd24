//! A client machine, and what it waits for: replies must be to its own requests, and in their order.

use std::collections::VecDeque;
use xenstore_core::client::{Client, Event, Reply, RequestId};
use xenstore_core::wire::{MsgType, split_message};

/// Whether replies may overtake each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// They come as the requests were sent.
    Sent,
    /// Requests may be delayed by transactions that have the turn.
    Any,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    Reply(T, Reply),
    Event(Event),
}

/// A client that knows what it asked.
pub(crate) struct Caller<T> {
    client: Client,
    order: Order,
    in_flight: VecDeque<(RequestId, T)>,
    /// The start of a message whose end has not come.
    partial: Vec<u8>,
}

impl<T> Caller<T> {
    pub(crate) fn new(order: Order) -> Self {
        let (in_flight, partial) = (VecDeque::new(), Vec::new());
        Self { client: Client::new(), order, in_flight, partial }
    }

    /// Sends a request; `about` comes back with its reply.
    pub(crate) fn ask(&mut self, kind: MsgType, tx: u32, payload: &str, about: T) {
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

    /// How many requests have no reply yet.
    pub(crate) fn waiting(&self) -> usize {
        self.in_flight.len()
    }

    /// What is asked and not answered.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = &T> {
        self.in_flight.iter().map(|(_, about)| about)
    }

    /// Whether a message has come in part.
    pub(crate) fn is_amid_a_message(&self) -> bool {
        !self.partial.is_empty()
    }

    /// The connection was cut: what was unanswered stays so.
    pub(crate) fn cut(&mut self) -> Vec<T> {
        self.client = Client::new();
        self.partial.clear();
        self.in_flight.drain(..).map(|(_, about)| about).collect()
    }

    /// Takes what was read, message by message, so that their order is seen.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Result<Vec<Heard<T>>, String> {
        self.partial.extend_from_slice(bytes);
        let mut heard = Vec::new();
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
                heard.push(Heard::Event(event));
            }
            if let Some((id, reply)) = self.client.poll_reply() {
                let at = self.in_flight.iter().position(|(known, _)| *known == id);
                if self.order == Order::Sent && at != Some(0) {
                    return Err(format!("the reply to request {} came out of order", id.get()));
                }
                let found = at.and_then(|at| self.in_flight.remove(at));
                let (_, about) = found.ok_or("a reply to nothing that was asked")?;
                heard.push(Heard::Reply(about, reply));
            }
        }
        self.partial.drain(..taken);
        Ok(heard)
    }
}
