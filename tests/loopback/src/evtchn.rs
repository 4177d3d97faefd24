//! Event channels: a table, and an eventfd for each holder.

use crate::Host;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use xen::evtchn::{EventChannels, Status, Virq};
use xen::{DomId, Error, Port};

/// Ports with an event that their holder has not taken yet.
#[derive(Debug)]
struct Waiting {
    fd: OwnedFd,
    ports: Mutex<VecDeque<Port>>,
}

impl Waiting {
    fn push(&self, port: Port) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push_back(port);
    }

    /// Wakes the holder, who then wants the locks that the caller may hold.
    fn wake(&self) {
        // An eventfd takes 2^64 - 2 of these before it would block.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    fn pop(&self) -> Option<Port> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.pop_front();
        if ports.is_empty() {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        }
        port
    }
}

/// One port.
#[derive(Debug)]
pub(crate) struct Channel {
    status: Status,
    holder: Arc<Waiting>,
    masked: bool,
    /// Raised while it was masked.
    kept: bool,
}

/// The event channels that one process of a domain holds.
#[derive(Debug)]
pub struct Channels {
    host: Host,
    domid: DomId,
    waiting: Arc<Waiting>,
    own: Vec<Port>,
}

impl Channels {
    pub(crate) fn new(host: Host, domid: DomId) -> Self {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let fd = eventfd(0, flags).unwrap_or_else(|errno| panic!("eventfd: {errno}"));
        let waiting = Arc::new(Waiting { fd, ports: Mutex::default() });
        Self { host, domid, waiting, own: Vec::new() }
    }

    fn add(&mut self, status: Status) -> Port {
        let mut tables = self.host.tables();
        let used = |port: &u32| tables.ports.contains_key(&(self.domid, Port(*port)));
        let port = Port((1..u32::MAX).find(|port| !used(port)).unwrap_or(u32::MAX));
        let holder = Arc::clone(&self.waiting);
        let channel = Channel { status, holder, masked: false, kept: false };
        tables.ports.insert((self.domid, port), channel);
        self.own.push(port);
        port
    }
}

/// An event on a channel; who is to be woken for it, once nothing is locked.
#[must_use]
fn raise(channel: &mut Channel, port: Port) -> Option<Arc<Waiting>> {
    if channel.masked {
        channel.kept = true;
        return None;
    }
    channel.masked = true;
    channel.holder.push(port);
    Some(Arc::clone(&channel.holder))
}

impl EventChannels for Channels {
    fn fd(&self) -> BorrowedFd<'_> {
        self.waiting.fd.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        Ok(self.add(Status::Unbound(remote)))
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        let theirs = (remote, remote_port);
        let open = |host: &Host| {
            let tables = host.tables();
            let status = tables.ports.get(&theirs).map(|channel| channel.status);
            status == Some(Status::Unbound(self.domid))
        };
        if !open(&self.host) {
            return Err(Error::Inval);
        }
        let port = self.add(Status::Interdomain { remote, remote_port });
        let mut tables = self.host.tables();
        if let Some(channel) = tables.ports.get_mut(&theirs) {
            channel.status = Status::Interdomain { remote: self.domid, remote_port: port };
        }
        // As Xen does: the end that binds may have missed what was raised before.
        let own = tables.ports.get_mut(&(self.domid, port));
        let woken = own.and_then(|channel| raise(channel, port));
        drop(tables);
        woken.inspect(|waiting| waiting.wake());
        Ok(port)
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        Ok(self.add(Status::Virq(virq.number())))
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let own = tables.ports.get(&(self.domid, port)).ok_or(Error::Inval)?;
        let Status::Interdomain { remote, remote_port } = own.status else { return Ok(()) };
        let other = tables.ports.get_mut(&(remote, remote_port));
        let woken = other.and_then(|channel| raise(channel, remote_port));
        drop(tables);
        woken.inspect(|waiting| waiting.wake());
        Ok(())
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        Ok(self.waiting.pop())
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let channel = tables.ports.get_mut(&(self.domid, port)).ok_or(Error::Inval)?;
        channel.masked = false;
        let kept = std::mem::take(&mut channel.kept);
        let woken = if kept { raise(channel, port) } else { None };
        drop(tables);
        woken.inspect(|waiting| waiting.wake());
        Ok(())
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        let mut tables = self.host.tables();
        let channel = tables.ports.remove(&(self.domid, port)).ok_or(Error::Inval)?;
        if let Status::Interdomain { remote, remote_port } = channel.status
            && let Some(other) = tables.ports.get_mut(&(remote, remote_port))
        {
            other.status = Status::Unbound(self.domid);
        }
        drop(tables);
        self.own.retain(|own| *own != port);
        let mut ports = self.waiting.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|waiting| *waiting != port);
        Ok(())
    }

    fn status(&mut self, port: Port) -> Result<Status, Error> {
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
