//! Event channels, and the loss, delay and invention of events.

use super::Hypervisor;
use super::port::{DelayedEvent, PortEnd, PortHolder, PortInUse};
use super::process::DomainProcess;
use super::state::MachineState;
use crate::faults::{EventDelivery, RefusableCall};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::{DomId, Error, Port};

impl MachineState {
    fn channel(&mut self, domid: DomId, port: Port) -> Option<&mut PortInUse> {
        self.domains.get_mut(&domid)?.ports.get_mut(&port.0)
    }

    /// Takes the lowest free port.
    fn take_port(
        &mut self,
        process: DomainProcess,
        holder: usize,
        bound: PortEnd,
    ) -> Result<Port, Error> {
        let (ports_max, serial) = (self.limits.ports, self.activity);
        self.activity += 1;
        let domain = self.of(process)?;
        let free = (1..ports_max).find(|port| !domain.ports.contains_key(port));
        let free = free.ok_or(Error::NoSpc)?;
        let channel = PortInUse { bound, holder, serial, pending: false, masked: false };
        domain.ports.insert(free, channel);
        Ok(Port(free))
    }

    /// Raises an event, which may be lost or delayed by a fault.
    pub(super) fn raise(&mut self, domid: DomId, port: Port) {
        let Some(serial) = self.channel(domid, port).map(|channel| channel.serial) else { return };
        match self.faults.draw_delivery() {
            EventDelivery::Arrives => self.arrive(domid, port),
            EventDelivery::Lost => drop(self.lost_events.insert((domid, port))),
            EventDelivery::Late(steps) => {
                self.late.push(DelayedEvent { due: self.step + steps, domid, port, serial });
            }
        }
    }

    fn arrive(&mut self, domid: DomId, port: Port) {
        self.lost_events.remove(&(domid, port));
        let Some(channel) = self.channel(domid, port) else { return };
        if channel.masked {
            channel.pending = true;
            return;
        }
        channel.masked = true;
        let holder = channel.holder;
        self.activity += 1;
        self.holders[holder].fire(port);
    }

    /// Raises the global virtual interrupt in domain 0, where a process has bound it.
    pub(super) fn raise_dom_exc(&mut self) {
        let domain = self.domains.get(&DomId::DOM0);
        let mut ports = domain.into_iter().flat_map(|domain| &domain.ports);
        let port = ports.find(|(_, channel)| channel.bound == PortEnd::Virq(Virq::DomExc));
        if let Some(port) = port.map(|(port, _)| Port(*port)) {
            self.raise(DomId::DOM0, port);
        }
    }

    /// Frees a port; the other end waits for a peer again.
    pub(super) fn close_port(&mut self, domid: DomId, port: Port) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        let Some(channel) = domain.ports.remove(&port.0) else { return };
        self.holders[channel.holder].fired.retain(|fired| *fired != port);
        self.lost_events.remove(&(domid, port));
        if let PortEnd::Interdomain { remote, remote_port } = channel.bound
            && let Some(other) = self.channel(remote, remote_port)
        {
            other.bound = PortEnd::Unbound(domid);
        }
    }
}

/// The event channels of one process.
struct ProcessPorts {
    state: Rc<RefCell<MachineState>>,
    process: DomainProcess,
    holder: usize,
    fd: Rc<OwnedFd>,
}

impl ProcessPorts {
    /// Checks that this process holds the port.
    fn check(&self, state: &mut MachineState, port: Port) -> Result<(), Error> {
        let channel = state.of(self.process)?.ports.get(&port.0);
        channel.filter(|channel| channel.holder == self.holder).map(drop).ok_or(Error::Inval)
    }

    /// Refuses a call of domain 0's if a fault is drawn for it.
    fn refuse(&self, state: &mut MachineState) -> Result<(), Error> {
        let faulty = self.process.domid == DomId::DOM0;
        faulty.then(|| state.faults.refusal(RefusableCall::Bind)).flatten().map_or(Ok(()), Err)
    }
}

impl EventChannels for ProcessPorts {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        let state = &mut *self.state.borrow_mut();
        self.refuse(state)?;
        state.take_port(self.process, self.holder, PortEnd::Unbound(remote))
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        let state = &mut *self.state.borrow_mut();
        self.refuse(state)?;
        if !state.domains.contains_key(&remote) {
            return Err(Error::Srch);
        }
        // Before the check of the remote port, so that the port cannot be bound to itself.
        let bound = PortEnd::Interdomain { remote, remote_port };
        let port = state.take_port(self.process, self.holder, bound)?;
        let own = self.process.domid;
        match state.channel(remote, remote_port) {
            Some(other) if other.bound == PortEnd::Unbound(own) => {
                other.bound = PortEnd::Interdomain { remote: own, remote_port: port };
                // The remote end may have sent an event before, which has not been delivered.
                state.raise(own, port);
                Ok(port)
            }
            _ => {
                state.of(self.process)?.ports.remove(&port.0);
                Err(Error::Inval)
            }
        }
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        let state = &mut *self.state.borrow_mut();
        if self.process.domid != DomId::DOM0 {
            return Err(Error::Busy);
        }
        let bound = PortEnd::Virq(virq);
        if state.of(self.process)?.ports.values().any(|channel| channel.bound == bound) {
            return Err(Error::Exist);
        }
        state.take_port(self.process, self.holder, bound)
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        let state = &mut *self.state.borrow_mut();
        self.check(state, port)?;
        let bound = state.channel(self.process.domid, port).map(|channel| channel.bound);
        match bound {
            Some(PortEnd::Interdomain { remote, remote_port }) => {
                state.raise(remote, remote_port);
                Ok(())
            }
            Some(PortEnd::Unbound(_)) => Ok(()),
            Some(PortEnd::Virq(_)) | None => Err(Error::Inval),
        }
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        let state = &mut *self.state.borrow_mut();
        state.of(self.process)?;
        let holder = &mut state.holders[self.holder];
        let port = holder.fired.pop_front();
        if port.is_none() {
            holder.lower();
        }
        Ok(port)
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        let state = &mut *self.state.borrow_mut();
        self.check(state, port)?;
        let domid = self.process.domid;
        let Some(channel) = state.channel(domid, port) else { return Err(Error::Inval) };
        channel.masked = false;
        if std::mem::take(&mut channel.pending) {
            state.arrive(domid, port);
        }
        Ok(())
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        let state = &mut *self.state.borrow_mut();
        self.check(state, port)?;
        state.close_port(self.process.domid, port);
        Ok(())
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        let state = &mut *self.state.borrow_mut();
        if port.0 >= state.limits.ports {
            return Err(Error::Inval);
        }
        let channel = state.of(self.process)?.ports.get(&port.0);
        Ok(match channel.map(|channel| channel.bound) {
            None => PortStatus::Closed,
            Some(PortEnd::Unbound(remote)) => PortStatus::Unbound(remote),
            Some(PortEnd::Interdomain { remote, remote_port }) => {
                PortStatus::Interdomain { remote, remote_port }
            }
            Some(PortEnd::Virq(virq)) => PortStatus::Virq(virq.number()),
        })
    }
}

/// Returns the ports of a process that ends.
impl Drop for ProcessPorts {
    fn drop(&mut self) {
        let state = &mut *self.state.borrow_mut();
        let Ok(domain) = state.of(self.process) else { return };
        let held = domain.ports.iter().filter(|(_, channel)| channel.holder == self.holder);
        let held: Vec<u32> = held.map(|(port, _)| *port).collect();
        for port in held {
            state.close_port(self.process.domid, Port(port));
        }
    }
}

impl Hypervisor {
    /// Returns the event channels of a new process of `domid`.
    ///
    /// # Errors
    /// [`Error::Srch`] there is no such domain, or no descriptor for it.
    pub fn event_channels(&self, domid: DomId) -> Result<Box<dyn EventChannels>, Error> {
        let process = self.process(domid).ok_or(Error::Srch)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = Rc::new(eventfd(0, flags).map_err(std::io::Error::from)?);
        let state = &mut *self.state.borrow_mut();
        let holder = state.holders.len();
        let fired = VecDeque::new();
        state.holders.push(PortHolder { process, fired, fd: Rc::clone(&fd), raised: false });
        Ok(Box::new(ProcessPorts { state: Rc::clone(&self.state), process, holder, fd }))
    }

    /// Ends a step of the run, and delivers the events that are due.
    pub fn pass_step(&self) {
        let state = &mut *self.state.borrow_mut();
        state.step += 1;
        self.deliver(state);
    }

    /// True if events are on their way.
    #[must_use]
    pub fn has_delayed_events(&self) -> bool {
        !self.state.borrow().late.is_empty()
    }

    fn deliver(&self, state: &mut MachineState) {
        let now = state.step;
        for late in std::mem::take(&mut state.late) {
            if late.due > now {
                state.late.push(late);
                continue;
            }
            let channel = state.channel(late.domid, late.port);
            if channel.is_some_and(|channel| channel.serial == late.serial) {
                state.arrive(late.domid, late.port);
            }
        }
    }

    /// True if the last event between domain 0 and `domid`, in either direction, was lost.
    #[must_use]
    pub fn has_lost_event_of(&self, domid: DomId) -> bool {
        let state = self.state.borrow();
        state.lost_events.iter().any(|(at, port)| {
            let channel = state.domains.get(at).and_then(|domain| domain.ports.get(&port.0));
            *at == domid
                || channel.is_some_and(|channel| match channel.bound {
                    PortEnd::Interdomain { remote, .. } => remote == domid,
                    PortEnd::Unbound(_) | PortEnd::Virq(_) => false,
                })
        })
    }

    /// True if the last event of any port was lost.
    #[must_use]
    pub fn has_lost_events(&self) -> bool {
        !self.state.borrow().lost_events.is_empty()
    }

    /// Delivers an event at each port whose last one was lost.
    pub fn deliver_lost_events(&self) {
        let state = &mut *self.state.borrow_mut();
        for (domid, port) in std::mem::take(&mut state.lost_events) {
            state.arrive(domid, port);
        }
    }

    /// Delivers an event at this port and at its peer's, if the last one was lost; false if none
    /// was.
    pub fn deliver_lost_event(&self, domid: DomId, port: Port) -> bool {
        let state = &mut *self.state.borrow_mut();
        let bound = state.channel(domid, port).map(|channel| channel.bound);
        let mut ends = vec![(domid, port)];
        if let Some(PortEnd::Interdomain { remote, remote_port }) = bound {
            ends.push((remote, remote_port));
        }
        ends.retain(|end| state.lost_events.contains(end));
        for (domid, port) in &ends {
            state.arrive(*domid, *port);
        }
        !ends.is_empty()
    }

    /// Delivers an event that nobody raised, at one of the ports in use.
    pub fn raise_spurious(&self, choice: u64) {
        let state = &mut *self.state.borrow_mut();
        let ports = state
            .domains
            .iter()
            .flat_map(|(domid, domain)| domain.ports.keys().map(move |port| (*domid, Port(*port))));
        let ports: Vec<_> = ports.collect();
        if let Some(at) = usize::try_from(choice).ok().and_then(|at| at.checked_rem(ports.len())) {
            let (domid, port) = ports[at];
            state.arrive(domid, port);
        }
    }

    /// Returns the number of ports of `domid` in use.
    #[must_use]
    pub fn ports(&self, domid: DomId) -> usize {
        self.state.borrow().domains.get(&domid).map_or(0, |domain| domain.ports.len())
    }

    /// Returns the number of ports of `domid` that are bound to `remote`, or wait for it.
    #[must_use]
    pub fn ports_towards(&self, domid: DomId, remote: DomId) -> usize {
        let state = self.state.borrow();
        let Some(domain) = state.domains.get(&domid) else { return 0 };
        let towards = domain.ports.values().filter(|channel| match channel.bound {
            PortEnd::Unbound(peer) => peer == remote,
            PortEnd::Interdomain { remote: peer, .. } => peer == remote,
            PortEnd::Virq(_) => false,
        });
        towards.count()
    }

    /// Forgets the events of a dead domain's processes.
    pub(super) fn forget_holder(state: &mut MachineState, process: DomainProcess) {
        for holder in state.holders.iter_mut().filter(|holder| holder.process == process) {
            holder.fired.clear();
            holder.lower();
        }
    }
}
