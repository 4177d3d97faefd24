//! The life of domains: the next action of the toolstack.

use crate::guest::{ModelGuest, SHARED};
use crate::host::{StoreRun, text};
use crate::hostile::HostileGuest;
use crate::slot::{DomainStage, SlotActor};
use crate::toolstack::ToolstackRequest;
use xen::DomId;

impl StoreRun {
    /// Brings a domain one step further in its life.
    pub(crate) fn advance(&mut self, at: usize) -> Result<(), String> {
        if self.toolstack.in_flight_count() > 8 {
            return Ok(());
        }
        if self.rng.chance(400) {
            self.write_shared();
            return Ok(());
        }
        match self.slots[at].stage {
            DomainStage::Empty => self.build(at),
            DomainStage::ToIntroduce => {
                self.introduce(at);
                Ok(())
            }
            DomainStage::Live => self.live(at),
            DomainStage::Suspended => {
                let (domid, identity) = self.slots[at].name();
                // First, because the shutdown may be reported again as long as the domain is shut
                // down.
                self.hypervisor.resume(DomId(domid));
                self.slots[at].suspended_since = 0;
                self.slots[at].stage = DomainStage::Asked;
                self.ask(ToolstackRequest::Resume { domid, identity });
                Ok(())
            }
            DomainStage::Asked => Ok(()),
        }
    }

    /// Writes a new value to one of the shared nodes.
    pub(crate) fn write_shared(&mut self) {
        let which = self.rng.index(SHARED);
        self.common.issued[which] += 1;
        let value = self.common.issued[which];
        self.ask(ToolstackRequest::WriteShared { which, value });
    }

    pub(crate) fn build(&mut self, at: usize) -> Result<(), String> {
        let domid = self.slots[at].domid;
        if self.toolstack.in_flight().any(|ask| ask.is_about(domid)) {
            // A request for the dead domain would affect its successor.
            return Ok(());
        }
        // The number may still be held.
        let Ok(built) = self.hypervisor.create(DomId(domid)) else { return Ok(()) };
        let identity = built.identity;
        let hostile = self.rng.chance(self.plan.hostile);
        let (rng, plan) = (self.rng.fork(), self.plan);
        let actor = if hostile {
            SlotActor::Hostile(HostileGuest::new(&self.hypervisor, built, plan.transactions, rng)?)
        } else {
            SlotActor::Healthy(Box::new(ModelGuest::new(
                &self.hypervisor,
                built,
                plan.order(),
                rng,
            )?))
        };
        let slot = &mut self.slots[at];
        self.tally.reused += u64::from(slot.had_identity);
        slot.identity = identity;
        slot.actor = Some(actor);
        slot.frozen_until = 0;
        slot.keeps_nodes = false;
        slot.stage = DomainStage::ToIntroduce;
        self.note(|| format!("domain {domid} is built, hostile: {hostile}"));
        Ok(())
    }

    pub(crate) fn introduce(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(actor) = &mut slot.actor else { return };
        let port = match actor {
            SlotActor::Healthy(guest) => guest.link().port(),
            SlotActor::Hostile(hostile) => {
                hostile.prepare();
                hostile.port()
            }
        };
        let (domid, identity) = slot.name();
        slot.stage = DomainStage::Asked;
        slot.introduce_asked = true;
        self.ask(ToolstackRequest::Introduce { domid, identity, port });
    }

    /// Takes a random action of the toolstack on a running domain.
    fn live(&mut self, at: usize) -> Result<(), String> {
        let (domid, identity) = self.slots[at].name();
        match self.rng.below(40) {
            0 | 1 => {
                self.slots[at].stage = DomainStage::Asked;
                self.ask(ToolstackRequest::Release { domid, identity });
            }
            2..=5 => {
                let reason = xen::domwatch::ShutdownReason::Suspend;
                let mut control = self.hypervisor.domain_control(DomId::DOM0);
                control.shutdown(DomId(domid), reason).map_err(text)?;
                self.slots[at].stage = DomainStage::Suspended;
                self.common.tick += 1;
                self.slots[at].suspended_since = self.common.tick;
                self.note(|| format!("domain {domid} is suspended"));
            }
            6 | 7 => {
                // A kernel that was started anew without its domain: it has the old page, and
                // perhaps the old port.
                let renews = self.rng.chance(600);
                let slot = &mut self.slots[at];
                if let Some(SlotActor::Healthy(guest)) = &mut slot.actor {
                    guest.cut(&mut self.common);
                    if renews {
                        guest.link().renew_port()?;
                    }
                }
                slot.keeps_nodes = true;
                self.note(|| format!("domain {domid} starts anew"));
                self.introduce(at);
            }
            8 => self.kill(at),
            _ => {}
        }
        Ok(())
    }
}
