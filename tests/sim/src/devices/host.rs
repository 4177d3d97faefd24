//! The host of a run: the schedule and the faults.

use super::backend::BackendProcess;
use super::guest::GuestProcess;
use super::kind::{RequestRecord, TestedDevice};
use super::machine::{self, CountedCall, PlannedDeath, StoreMachine};
use super::plan::DevicePlan;
use super::tally::DeviceTally;
use crate::host::{NO_RING, config, text};
use crate::hypervisor::{Hypervisor, Limits};
use crate::plan::RunTrace;
use crate::rng::Rng;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xen::shared::SharedPage;
use xen::{DomId, GrantRef};
use xen_io::ring::offset;
use xenbus::State;
use xenbus::bus::{DeviceEvent, DeviceNews};
use xenbus::toolstack::NewDevice;
use xenstore::{Client, Store};
use xenstored::step::SteppedDaemon;
use xenstored::{Level, Log};

/// The number of guests that a host has at a time.
const SLOTS: u16 = 3;
/// The number of devices of a guest.
pub(super) const DEVICES: u32 = 2;
/// A domain number.
pub(super) struct TestedSlot<K: TestedDevice> {
    pub(super) domid: DomId,
    pub(super) guest: Option<GuestProcess<K>>,
    /// Its devices, as the toolstack has made them.
    pub(super) devices: Vec<NewDevice>,
    /// The planned death of its process.
    pub(super) planned_death: Option<PlannedDeath>,
    /// The device that is being removed.
    pub(super) leaving: Option<usize>,
    /// True if it has met a fault since the last check found it in order: a device may fail.
    pub(super) fault: bool,
    /// True if a device has failed.
    pub(super) spoiled: bool,
}

/// Plans a death at one of these calls.
pub(super) fn plan_death(rng: &mut Rng, calls: &[CountedCall]) -> PlannedDeath {
    PlannedDeath { at: *rng.pick(calls), after: rng.below(8) }
}

/// An index of a ring that is shown half written, until it is written whole.
struct TornIndex {
    /// The slot whose guest has the ring.
    slot: usize,
    page: SharedPage,
    at: usize,
    whole: u32,
    half: u32,
    until: u64,
}

/// The host of one run.
pub(super) struct DeviceRun<K: TestedDevice> {
    pub(super) plan: DevicePlan,
    pub(super) rng: Rng,
    pub(super) hypervisor: Hypervisor,
    pub(super) clock: Rc<Cell<u64>>,
    pub(super) began: Instant,
    pub(super) tool: Client,
    pub(super) backend: Option<BackendProcess<K>>,
    /// The planned death of the backend's process.
    pub(super) planned_death: Option<PlannedDeath>,
    pub(super) media: K::Media,
    pub(super) slots: Vec<TestedSlot<K>>,
    torn: Vec<TornIndex>,
    pub(super) record_dir: TempDir,
    /// The number of devices that were made.
    pub(super) made: u64,
    pub(super) step: u64,
    pub(super) trace: RunTrace,
    pub(super) tally: DeviceTally,
    pub(super) log: Rc<RefCell<Vec<String>>>,
}

impl<K: TestedDevice> DeviceRun<K> {
    /// Starts a host without guests.
    pub(super) fn new(seed: u64, trace: RunTrace) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let plan = DevicePlan::draw(&mut rng);
        let hypervisor = Hypervisor::new(Limits::default(), plan.reuse, rng.fork(), plan.rates);
        let platform = xenstored::Platform {
            evtchn: hypervisor.event_channels(DomId::DOM0).map_err(text)?,
            grants: hypervisor.grant_map(DomId::DOM0).map_err(text)?,
            domains: hypervisor.domain_watch(None),
            ioctls: &[],
            name: "the simulated host".to_owned(),
        };
        let (clock, log) = (Rc::new(Cell::new(1)), Rc::new(RefCell::new(Vec::new())));
        let (time, lines) = (Rc::clone(&clock), Rc::clone(&log));
        let taker = Box::new(move |line: &str| lines.borrow_mut().push(line.to_owned()));
        let log_to = Log::to("xenstored", Level::Info, taker);
        let daemon = SteppedDaemon::new(
            &config(&[NO_RING])?,
            platform,
            Box::new(move || time.get()),
            log_to,
        );
        let daemon = daemon.map_err(text)?;
        let (hypervisor_too, clock_too) = (hypervisor.clone(), Rc::clone(&clock));
        StoreMachine { hypervisor: hypervisor_too, daemon, clock: clock_too }.install();
        let tool = Client::over(Box::new(machine::HostStream::connect().map_err(text)?));
        let record_dir = tempfile::tempdir().map_err(text)?;
        let slot = |domid| TestedSlot {
            domid: DomId(domid),
            guest: None,
            devices: Vec::new(),
            planned_death: None,
            leaving: None,
            fault: false,
            spoiled: false,
        };
        let mut host = Self {
            plan,
            rng,
            hypervisor,
            clock,
            began: Instant::now(),
            tool,
            backend: None,
            planned_death: None,
            media: K::Media::default(),
            slots: (1..=SLOTS).map(slot).collect(),
            torn: Vec::new(),
            record_dir,
            made: 0,
            step: 0,
            trace,
            tally: DeviceTally::default(),
            log,
        };
        host.note(|| format!("{plan:?}"));
        host.start_backend()?;
        host.hypervisor.arm();
        Ok(host)
    }

    /// Returns the number of steps of the run.
    pub(super) fn steps(&self) -> u64 {
        self.plan.steps
    }

    /// Draws the number of steps until the next check.
    pub(super) fn steps_unchecked(&mut self) -> u64 {
        1 + self.rng.below(300)
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.trace.push(format!("{:>6} {:>9} us  {}", self.step, self.clock.get(), what()));
    }

    pub(super) fn now(&self) -> Instant {
        self.began + Duration::from_micros(self.clock.get())
    }

    /// Makes one step of the process that the seed picks.
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.step += 1;
        self.mend_torn(self.step);
        match self.rng.below(100) {
            0..=19 => drop(machine::round()),
            20..=54 => {
                if self.backend.is_none() && self.rng.chance(100) {
                    self.start_backend()?;
                }
                if self.rng.chance(self.plan.backend_deaths) {
                    self.planned_death = Some(plan_death(&mut self.rng, CountedCall::OF_A_BACKEND));
                }
                self.turn_backend()?;
            }
            55..=94 => {
                let at = self.rng.index(self.slots.len());
                if self.rng.chance(self.plan.guest_deaths) {
                    self.slots[at].planned_death =
                        Some(plan_death(&mut self.rng, CountedCall::OF_A_GUEST));
                }
                if let Some(guest) = self.slots[at].guest.as_mut().filter(|_| self.rng.chance(300))
                {
                    guest.ask(&mut self.rng);
                }
                self.turn_guest(at)?;
            }
            _ => {
                let at = self.rng.index(self.slots.len());
                if self.slots[at].guest.is_none() {
                    self.build(at)?;
                } else if self.rng.chance(self.plan.changes * 20) {
                    self.change(at)?;
                }
            }
        }
        if self.rng.chance(self.plan.rates.spurious) {
            let choice = self.rng.number();
            self.hypervisor.raise_spurious(choice);
            self.tally.count("events that nobody raised", 1);
        }
        if self.rng.chance(self.plan.torn) {
            let at = self.rng.index(self.slots.len());
            self.tear(at)?;
        }
        self.read_log()
    }

    pub(super) fn read_log(&self) -> Result<(), String> {
        for line in self.log.borrow_mut().drain(..) {
            if line.contains("please report this") || line.contains("level=error") {
                return Err(format!("the store says: {line}"));
            }
        }
        Ok(())
    }

    pub(super) fn start_backend(&mut self) -> Result<(), String> {
        self.note(|| "the backend starts".to_owned());
        let (record_dir, media) = (self.record_dir.path(), self.media.clone());
        let started = BackendProcess::start(&self.hypervisor, record_dir, media, self.now());
        self.backend = Some(started?);
        self.tally.count("backends started", 1);
        Ok(())
    }

    /// Makes a turn of the backend, if it is awake, in which it may die at a call. True if it has
    /// found something to do.
    pub(super) fn turn_backend(&mut self) -> Result<bool, String> {
        let now = self.now();
        let Some(backend) = self.backend.as_mut().filter(|backend| backend.is_awake(now)) else {
            return Ok(false);
        };
        match machine::run(&mut self.planned_death, || backend.turn(now)) {
            Ok(Ok(news)) => {
                let moved = !backend.sleeps();
                self.note(|| format!("backend: {news:?}"));
                news.iter().try_for_each(|news| self.check_news(news))?;
                Ok(moved)
            }
            Ok(Err(error)) => Err(format!("the backend ends: {error}")),
            Err(call) => {
                self.note(|| format!("the backend dies at {call:?}"));
                self.tally.count_death("backends", call);
                self.backend = None;
                Ok(true)
            }
        }
    }

    /// Makes a turn of a guest, by the rules of the backend's turn.
    pub(super) fn turn_guest(&mut self, at: usize) -> Result<bool, String> {
        let slot = &mut self.slots[at];
        let Some(guest) = &mut slot.guest else { return Ok(false) };
        if !guest.is_awake() {
            return Ok(false);
        }
        match machine::run(&mut slot.planned_death, || guest.turn()) {
            Ok(Ok(news)) => {
                let moved = guest.is_awake();
                let domid = slot.domid;
                if let Some(wrong) = guest.ledgers().find_map(|(_, ledger)| ledger.wrong()) {
                    return Err(format!("domain {domid}: {wrong}"));
                }
                self.note(|| format!("domain {domid}: {news:?}"));
                news.iter().try_for_each(|news| self.check_news(news))?;
                Ok(moved)
            }
            Ok(Err(error)) => Err(format!("domain {}: {error}", slot.domid)),
            Err(call) => {
                self.kill(at, call)?;
                Ok(true)
            }
        }
    }

    /// Checks that a device fails only after a fault.
    fn check_news(&mut self, news: &DeviceNews) -> Result<(), String> {
        let slot = self.slots.iter_mut().find(|slot| slot.domid == news.id.frontend);
        let Some(slot) = slot else { return Err(format!("no such device: {news:?}")) };
        match &news.event {
            DeviceEvent::Error(_) if slot.fault => {
                slot.spoiled = true;
                self.tally.count("devices that failed", 1);
            }
            DeviceEvent::Error(error) => {
                return Err(format!("device {} fails without a fault: {error}", news.id));
            }
            DeviceEvent::State(State::Connected) => self.tally.count("devices that connected", 1),
            _ => {}
        }
        Ok(())
    }

    /// Kills a guest; its number may be another's at once.
    pub(super) fn kill(&mut self, at: usize, call: CountedCall) -> Result<(), String> {
        self.tally.count_death("guests", call);
        let slot = &mut self.slots[at];
        let domid = slot.domid;
        if let Some(guest) = slot.guest.take() {
            let answered = guest.ledgers().map(|(_, ledger)| ledger.answered()).sum();
            self.tally.count("requests answered", answered);
        }
        slot.fault = true;
        slot.planned_death = None;
        slot.leaving = None;
        self.hypervisor.destroy(domid);
        self.tally.count("guests that died", 1);
        self.note(|| format!("domain {domid} dies at {call:?}"));
        if self.rng.chance(300) { self.build(at) } else { Ok(()) }
    }

    /// Shows an index of a ring half written for a while.
    fn tear(&mut self, at: usize) -> Result<(), String> {
        let slot = &self.slots[at];
        // One at a time: a second one would take the first for a whole index.
        if slot.guest.is_none() || self.is_torn(at) {
            return Ok(());
        }
        let (domid, which) = (slot.domid, self.rng.index(slot.devices.len()));
        let front = self.slots[at].devices[which].frontend_path();
        let mut grant = None;
        for name in ["ring-ref", "ring-ref0", "queue-0/ring-ref", "queue-0/ring-ref0"] {
            let node = self.tool.try_read(format!("{front}/{name}")).map_err(text)?;
            grant = grant.or(node.and_then(|node| String::from_utf8(node).ok()?.parse().ok()));
        }
        let page = grant.and_then(|grant| self.hypervisor.own_page(domid, GrantRef(grant)));
        let Some(page) = page else { return Ok(()) };
        let at_offset = *self.rng.pick(&[offset::REQ_PROD, offset::RSP_PROD]);
        let whole = page.load_u32(at_offset).map_err(text)?;
        let other = self.rng.number() as u32;
        let half = if self.rng.chance(500) {
            whole & 0xffff_0000 | other & 0xffff
        } else {
            whole & 0xffff | other & 0xffff_0000
        };
        page.store_u32(at_offset, half).map_err(text)?;
        let until = self.step + 1 + self.rng.below(20);
        self.torn.push(TornIndex { slot: at, page, at: at_offset, whole, half, until });
        self.slots[at].fault = true;
        self.tally.count("indices shown half written", 1);
        self.note(|| format!("an index of domain {domid}'s device {which} is half written"));
        Ok(())
    }

    /// True if the backend may still see a half written index of this slot's guest, or of the one
    /// before.
    pub(super) fn is_torn(&self, at: usize) -> bool {
        self.torn.iter().any(|torn| torn.slot == at)
    }

    /// Restores the torn indices that are due at this step.
    pub(super) fn mend_torn(&mut self, step: u64) {
        self.torn.retain(|torn| {
            let due = torn.until <= step;
            // If its owner has not written the index meanwhile.
            if due && torn.page.load_u32(torn.at) == Ok(torn.half) {
                let _ = torn.page.store_u32(torn.at, torn.whole);
            }
            !due
        });
    }
}

impl<K: TestedDevice> Drop for DeviceRun<K> {
    fn drop(&mut self) {
        self.backend = None;
        for slot in &mut self.slots {
            slot.guest = None;
        }
        StoreMachine::remove();
    }
}
