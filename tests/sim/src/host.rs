//! The whole host: hypervisor, daemon, toolstack and guests, one step after the other.

use crate::caller::ReplyOrder;
use crate::guest::{COUNTERS, Common, SHARED, UnfinishedWork};
use crate::hypervisor::{Hypervisor, Limits, Reuse};
use crate::link::{DaemonLink, RingLink};
use crate::plan::{EventTally, RunTrace, StorePlan, collect};
use crate::rng::Rng;
use crate::slot::{DomainSlot, DomainStage, SlotActor};
use crate::toolstack::{Toolstack, ToolstackMessage, ToolstackRequest};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::rc::Rc;
use xen::domwatch::OwnRing;
use xen::gnttab::{GrantOffer, OfferedPage, PageAccess};
use xen::{DomId, GrantRef};
use xenstored::config::{Config, Invocation};
use xenstored::paths::{Environment, System};
use xenstored::step::SteppedDaemon;
use xenstored::{Level, Log};

/// The number of guests that a host has at a time.
pub(crate) const SLOTS: u16 = 5;
/// The host of one run.
pub(crate) struct StoreRun {
    pub(crate) plan: StorePlan,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) daemon: SteppedDaemon,
    pub(crate) clock: Rc<Cell<u64>>,
    pub(crate) log: Rc<RefCell<Vec<String>>>,
    pub(crate) toolstack: Toolstack,
    pub(crate) slots: Vec<DomainSlot>,
    pub(crate) common: Common,
    pub(crate) rng: Rng,
    trace: RunTrace,
    pub(crate) tally: EventTally,
    /// The tick at which a special watch of the toolstack's fired last, and the tick after which it
    /// must have fired.
    pub(crate) released: u64,
    pub(crate) release_owed: u64,
    pub(crate) introduced: u64,
    pub(crate) introduce_owed: u64,
    /// The number of times that the daemon's own check found nothing.
    pub(crate) orderly: u64,
    /// The answers to the questions of the last check.
    pub(crate) answers: Vec<(ToolstackRequest, String)>,
    /// The grant of the ring page of domain 0's own kernel.
    _own: OfferedPage,
    _offers: Box<dyn GrantOffer>,
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An option for a daemon whose domain has no ring.
pub const NO_RING: &str = "--no-domain-init";

/// The configuration of a daemon that is started with these options.
///
/// # Errors
/// The text of the error in the options.
pub fn config(options: &[&str]) -> Result<Config, String> {
    let environment = Environment {
        path: Some("/nonexistent/socket".into()),
        run_dir: None,
        root_dir: None,
        user_run_dir: None,
        unfiltered: None,
        directory: "/".into(),
        system: System::Closed,
    };
    let args = ["-N"].iter().chain(options).map(OsString::from);
    match xenstored::config::parse(args, &environment).map_err(text)? {
        Invocation::Run(config) => Ok(*config),
        Invocation::Help => Err("it only wants to help".to_owned()),
    }
}

impl StoreRun {
    /// Starts a host without guests.
    pub(crate) fn new(seed: u64, trace: RunTrace) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let plan = StorePlan::draw(&mut rng);
        let limits = Limits { ports: 64, ..Limits::default() };
        let hypervisor = Hypervisor::new(limits, plan.reuse, rng.fork(), plan.rates);
        let mut offers = hypervisor.grant_offer(DomId::DOM0).map_err(text)?;
        let own = offers.offer(DomId::DOM0, PageAccess::ReadWrite).map_err(text)?;
        let page = |grant: GrantRef| {
            hypervisor.own_page(DomId::DOM0, grant).ok_or("domain 0 has no page".to_owned())
        };
        let kernel = RingLink::new(&hypervisor, DomId::DOM0, page(own.grant())?)?;
        let ring = OwnRing { page: page(own.grant())?, port: kernel.port() };
        let platform = xenstored::Platform {
            evtchn: hypervisor.event_channels(DomId::DOM0).map_err(text)?,
            grants: hypervisor.grant_map(DomId::DOM0).map_err(text)?,
            domains: hypervisor.domain_watch(plan.own_ring.then_some(ring)),
            ioctls: &[],
            name: "the simulated host".to_owned(),
        };
        let (clock, log) = (Rc::new(Cell::new(1)), Rc::new(RefCell::new(Vec::new())));
        let time = Rc::clone(&clock);
        let lines = Rc::clone(&log);
        let taker = Box::new(move |line: &str| lines.borrow_mut().push(line.to_owned()));
        let mut config = config(if plan.own_ring { &[] } else { &[NO_RING] })?;
        config.core.slice_cost = plan.slice_cost;
        let log_to = Log::to("xenstored", Level::Info, taker);
        let mut daemon =
            SteppedDaemon::new(&config, platform, Box::new(move || time.get()), log_to)
                .map_err(text)?;
        let link = if plan.own_ring {
            DaemonLink::Ring(kernel)
        } else {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (ours, its) = pair.map_err(text)?;
            daemon.connect(its);
            DaemonLink::Socket(ours)
        };
        let mut host = Self {
            plan,
            hypervisor,
            daemon,
            clock,
            log,
            toolstack: Toolstack::new(link, ReplyOrder::Sent),
            slots: (1..=SLOTS).map(DomainSlot::new).collect(),
            common: Common { counting: plan.counting, ..Common::default() },
            rng,
            trace,
            tally: EventTally::default(),
            released: 0,
            release_owed: 0,
            introduced: 0,
            introduce_owed: 0,
            orderly: 0,
            answers: Vec::new(),
            _own: own,
            _offers: offers,
        };
        host.note(|| format!("{plan:?}"));
        host.begin()?;
        Ok(host)
    }

    /// Makes the shared nodes and the counters and sets the special watches, before any fault.
    fn begin(&mut self) -> Result<(), String> {
        for which in 0..SHARED {
            self.ask(ToolstackRequest::WriteShared { which, value: 0 });
            self.ask(ToolstackRequest::OpenShared { which });
        }
        for which in 0..COUNTERS {
            self.ask(ToolstackRequest::MakeCounter { which });
            self.ask(ToolstackRequest::OpenCounter { which });
        }
        self.ask(ToolstackRequest::Watch("@introduceDomain"));
        self.ask(ToolstackRequest::Watch("@releaseDomain"));
        self.check()?;
        self.hypervisor.arm();
        Ok(())
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        let (step, now) = (self.common.tick, self.clock.get());
        self.trace.push(format!("{step:>6} {now:>9} us  {}", what()));
    }

    pub(crate) fn ask(&mut self, ask: ToolstackRequest) {
        self.note(|| format!("toolstack asks {ask:?}"));
        let refused = self.hypervisor.fault_counts().refused;
        self.toolstack.ask(ask, &mut self.common, refused);
    }

    /// Makes one step of the actor that the seed picks.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.common.tick += 1;
        self.hypervisor.pass_step();
        let passed = if self.rng.chance(10) { 20_000 } else { 200 };
        let us = 1 + self.rng.below(passed);
        self.pass(us);
        match self.rng.below(100) {
            0..=29 => {
                self.note(|| "daemon".to_owned());
                self.step_daemon()?;
            }
            30..=84 => {
                let at = self.rng.index(self.slots.len());
                self.step_actor(at)?;
            }
            85..=94 => {
                let max = 1 + self.rng.index(300);
                self.pump_toolstack(max)?;
            }
            _ => {
                let at = self.rng.index(self.slots.len());
                self.advance(at)?;
            }
        }
        self.fault()
    }

    pub(crate) fn pass(&mut self, us: u64) {
        self.clock.set(self.clock.get() + us);
    }

    pub(crate) fn step_daemon(&mut self) -> Result<(), String> {
        self.daemon.step().map_err(|error| format!("the daemon has ended: {error}"))?;
        let introduced = self.slots.iter().filter(|slot| slot.may_be_introduced()).count();
        // The number of a dead domain may be in use again while its page is still held.
        let dead = usize::try_from(self.tally.deaths).unwrap_or(usize::MAX);
        let most = introduced.saturating_add(dead);
        if self.hypervisor.mappings() as usize > most {
            return Err(format!("{} pages are mapped, of {most}", self.hypervisor.mappings()));
        }
        self.read_log()
    }

    /// Reads the daemon's log and fails at a line that the daemon must never write.
    fn read_log(&mut self) -> Result<(), String> {
        let lines: Vec<String> = self.log.borrow_mut().drain(..).collect();
        let refused = self.hypervisor.fault_counts().refused > 0;
        for line in lines {
            self.note(|| format!("  log: {line}"));
            let excused = refused && line.contains("which domains changed");
            if line.contains("please report this") || (line.contains("level=error") && !excused) {
                return Err(format!("the daemon says: {line}"));
            }
            // Connection indices are reused: an index beyond the number of connections means a
            // leak.
            let conn = line.split_once("connection ").and_then(|(_, rest)| rest.split(' ').next());
            let conn = conn.and_then(|number| number.parse::<u16>().ok());
            if conn.is_some_and(|conn| conn > SLOTS + 1) {
                return Err(format!("connections are not given back: {line}"));
            }
            self.orderly += u64::from(line.contains("the store is in order"));
            self.tally.unread += u64::from(line.contains("replies and events unread"));
        }
        Ok(())
    }

    fn step_actor(&mut self, at: usize) -> Result<(), String> {
        let slot = &mut self.slots[at];
        if slot.frozen_until > self.common.tick || slot.is_shut_down() {
            return Ok(());
        }
        let domid = slot.domid;
        match &mut slot.actor {
            None => Ok(()),
            Some(SlotActor::Healthy(guest)) => {
                let stepped = guest.step(&mut self.common);
                self.note(|| format!("domain {domid}"));
                stepped
            }
            Some(SlotActor::Hostile(hostile)) => {
                hostile.step();
                self.note(|| format!("domain {domid}, hostile"));
                Ok(())
            }
        }
    }

    /// Lets the toolstack read and send. True if anything moved.
    pub(crate) fn pump_toolstack(&mut self, max: usize) -> Result<bool, String> {
        let (moved, told) = self.toolstack.pump(&mut self.rng, max)?;
        for told in told {
            self.common.tick += 1;
            self.note(|| format!("toolstack is told {told:?}"));
            match told {
                ToolstackMessage::Event(path) if path == "@releaseDomain" => {
                    self.released = self.common.tick;
                }
                ToolstackMessage::Event(path) if path == "@introduceDomain" => {
                    self.introduced = self.common.tick;
                }
                ToolstackMessage::Event(path) => {
                    return Err(format!("the toolstack watches no {path}"));
                }
                ToolstackMessage::Answer(sent, answer) => self.answered(&sent, &answer)?,
            }
        }
        Ok(moved)
    }

    /// Draws a fault, if it is time for one.
    fn fault(&mut self) -> Result<(), String> {
        let rates = self.plan.rates;
        if self.rng.chance(rates.spurious) {
            let choice = self.rng.number();
            self.hypervisor.raise_spurious(choice);
            self.tally.spurious += 1;
            self.note(|| "an event that nobody raised".to_owned());
        }
        if self.rng.chance(rates.pauses) {
            let at = self.rng.index(self.slots.len());
            let until = self.common.tick + self.rng.below(200);
            self.slots[at].frozen_until = until;
            self.tally.pauses += 1;
        }
        if self.rng.chance(rates.deaths) {
            let at = self.rng.index(self.slots.len());
            self.kill(at);
            // If the run allows it, its number is another's before anyone has heard of its death.
            if self.plan.reuse == Reuse::AtOnce && self.rng.chance(500) {
                self.build(at)?;
                self.introduce(at);
            }
        }
        Ok(())
    }

    /// Kills the domain of the slot `at`.
    pub(crate) fn kill(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(actor) = slot.actor.take() else { return };
        let domid = slot.domid;
        if let SlotActor::Healthy(guest) = &actor {
            if let Some(which) = guest.counter_in_doubt() {
                self.common.uncertain[which] += 1;
            }
            let UnfinishedWork { request, reply, transaction } = guest.unfinished_work();
            self.tally.amid_request += u64::from(request);
            self.tally.amid_reply += u64::from(reply);
            self.tally.amid_transaction += u64::from(transaction);
        }
        collect(&mut self.tally, &actor);
        if slot.is_introduced {
            self.common.tick += 1;
            self.release_owed = self.common.tick;
        }
        slot.is_introduced = false;
        slot.introduce_asked = false;
        slot.suspended_since = 0;
        slot.had_identity = true;
        slot.stage = DomainStage::Empty;
        self.tally.deaths += 1;
        self.common.deaths += 1;
        self.hypervisor.destroy(DomId(domid));
        self.note(|| format!("domain {domid} dies"));
    }
}
