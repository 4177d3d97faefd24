//! Serves one connection's turn: one read, all complete requests to the core, one write.

use super::turn::{ExpectedReply, StopReason, Writable};
use super::{DaemonIo, EventLoop};
use crate::connection::Transport;
use crate::fairness::{Demand, QUANTUM, refill};
use crate::sends::{SMALL_MAX, WORTH_IT};
use crate::trace::{MessageDirection, MessagePeer};
use daemon::Level;
use rustix::event::epoll::EventFlags;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use xen_io::xs_ring::{ErrorWord, RING_SIZE, RingError};
use xenstore_core::limits::HEADER_SIZE;
use xenstore_core::server::{ConnId, EndReason, Server};
use xenstore_core::wire::{MsgType, OversizedMessage, split_message};

/// The result of a read.
enum ReadResult {
    /// The number of filled bytes of the input buffer, including those kept from before.
    Filled(usize),
    /// The peer has closed.
    Closed,
}

impl EventLoop {
    /// Gives `id` its turn, and returns its cost in the round, at least 1.
    pub(super) fn serve(&mut self, id: ConnId, now: u64) -> i64 {
        let Some(connection) = self.io.connections.get(id) else { return 1 };
        connection.queued = false;
        let competition = self.io.ready.competition(connection.class, id, now);
        let (credit, class) = (connection.credit, connection.class);
        connection.credit = refill(credit, class, self.server.weight(id), competition);
        if connection.credit <= 0 {
            self.io.enqueue(id, Demand::Continued);
            return 1;
        }
        let spent = match connection.transport {
            Transport::Socket(_) => self.serve_socket(id, now),
            Transport::Ring(_) => self.serve_ring(id, now),
        };
        spent.max(1)
    }

    fn serve_socket(&mut self, id: ConnId, now: u64) -> i64 {
        let filled = match self.fill_from_socket(id) {
            ReadResult::Filled(filled) => filled,
            ReadResult::Closed => {
                self.close_socket(id, now);
                return 1;
            }
        };
        let (stopped, spent) = self.process_input(id, filled, now);
        account(&mut self.server, &mut self.io, id, &mut self.unanswered);
        self.served.push((id, stopped));
        spent
    }

    /// Sends the output of the turns of this round. All sends come after all reads: a client that
    /// its reply wakes sends its next request while the others' replies are still being sent.
    #[inline(always)]
    pub(super) fn finish_turns(&mut self, now: u64) {
        let mut served = std::mem::take(&mut self.served);
        for (id, stopped) in served.drain(..) {
            self.flush(id, now, Writable::Unknown);
            self.after_turn(id, stopped);
        }
        self.served = served;
    }

    /// Fills the input buffer with the kept bytes, and reads more if they contain no complete
    /// message.
    fn fill_from_socket(&mut self, id: ConnId) -> ReadResult {
        let Some(connection) = self.io.connections.get(id) else { return ReadResult::Filled(0) };
        let Transport::Socket(socket) = &connection.transport else { return ReadResult::Filled(0) };
        let kept = connection.pending.len();
        if kept > 0 {
            self.input[..kept].copy_from_slice(&connection.pending);
            connection.pending.clear();
            if !matches!(split_message(&self.input[..kept]), Ok(None)) {
                return ReadResult::Filled(kept);
            }
        }
        loop {
            match recv(&socket.fd, &mut self.input[kept..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return ReadResult::Closed,
                Ok((count, _)) => return ReadResult::Filled(kept + count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return ReadResult::Filled(kept),
                Err(_) => return ReadResult::Closed,
            }
        }
    }

    /// Gives the requests in the first `filled` bytes of the input buffer to the core, and keeps
    /// the rest. Returns the reason for stopping, and the cost.
    fn process_input(&mut self, id: ConnId, filled: usize, now: u64) -> (StopReason, i64) {
        let Some(connection) = self.io.connections.get(id) else { return (StopReason::Ended, 0) };
        let peer = MessagePeer { conn: id.0, domid: connection.domid };
        let credit = connection.credit;
        let (mut at, mut spent) = (0, 0);
        let stopped = loop {
            let (header, payload) = match split_message(&self.input[at..filled]) {
                Ok(Some((header, payload, _))) => (header, payload),
                Ok(None) => break StopReason::Starved,
                Err(too_long) => {
                    self.end_lost_stream(id, peer, too_long, now);
                    break StopReason::Ended;
                }
            };
            if spent >= credit {
                break StopReason::OverBudget;
            }
            if !self.server.wants_input(id) {
                break StopReason::Unwanted;
            }
            at += HEADER_SIZE + payload.len();
            if self.io.trace.wants_messages() {
                self.io.trace.message(MessageDirection::In, peer, &header, payload);
            }
            self.io.stats.request(peer.domid, header.kind, HEADER_SIZE + payload.len());
            let cost = self.server.request(id, &header, payload, now, &mut self.io);
            spent += i64::from(cost);
            self.unanswered.push(ExpectedReply { kind: header.kind, req_id: header.req_id });
        };
        if let Some(connection) = self.io.connections.get(id) {
            connection.credit -= spent;
            if at < filled && stopped != StopReason::Ended {
                connection.pending.extend_from_slice(&self.input[at..filled]);
            } else {
                connection.pending = Vec::new();
            }
        }
        (stopped, spent)
    }

    /// Ends a connection whose stream is lost, after its pending output is sent.
    fn end_lost_stream(
        &mut self,
        id: ConnId,
        peer: MessagePeer,
        too_long: OversizedMessage,
        now: u64,
    ) {
        self.flush(id, now, Writable::Unknown);
        // The core logs which connection is ended and why. This line adds the number.
        self.io.log.limited(Level::Debug, Some(peer.domid), &too_long.to_string(), now);
        self.server.end(id, EndReason::Protocol, now, &mut self.io);
    }

    /// Makes sure that the connection gets its next turn when it can use it.
    fn after_turn(&mut self, id: ConnId, stopped: StopReason) {
        match stopped {
            StopReason::OverBudget => self.io.enqueue(id, Demand::Continued),
            StopReason::Unwanted => {
                let Some(connection) = self.io.connections.get(id) else { return };
                connection.parked = true;
                if let Transport::Socket(socket) = &mut connection.transport {
                    socket.stop_watching_for(&self.io.epoll, id, EventFlags::IN);
                }
                // The flush of this turn may already have made room.
                self.unpark(id);
            }
            StopReason::Starved | StopReason::Ended => {}
        }
    }

    /// Reads input again if the core accepts it again.
    pub(super) fn unpark(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get(id) else { return };
        if !connection.parked || !self.server.wants_input(id) {
            return;
        }
        connection.parked = false;
        if let Transport::Socket(socket) = &mut connection.transport {
            socket.watch_for(&self.io.epoll, id, EventFlags::IN);
        }
        self.io.enqueue(id, Demand::Continued);
    }

    /// Sends the core's output for this connection, as far as the peer takes it.
    #[inline(always)]
    pub(super) fn flush(&mut self, id: ConnId, now: u64, writable: Writable) {
        if !account(&mut self.server, &mut self.io, id, &mut self.unanswered) {
            return;
        }
        let Some(connection) = self.io.connections.get(id) else { return };
        match &connection.transport {
            Transport::Socket(_) => self.flush_socket(id, now, writable),
            Transport::Ring(ring) => {
                let port = ring.port;
                if self.flush_ring(id, now) {
                    self.notify(id, port, now);
                }
            }
        }
    }

    /// Sends the core's output for `id`. A socket's output is sent together with others'.
    pub(super) fn flush_with_others(&mut self, id: ConnId, now: u64) {
        if !account(&mut self.server, &mut self.io, id, &mut self.unanswered) {
            return;
        }
        let Some(connection) = self.io.connections.get(id) else { return };
        if connection.send_queued {
            // The socket is already queued, with less output: a socket may not be queued twice.
            self.finish_sends(now);
            return self.flush(id, now, Writable::Unknown);
        }
        if let (Some(sends), Transport::Socket(socket)) = (&mut self.sends, &connection.transport) {
            let output = self.server.output(id);
            let known = output.is_empty() || socket.watches(EventFlags::OUT);
            if !known && output.len() <= SMALL_MAX {
                if !sends.push(socket.fd.as_fd(), output) {
                    self.finish_sends(now);
                    return self.flush_with_others(id, now);
                }
                connection.send_queued = true;
                self.send_queue.push(id);
                return;
            }
        }
        self.flush(id, now, Writable::Unknown);
    }

    /// Makes the queued sends.
    pub(super) fn finish_sends(&mut self, now: u64) {
        if self.send_queue.is_empty() {
            return;
        }
        let mut send_queue = std::mem::take(&mut self.send_queue);
        for id in &send_queue {
            if let Some(connection) = self.io.connections.get(*id) {
                connection.send_queued = false;
            }
        }
        let mut sends = self.sends.take();
        if let Some(batch) = &mut sends
            && send_queue.len() >= WORTH_IT
        {
            match batch.send() {
                Ok(results) => {
                    for (id, sent) in send_queue.drain(..).zip(results) {
                        self.handle_sent(id, *sent, now);
                    }
                    if batch.is_broken() {
                        let text = "io_uring: the kernel refuses; sending one by one from now on";
                        self.io.log.line(Level::Warn, "", text);
                        sends = None;
                    }
                }
                Err(error) => {
                    let text = format!("io_uring: {error}; sending one by one from now on");
                    self.io.log.line(Level::Warn, "", &text);
                    sends = None;
                }
            }
        } else if let Some(batch) = &mut sends {
            batch.forget();
        }
        self.sends = sends;
        for id in send_queue.drain(..) {
            self.flush_socket(id, now, Writable::Unknown);
        }
        self.send_queue = send_queue;
    }

    #[inline(always)]
    fn flush_socket(&mut self, id: ConnId, now: u64, writable: Writable) {
        let Some(connection) = self.io.connections.get(id) else { return };
        let Transport::Socket(socket) = &mut connection.transport else { return };
        let output = self.server.output(id);
        if output.is_empty() {
            socket.stop_watching_for(&self.io.epoll, id, EventFlags::OUT);
            return;
        }
        if writable == Writable::Unknown && socket.watches(EventFlags::OUT) {
            return;
        }
        let sent = loop {
            match send(&socket.fd, output, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        self.handle_sent(id, sent, now);
    }

    /// Handles the result of sending a socket's output.
    #[inline(always)]
    fn handle_sent(&mut self, id: ConnId, sent: Result<usize, Errno>, now: u64) {
        let count = match sent {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return self.close_socket(id, now),
        };
        let Some(connection) = self.io.connections.get(id) else { return };
        let Transport::Socket(socket) = &mut connection.transport else { return };
        if count < self.server.output(id).len() {
            socket.watch_for(&self.io.epoll, id, EventFlags::OUT);
        } else {
            socket.stop_watching_for(&self.io.epoll, id, EventFlags::OUT);
        }
        connection.accounted_out = connection.accounted_out.saturating_sub(count);
        if count > 0 {
            self.server.consume_output(id, count, now);
        }
    }

    fn serve_ring(&mut self, id: ConnId, now: u64) -> i64 {
        let Some(connection) = self.io.connections.get(id) else { return 1 };
        let Transport::Ring(ring) = &connection.transport else { return 1 };
        let (port, ended) = (ring.port, ring.ended);
        match ring.ring.reconnect_requested() {
            Ok(true) => self.reconnect(id, now),
            Ok(false) if ended => {
                self.unmask(id);
                return 1;
            }
            Ok(false) => {}
            Err(error) => self.end_ring_for(id, error, now),
        }
        let (mut spent, mut moved) = (0, false);
        // An answer makes room for more requests, which the guest may already have written.
        let stopped = loop {
            let (stopped, more, some) = self.serve_ring_once(id, now);
            spent += more;
            moved |= some;
            let goes_on =
                stopped == StopReason::Unwanted && more > 0 && self.server.wants_input(id);
            let credit = self.io.connections.get(id).map_or(0, |connection| connection.credit);
            if !goes_on || credit <= 0 {
                break if goes_on { StopReason::OverBudget } else { stopped };
            }
        };
        if moved {
            self.notify(id, port, now);
        }
        self.after_turn(id, stopped);
        self.unmask(id);
        spent
    }

    /// Gives the ring's requests to the core, as far as it accepts them, and writes the answers to
    /// the ring. Returns the reason for stopping, the cost, and whether bytes moved.
    fn serve_ring_once(&mut self, id: ConnId, now: u64) -> (StopReason, i64, bool) {
        let (mut stopped, mut spent, mut moved) = (StopReason::Starved, 0, false);
        let wanted = self.server.wants_input(id);
        match self.fill_from_ring(id, wanted) {
            Ok((filled, fresh)) => {
                moved = fresh.is_some_and(|fresh| fresh > 0);
                (stopped, spent) = self.process_input(id, filled, now);
                // If the ring was not seen empty, its event is used up: the ring must be read in
                // the next turn, or once the core accepts more.
                let seen_empty = fresh.is_some_and(|fresh| fresh < RING_SIZE);
                if !seen_empty && stopped == StopReason::Starved {
                    stopped = if wanted { StopReason::OverBudget } else { StopReason::Unwanted };
                }
            }
            Err(error) => self.end_ring_for(id, error, now),
        }
        if account(&mut self.server, &mut self.io, id, &mut self.unanswered) {
            moved |= self.flush_ring(id, now);
        }
        (stopped, spent, moved)
    }

    /// Fills the input buffer with the kept bytes. Adds the bytes in the ring, at most its size,
    /// unless the core accepts none or enough bytes were kept. Returns the number of bytes, and how
    /// many came from the ring if it was read.
    fn fill_from_ring(
        &mut self,
        id: ConnId,
        wanted: bool,
    ) -> Result<(usize, Option<usize>), RingError> {
        let Some(connection) = self.io.connections.get(id) else { return Ok((0, Some(0))) };
        let Transport::Ring(ring) = &connection.transport else { return Ok((0, Some(0))) };
        if ring.ended {
            return Ok((0, Some(0)));
        }
        let kept = connection.pending.len();
        self.input[..kept].copy_from_slice(&connection.pending);
        connection.pending.clear();
        if !wanted || !matches!(split_message(&self.input[..kept]), Ok(None)) {
            return Ok((kept, None));
        }
        let fresh = ring.ring.read(&mut self.input[kept..kept + RING_SIZE])?;
        Ok((kept + fresh, Some(fresh)))
    }

    /// Writes output to the ring. Returns true if any fitted.
    fn flush_ring(&mut self, id: ConnId, now: u64) -> bool {
        let Some(connection) = self.io.connections.get(id) else { return false };
        let Transport::Ring(ring) = &connection.transport else { return false };
        if ring.ended {
            return false;
        }
        let mut moved = false;
        loop {
            let output = self.server.output(id);
            if output.is_empty() {
                return moved;
            }
            let all = output.len();
            match ring.ring.write(output) {
                Ok(count) => {
                    connection.accounted_out = connection.accounted_out.saturating_sub(count);
                    // If nothing has moved, the time that a guest has for reading begins.
                    if count > 0 || !moved {
                        self.server.consume_output(id, count, now);
                    }
                    moved |= count > 0;
                    if count < all {
                        return moved;
                    }
                }
                Err(error) => {
                    self.end_ring_for(id, error, now);
                    return false;
                }
            }
        }
    }

    fn end_ring_for(&mut self, id: ConnId, error: RingError, now: u64) {
        let Some(connection) = self.io.connections.get(id) else { return };
        let domid = connection.domid;
        let text = format!("domain {domid}: {error}");
        self.io.log.limited(Level::Debug, Some(domid), &text, now);
        self.server.end(id, EndReason::RingIndex, now, &mut self.io);
    }

    /// Empties and restarts the ring, at the domain's request.
    fn reconnect(&mut self, id: ConnId, now: u64) {
        self.server.reset(id, now, &mut self.io);
        let Some(connection) = self.io.connections.get(id) else { return };
        connection.pending = Vec::new();
        connection.accounted_out = 0;
        connection.parked = false;
        let Transport::Ring(ring) = &mut connection.transport else { return };
        ring.ended = false;
        let port = ring.port;
        let done = ring
            .ring
            .reset()
            .and_then(|()| ring.ring.set_error(ErrorWord::None))
            .and_then(|()| ring.ring.set_connected());
        match done {
            Ok(()) => self.notify(id, port, now),
            Err(error) => self.end_ring_for(id, error, now),
        }
        self.io.trace_object("RECONNECT", id, "");
    }

    fn notify(&mut self, id: ConnId, port: xen::Port, now: u64) {
        let Some(domains) = &self.io.domains else { return };
        if domains.notify(port).is_err() {
            // The domain is dying. The hypervisor reports that through its own event.
            self.server.end(id, EndReason::Communication, now, &mut self.io);
        }
    }

    /// Lets the domain's port report events again, once its ring needs no further turn.
    fn unmask(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get(id) else { return };
        if connection.queued {
            return;
        }
        if let Transport::Ring(ring) = &mut connection.transport
            && ring.masked
        {
            ring.masked = false;
            let port = ring.port;
            if let Some(domains) = &self.io.domains {
                let _ = domains.platform.evtchn.unmask(port);
            }
        }
    }
}

/// Counts and traces the core's output for `id` since the last call. Takes `unanswered`, the
/// requests since then, and counts those that are not answered yet as delayed. Returns false if the
/// connection is gone.
fn account(
    server: &mut Server,
    io: &mut DaemonIo,
    id: ConnId,
    unanswered: &mut Vec<ExpectedReply>,
) -> bool {
    let DaemonIo { connections, stats, trace, .. } = io;
    let Some(connection) = connections.get(id) else {
        unanswered.clear();
        return false;
    };
    let domid = connection.domid;
    let output = server.output(id);
    let mut rest = output.get(connection.accounted_out..).unwrap_or_default();
    let mut waiting = unanswered.drain(..);
    while let Ok(Some((header, payload, next))) = split_message(rest) {
        let kind = header.kind;
        let mut answers = None;
        if kind != MsgType::WatchEvent as u32 {
            // Answers come in the order of the requests, except delayed ones.
            let is_answer = |unanswered: &ExpectedReply| {
                unanswered.req_id == header.req_id
                    && (kind == unanswered.kind || kind == MsgType::Error as u32)
            };
            if let Some(skipped) = waiting.as_slice().iter().position(is_answer) {
                for late in waiting.by_ref().take(skipped) {
                    stats.delayed(domid, late.kind);
                }
                answers = waiting.next().map(|unanswered| unanswered.kind);
            }
        }
        stats.sent(domid, kind, answers, HEADER_SIZE + payload.len());
        if trace.wants_messages() {
            let peer = MessagePeer { conn: id.0, domid };
            trace.message(MessageDirection::Out, peer, &header, payload);
        }
        rest = next;
    }
    for late in waiting {
        stats.delayed(domid, late.kind);
    }
    connection.accounted_out = output.len() - rest.len();
    true
}

const _: () = assert!(QUANTUM > 0, "a connection with no debt gets a turn");
