//! The work of the toolstack: it makes guests with their devices, removes devices, and cleans up.

use super::guest::{BuiltDomain, GuestProcess};
use super::host::{DEVICES, DeviceRun, plan_death};
use super::kind::TestedDevice;
use super::machine::{self, CountedCall};
use crate::host::text;
use xen::DomId;
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Id, State};
use xenstore::{Perm, Store};

impl<K: TestedDevice> DeviceRun<K> {
    /// Makes a guest with its devices, and replaces the remains of an earlier one.
    pub(super) fn build(&mut self, at: usize) -> Result<(), String> {
        let domid = self.slots[at].domid;
        // The number may still be held.
        let Ok(built) = self.hypervisor.create(domid) else { return Ok(()) };
        let forgets = self.rng.chance(500);
        if forgets {
            self.forget(at)?;
        }
        let home = format!("/local/domain/{domid}");
        self.tool.remove(&home).map_err(text)?;
        let start = BuiltDomain::new(&self.hypervisor, built)?;
        // First, because the store learns of the death of the number's earlier domain by this,
        // which voids permissions.
        self.tool.introduce(domid.0, 1, start.port.0).map_err(text)?;
        let perm = Perm::parse(format!("n{domid}").as_bytes()).ok_or("a permission")?;
        for node in ["", "/device"] {
            self.tool.write(format!("{home}{node}"), b"").map_err(text)?;
            self.tool.set_perms(format!("{home}{node}"), &[perm]).map_err(text)?;
        }
        self.slots[at].devices = (0..DEVICES).map(|devid| self.describe(domid, devid)).collect();
        for device in &self.slots[at].devices {
            toolstack::add(&mut self.tool, device).map_err(text)?;
        }
        // Faults of the earlier domain do not count for this one.
        self.slots[at].fault = self.is_torn(at);
        self.note(|| format!("domain {domid} is built"));
        self.tally.count("guests built", 1);
        let dies = self.rng.chance(self.plan.guest_deaths);
        self.slots[at].planned_death =
            dies.then(|| plan_death(&mut self.rng, CountedCall::OF_A_GUEST));
        match machine::run(&mut self.slots[at].planned_death, || GuestProcess::start(start)) {
            Ok(guest) => {
                self.slots[at].guest = Some(guest.map_err(text)?);
                Ok(())
            }
            Err(call) => self.kill(at, call),
        }
    }

    pub(super) fn describe(&mut self, domid: DomId, devid: u32) -> NewDevice {
        let id = Id { frontend: domid, devid };
        let mut device = NewDevice::new(K::NAME, id, DomId::DOM0);
        K::describe(&mut device, self.made);
        self.made += 1;
        device
    }

    /// Removes the remains of a guest's devices.
    pub(super) fn forget(&mut self, at: usize) -> Result<(), String> {
        for device in self.slots[at].devices.drain(..) {
            toolstack::forget(&mut self.tool, &device).map_err(text)?;
        }
        Ok(())
    }

    /// Asks for a device to be removed, or makes it anew after its removal.
    pub(super) fn change(&mut self, at: usize) -> Result<(), String> {
        let which = match self.slots[at].leaving {
            Some(which) => which,
            None => {
                let which = self.rng.index(self.slots[at].devices.len());
                toolstack::detach(&mut self.tool, &self.slots[at].devices[which]).map_err(text)?;
                self.slots[at].leaving = Some(which);
                self.note(|| format!("device {which} of slot {at} is to go"));
                return Ok(());
            }
        };
        let device = &self.slots[at].devices[which];
        if self.state(&device.backend_path())? == State::Closed {
            toolstack::forget(&mut self.tool, &self.slots[at].devices[which]).map_err(text)?;
            toolstack::add(&mut self.tool, &self.slots[at].devices[which]).map_err(text)?;
            self.slots[at].leaving = None;
            self.tally.count("devices made anew", 1);
            self.note(|| format!("device {which} of slot {at} is made anew"));
        }
        Ok(())
    }

    /// Returns the state of an end, as the store has it.
    pub(super) fn state(&mut self, path: &str) -> Result<State, String> {
        let state = self.tool.try_read(format!("{path}/state")).map_err(text)?;
        Ok(state.map_or(State::Unknown, |state| State::parse(&state)))
    }

    /// Recovers as an operator would: removes the remains of a dead guest, and makes devices anew
    /// that failed or are being removed.
    pub(super) fn recover(&mut self, at: usize) -> Result<(), String> {
        if self.slots[at].guest.is_none() {
            self.forget(at)?;
            let domid = self.slots[at].domid;
            self.tool.remove(format!("/local/domain/{domid}")).map_err(text)?;
        }
        if self.slots[at].leaving.is_some() {
            self.change(at)?;
            if self.slots[at].leaving.is_some() {
                let which = self.slots[at].leaving.unwrap_or_default();
                let path = self.slots[at].devices[which].backend_path();
                let state = self.state(&path)?;
                return Err(format!("{path} is to go and is {state}"));
            }
        }
        for which in 0..self.slots[at].devices.len() {
            let device = self.slots[at].devices[which].clone();
            let back = self.state(&device.backend_path())?;
            let front = self.state(&device.frontend_path())?;
            let up = (back, front) == (State::Connected, State::Connected);
            if !up && self.slots[at].spoiled {
                self.note(|| format!("device {} is made anew by hand", device.id));
                toolstack::forget(&mut self.tool, &device).map_err(text)?;
                self.rest()?;
                toolstack::add(&mut self.tool, &device).map_err(text)?;
            }
        }
        self.slots[at].spoiled = false;
        Ok(())
    }
}
