//! The calls of processes: the store, event channels, grants. The store advances while a process
//! waits for it, and the running process can die at each call.
//!
//! A client of the store may be sent to another thread, but a simulated host may not. The host is
//! therefore thread-local, and clients hold numbers that refer to it.

use crate::hypervisor::Hypervisor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use xen::evtchn::{EventChannels, PortStatus, Virq};
use xen::gnttab::{GrantMap, GrantOffer, Mapping, OfferedPage, PageAccess};
use xen::{DomId, Error, GrantRef, Port};
use xenstore::transport::stream::StoreStream;
use xenstored::step::SteppedDaemon;

/// The number of rounds without an event after which none will come.
const QUIET: u32 = 3;
/// The number of rounds after which a client of domain 0 counts as hung.
const HANGS_AFTER: u32 = 20_000;

/// The store of a host, with its clock.
pub(super) struct StoreMachine {
    pub(super) hypervisor: Hypervisor,
    pub(super) daemon: SteppedDaemon,
    /// The time in microseconds.
    pub(super) clock: Rc<Cell<u64>>,
}

/// A call of a process, as deaths are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum CountedCall {
    Offer,
    Bind,
    AllocUnbound,
    Notify,
    Pending,
    Unmask,
    Map,
    StoreWrite,
    StoreRead,
}

impl CountedCall {
    /// The calls of a backend.
    pub(super) const OF_A_BACKEND: &[Self] = &[
        Self::Bind,
        Self::Notify,
        Self::Pending,
        Self::Unmask,
        Self::Map,
        Self::StoreWrite,
        Self::StoreRead,
    ];
    /// The calls of a guest. Those of the store are notifications of its ring.
    pub(super) const OF_A_GUEST: &[Self] =
        &[Self::Offer, Self::AllocUnbound, Self::Notify, Self::Pending, Self::Unmask];
}

/// The planned death of a process: at a call of this kind, after this many others of the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PlannedDeath {
    pub(super) at: CountedCall,
    pub(super) after: u64,
}

/// The death of a process, as it unwinds the stack.
struct Death(CountedCall);

thread_local! {
    static MACHINE: RefCell<Option<StoreMachine>> = const { RefCell::new(None) };
    static CHANNELS: RefCell<BTreeMap<u64, Box<dyn EventChannels>>> =
        const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u64> = const { Cell::new(1) };
    /// The planned death of the running process.
    static PLANNED_DEATH: Cell<Option<PlannedDeath>> = const { Cell::new(None) };
    /// True after the death of the running process: its values are being dropped, and it makes no
    /// further call.
    static DEAD: Cell<bool> = const { Cell::new(false) };
}

impl StoreMachine {
    /// Makes this machine the thread's own.
    pub(super) fn install(self) {
        MACHINE.set(Some(self));
    }

    /// Removes the thread's machine.
    pub(super) fn remove() -> Option<Self> {
        MACHINE.take()
    }

    /// Makes one round of the store, in which some time passes. False if nothing has happened and
    /// nothing is on its way.
    fn round(&mut self) -> bool {
        let before = self.hypervisor.activity();
        self.hypervisor.pass_step();
        self.clock.set(self.clock.get() + 200);
        if let Err(error) = self.daemon.step() {
            panic!("the daemon has ended: {error}");
        }
        self.hypervisor.activity() != before
            || self.hypervisor.has_delayed_events()
            || self.daemon.deadline().is_some_and(|deadline| deadline <= self.clock.get() + 10_000)
    }
}

/// Makes one round of the store. False if nothing has happened and nothing is on its way.
pub(super) fn round() -> bool {
    MACHINE.with_borrow_mut(|machine| machine.as_mut().expect("a machine").round())
}

/// Runs a part of a process, which may die there. The caller then drops the process.
///
/// # Errors
/// The call at which it died.
pub(super) fn run<R>(
    planned_death: &mut Option<PlannedDeath>,
    body: impl FnOnce() -> R,
) -> Result<R, CountedCall> {
    PLANNED_DEATH.set(planned_death.take());
    let ran = catch_unwind(AssertUnwindSafe(body));
    *planned_death = PLANNED_DEATH.take();
    DEAD.set(false);
    if ran.is_err() {
        *planned_death = None;
    }
    ran.map_err(|panic: Box<dyn Any + Send>| match panic.downcast::<Death>() {
        Ok(died) => died.0,
        Err(panic) => resume_unwind(panic),
    })
}

/// Begins a call of a process, at which the process may die.
fn begin(call: CountedCall) -> Result<(), Error> {
    if DEAD.get() {
        return Err(Error::NoDev);
    }
    match PLANNED_DEATH.get() {
        Some(PlannedDeath { at, after: 0 }) if at == call => {
            DEAD.set(true);
            // An unwind without a panic message.
            resume_unwind(Box::new(Death(call)));
        }
        Some(PlannedDeath { at, after }) if at == call => {
            PLANNED_DEATH.set(Some(PlannedDeath { at, after: after - 1 }));
        }
        _ => {}
    }
    Ok(())
}

/// Begins a call of a process on its socket.
fn begin_io(call: CountedCall) -> io::Result<()> {
    begin(call).map_err(|_| io::ErrorKind::NotConnected.into())
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now))
        .is_ok_and(|ready| ready > 0)
}

/// The event channels of one process. Before the process takes their descriptor, where it may wait,
/// the store advances until there is an event or nothing happens any more.
///
/// Clones share the channels, for the parts of a process that share them.
#[derive(Clone)]
pub(super) struct ProcessChannels {
    shared: Arc<SharedChannels>,
    /// The port to the store. A lost event of this port arrives when nothing else happens.
    store: Option<(DomId, Port)>,
}

/// The thread's event channels of one number.
struct SharedChannels {
    number: u64,
    fd: OwnedFd,
}

impl Drop for SharedChannels {
    fn drop(&mut self) {
        let inner = CHANNELS.with_borrow_mut(|all| all.remove(&self.number));
        drop(inner);
    }
}

impl ProcessChannels {
    pub(super) fn new(inner: Box<dyn EventChannels>) -> Result<Self, Errno> {
        let fd = rustix::io::dup(inner.fd())?;
        let number = NEXT.replace(NEXT.get() + 1);
        CHANNELS.with_borrow_mut(|all| all.insert(number, inner));
        Ok(Self { shared: Arc::new(SharedChannels { number, fd }), store: None })
    }

    /// Allocates a new port for the store, of domain `own`.
    ///
    /// # Errors
    /// None.
    pub(super) fn alloc_for_store(&mut self, own: DomId) -> Result<Port, Error> {
        let port = self.with(|inner| inner.alloc_unbound(DomId::DOM0))?;
        self.store = Some((own, port));
        Ok(port)
    }

    /// Returns its number, for [`is_awake`].
    pub(super) fn number(&self) -> u64 {
        self.shared.number
    }

    fn with<R>(
        &self,
        body: impl FnOnce(&mut dyn EventChannels) -> Result<R, Error>,
    ) -> Result<R, Error> {
        CHANNELS.with_borrow_mut(|all| {
            body(&mut **all.get_mut(&self.shared.number).ok_or(Error::NoDev)?)
        })
    }
}

impl ProcessChannels {
    /// Delivers an event between this domain and the store that was lost; false if there is none.
    fn deliver_lost(&self) -> bool {
        let Some((domid, port)) = self.store else { return false };
        MACHINE.with_borrow(|machine| {
            machine.as_ref().expect("a machine").hypervisor.deliver_lost_event(domid, port)
        })
    }
}

/// True if an event was raised for the event channels of this number and not taken.
pub(super) fn is_awake(number: u64) -> bool {
    CHANNELS.with_borrow(|all| all.get(&number).is_some_and(|inner| is_readable(inner.fd())))
}

impl EventChannels for ProcessChannels {
    fn fd(&self) -> BorrowedFd<'_> {
        let mut quiet = 0;
        while !DEAD.get() && quiet < QUIET && !is_readable(self.shared.fd.as_fd()) {
            quiet = if round() || self.deliver_lost() { 0 } else { quiet + 1 };
        }
        self.shared.fd.as_fd()
    }

    fn alloc_unbound(&mut self, remote: DomId) -> Result<Port, Error> {
        begin(CountedCall::AllocUnbound)?;
        self.with(|inner| inner.alloc_unbound(remote))
    }

    fn bind_interdomain(&mut self, remote: DomId, remote_port: Port) -> Result<Port, Error> {
        begin(CountedCall::Bind)?;
        self.with(|inner| inner.bind_interdomain(remote, remote_port))
    }

    fn bind_virq(&mut self, virq: Virq) -> Result<Port, Error> {
        self.with(|inner| inner.bind_virq(virq))
    }

    fn notify(&self, port: Port) -> Result<(), Error> {
        begin(CountedCall::Notify)?;
        self.with(|inner| inner.notify(port))
    }

    fn pending(&mut self) -> Result<Option<Port>, Error> {
        begin(CountedCall::Pending)?;
        self.with(|inner| inner.pending())
    }

    fn unmask(&self, port: Port) -> Result<(), Error> {
        begin(CountedCall::Unmask)?;
        self.with(|inner| inner.unmask(port))
    }

    fn close(&mut self, port: Port) -> Result<(), Error> {
        // A dying process closes its ports too.
        self.with(|inner| inner.close(port))
    }

    fn status(&mut self, port: Port) -> Result<PortStatus, Error> {
        self.with(|inner| inner.status(port))
    }
}

/// The grants that one process maps.
pub(super) struct ProcessGrantMap(pub(super) Box<dyn GrantMap>);

impl GrantMap for ProcessGrantMap {
    fn map(&mut self, domid: DomId, grant: GrantRef, access: PageAccess) -> Result<Mapping, Error> {
        begin(CountedCall::Map)?;
        self.0.map(domid, grant, access)
    }
}

/// The pages that one process grants.
pub(super) struct ProcessGrantOffer(pub(super) Box<dyn GrantOffer>);

impl GrantOffer for ProcessGrantOffer {
    fn offer(&mut self, peer: DomId, access: PageAccess) -> Result<OfferedPage, Error> {
        begin(CountedCall::Offer)?;
        self.0.offer(peer, access)
    }
}

/// A connection of domain 0 to the store.
pub(super) struct HostStream {
    fd: OwnedFd,
    waited: u32,
}

impl HostStream {
    /// Connects to the store.
    pub(super) fn connect() -> Result<Self, Errno> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        MACHINE.with_borrow_mut(|machine| {
            machine.as_mut().expect("a machine").daemon.connect(theirs);
        });
        Ok(Self { fd: ours, waited: 0 })
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl StoreStream for HostStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        begin_io(CountedCall::StoreWrite)?;
        Ok(send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        begin_io(CountedCall::StoreRead)?;
        let (count, _) = recv(&self.fd, buffer, RecvFlags::DONTWAIT)?;
        self.waited = 0;
        Ok(count)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.waited += 1;
        assert!(self.waited < HANGS_AFTER, "the store does not answer");
        round();
        Ok(())
    }
}

/// True if a client has input to read.
pub(super) fn has_input(client: &impl AsFd) -> bool {
    is_readable(client.as_fd())
}
