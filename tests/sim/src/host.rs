//! The whole host: hypervisor, daemon, toolstack and guests, one step after the other.

use crate::caller::Order;
use crate::faults::Rates;
use crate::guest::{Amid, Common, Guest, SHARED};
use crate::hostile::{Hostile, Transactions};
use crate::hypervisor::{Hypervisor, Limits, Reuse};
use crate::link::{Link, RingLink};
use crate::rng::Rng;
use crate::slot::{Actor, Slot, Stage};
use crate::toolstack::{Ask, Told, Toolstack};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::rc::Rc;
use xen::domwatch::OwnRing;
use xen::gnttab::{Access, GrantOffer, Offered};
use xen::{DomId, GrantRef};
use xenstored::config::{Asked, Config};
use xenstored::log::{Level, Log};
use xenstored::paths::{Environment, System};
use xenstored::step::Daemon;

/// Guests of a host at a time.
pub(crate) const SLOTS: u16 = 5;
/// Steps that are kept to be shown.
const TRACE: usize = 60;

/// What a run is like, as its seed says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rates: Rates,
    pub(crate) reuse: Reuse,
    pub(crate) transactions: Transactions,
    /// In thousandths.
    pub(crate) hostile: u32,
    pub(crate) own_ring: bool,
    pub(crate) steps: u64,
}

impl Plan {
    /// The plan of a seed: some runs have one kind of fault, some all, some none.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut rate = |most: u64| if rng.chance(500) { rng.below(most) as u32 } else { 0 };
        let rates = Rates {
            lost: rate(150),
            late: rate(300),
            spurious: rate(80),
            refused: rate(250),
            deaths: rate(12),
            pauses: rate(20),
        };
        Self {
            rates,
            hostile: rate(700),
            reuse: if rng.chance(400) { Reuse::AtOnce } else { Reuse::WhenUnmapped },
            transactions: if rng.chance(500) { Transactions::Used } else { Transactions::Left },
            own_ring: rng.chance(400),
            steps: 1000 + rng.below(6000),
        }
    }

    /// A hostile guest's transactions may delay others' requests, so that replies overtake each other.
    fn order(&self) -> Order {
        let used = self.transactions == Transactions::Used && self.hostile > 0;
        if used { Order::Any } else { Order::Sent }
    }
}

/// What happened in a run, for whoever wants to know that it did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    pub(crate) events: u64,
    pub(crate) resets: u64,
    pub(crate) commits: u64,
    pub(crate) hostile: u64,
    pub(crate) introduced: u64,
    pub(crate) released: u64,
    pub(crate) resumed: u64,
    pub(crate) deaths: u64,
    pub(crate) amid_request: u64,
    pub(crate) amid_reply: u64,
    pub(crate) amid_transaction: u64,
    pub(crate) reused: u64,
    pub(crate) spurious: u64,
    pub(crate) pauses: u64,
    pub(crate) unread: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.events += other.events;
        self.resets += other.resets;
        self.commits += other.commits;
        self.hostile += other.hostile;
        self.introduced += other.introduced;
        self.released += other.released;
        self.resumed += other.resumed;
        self.deaths += other.deaths;
        self.amid_request += other.amid_request;
        self.amid_reply += other.amid_reply;
        self.amid_transaction += other.amid_transaction;
        self.reused += other.reused;
        self.spurious += other.spurious;
        self.pauses += other.pauses;
        self.unread += other.unread;
    }
}

/// What was done last; survives a panic.
#[derive(Clone, Default)]
pub(crate) struct Trace(Rc<RefCell<VecDeque<String>>>);

impl Trace {
    fn push(&self, line: String) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == TRACE {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take().into()
    }
}

/// The host of one run.
pub(crate) struct Host {
    pub(crate) plan: Plan,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) daemon: Daemon,
    pub(crate) clock: Rc<Cell<u64>>,
    pub(crate) log: Rc<RefCell<Vec<String>>>,
    pub(crate) toolstack: Toolstack,
    pub(crate) slots: Vec<Slot>,
    pub(crate) common: Common,
    pub(crate) rng: Rng,
    trace: Trace,
    pub(crate) tally: Tally,
    /// When a special watch of the toolstack's fired last, and what it must have fired after.
    pub(crate) released: u64,
    pub(crate) release_owed: u64,
    pub(crate) introduced: u64,
    pub(crate) introduce_owed: u64,
    /// How often the daemon's own check found nothing.
    pub(crate) orderly: u64,
    /// What came of the questions of the last check.
    pub(crate) answers: Vec<(Ask, String)>,
    /// The grant of the own domain's ring page.
    _own: Offered,
    _offers: Box<dyn GrantOffer>,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The configuration of a daemon that is started without options.
fn config(own_ring: bool) -> Result<Config, String> {
    let environment = Environment {
        path: Some("/nonexistent/socket".into()),
        run_dir: None,
        root_dir: None,
        user_run_dir: None,
        unfiltered: None,
        directory: "/".into(),
        system: System::Closed,
    };
    let mut args = vec![OsString::from("-N")];
    if !own_ring {
        args.push("--no-domain-init".into());
    }
    match xenstored::config::parse(args, &environment).map_err(text)? {
        Asked::Run(config) => Ok(*config),
        Asked::Help => Err("it only wants to help".to_owned()),
    }
}

impl Host {
    /// A host that has just been started, with nobody on it.
    pub(crate) fn new(seed: u64, trace: Trace) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let limits = Limits { ports: 64, ..Limits::default() };
        let hypervisor = Hypervisor::new(limits, plan.reuse, rng.fork(), plan.rates);
        let mut offers = hypervisor.grant_offer(DomId::DOM0).map_err(text)?;
        let own = offers.offer(DomId::DOM0, Access::ReadWrite).map_err(text)?;
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
        };
        let (clock, log) = (Rc::new(Cell::new(1)), Rc::new(RefCell::new(Vec::new())));
        let time = Rc::clone(&clock);
        let lines = Rc::clone(&log);
        let taker = Box::new(move |line: &str| lines.borrow_mut().push(line.to_owned()));
        let config = config(plan.own_ring)?;
        let log_to = Log::to(Level::Info, taker);
        let mut daemon =
            Daemon::new(&config, platform, Box::new(move || time.get()), log_to).map_err(text)?;
        let link = if plan.own_ring {
            Link::Ring(kernel)
        } else {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (ours, its) = pair.map_err(text)?;
            daemon.connect(its);
            Link::Socket(ours)
        };
        let mut host = Self {
            plan,
            hypervisor,
            daemon,
            clock,
            log,
            toolstack: Toolstack::new(link, Order::Sent),
            slots: (1..=SLOTS).map(Slot::new).collect(),
            common: Common::default(),
            rng,
            trace,
            tally: Tally::default(),
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

    /// What is there before anything goes wrong.
    fn begin(&mut self) -> Result<(), String> {
        for which in 0..SHARED {
            self.ask(Ask::WriteShared { which, value: 0 });
            self.ask(Ask::OpenShared { which });
        }
        self.ask(Ask::Watch("@introduceDomain"));
        self.ask(Ask::Watch("@releaseDomain"));
        self.check()?;
        self.hypervisor.arm();
        Ok(())
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        let (step, now) = (self.common.tick, self.clock.get());
        self.trace.push(format!("{step:>6} {now:>9} us  {}", what()));
    }

    pub(crate) fn ask(&mut self, ask: Ask) {
        self.note(|| format!("toolstack asks {ask:?}"));
        let refused = self.hypervisor.fault_counts().refused;
        self.toolstack.ask(ask, &mut self.common, refused);
    }

    /// One step of whoever's turn the seed says it is.
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
        // The number of a dead domain may be another's while its page is still held.
        let dead = usize::try_from(self.tally.deaths).unwrap_or(usize::MAX);
        let most = introduced.saturating_add(dead);
        if self.hypervisor.mappings() as usize > most {
            return Err(format!("{} pages are mapped, of {most}", self.hypervisor.mappings()));
        }
        self.read_log()
    }

    /// What the daemon must never have to say.
    fn read_log(&mut self) -> Result<(), String> {
        let lines: Vec<String> = self.log.borrow_mut().drain(..).collect();
        let refused = self.hypervisor.fault_counts().refused > 0;
        for line in lines {
            self.note(|| format!("  log: {line}"));
            let excused = refused && line.contains("which domains changed");
            if line.contains("please report this") || (line.contains("level=error") && !excused) {
                return Err(format!("the daemon says: {line}"));
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
            Some(Actor::Healthy(guest)) => {
                let stepped = guest.step(&mut self.common);
                self.note(|| format!("domain {domid}"));
                stepped
            }
            Some(Actor::Hostile(hostile)) => {
                hostile.step();
                self.note(|| format!("domain {domid}, hostile"));
                Ok(())
            }
        }
    }

    /// Whether anything moved.
    pub(crate) fn pump_toolstack(&mut self, max: usize) -> Result<bool, String> {
        let (moved, told) = self.toolstack.pump(&mut self.rng, max)?;
        for told in told {
            self.common.tick += 1;
            self.note(|| format!("toolstack is told {told:?}"));
            match told {
                Told::Event(path) if path == "@releaseDomain" => self.released = self.common.tick,
                Told::Event(path) if path == "@introduceDomain" => {
                    self.introduced = self.common.tick;
                }
                Told::Event(path) => return Err(format!("the toolstack watches no {path}")),
                Told::Answer(sent, answer) => self.answered(&sent, &answer)?,
            }
        }
        Ok(moved)
    }

    /// Something goes wrong, if it is time.
    fn fault(&mut self) -> Result<(), String> {
        let rates = self.plan.rates;
        if self.rng.chance(rates.spurious) {
            let choice = self.rng.number();
            self.hypervisor.spurious(choice);
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
        }
        Ok(())
    }

    /// A domain dies where it is.
    pub(crate) fn kill(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(actor) = slot.actor.take() else { return };
        let domid = slot.domid;
        if let Actor::Healthy(guest) = &actor {
            let Amid { request, reply, transaction } = guest.amid();
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
        slot.stage = Stage::Empty;
        self.tally.deaths += 1;
        self.common.deaths += 1;
        self.hypervisor.destroy(DomId(domid));
        self.note(|| format!("domain {domid} dies"));
    }

    /// Brings a domain one step further in its life.
    fn advance(&mut self, at: usize) -> Result<(), String> {
        if self.toolstack.waiting() > 8 {
            return Ok(());
        }
        if self.rng.chance(400) {
            self.write_shared();
            return Ok(());
        }
        match self.slots[at].stage {
            Stage::Empty => self.build(at),
            Stage::ToIntroduce => {
                self.introduce(at);
                Ok(())
            }
            Stage::Live => self.live(at),
            Stage::Suspended => {
                let (domid, identity) = self.slots[at].name();
                // First of all: as long as it is shut down, that may be told again.
                self.hypervisor.resume(DomId(domid));
                self.slots[at].suspended_since = 0;
                self.slots[at].stage = Stage::Asked;
                self.ask(Ask::Resume { domid, identity });
                Ok(())
            }
            Stage::Asked => Ok(()),
        }
    }

    fn write_shared(&mut self) {
        let which = self.rng.index(SHARED);
        self.common.issued[which] += 1;
        let value = self.common.issued[which];
        self.ask(Ask::WriteShared { which, value });
    }

    fn build(&mut self, at: usize) -> Result<(), String> {
        let domid = self.slots[at].domid;
        if self.toolstack.unanswered().any(|ask| ask.is_about(domid)) {
            // What was meant for the one that is gone would be done to the next one.
            return Ok(());
        }
        // The number may still be held.
        let Ok(built) = self.hypervisor.create(DomId(domid)) else { return Ok(()) };
        let identity = built.identity;
        let hostile = self.rng.chance(self.plan.hostile);
        let (rng, plan) = (self.rng.fork(), self.plan);
        let actor = if hostile {
            Actor::Hostile(Hostile::new(&self.hypervisor, built, plan.transactions, rng)?)
        } else {
            Actor::Healthy(Box::new(Guest::new(&self.hypervisor, built, plan.order(), rng)?))
        };
        let slot = &mut self.slots[at];
        self.tally.reused += u64::from(slot.had_identity);
        slot.identity = identity;
        slot.actor = Some(actor);
        slot.frozen_until = 0;
        slot.keeps_nodes = false;
        slot.stage = Stage::ToIntroduce;
        self.note(|| format!("domain {domid} is built, hostile: {hostile}"));
        Ok(())
    }

    fn introduce(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(actor) = &mut slot.actor else { return };
        let port = match actor {
            Actor::Healthy(guest) => guest.link().port(),
            Actor::Hostile(hostile) => {
                hostile.prepare();
                hostile.port()
            }
        };
        let (domid, identity) = slot.name();
        slot.stage = Stage::Asked;
        slot.introduce_asked = true;
        self.ask(Ask::Introduce { domid, identity, port });
    }

    /// Something that a toolstack does to a domain that runs.
    fn live(&mut self, at: usize) -> Result<(), String> {
        let (domid, identity) = self.slots[at].name();
        match self.rng.below(40) {
            0 | 1 => {
                self.slots[at].stage = Stage::Asked;
                self.ask(Ask::Release { domid, identity });
            }
            2 | 3 => {
                let reason = xen::domwatch::ShutdownReason::Suspend;
                let mut control = self.hypervisor.domain_control(DomId::DOM0);
                control.shutdown(DomId(domid), reason).map_err(text)?;
                self.slots[at].stage = Stage::Suspended;
                self.common.tick += 1;
                self.slots[at].suspended_since = self.common.tick;
                self.note(|| format!("domain {domid} is suspended"));
            }
            4 | 5 => {
                // A kernel that was started anew without its domain: another port, the same page.
                let slot = &mut self.slots[at];
                if let Some(Actor::Healthy(guest)) = &mut slot.actor {
                    guest.cut();
                    guest.link().renew_port()?;
                }
                slot.keeps_nodes = true;
                self.note(|| format!("domain {domid} starts anew"));
                self.introduce(at);
            }
            6 => self.kill(at),
            _ => {}
        }
        Ok(())
    }
}

/// What an actor that goes has done.
pub(crate) fn collect(tally: &mut Tally, actor: &Actor) {
    match actor {
        Actor::Healthy(guest) => {
            tally.answered += guest.answered;
            tally.events += guest.events;
            tally.resets += guest.resets;
            tally.commits += guest.commits;
        }
        Actor::Hostile(hostile) => tally.hostile += hostile.pieces,
    }
}
