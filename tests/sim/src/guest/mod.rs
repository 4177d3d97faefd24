//! A guest that keeps the rules, and expects the daemon to.

mod asks;

use crate::caller::{Caller, Heard, Order};
use crate::hypervisor::{Built, Hypervisor};
use crate::link::RingLink;
use crate::model::{Answer, Model, Op};
use crate::rng::Rng;
use crate::watching::Watching;
use std::collections::VecDeque;
use xen::DomId;
use xen_io::xs_ring::ErrorWord;
use xenstore_core::client::Reply;

/// How many nodes everybody may read and domain 0 alone writes.
pub(crate) const SHARED: usize = 3;
/// How many nodes all guests count up, in transactions.
pub(crate) const COUNTERS: usize = 2;
/// Most requests in flight; less than the quota of outstanding ones.
const DEPTH_MAX: u64 = 6;
/// So many requests of all domains may be changes that make a guest's transaction too old.
const CHANGES_FORGIVEN: u64 = 1500;

/// What all domains share, as the run knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Common {
    /// Moves with everything that is done; orders all of it.
    pub(crate) tick: u64,
    /// The last value of each shared node that was sent, and that was answered.
    pub(crate) issued: [u64; SHARED],
    pub(crate) acked: [u64; SHARED],
    /// Domains that have gone, for whatever reason.
    pub(crate) deaths: u64,
    /// Requests sent by anybody.
    pub(crate) requests: u64,
    /// Whether guests count, which makes them wait for each other.
    pub(crate) counting: bool,
    /// For each counter: commits that were answered, and those that never will be.
    pub(crate) counted: [u64; COUNTERS],
    pub(crate) uncertain: [u64; COUNTERS],
}

/// A request in flight.
#[derive(Debug)]
struct Sent {
    op: Op,
    at: u64,
    /// For a shared node: what its value was at least.
    floor: u64,
}

/// Where a guest's transaction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Within {
    None,
    Starting,
    /// Its number, how many requests are to come, and what had happened before.
    Open {
        id: u32,
        left: u64,
    },
    Ending,
}

/// A transaction that adds one to a counter: what was read, and how many requests were sent.
#[derive(Clone, Copy, Debug)]
struct Counting {
    which: usize,
    value: Option<u64>,
    sent: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Its toolstack is not done with it.
    Waiting,
    Serving,
    /// It has asked for its ring to be reset.
    Resetting,
}

/// What a guest had come to when it was cut off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amid {
    pub(crate) request: bool,
    pub(crate) reply: bool,
    pub(crate) transaction: bool,
}

/// One guest.
pub(crate) struct Guest {
    domid: DomId,
    home: String,
    link: RingLink,
    caller: Caller<Sent>,
    order: Order,
    model: Model,
    watching: Watching,
    within: Within,
    counting: Option<Counting>,
    /// Deaths and requests before the open transaction.
    began: (u64, u64),
    phase: Phase,
    depth: u64,
    rng: Rng,
    seen: [u64; SHARED],
    /// There was an event, and the ring was not read to its end since.
    hears: bool,
    /// It stood still for so long that the daemon may have given it up.
    may_be_given_up: bool,
    /// There was no room for all that it wanted to send, and no event since.
    is_full: bool,
    /// Part of a request is on the ring.
    amid_request: bool,
    sweep: VecDeque<Op>,
    writes: u64,
    pub(crate) answered: u64,
    pub(crate) events: u64,
    pub(crate) resets: u64,
    pub(crate) commits: u64,
    pub(crate) refused: u64,
    pub(crate) returns: u64,
}

impl Guest {
    pub(crate) fn new(
        hypervisor: &Hypervisor,
        built: Built,
        order: Order,
        mut rng: Rng,
    ) -> Result<Self, String> {
        let domid = built.domid;
        let home = format!("/local/domain/{domid}");
        Ok(Self {
            domid,
            link: RingLink::new(hypervisor, domid, built.ring)?,
            caller: Caller::new(order),
            order,
            model: Model::new(domid),
            watching: Watching::new(home.clone()),
            home,
            within: Within::None,
            counting: None,
            began: (0, 0),
            phase: Phase::Waiting,
            depth: 1 + rng.below(DEPTH_MAX),
            rng,
            seen: [0; SHARED],
            hears: false,
            may_be_given_up: false,
            is_full: false,
            amid_request: false,
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
        self.phase == Phase::Serving
    }

    /// Its home is made: it may begin.
    pub(crate) fn begin(&mut self) {
        self.model.begin_again();
        self.phase = Phase::Serving;
        self.sweep.push_back(Op::List(String::new()));
    }

    /// It is served again on another port; its nodes are as they were.
    pub(crate) fn go_on(&mut self) {
        self.phase = Phase::Serving;
    }

    /// The connection is cut: what is in flight may have been done or not.
    pub(crate) fn cut(&mut self, common: &mut Common) {
        if let Some(which) = self.counter_in_doubt() {
            common.uncertain[which] += 1;
        }
        self.counting = None;
        let unanswered: Vec<Op> = self.caller.cut().into_iter().map(|sent| sent.op).collect();
        self.model.cut(&unanswered, self.order == Order::Sent);
        self.watching.cut();
        self.within = Within::None;
        self.hears = false;
        self.is_full = false;
        self.may_be_given_up = false;
        self.amid_request = false;
        self.sweep.clear();
        self.phase = Phase::Waiting;
    }

    /// The counter that it may have counted up: it waits for the answer.
    pub(crate) fn counter_in_doubt(&self) -> Option<usize> {
        let counting = self.counting.filter(|_| self.within == Within::Ending);
        counting.map(|counting| counting.which)
    }

    /// Transactions that it has open, and watches that it has set, when it is settled.
    pub(crate) fn charged(&self) -> (usize, usize) {
        (usize::from(matches!(self.within, Within::Open { .. })), self.watching.len())
    }

    /// It stands still for longer than it may leave anything unread.
    pub(crate) fn stand_still(&mut self) {
        self.may_be_given_up = true;
    }

    /// Where the daemon has given it up, which it may, it asks for a reset.
    fn come_back(&mut self, common: &mut Common) -> Result<bool, String> {
        let serving = self.may_be_given_up && self.phase == Phase::Serving;
        if !serving || self.link.error()? != ErrorWord::Communication as u32 {
            return Ok(false);
        }
        self.returns += 1;
        self.reset(common).map(|()| true)
    }

    /// What it is amid of.
    pub(crate) fn amid(&self) -> Amid {
        Amid {
            request: self.amid_request,
            reply: self.caller.is_amid_a_message(),
            transaction: matches!(self.within, Within::Open { .. }),
        }
    }

    /// One step of its own: it hears, asks, or writes a part of what it has asked.
    pub(crate) fn step(&mut self, common: &mut Common) -> Result<(), String> {
        if self.come_back(common)? {
            return Ok(());
        }
        match self.rng.below(10) {
            0..=3 => self.hear(common).map(drop),
            4..=6 => {
                self.ask(common);
                Ok(())
            }
            7 if self.rng.chance(60) && self.phase == Phase::Serving => self.reset(common),
            _ => {
                let part = 1 + self.rng.below(200);
                self.send(usize::try_from(part).unwrap_or(1))?;
                // The notification may be a step later, as on another processor.
                if self.rng.chance(700) { self.link.notify().map(drop) } else { Ok(()) }
            }
        }
    }

    /// A step in which it begins nothing new; whether anything moved.
    pub(crate) fn settle(&mut self, common: &mut Common) -> Result<bool, String> {
        let mut moved = self.come_back(common)? | self.hear(common)?;
        while let Some(op) = self.sweep.front()
            && self.phase == Phase::Serving
            && (self.caller.waiting() as u64) < self.depth
        {
            let op = op.clone();
            self.sweep.pop_front();
            self.request(op, common);
            moved = true;
        }
        moved |= self.send(usize::MAX)?;
        Ok(moved | self.link.notify()?)
    }

    /// Nothing is left to come.
    pub(crate) fn is_settled(&self) -> bool {
        let rests = self.caller.waiting() == 0 && self.caller.output().is_empty();
        self.phase == Phase::Waiting
            || (rests && self.sweep.is_empty() && self.phase == Phase::Serving)
    }

    /// What it still waits for.
    pub(crate) fn waits_for(&self) -> String {
        let in_flight: Vec<_> = self.caller.unanswered().map(|sent| &sent.op).collect();
        format!("domain {} is {:?} and waits for {in_flight:?}", self.domid, self.phase)
    }

    /// Everything that it was told agrees with what it may expect.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.may_be_given_up = false;
        if self.phase == Phase::Serving {
            self.watching.check().map_err(|why| format!("domain {}: {why}", self.domid))?;
            let error = self.link.error()?;
            if error != 0 {
                return Err(format!("domain {} has error word {error}", self.domid));
            }
        }
        Ok(())
    }

    /// It will look at all its nodes, until none are in doubt.
    pub(crate) fn sweep(&mut self) {
        if self.phase == Phase::Serving && self.within == Within::None {
            self.sweep.extend(self.model.sweep());
        }
    }

    /// Whether it could look at all its nodes when it was told to.
    pub(crate) fn was_swept(&self) -> bool {
        self.phase == Phase::Serving && self.within == Within::None
    }

    /// How many states its nodes may be in.
    pub(crate) fn doubts(&self) -> usize {
        self.model.doubts()
    }

    pub(crate) fn shared_written(&mut self, which: usize, asked: u64) {
        self.watching.shared_written(which, asked);
    }

    /// Looks at the ring, if there was an event.
    fn hear(&mut self, common: &mut Common) -> Result<bool, String> {
        let woken = self.link.woken()?;
        if woken && self.phase == Phase::Resetting && self.link.is_connected()? {
            self.cut(common);
            self.phase = Phase::Serving;
        }
        self.hears |= woken;
        self.is_full &= !woken;
        if !self.hears || self.phase != Phase::Serving {
            return Ok(woken);
        }
        // One piece at a time: it may be stopped, or die, between two of them.
        let max = 1 + self.rng.below(1024);
        let bytes = self.link.read(usize::try_from(max).unwrap_or(1))?;
        self.hears = !bytes.is_empty();
        for heard in self.caller.hear(&bytes).map_err(|why| self.named(&why))? {
            common.tick += 1;
            match heard {
                Heard::Event(event) => {
                    self.events += 1;
                    let told = self.watching.event(&event, common.tick);
                    told.map_err(|why| self.named(&why))?;
                }
                Heard::Reply(sent, reply) => {
                    self.reply(&sent, reply, common).map_err(|why| self.named(&why))?;
                }
            }
        }
        // There may be room now for what did not fit.
        self.send(usize::MAX)?;
        self.link.notify()?;
        Ok(true)
    }

    fn named(&self, why: &str) -> String {
        format!("domain {}: {why}", self.domid)
    }

    fn reply(&mut self, sent: &Sent, reply: Reply, common: &mut Common) -> Result<(), String> {
        self.answered += 1;
        let answer: Answer = match reply {
            Reply::Done(payload) => Ok(String::from_utf8_lossy(&payload).into_owned()),
            Reply::Refused(name) => Err(name.to_string()),
        };
        match &sent.op {
            Op::ReadShared(which) => return self.shared_read(*which, sent.floor, &answer, common),
            Op::ReadCounter(_) | Op::WriteCounter(..) => return self.counter(&sent.op, &answer),
            Op::Start => {
                let id = answer.as_ref().ok().and_then(|id| id.trim_end_matches('\0').parse().ok());
                let id = id.ok_or_else(|| format!("a transaction's start: {answer:?}"))?;
                self.within = Within::Open { id, left: 1 + self.rng.below(5) };
                self.model.answered(&Op::Start, &Ok("OK\0".to_owned()))?;
                return Ok(());
            }
            Op::End(_) => {
                self.within = Within::None;
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
            Op::Watch(payload) => self.watching.stands(payload, common.tick),
            Op::Unwatch(payload) => self.watching.is_gone(payload),
            _ => {}
        }
        let fired = self.model.answered(&sent.op, &answer)?;
        self.watching.fired(&fired, sent.at);
        Ok(())
    }

    /// A counter was read or written in a transaction.
    fn counter(&mut self, op: &Op, answer: &Answer) -> Result<(), String> {
        let value = answer.as_ref().ok().and_then(|value| value.parse().ok());
        match (op, &mut self.counting) {
            (Op::ReadCounter(_), Some(counting)) if value.is_some() => counting.value = value,
            (Op::WriteCounter(..), _) if answer.is_ok() => {}
            _ => return Err(format!("{op:?} in a transaction was answered {answer:?}")),
        }
        Ok(())
    }

    /// A transaction that counts has ended: it counts, or another was faster.
    fn count(&mut self, which: usize, answer: &Answer, common: &mut Common) -> Result<(), String> {
        self.model.refused();
        match answer {
            Ok(_) => common.counted[which] += 1,
            Err(name) if name == "EAGAIN" => self.refused += 1,
            Err(name) => return Err(format!("a transaction on a counter: {name}")),
        }
        self.commits += 1;
        Ok(())
    }

    /// A shared node's value moves forward only, and no further than was written.
    fn shared_read(
        &mut self,
        which: usize,
        floor: u64,
        answer: &Answer,
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
        self.watching.asked(&op);
        let floor = if let Op::ReadShared(which) = &op { common.acked[*which] } else { 0 };
        self.caller.ask(kind, id, &payload, Sent { op, at: common.tick, floor });
    }

    /// Puts at most `max` bytes of what was asked onto the ring; whether any.
    fn send(&mut self, max: usize) -> Result<bool, String> {
        let output = self.caller.output();
        if output.is_empty() || self.phase != Phase::Serving || self.is_full {
            return Ok(false);
        }
        let wanted = max.min(output.len());
        let count = self.link.write(&output[..wanted])?;
        self.is_full = count < wanted;
        self.caller.consume_output(count);
        self.amid_request = !self.caller.output().is_empty();
        Ok(count > 0)
    }

    /// Asks for the ring to be reset.
    fn reset(&mut self, common: &mut Common) -> Result<(), String> {
        common.tick += 1;
        self.resets += 1;
        self.phase = Phase::Resetting;
        self.link.request_reconnect()?;
        self.link.notify().map(drop)
    }
}
