//! The checks when the host has come to rest, and at the end.

use super::guest::GuestProcess;
use super::host::DeviceRun;
use super::kind::{RequestRecord, TestedDevice};
use super::machine;
use super::tally::DeviceTally;
use crate::host::text;
use xen::DomId;
use xenbus::State;
use xenbus::toolstack;
use xenstore::Store;

/// The number of rounds within which the host comes to rest.
const RESTS_WITHIN: u32 = 30_000;

impl<K: TestedDevice> DeviceRun<K> {
    /// Steps all processes until there is nothing to do.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        let mut idle = 0;
        for _ in 0..RESTS_WITHIN {
            machine::round();
            let mut moved = self.turn_backend()?;
            for at in 0..self.slots.len() {
                moved |= self.turn_guest(at)?;
            }
            idle = if moved || self.hypervisor.has_delayed_events() { 0 } else { idle + 1 };
            if idle < 10 {
                continue;
            }
            let now = self.now();
            let wakes_at = self.backend.as_ref().and_then(|backend| backend.wakes_at(now));
            if self.hypervisor.has_lost_events() {
                self.hypervisor.deliver_lost_events();
            } else if let Some(at) = wakes_at {
                let us = at.saturating_duration_since(now).as_micros();
                self.clock.set(self.clock.get() + 1 + u64::try_from(us).unwrap_or(0));
            } else {
                return self.read_log();
            }
            idle = 0;
        }
        Err("the host does not come to rest".to_owned())
    }

    /// Ends everything that was begun, and checks all of it.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.mend_torn(u64::MAX);
        self.hypervisor.disarm();
        self.planned_death = None;
        self.slots.iter_mut().for_each(|slot| slot.planned_death = None);
        if self.backend.is_none() {
            self.start_backend()?;
        }
        self.rest()?;
        for at in 0..self.slots.len() {
            self.recover(at)?;
        }
        self.rest()?;
        for at in 0..self.slots.len() {
            self.check_slot(at).map_err(|why| format!("domain {}: {why}", at + 1))?;
        }
        self.tally.count("checks", 1);
        self.hypervisor.arm();
        Ok(())
    }

    fn check_slot(&mut self, at: usize) -> Result<(), String> {
        let domid = self.slots[at].domid;
        let ports = self.hypervisor.ports_towards(DomId::DOM0, domid);
        let Some(guest) = &self.slots[at].guest else {
            return if ports == 0 {
                Ok(())
            } else {
                Err(format!("{ports} ports towards the dead"))
            };
        };
        for (devid, ledger) in guest.ledgers() {
            if ledger.open() > 0 {
                let (open, state) = (ledger.open(), guest.state(devid));
                return Err(format!("device {devid}, {state:?}: {open} requests are not answered"));
            }
        }
        let channels = guest.channels();
        for which in 0..self.slots[at].devices.len() {
            let device = self.slots[at].devices[which].clone();
            for path in [device.backend_path(), device.frontend_path()] {
                let state = self.state(&path)?;
                if state != State::Connected {
                    return Err(format!("{path} is {state}"));
                }
            }
        }
        // The guest also has its own port to the store.
        if ports != 1 + channels {
            return Err(format!("{ports} ports of domain 0 for {channels} of devices"));
        }
        self.slots[at].fault = false;
        Ok(())
    }

    /// Removes all devices and guests, and checks that everything they gave is given back.
    pub(super) fn end(mut self) -> Result<DeviceTally, String> {
        self.hypervisor.disarm();
        for at in 0..self.slots.len() {
            for which in 0..self.slots[at].devices.len() {
                let device = self.slots[at].devices[which].clone();
                toolstack::detach(&mut self.tool, &device).map_err(text)?;
            }
        }
        self.rest()?;
        for at in 0..self.slots.len() {
            for which in 0..self.slots[at].devices.len() {
                let path = self.slots[at].devices[which].backend_path();
                let state = self.state(&path)?;
                if state != State::Closed {
                    return Err(format!("{path} is {state}, and not closed"));
                }
            }
            self.forget(at)?;
        }
        self.rest()?;
        let guests = self.slots.iter().filter(|slot| slot.guest.is_some()).count();
        let mapped = self.hypervisor.mappings() as usize;
        if mapped != guests {
            return Err(format!("{mapped} pages are mapped, for the store rings of {guests}"));
        }
        for slot in &self.slots {
            let ports = self.hypervisor.ports_towards(DomId::DOM0, slot.domid);
            if ports != usize::from(slot.guest.is_some()) {
                return Err(format!("{ports} ports towards domain {} are left", slot.domid));
            }
            let answered = slot.guest.iter().flat_map(GuestProcess::ledgers);
            let answered = answered.map(|(_, ledger)| ledger.answered()).sum();
            self.tally.count("requests answered", answered);
        }
        let folder = format!("/local/domain/0/backend/{}", K::NAME);
        let left: Vec<String> = self.tool.list(folder).map_err(text)?;
        if !left.is_empty() {
            return Err(format!("nodes of backends are left: {left:?}"));
        }
        let mut records = std::fs::read_dir(&self.record_dir).map_err(text)?;
        if let Some(record) = records.next() {
            return Err(format!("a record is left: {:?}", record.map_err(text)?.path()));
        }
        let counts = self.hypervisor.fault_counts();
        self.tally.count("events lost", counts.lost);
        self.tally.count("events late", counts.late);
        Ok(std::mem::take(&mut self.tally))
    }
}
