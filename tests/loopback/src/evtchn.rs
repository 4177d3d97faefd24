//! Event channels: a table, and an eventfd for each holder.

use crate::Host;
use crate::port::{LoopbackChannel, PendingPorts};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::{DomId, Error, Port};

/// The event channels that one process of a domain holds.
#[derive(Debug)]
pub struct Channels {
    host: Host,
    domid: DomId,
    pending_ports: Arc<PendingPorts>,
    own: Vec<Port>,
}

impl Host {
    /// Returns the event channels of one process of `domid`.
    #[must_use]
    pub fn evtchn(&self, domid: DomId) -> Channels {
        Channels {
            host: self.clone(),
            domid,
            pending_ports: Arc::new(PendingPorts::new()),
            own: Vec::new(),
        }
    }
}

impl Channels {
    fn add(&mut self, status: PortStatus) -> Port {
        let mut tables = self.host.tables();
        let used = |port: &u32| tables.ports.contains_key(&(self.domid, Port(*port)));
        let port = Port((1..u32::MAX).find(|port| !used(port)).unwrap_or(u32::MAX));
        let holder = Arc::clone(&self.pending_ports);
        tables.ports.insert((self.domid, port), LoopbackChannel::new(status, holder));
        self.own.push(port);
        port
    }
}

impl EventChannels for Channels {
    fn fd(&self) -> BorrowedFd<'_> {
        self.pending_ports.fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        Ok(self.add(PortStatus::Unbound(remote)))
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        let theirs = (remote, remote_port);
        let open = |host: &Host| {
            let tables = host.tables();
            let status = tables.ports.get(&theirs).map(|channel| channel.status);
            status == Some(PortStatus::Unbound(self.domid))
        };
        if !open(&self.host) {
            return Err(Error::Inval);
        }
        let port = self.add(PortStatus::Interdomain { remote, remote_port });
        let mut tables = self.host.tables();
        if let Some(channel) = tables.ports.get_mut(&theirs) {
            channel.status = PortStatus::Interdomain { remote: self.domid, remote_port: port };
        }
        // As in Xen: the end that binds may have missed an event that was raised before.
        let own = tables.ports.get_mut(&(self.domid, port));
        let woken = own.and_then(|channel| channel.raise(port));
        drop(tables);
        woken.inspect(|pending_ports| pending_ports.wake());
        Ok(port)
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        Ok(self.add(PortStatus::Virq(virq.number())))
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let own = tables.ports.get(&(self.domid, port)).ok_or(Error::Inval)?;
        let PortStatus::Interdomain { remote, remote_port } = own.status else { return Ok(()) };
        let other = tables.ports.get_mut(&(remote, remote_port));
        let woken = other.and_then(|channel| channel.raise(remote_port));
        drop(tables);
        woken.inspect(|pending_ports| pending_ports.wake());
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        Ok(self.pending_ports.pop())
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let channel = tables.ports.get_mut(&(self.domid, port)).ok_or(Error::Inval)?;
        let woken = channel.unmask(port);
        drop(tables);
        woken.inspect(|pending_ports| pending_ports.wake());
        Ok(())
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let channel = tables.ports.remove(&(self.domid, port)).ok_or(Error::Inval)?;
        if let PortStatus::Interdomain { remote, remote_port } = channel.status
            && let Some(other) = tables.ports.get_mut(&(remote, remote_port))
        {
            other.status = PortStatus::Unbound(self.domid);
        }
        drop(tables);
        self.own.retain(|own| *own != port);
        self.pending_ports.forget(port);
        Ok(())
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        let tables = self.host.tables();
        tables.ports.get(&(self.domid, port)).map(|channel| channel.status).ok_or(Error::Inval)
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        for port in std::mem::take(&mut self.own) {
            // Each is this holder's, and bound.
            let _ = self.close(port);
        }
    }
}
