//! Event channels: two eventfds between two processes, and one epoll for all that a process holds.
//!
//! A notification is one write(2) to the eventfd that the other process waits at. That eventfd is
//! watched edge-triggered and never read: every write makes a new edge, so a delivery takes one
//! epoll_wait(2), and masking and unmasking take no system call. Only where an event comes while a
//! port is masked is it taken out of the epoll and put back by `unmask`: a flood costs its receiver
//! one wake-up for each time that it looks.
//!
//! The owner of the ports has the table of them to itself, without a lock. Messages of the broker
//! about ports may arrive while any thread waits for an answer; they wait with the `Link` until the
//! ports are used next.

use crate::counters::Counter;
use crate::errno::from_errno;
use crate::link::{Answer, Link};
use crate::proto::{BrokerMessage, BrokerRequest};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::{DomId, Error, Port};

/// The token of the socket to the broker in the epoll.
const BROKER: u64 = u64::MAX;
/// The token of the eventfd that is readable while fetched events wait.
const MORE: u64 = u64::MAX - 1;
/// The token of the eventfd that is readable while messages of the broker wait with the link.
const NEWS: u64 = u64::MAX - 2;
/// The number of events that are fetched at once.
const FETCHED_MAX: usize = 64;
/// The events that an eventfd is watched for.
const EDGE: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// The state of the reporting of a port's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mask {
    /// The next event is reported.
    Open,
    /// An event was reported, and the port was not unmasked since.
    Masked,
    /// As `Masked`, and another event came meanwhile, so the port is out of the epoll.
    Asleep,
}

/// The two eventfds of a bound port: the one for events that come, and the one for notifications of
/// the peer (none for a VIRQ).
#[derive(Debug)]
struct PortEnds {
    wait: OwnedFd,
    notify: Option<OwnedFd>,
}

/// A port that this process holds.
#[derive(Debug)]
struct HeldPort {
    ends: Option<PortEnds>,
    mask: Mask,
    /// True if the port was notified while messages of the broker were unread: if one of them is a
    /// binding, the notification went to the old peer.
    notify_at_binding: bool,
}

/// The state of a port, in one cache line: a round trip is so short that a second cache line is
/// measurable.
#[derive(Debug, Default)]
struct PortSlot {
    held: Option<HeldPort>,
    /// The number of bindings so far, so that an event fetched before the port was bound anew is
    /// not taken for one of the new binding.
    binding: u32,
}

/// All ports of this process.
#[derive(Debug)]
struct Ports {
    epoll: OwnedFd,
    table: RefCell<LocalPorts>,
}

/// The ports by number.
#[derive(Debug, Default)]
struct LocalPorts {
    slots: Vec<PortSlot>,
}

impl LocalPorts {
    #[inline]
    fn get(&self, port: Port) -> Result<&HeldPort, Error> {
        self.slots.get(port.0 as usize).and_then(|slot| slot.held.as_ref()).ok_or(Error::Inval)
    }

    #[inline]
    fn get_mut(&mut self, port: Port) -> Result<&mut HeldPort, Error> {
        self.slots.get_mut(port.0 as usize).and_then(|slot| slot.held.as_mut()).ok_or(Error::Inval)
    }

    fn token(&self, port: Port) -> u64 {
        let binding = self.slots.get(port.0 as usize).map_or(0, |slot| slot.binding);
        u64::from(binding) << 32 | u64::from(port.0)
    }

    fn set(&mut self, port: Port, held: HeldPort) {
        let at = port.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, PortSlot::default);
        }
        // 31 bits: the tokens above are not ports.
        let binding = (self.slots[at].binding + 1) & 0x7fff_ffff;
        self.slots[at] = PortSlot { held: Some(held), binding };
    }
}

impl Ports {
    /// Makes a table without ports. These descriptors are waited for too, under these tokens.
    fn new(others: [(BorrowedFd<'_>, u64); 3]) -> Result<Self, Error> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(from_errno)?;
        for (fd, token) in others {
            epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN)
                .map_err(from_errno)?;
        }
        Ok(Self { epoll, table: RefCell::default() })
    }

    /// Enters a `port` of this process, unless its binding was received already.
    fn allocated(&self, port: Port) {
        let mut table = self.table.borrow_mut();
        if table.get(port).is_err() {
            table.set(port, HeldPort { ends: None, mask: Mask::Open, notify_at_binding: false });
        }
    }

    /// Applies a message of the broker about a port.
    fn apply(&self, message: &BrokerMessage, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        match message {
            BrokerMessage::Bound { port } => {
                if let Some(wait) = fds.next() {
                    // Without room in the epoll the port stays as it was: unbound.
                    let _ = self.bound(*port, wait, fds.next());
                }
            }
            BrokerMessage::Unbound { port } => {
                if let Ok(held) = self.table.borrow_mut().get_mut(*port) {
                    let ends = held.ends.take();
                    self.forget(ends);
                }
            }
            _ => {}
        }
    }

    /// Enters the ends of a port that is bound from now on.
    fn bound(&self, port: Port, wait: OwnedFd, notify: Option<OwnedFd>) -> Result<(), Error> {
        let mut table = self.table.borrow_mut();
        let mut again = false;
        if let Ok(held) = table.get_mut(port) {
            again = held.notify_at_binding;
            let before = held.ends.take();
            self.forget(before);
        }
        table.set(port, HeldPort { ends: None, mask: Mask::Open, notify_at_binding: false });
        let token = EventData::new_u64(table.token(port));
        epoll::add(&self.epoll, &wait, token, EDGE).map_err(from_errno)?;
        if let (true, Some(notify)) = (again, &notify) {
            // The new peer must not miss a notification that went to the old one.
            let _ = rustix::io::write(notify, &1_u64.to_ne_bytes());
        }
        table.get_mut(port)?.ends = Some(PortEnds { wait, notify });
        Ok(())
    }

    /// Removes a `port` that this process does not hold any more.
    fn remove(&self, port: Port) {
        let mut table = self.table.borrow_mut();
        let held = table.slots.get_mut(port.0 as usize).and_then(|slot| slot.held.take());
        self.forget(held.and_then(|held| held.ends));
    }

    /// Takes a port's eventfd out of the epoll. Closing it is not enough, as the peer may keep it
    /// open.
    fn forget(&self, ends: Option<PortEnds>) {
        if let Some(ends) = ends {
            let _ = epoll::delete(&self.epoll, &ends.wait);
        }
    }

    #[inline(always)]
    fn notify(&self, port: Port) -> Result<(), Error> {
        let table = self.table.borrow();
        let Some(ends) = &table.get(port)?.ends else { return Ok(()) };
        let notify = ends.notify.as_ref().ok_or(Error::Inval)?;
        match rustix::io::write(notify, &1_u64.to_ne_bytes()) {
            // The counter is full: an event is pending anyway, and only this channel is affected.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(from_errno(error)),
        }
    }

    /// Has the next peer that is bound to `port` notified at its binding.
    fn notify_next(&self, port: Port) -> Result<(), Error> {
        self.table.borrow_mut().get_mut(port)?.notify_at_binding = true;
        Ok(())
    }

    #[inline(always)]
    fn unmask(&self, port: Port) -> Result<(), Error> {
        let mut table = self.table.borrow_mut();
        let held = table.get_mut(port)?;
        if held.mask == Mask::Asleep {
            return self.wake(&mut table, port);
        }
        held.mask = Mask::Open;
        Ok(())
    }

    /// Puts a port that is asleep back into the epoll.
    #[cold]
    fn wake(&self, table: &mut LocalPorts, port: Port) -> Result<(), Error> {
        let token = EventData::new_u64(table.token(port));
        let held = table.get_mut(port)?;
        if let Some(ends) = &held.ends {
            // The eventfd is never read, so it is readable, and this is an edge.
            epoll::modify(&self.epoll, &ends.wait, token, EDGE).map_err(from_errno)?;
        }
        held.mask = Mask::Open;
        Ok(())
    }

    /// Returns the port to be reported for a fetched event, or nothing.
    #[inline(always)]
    fn take(&self, token: u64) -> Option<Port> {
        let port = Port(token as u32);
        let mut table = self.table.borrow_mut();
        let slot = table.slots.get_mut(port.0 as usize)?;
        if u64::from(slot.binding) != token >> 32 {
            return None;
        }
        let held = slot.held.as_mut()?;
        if held.mask == Mask::Open {
            held.mask = Mask::Masked;
            return Some(port);
        }
        self.put_asleep(held, token);
        None
    }

    /// Takes a port with an event that must not be reported yet out of the epoll.
    #[cold]
    fn put_asleep(&self, held: &mut HeldPort, token: u64) {
        if let (Mask::Masked, Some(ends)) = (held.mask, &held.ends)
            && epoll::modify(
                &self.epoll,
                &ends.wait,
                EventData::new_u64(token),
                EventFlags::empty(),
            )
            .is_ok()
        {
            held.mask = Mask::Asleep;
        }
    }
}

/// The event channels of this process.
pub struct Channels {
    link: Arc<Link>,
    ports: Ports,
    /// Tokens of fetched events; an `Event` could not go to another thread.
    fetched: Vec<u64>,
    /// The index in `fetched` of the next event.
    next: usize,
    /// An eventfd that is readable while `next` is not at the end.
    more: OwnedFd,
    more_set: bool,
    /// True if the last fetch has emptied the epoll.
    epoll_is_empty: bool,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Channels {
    /// Makes the event channels over this connection.
    pub(crate) fn new(link: Arc<Link>) -> Result<Self, Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let more = eventfd(0, flags).map_err(from_errno)?;
        let (socket, news) = link.poll_descriptors();
        let ports = Ports::new([(socket, BROKER), (news, NEWS), (more.as_fd(), MORE)])?;
        for port in link.first_ports.into_iter().filter(|port| port.0 != 0) {
            ports.allocated(port);
        }
        let fetched = Vec::with_capacity(FETCHED_MAX);
        Ok(Self { link, ports, fetched, next: 0, more, more_set: false, epoll_is_empty: false })
    }

    /// Reads the broker's messages, and applies those about ports.
    fn listen(&self) -> Result<(), Error> {
        let drained = self.link.drain();
        self.take_news();
        drained
    }

    /// Applies the broker's messages about ports that wait with the link.
    fn take_news(&self) {
        for (message, fds) in self.link.take_news() {
            self.ports.apply(&message, fds);
        }
    }

    /// Makes a call as [`Link::call`] does, and applies the messages about ports that came before
    /// the answer.
    fn call(&self, request: &BrokerRequest) -> Result<Answer, Error> {
        let answer = self.link.call(request);
        self.take_news();
        answer
    }

    /// Waits for the next port with an event, as [`EventChannels::pending`] reports it; `None`
    /// where none came `within` that time. Without a limit it waits until an event comes or the
    /// broker ends, which is cheaper. It takes one system call less than poll(2) and `pending`.
    ///
    /// # Errors
    /// As [`EventChannels::pending`].
    #[inline(always)]
    pub fn wait(&mut self, within: Option<Duration>) -> Result<Option<Port>, Error> {
        if let Some(within) = within {
            return self.wait_within(within);
        }
        loop {
            if let Some(port) = self.next_fetched()? {
                return Ok(Some(port));
            }
            self.fetch(None)?;
        }
    }

    fn wait_within(&mut self, within: Duration) -> Result<Option<Port>, Error> {
        let end = Instant::now() + within;
        loop {
            if let Some(port) = self.next_fetched()? {
                return Ok(Some(port));
            }
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            self.fetch(Some(&timeout))?;
            if self.fetched.is_empty() && left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Returns the next port among the fetched events.
    #[inline(always)]
    fn next_fetched(&mut self) -> Result<Option<Port>, Error> {
        while let Some(token) = self.fetched.get(self.next).copied() {
            self.next += 1;
            if token == BROKER || token == NEWS {
                self.listen()?;
            } else if token != MORE
                && let Some(port) = self.ports.take(token)
            {
                self.link.count(Counter::Received(port), 1);
                self.show_more()?;
                return Ok(Some(port));
            }
        }
        self.show_more()?;
        Ok(None)
    }

    /// Makes the descriptor readable while fetched events wait, and only then.
    #[inline(always)]
    fn show_more(&mut self) -> Result<(), Error> {
        let more = self.next < self.fetched.len();
        if more == self.more_set { Ok(()) } else { self.set_more(more) }
    }

    #[cold]
    fn set_more(&mut self, more: bool) -> Result<(), Error> {
        self.more_set = more;
        if more {
            rustix::io::write(&self.more, &1_u64.to_ne_bytes()).map_err(from_errno)?;
        } else {
            rustix::io::read(&self.more, &mut [0; 8]).map_err(from_errno)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn fetch(&mut self, timeout: Option<&Timespec>) -> Result<(), Error> {
        self.fetched.clear();
        self.next = 0;
        let mut events = [MaybeUninit::<Event>::uninit(); FETCHED_MAX];
        match epoll::wait(&self.ports.epoll, &mut events, timeout) {
            Ok((events, _)) => {
                self.epoll_is_empty = events.len() < FETCHED_MAX;
                self.fetched.extend(events.iter().map(|event| event.data.u64()));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(from_errno(error)),
        }
    }
}

impl Channels {
    /// Reads the broker's messages before `port` is notified: it may have been bound since the last
    /// time.
    #[cold]
    fn catch_up(&self, port: Port) -> Result<(), Error> {
        self.listen()?;
        if self.link.has_unread() {
            self.ports.notify_next(port)?;
        }
        Ok(())
    }
}

impl Channels {
    /// Binds a port. It is closed again where this process has no room for its descriptors.
    fn bind(
        &mut self,
        request: &BrokerRequest,
        notify: impl FnOnce(&mut Answer) -> Result<Option<OwnedFd>, Error>,
    ) -> Result<Port, Error> {
        let mut answer = self.call(request)?;
        let port = Port(answer.number(0)?);
        let held = answer.fd().and_then(|wait| Ok((wait, notify(&mut answer)?)));
        if let Err(error) = held.and_then(|(wait, notify)| self.ports.bound(port, wait, notify)) {
            let _ = self.call(&BrokerRequest::Close { port });
            self.ports.remove(port);
            return Err(error);
        }
        Ok(port)
    }
}

impl EventChannels for Channels {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ports.epoll.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        let answer = self.call(&BrokerRequest::AllocUnbound { remote })?;
        let port = Port(answer.number(0)?);
        self.ports.allocated(port);
        Ok(port)
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        let request = BrokerRequest::BindInterdomain { remote, port: remote_port };
        self.bind(&request, |answer| answer.fd().map(Some))
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        self.bind(&BrokerRequest::BindVirq { virq: virq.number() }, |_| Ok(None))
    }

    #[inline(always)]
    fn notify(&self, port: Port) -> Result<(), Error> {
        if self.link.has_unread() {
            self.catch_up(port)?;
        }
        self.ports.notify(port).inspect_err(|_| self.link.count_refusal())
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        loop {
            if let Some(port) = self.next_fetched()? {
                return Ok(Some(port));
            }
            if std::mem::take(&mut self.epoll_is_empty) {
                return Ok(None);
            }
            self.fetch(Some(&Timespec::default()))?;
            if self.fetched.is_empty() {
                self.epoll_is_empty = false;
                return Ok(None);
            }
        }
    }

    #[inline(always)]
    fn unmask(&self, port: Port) -> Result<(), Error> {
        self.ports.unmask(port).inspect_err(|_| self.link.count_refusal())
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        if let Err(error) = self.ports.table.borrow().get(port) {
            self.link.count_refusal();
            return Err(error);
        }
        let closed = self.call(&BrokerRequest::Close { port }).map(drop);
        // Not earlier: a message before the answer may be a binding of this port.
        self.ports.remove(port);
        closed
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        let answer = self.call(&BrokerRequest::Status { port })?;
        let remote = DomId(answer.number(1)?);
        Ok(match answer.number(0)? {
            0_u64 => PortStatus::Closed,
            1 => PortStatus::Unbound(remote),
            2 => PortStatus::Interdomain { remote, remote_port: Port(answer.number(2)?) },
            3 => PortStatus::Virq(answer.number(2)?),
            _ => PortStatus::Other,
        })
    }
}
