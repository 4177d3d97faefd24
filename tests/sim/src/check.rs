//! The checks of a run: the replies to the toolstack, the rest that the host must reach, and its
//! state then.

use crate::guest::COUNTERS;
use crate::host::StoreRun;
use crate::hostile::Probe;
use crate::hypervisor::Reuse;
use crate::link::clear;
use crate::model::ModelReply;
use crate::plan::collect;
use crate::slot::{DomainStage, SlotActor};
use crate::toolstack::{ToolstackPending, ToolstackRequest};
use xen::{DomId, GrantRef};
use xen_io::xs_ring::{CONNECTED, ErrorWord, offset};

/// The number of rounds within which a host that begins nothing new must come to rest.
const ROUNDS_MAX: u32 = 20_000;
/// The longest time until a deadline that a check waits for, in microseconds.
const DUE_SOON_US: u64 = 200_000;
/// The number of requests in a burst.
const BURST: u32 = 400;
/// The number of writes of each shared node whose events fill the ring of a guest that watches it.
const FILLS: u32 = 90;
/// A time longer than a guest may leave an event unread, in microseconds.
const UNREAD_US: u64 = 25_000_000;

impl StoreRun {
    /// Returns the slot of the domain that a request was about; `None` if that domain is gone.
    fn slot_of(&self, domid: u16, identity: u64) -> Option<usize> {
        let same = |slot: &crate::slot::DomainSlot| slot.name() == (domid, identity);
        self.slots.iter().position(same).filter(|at| self.slots[*at].actor.is_some())
    }

    /// Handles the reply to a request of the toolstack.
    pub(crate) fn answered(
        &mut self,
        sent: &ToolstackPending,
        answer: &ModelReply,
    ) -> Result<(), String> {
        let wrong = |answer: &ModelReply| Err(format!("{:?} was answered {answer:?}", sent.ask));
        match (&sent.ask, answer) {
            (ToolstackRequest::Introduce { domid, identity, .. }, _) => {
                let Some(at) = self.slot_of(*domid, *identity) else { return Ok(()) };
                self.slots[at].introduce_asked = false;
                if answer.is_ok() {
                    self.is_introduced(at, sent.at);
                    return Ok(());
                }
                self.slots[at].stage = DomainStage::ToIntroduce;
                let refused = self.hypervisor.fault_counts().refused > sent.refused;
                let hostile = self.slots[at].is_hostile();
                if hostile && self.rng.chance(300) {
                    self.kill(at);
                }
                if refused || hostile { Ok(()) } else { wrong(answer) }
            }
            (ToolstackRequest::MakeHome { domid, .. }, Ok(_)) => {
                self.slots[usize::from(*domid) - 1].home_is_domain_0s = true;
                Ok(())
            }
            (ToolstackRequest::GiveHome { domid, identity }, _) => {
                if answer.is_ok() {
                    self.slots[usize::from(*domid) - 1].home_is_domain_0s = false;
                }
                let Some(at) = self.slot_of(*domid, *identity) else { return Ok(()) };
                self.slots[at].stage = DomainStage::Live;
                if let Some(guest) = self.slots[at].healthy() {
                    guest.begin();
                }
                if answer.is_ok() { Ok(()) } else { wrong(answer) }
            }
            (ToolstackRequest::Release { domid, identity }, _) => {
                let Some(at) = self.slot_of(*domid, *identity) else { return Ok(()) };
                self.is_released(at, sent.at);
                if answer.is_ok() { Ok(()) } else { wrong(answer) }
            }
            (ToolstackRequest::Resume { domid, identity }, _) => {
                let Some(at) = self.slot_of(*domid, *identity) else { return Ok(()) };
                self.slots[at].stage = DomainStage::Live;
                self.tally.resumed += 1;
                if answer.is_ok() { Ok(()) } else { wrong(answer) }
            }
            (ToolstackRequest::WriteShared { which, value }, Ok(_)) => {
                self.common.acked[*which] = self.common.acked[*which].max(*value);
                for slot in &mut self.slots {
                    if let Some(guest) = slot.healthy() {
                        guest.shared_written(*which, sent.at);
                    }
                }
                Ok(())
            }
            (ToolstackRequest::OpenShared { .. } | ToolstackRequest::MakeCounter { .. }, Ok(_)) => {
                Ok(())
            }
            (ToolstackRequest::OpenCounter { .. } | ToolstackRequest::Watch(_), Ok(_)) => Ok(()),
            // The replies to the questions of a check.
            (_, Ok(payload)) => {
                self.answers.push((sent.ask.clone(), payload.clone()));
                Ok(())
            }
            // No domain has had a home yet.
            (ToolstackRequest::ListHomes, Err(name)) if name == "ENOENT" => {
                self.answers.push((ToolstackRequest::ListHomes, String::new()));
                Ok(())
            }
            (_, Err(_)) => wrong(answer),
        }
    }

    fn is_introduced(&mut self, at: usize, asked: u64) {
        self.tally.introduced += 1;
        let slot = &mut self.slots[at];
        let (domid, identity) = slot.name();
        if !std::mem::replace(&mut slot.is_introduced, true) {
            self.introduce_owed = asked;
        }
        if std::mem::take(&mut slot.keeps_nodes) {
            slot.stage = DomainStage::Live;
            if let Some(guest) = slot.healthy() {
                guest.continue_on_new_port();
            }
        } else {
            self.ask(ToolstackRequest::MakeHome { domid, identity });
            self.ask(ToolstackRequest::GiveHome { domid, identity });
        }
    }

    fn is_released(&mut self, at: usize, asked: u64) {
        self.tally.released += 1;
        self.release_owed = asked;
        // Its nodes are gone, as after a death.
        self.common.deaths += 1;
        let slot = &mut self.slots[at];
        slot.is_introduced = false;
        slot.stage = DomainStage::ToIntroduce;
        let domid = DomId(slot.domid);
        if let Some(guest) = slot.healthy() {
            guest.cut(&mut self.common);
            if let Some(page) = self.hypervisor.own_page(domid, GrantRef::XENSTORE) {
                clear(&page);
            }
        }
    }

    /// Brings the host to rest, first without the lost events and then with them, and checks all of
    /// it.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.note(|| "check".to_owned());
        self.hypervisor.disarm();
        self.slots.iter_mut().for_each(|slot| slot.frozen_until = 0);
        self.settle()?;
        self.check_no_pending_requests(|host, domid| host.hypervisor.has_lost_event_of(domid))?;
        // A lost event delays the receiver only until the next event.
        self.note(|| "the next events come".to_owned());
        self.hypervisor.deliver_lost_events();
        self.settle()?;
        self.check_no_pending_requests(|_, _| false)?;
        self.check_watches()?;
        self.check_nothing_left()?;
        self.ask_all()?;
        self.leave_unread_for_long()?;
        self.probe_all()?;
        self.hypervisor.arm();
        Ok(())
    }

    /// Steps every part of the host, beginning nothing new, until nothing moves any more.
    fn settle(&mut self) -> Result<(), String> {
        let mut idle = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.hypervisor.activity();
            self.common.tick += 1;
            self.pass(20);
            self.step_daemon()?;
            let mut moved = self.pump_toolstack(usize::MAX)?;
            for slot in &mut self.slots {
                if !slot.is_shut_down()
                    && let Some(guest) = slot.healthy()
                {
                    moved |= guest.settle(&mut self.common)?;
                }
            }
            self.hypervisor.pass_step();
            let now = self.clock.get();
            let due = self.daemon.deadline();
            let busy = due.is_some_and(|due| due <= now);
            moved |= before != self.hypervisor.activity()
                || self.hypervisor.has_delayed_events()
                || busy;
            idle = if moved { 0 } else { idle + 1 };
            if idle < 2 {
                continue;
            }
            match due {
                Some(due) if due - now <= DUE_SOON_US => self.clock.set(due),
                _ => return Ok(()),
            }
        }
        Err(format!("the host does not come to rest in {ROUNDS_MAX} rounds"))
    }

    /// Checks that no domain waits for a reply, except those for which `excused` is true.
    fn check_no_pending_requests(
        &mut self,
        excused: impl Fn(&Self, DomId) -> bool,
    ) -> Result<(), String> {
        let deaf = self.toolstack.uses_ring() && excused(self, DomId::DOM0);
        if !self.toolstack.is_settled() && !deaf {
            let asked: Vec<_> = self.toolstack.in_flight().collect();
            return Err(format!("the toolstack waits for {asked:?}"));
        }
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let domid = DomId(slot.domid);
            // A request of the toolstack may have cut the guest off, which it has not seen yet.
            let is_asked_about = self.toolstack.in_flight().any(|ask| ask.is_about(domid.0));
            if slot.is_shut_down() || is_asked_about {
                continue;
            }
            let Some(guest) = slot.healthy().filter(|guest| !guest.is_settled()) else { continue };
            let waits = guest.describe_pending();
            if !excused(self, domid) {
                return Err(format!("nothing moves any more, and {waits}"));
            }
        }
        Ok(())
    }

    /// Checks that every watch has fired for the changes that it covers.
    fn check_watches(&mut self) -> Result<(), String> {
        for slot in &mut self.slots {
            if !slot.is_shut_down()
                && let Some(guest) = slot.healthy()
            {
                guest.check()?;
            }
        }
        let shut_down = self.slots.iter().filter(|slot| slot.is_introduced);
        let suspended = shut_down.map(|slot| slot.suspended_since).max().unwrap_or(0);
        let owed = self.release_owed.max(suspended);
        if owed > self.released {
            return Err(format!("@releaseDomain has not fired since step {owed}"));
        }
        if self.introduce_owed > self.introduced {
            let owed = self.introduce_owed;
            return Err(format!("@introduceDomain has not fired since step {owed}"));
        }
        Ok(())
    }

    /// Checks that the daemon holds what it must, and nothing of a domain that is gone.
    fn check_nothing_left(&self) -> Result<(), String> {
        let mut introduced = 0;
        for slot in &self.slots {
            let wanted = usize::from(slot.is_introduced);
            introduced += wanted;
            let held = self.hypervisor.ports_towards(DomId::DOM0, DomId(slot.domid));
            // A domain whose new introduction was refused may have lost its port, and is told of
            // it.
            let in_between = slot.stage == DomainStage::ToIntroduce && held == 0;
            if in_between && slot.is_introduced && !slot.is_hostile() {
                let page = self.hypervisor.own_page(DomId(slot.domid), GrantRef::XENSTORE);
                let word = page.and_then(|page| page.load_u32(offset::ERROR).ok());
                if word != Some(ErrorWord::Communication as u32) {
                    let domid = slot.domid;
                    return Err(format!("domain {domid} has no port, and error word {word:?}"));
                }
            }
            if held != wanted && !in_between {
                let domid = slot.domid;
                return Err(format!("{held} ports towards domain {domid} are held, not {wanted}"));
            }
        }
        let mapped = self.hypervisor.mappings() as usize;
        if mapped != introduced {
            return Err(format!("{mapped} pages are mapped for {introduced} domains"));
        }
        let dying = self.hypervisor.dying();
        if self.plan.reuse == Reuse::WhenUnmapped && dying > 0 {
            return Err(format!("{dying} domains cannot die"));
        }
        Ok(())
    }

    /// Runs the daemon's own check, and reads its figures for all domains and every node of the
    /// guests.
    fn ask_all(&mut self) -> Result<(), String> {
        let orderly = self.orderly;
        self.answers.clear();
        self.ask(ToolstackRequest::Check);
        self.ask(ToolstackRequest::ListHomes);
        for which in 0..COUNTERS {
            self.ask(ToolstackRequest::ReadCounter { which });
        }
        for at in 0..self.slots.len() {
            let domid = self.slots[at].domid;
            self.ask(ToolstackRequest::IsIntroduced { domid });
            let Some(guest) = self.slots[at].healthy() else { continue };
            guest.sweep();
            if guest.is_serving() {
                self.ask(ToolstackRequest::Quota { domid });
            }
        }
        if self.rng.chance(50) {
            // More requests than one client is served in one turn.
            (0..BURST).for_each(|_| self.write_shared());
        }
        self.settle()?;
        self.check_no_pending_requests(|_, _| false)?;
        if self.orderly == orderly {
            return Err("the daemon's check did not say that the store is in order".to_owned());
        }
        for (ask, answer) in std::mem::take(&mut self.answers) {
            match ask {
                ToolstackRequest::IsIntroduced { domid } => {
                    let slot = &self.slots[usize::from(domid) - 1];
                    let wanted = if slot.is_introduced { "T\0" } else { "F\0" };
                    if answer != wanted {
                        return Err(format!(
                            "domain {domid}: introduced {answer:?}, not {wanted:?}"
                        ));
                    }
                }
                ToolstackRequest::ListHomes => self.check_homes(&answer)?,
                ToolstackRequest::ReadCounter { which } => self.check_counter(which, &answer)?,
                ToolstackRequest::Quota { domid } => self.check_charge(domid, &answer)?,
                _ => {}
            }
        }
        for slot in &mut self.slots {
            let shut_down = slot.is_shut_down();
            if let Some(guest) = slot.healthy()
                && !shut_down
                && guest.can_sweep()
                && guest.state_count() != 1
            {
                let doubts = guest.state_count();
                return Err(format!("domain {}: {doubts} states are possible", slot.domid));
            }
        }
        Ok(())
    }

    /// Checks that a counter equals the number of commits: none is lost, and none counts twice.
    fn check_counter(&mut self, which: usize, answer: &str) -> Result<(), String> {
        let guests = self.slots.iter_mut().filter_map(|slot| slot.healthy());
        let in_flight = guests.filter(|guest| guest.counter_in_doubt() == Some(which)).count();
        let least = self.common.counted[which];
        let most = least + self.common.uncertain[which] + in_flight as u64;
        let value = answer.parse::<u64>().ok();
        if value.is_some_and(|value| (least..=most).contains(&value)) {
            Ok(())
        } else {
            Err(format!("counter {which} is {answer:?}, and must be {least} to {most}"))
        }
    }

    /// Checks that a guest is charged for exactly what it has.
    fn check_charge(&mut self, domid: u16, text: &str) -> Result<(), String> {
        let slot = &mut self.slots[usize::from(domid) - 1];
        let shut_down = slot.is_shut_down();
        let Some(guest) = slot.healthy().filter(|guest| guest.is_serving() && !shut_down) else {
            return Ok(());
        };
        let (transactions, watches) = guest.charged();
        for (name, wanted) in [("transactions ", transactions), ("watches ", watches)] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let number = line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next());
            if number.and_then(|number| number.parse().ok()) != Some(wanted) {
                return Err(format!("domain {domid} has {wanted} {name}and is charged: {line}"));
            }
        }
        Ok(())
    }

    /// Checks that every live guest that keeps the rules has a home, and that no dead one has.
    fn check_homes(&self, list: &str) -> Result<(), String> {
        let homes: Vec<&str> = list.split_terminator('\0').collect();
        for slot in &self.slots {
            let there = homes.contains(&slot.domid.to_string().as_str());
            let gone = !slot.is_introduced && !slot.home_is_domain_0s;
            let lives = matches!(slot.actor, Some(SlotActor::Healthy(_)))
                && slot.stage == DomainStage::Live;
            if (there && gone) || (!there && lives) {
                let (domid, stage) = (slot.domid, slot.stage);
                return Err(format!("domain {domid} is {stage:?}; is its home there? {there}"));
            }
        }
        Ok(())
    }

    /// Lets enough time pass that a domain with unread output is no longer served: hostile guests,
    /// and suspended ones. The latter come back.
    fn leave_unread_for_long(&mut self) -> Result<(), String> {
        if self.rng.chance(200) {
            // More events than a ring holds, for a guest that watches. They are sent one by one,
            // because most would be merged otherwise.
            for _ in 0..FILLS {
                self.write_shared();
                self.settle()?;
            }
            for slot in self.slots.iter_mut().filter(|slot| slot.is_shut_down()) {
                if let Some(guest) = slot.healthy() {
                    guest.note_long_pause();
                }
            }
            self.pass(UNREAD_US);
            self.settle()?;
            self.check_watches()?;
        }
        Ok(())
    }

    /// Checks that the daemon reports an error to a guest that breaks the rules of the ring, and
    /// serves it again after it asks for a reset.
    fn probe_all(&mut self) -> Result<(), String> {
        let again = [(Probe::Event, None), (Probe::Reconnect, Some(ErrorWord::None))];
        for at in 0..self.slots.len() {
            let ruin = match self.rng.below(4) {
                0 => (Probe::Index, Some(ErrorWord::RingIndex)),
                1 => (Probe::Length, Some(ErrorWord::Protocol)),
                _ => continue,
            };
            for (probe, word) in again.into_iter().chain([ruin]).chain(again) {
                self.probe(at, probe, word)?;
            }
            if self.probe(at, Probe::Request, Some(ErrorWord::None))? == Some(0) {
                let domid = self.slots[at].domid;
                return Err(format!("domain {domid} was reset, and is not answered"));
            }
        }
        Ok(())
    }

    /// Makes one probe of a hostile guest that is served. Returns the number of bytes that it was
    /// sent.
    fn probe(
        &mut self,
        at: usize,
        probe: Probe,
        word: Option<ErrorWord>,
    ) -> Result<Option<usize>, String> {
        let slot = &mut self.slots[at];
        let is_served = slot.is_introduced && !slot.is_shut_down();
        let Some(SlotActor::Hostile(hostile)) = &mut slot.actor else { return Ok(None) };
        if !is_served || !hostile.is_bound() {
            return Ok(None);
        }
        hostile.probe(probe);
        self.settle()?;
        let Some(SlotActor::Hostile(hostile)) = &mut self.slots[at].actor else { return Ok(None) };
        let (connection, error, sent) = hostile.served();
        if let Some(word) = word
            && (connection, error) != (CONNECTED, word as u32)
        {
            let domid = self.slots[at].domid;
            let words = format!("connection word {connection}, error word {error}");
            return Err(format!("domain {domid} after {probe:?}: {words}, and had to be {word:?}"));
        }
        Ok(Some(sent))
    }

    /// Ends all domains and checks that nothing is left.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        self.check()?;
        for at in 0..self.slots.len() {
            self.kill(at);
        }
        self.check()?;
        for slot in &mut self.slots {
            if let Some(actor) = &slot.actor {
                collect(&mut self.tally, actor);
            }
        }
        Ok(())
    }
}
