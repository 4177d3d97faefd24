//! A guest that keeps the rules, and checks that the daemon does.

mod requests;

use crate::caller::{QueuedClient, ReceivedMessage, ReplyOrder};
use crate::hypervisor::{Hypervisor, NewDomain};
use crate::link::RingLink;
use crate::model::{Model, ModelReply, Op};
use crate::rng::Rng;
use crate::watch_checker::WatchChecker;
use std::collections::VecDeque;
use xen::DomId;
use xen_io::xs_ring::ErrorWord;
use xenstore_core::client::Reply;

/// The number of nodes that everybody may read and only domain 0 writes.
pub(crate) const SHARED: usize = 3;
/// The number of counter nodes, which all guests increment in transactions.
pub(crate) const COUNTERS: usize = 2;
/// The largest number of requests in flight; less than the quota of outstanding ones.
const DEPTH_MAX: u64 = 6;
/// The number of requests of all domains that may be changes before a guest's transaction is too
/// old.
const CHANGES_FORGIVEN: u64 = 1500;

/// The state of the run that all domains share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Common {
    /// The number of the latest action, which orders all actions.
    pub(crate) tick: u64,
    /// For each shared node: the last value that was sent, and the last that was answered.
    pub(crate) issued: [u64; SHARED],
    pub(crate) acked: [u64; SHARED],
    /// Deaths of domains, for any reason.
    pub(crate) deaths: u64,
    /// Requests sent by all domains.
    pub(crate) requests: u64,
    /// True if guests count, which makes them wait for each other.
    pub(crate) counting: bool,
    /// For each counter: the commits that were answered, and those that never will be.
    pub(crate) counted: [u64; COUNTERS],
    pub(crate) uncertain: [u64; COUNTERS],
}

/// A request in flight.
#[derive(Debug)]
struct GuestPending {
    op: Op,
    at: u64,
    /// For a shared node: the lowest value that it may have.
    floor: u64,
}

/// The stage of a guest's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TransactionStage {
    None,
    Starting,
    /// The transaction's number, and the number of requests that are to come in it.
    Open {
        id: u32,
        left: u64,
    },
    Ending,
}

/// A transaction that increments a counter: the value that was read, and the number of requests
/// sent.
#[derive(Clone, Copy, Debug)]
struct CounterIncrement {
    which: usize,
    value: Option<u64>,
    sent: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GuestPhase {
    /// The toolstack has not introduced the guest yet.
    Waiting,
    Serving,
    /// The guest has asked for a reset of its ring.
    Resetting,
}

/// The unfinished operations of a guest when it was cut off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnfinishedWork {
    pub(crate) request: bool,
    pub(crate) reply: bool,
    pub(crate) transaction: bool,
}

/// One guest.
pub(crate) struct ModelGuest {
    domid: DomId,
    home: String,
    link: RingLink,
    caller: QueuedClient<GuestPending>,
    order: ReplyOrder,
    model: Model,
    watches: WatchChecker,
    transaction: TransactionStage,
    counting: Option<CounterIncrement>,
    /// The numbers of deaths and requests before the open transaction.
    began: (u64, u64),
    phase: GuestPhase,
    depth: u64,
    rng: Rng,
    seen: [u64; SHARED],
    /// True if there was an event and the ring has not been read to its end since.
    has_unread_input: bool,
    /// True if it stood still for so long that the daemon may have given it up.
    may_be_given_up: bool,
    /// True if there was no room for all of its output, and no event since.
    is_full: bool,
    /// True if part of a request is on the ring.
    has_partial_request: bool,
    sweep: VecDeque<Op>,
    writes: u64,
    pub(crate) answered: u64,
    pub(crate) events: u64,
    pub(crate) resets: u64,
    pub(crate) commits: u64,
    pub(crate) refused: u64,
    pub(crate) returns: u64,
}

impl ModelGuest {
    pub(crate) fn new(
        hypervisor: &Hypervisor,
        built: NewDomain,
        order: ReplyOrder,
        mut rng: Rng,
    ) -> Result<Self, String> {
        let domid = built.domid;
        let home = format!("/local/domain/{domid}");
        Ok(Self {
            domid,
            link: RingLink::new(hypervisor, domid, built.ring)?,
            caller: QueuedClient::new(order),
            order,
            model: Model::new(domid),
            watches: WatchChecker::new(home.clone()),
            home,
            transaction: TransactionStage::None,
            counting: None,
            began: (0, 0),
            phase: GuestPhase::Waiting,
            depth: 1 + rng.below(DEPTH_MAX),
            rng,
            seen: [0; SHARED],
            has_unread_input: false,
            may_be_given_up: false,
            is_full: false,
            has_partial_request: false,
            sweep: VecDeque::new(),
            writes: 0,
            answered: 0,
            events: 0,
            resets: 0,
            commits: 0,
            refused: 0,
            returns: 0,
        })
    }

    pub(crate) fn link(&mut self) -> &mut RingLink {
        &mut self.link
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.phase == GuestPhase::Serving
    }

    /// Begins to work, after its home is made.
    pub(crate) fn begin(&mut self) {
        self.model.restart();
        self.phase = GuestPhase::Serving;
        self.sweep.push_back(Op::List(String::new()));
    }

    /// Continues on another port; its nodes are unchanged.
    pub(crate) fn continue_on_new_port(&mut self) {
        self.phase = GuestPhase::Serving;
    }

    /// Handles a cut of the connection: requests in flight may have been done or not.
    pub(crate) fn cut(&mut self, common: &mut Common) {
        if let Some(which) = self.counter_in_doubt() {
            common.uncertain[which] += 1;
        }
        self.counting = None;
        let unanswered: Vec<Op> = self.caller.cut().into_iter().map(|sent| sent.op).collect();
        self.model.cut(&unanswered, self.order == ReplyOrder::Sent);
        self.watches.cut();
        self.transaction = TransactionStage::None;
        self.has_unread_input = false;
        self.is_full = false;
        self.may_be_given_up = false;
        self.has_partial_request = false;
        self.sweep.clear();
        self.phase = GuestPhase::Waiting;
    }

    /// Returns the counter that it may have incremented, if it waits for the reply.
    pub(crate) fn counter_in_doubt(&self) -> Option<usize> {
        let counting = self.counting.filter(|_| self.transaction == TransactionStage::Ending);
        counting.map(|counting| counting.which)
    }

    /// Returns the numbers of its open transactions and of its watches, when it is settled.
    pub(crate) fn charged(&self) -> (usize, usize) {
        (usize::from(matches!(self.transaction, TransactionStage::Open { .. })), self.watches.len())
    }

    /// Notes that it stands still for longer than it may leave anything unread.
    pub(crate) fn note_long_pause(&mut self) {
        self.may_be_given_up = true;
    }

    /// Asks for a reset if the daemon has given it up, which is allowed. True if it did.
    fn reset_if_given_up(&mut self, common: &mut Common) -> Result<bool, String> {
        let serving = self.may_be_given_up && self.phase == GuestPhase::Serving;
        if !serving || self.link.error()? != ErrorWord::Communication as u32 {
            return Ok(false);
        }
        self.returns += 1;
        self.reset(common).map(|()| true)
    }

    /// Returns its unfinished operations.
    pub(crate) fn unfinished_work(&self) -> UnfinishedWork {
        UnfinishedWork {
            request: self.has_partial_request,
            reply: self.caller.has_partial_message(),
            transaction: matches!(self.transaction, TransactionStage::Open { .. }),
        }
    }

    /// Takes one step: it reads, makes a request, or writes a part of its output.
    pub(crate) fn step(&mut self, common: &mut Common) -> Result<(), String> {
        if self.reset_if_given_up(common)? {
            return Ok(());
        }
        match self.rng.below(10) {
            0..=3 => self.read_ring(common).map(drop),
            4..=6 => {
                self.ask(common);
                Ok(())
            }
            7 if self.rng.chance(60) && self.phase == GuestPhase::Serving => self.reset(common),
            _ => {
                let part = 1 + self.rng.below(200);
                self.send(usize::try_from(part).unwrap_or(1))?;
                // The notification may come a step later, as on another processor.
                if self.rng.chance(700) { self.link.notify().map(drop) } else { Ok(()) }
            }
        }
    }

    /// Takes a step in which it begins nothing new. True if anything moved.
    pub(crate) fn settle(&mut self, common: &mut Common) -> Result<bool, String> {
        let mut moved = self.reset_if_given_up(common)? | self.read_ring(common)?;
        while let Some(op) = self.sweep.front()
            && self.phase == GuestPhase::Serving
            && (self.caller.in_flight_count() as u64) < self.depth
        {
            let op = op.clone();
            self.sweep.pop_front();
            self.request(op, common);
            moved = true;
        }
        moved |= self.send(usize::MAX)?;
        Ok(moved | self.link.notify()?)
    }

    /// True if no reply is missing and nothing is left to send.
    pub(crate) fn is_settled(&self) -> bool {
        let rests = self.caller.in_flight_count() == 0 && self.caller.output().is_empty();
        self.phase == GuestPhase::Waiting
            || (rests && self.sweep.is_empty() && self.phase == GuestPhase::Serving)
    }

    /// Describes the requests that it still waits for.
    pub(crate) fn describe_pending(&self) -> String {
        let in_flight: Vec<_> = self.caller.in_flight().map(|sent| &sent.op).collect();
        format!("domain {} is {:?} and waits for {in_flight:?}", self.domid, self.phase)
    }

    /// Checks that all events came, and that the error word is 0.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.may_be_given_up = false;
        if self.phase == GuestPhase::Serving {
            self.watches.check().map_err(|why| format!("domain {}: {why}", self.domid))?;
            let error = self.link.error()?;
            if error != 0 {
                return Err(format!("domain {} has error word {error}", self.domid));
            }
        }
        Ok(())
    }

    /// Plans to read all its nodes, to resolve doubts about them.
    pub(crate) fn sweep(&mut self) {
        if self.phase == GuestPhase::Serving && self.transaction == TransactionStage::None {
            self.sweep.extend(self.model.sweep());
        }
    }

    /// True if it could read all its nodes when it was asked to.
    pub(crate) fn can_sweep(&self) -> bool {
        self.phase == GuestPhase::Serving && self.transaction == TransactionStage::None
    }

    /// Returns the number of possible states of its nodes.
    pub(crate) fn state_count(&self) -> usize {
        self.model.state_count()
    }

    pub(crate) fn shared_written(&mut self, which: usize, asked: u64) {
        self.watches.shared_written(which, asked);
    }

    /// Reads the ring, if there was an event.
    fn read_ring(&mut self, common: &mut Common) -> Result<bool, String> {
        let woken = self.link.take_event()?;
        if woken && self.phase == GuestPhase::Resetting && self.link.is_connected()? {
            self.cut(common);
            self.phase = GuestPhase::Serving;
        }
        self.has_unread_input |= woken;
        self.is_full &= !woken;
        if !self.has_unread_input || self.phase != GuestPhase::Serving {
            return Ok(woken);
        }
        // One piece at a time: it may be stopped, or die, between two of them.
        let max = 1 + self.rng.below(1024);
        let bytes = self.link.read(usize::try_from(max).unwrap_or(1))?;
        self.has_unread_input = !bytes.is_empty();
        for message in self.caller.receive(&bytes).map_err(|why| self.with_name(&why))? {
            common.tick += 1;
            match message {
                ReceivedMessage::Event(event) => {
                    self.events += 1;
                    let told = self.watches.check_event(&event, common.tick);
                    told.map_err(|why| self.with_name(&why))?;
                }
                ReceivedMessage::Reply(sent, reply) => {
                    self.reply(&sent, reply, common).map_err(|why| self.with_name(&why))?;
                }
            }
        }
        // There may be room now for the rest of its output.
        self.send(usize::MAX)?;
        self.link.notify()?;
        Ok(true)
    }

    fn with_name(&self, why: &str) -> String {
        format!("domain {}: {why}", self.domid)
    }

    fn reply(
        &mut self,
        sent: &GuestPending,
        reply: Reply,
        common: &mut Common,
    ) -> Result<(), String> {
        self.answered += 1;
        let answer: ModelReply = match reply {
            Reply::Done(payload) => Ok(String::from_utf8_lossy(&payload).into_owned()),
            Reply::Refused(name) => Err(name.to_string()),
        };
        match &sent.op {
            Op::ReadShared(which) => return self.shared_read(*which, sent.floor, &answer, common),
            Op::ReadCounter(_) | Op::WriteCounter(..) => return self.counter(&sent.op, &answer),
            Op::Start => {
                let id = answer.as_ref().ok().and_then(|id| id.trim_end_matches('\0').parse().ok());
                let id = id.ok_or_else(|| format!("a transaction's start: {answer:?}"))?;
                self.transaction = TransactionStage::Open { id, left: 1 + self.rng.below(5) };
                self.model.answered(&Op::Start, &Ok("OK\0".to_owned()))?;
                return Ok(());
            }
            Op::End(_) => {
                self.transaction = TransactionStage::None;
                if let Some(counting) = self.counting.take() {
                    return self.count(counting.which, &answer, common);
                }
                let (deaths, requests) = self.began;
                let excused =
                    common.deaths > deaths || common.requests > requests + CHANGES_FORGIVEN;
                if answer == Err("EAGAIN".to_owned()) && excused {
                    self.model.refused();
                    return Ok(());
                }
                self.commits += 1;
            }
            Op::Watch(payload) => self.watches.note_set(payload, common.tick),
            Op::Unwatch(payload) => self.watches.note_removed(payload),
            _ => {}
        }
        let fired = self.model.answered(&sent.op, &answer)?;
        self.watches.note_changes(&fired, sent.at);
        Ok(())
    }

    /// Handles the reply to a read or write of a counter in a transaction.
    fn counter(&mut self, op: &Op, answer: &ModelReply) -> Result<(), String> {
        let value = answer.as_ref().ok().and_then(|value| value.parse().ok());
        match (op, &mut self.counting) {
            (Op::ReadCounter(_), Some(counting)) if value.is_some() => counting.value = value,
            (Op::WriteCounter(..), _) if answer.is_ok() => {}
            _ => return Err(format!("{op:?} in a transaction was answered {answer:?}")),
        }
        Ok(())
    }

    /// Handles the end of a transaction that counts: it counts, or another was faster.
    fn count(
        &mut self,
        which: usize,
        answer: &ModelReply,
        common: &mut Common,
    ) -> Result<(), String> {
        self.model.refused();
        match answer {
            Ok(_) => common.counted[which] += 1,
            Err(name) if name == "EAGAIN" => self.refused += 1,
            Err(name) => return Err(format!("a transaction on a counter: {name}")),
        }
        self.commits += 1;
        Ok(())
    }

    /// Checks that a shared node's value only grows, and no further than it was written.
    fn shared_read(
        &mut self,
        which: usize,
        floor: u64,
        answer: &ModelReply,
        common: &Common,
    ) -> Result<(), String> {
        let value = answer.as_ref().ok().and_then(|value| value.parse::<u64>().ok());
        let least = floor.max(self.seen[which]);
        let most = common.issued[which];
        match value {
            Some(value) if (least..=most).contains(&value) => {
                self.seen[which] = value;
                Ok(())
            }
            _ => Err(format!("/shared/{which} is {answer:?}, and must be {least} to {most}")),
        }
    }

    fn request(&mut self, op: Op, common: &mut Common) {
        self.request_in(0, op, common);
    }

    fn request_in(&mut self, id: u32, op: Op, common: &mut Common) {
        common.tick += 1;
        common.requests += 1;
        let relative = self.rng.chance(500);
        let (kind, payload) = op.message(|path| match path {
            "" => self.home.clone(),
            path if relative => path.to_owned(),
            path => format!("{}/{path}", self.home),
        });
        self.watches.note_request(&op);
        let floor = if let Op::ReadShared(which) = &op { common.acked[*which] } else { 0 };
        self.caller.send(kind, id, &payload, GuestPending { op, at: common.tick, floor });
    }

    /// Puts at most `max` bytes of its output onto the ring. True if any fitted.
    fn send(&mut self, max: usize) -> Result<bool, String> {
        let output = self.caller.output();
        if output.is_empty() || self.phase != GuestPhase::Serving || self.is_full {
            return Ok(false);
        }
        let wanted = max.min(output.len());
        let count = self.link.write(&output[..wanted])?;
        self.is_full = count < wanted;
        self.caller.consume_output(count);
        self.has_partial_request = !self.caller.output().is_empty();
        Ok(count > 0)
    }

    /// Asks for a reset of the ring.
    fn reset(&mut self, common: &mut Common) -> Result<(), String> {
        common.tick += 1;
        self.resets += 1;
        self.phase = GuestPhase::Resetting;
        self.link.request_reconnect()?;
        self.link.notify().map(drop)
    }
}
