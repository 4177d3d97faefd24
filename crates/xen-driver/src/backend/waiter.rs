//! Sleeping until something is to be done.
//!
//! The store, the event channels and the sources of the devices are in one epoll set. Linux's event channels are a
//! device that is asked, waited on and told by system calls, in a PV domain two switches of page tables each. So where
//! the kernel can, one call to an io_uring lets ports fire again, waits for them, the store and the sources, and reads
//! which have fired.
#![allow(unsafe_code)]

use super::DescriptorId;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use xen::Port;
use xen::evtchn::EventChannels;

/// Longer than anybody sleeps, and no number that the kernel takes for a negative one.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Ports that one call reads, or lets fire again.
const PORTS: usize = 64;

/// The names of the descriptors in the epoll set.
const STORE: u64 = 0;
const EVENTS: u64 = 1;
const SOURCE: u64 = 2;
/// The name of the first stream; the others' are above it.
const STREAM: u64 = 3;
/// Streams that one call finds ready.
const FOUND_MAX: usize = 64;

/// The descriptors that became ready while the waiter slept.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct WakeReasons {
    /// The store has something to tell.
    pub(super) store: bool,
    /// Event channels have: they are to be asked.
    pub(super) events: bool,
}

/// Waits for the store, the event channels and the sources.
pub(super) struct Waiter {
    /// With a ring, the sources alone.
    epoll: OwnedFd,
    ring: Option<WaiterRing>,
    /// True if the store's descriptor is that of the event channels.
    shared: bool,
    /// The sources and streams in the set.
    sources: BTreeSet<DescriptorId>,
    /// True if there are streams, which are waited for at all times.
    has_streams: bool,
    /// The streams that became ready.
    ready: Vec<DescriptorId>,
}

impl Waiter {
    /// Waits for these two, which are open as long as it.
    pub(super) fn new(store: BorrowedFd<'_>, evtchn: &dyn EventChannels) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // A store that is reached by an event channel has the same descriptor.
        let shared = store.as_raw_fd() == evtchn.fd().as_raw_fd();
        let ring = if evtchn.is_device() && !shared {
            WaiterRing::new(store, evtchn.fd(), epoll.as_fd())
        } else {
            None
        };
        if ring.is_none() {
            add(&epoll, store, STORE)?;
            if !shared {
                add(&epoll, evtchn.fd(), EVENTS)?;
            }
        }
        let (sources, ready) = (BTreeSet::new(), Vec::new());
        Ok(Self { epoll, ring, shared, sources, has_streams: false, ready })
    }

    /// The sources to wait for from now on, and the streams, of which it tells which can be read or written again. Those
    /// that are closed are gone from the set by themselves.
    pub(super) fn watch<'a>(
        &mut self,
        sources: impl Iterator<Item = (DescriptorId, BorrowedFd<'a>)>,
        streams: impl Iterator<Item = (DescriptorId, BorrowedFd<'a>)>,
    ) -> Result<(), Errno> {
        let before = std::mem::take(&mut self.sources);
        for (source, fd) in sources {
            if !before.contains(&source) {
                add(&self.epoll, fd, SOURCE)?;
            }
            self.sources.insert(source);
        }
        self.has_streams = false;
        for (stream, fd) in streams {
            if !before.contains(&stream) {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                let name = epoll::EventData::new_u64(STREAM + stream.0);
                match epoll::add(&self.epoll, fd, name, flags) {
                    // It was a stream before, and was none for a while.
                    Err(Errno::EXIST) => epoll::modify(&self.epoll, fd, name, flags)?,
                    added => added?,
                }
            }
            self.sources.insert(stream);
            self.has_streams = true;
        }
        Ok(())
    }

    /// Takes the streams that became ready.
    pub(super) fn take_ready(&mut self) -> impl Iterator<Item = DescriptorId> {
        self.ready.drain(..)
    }

    /// Lets a port fire again, at the latest with the next [`Waiter::wait`].
    pub(super) fn unmask(&mut self, evtchn: &dyn EventChannels, port: Port) {
        if self.ring.as_mut().is_none_or(|ring| !ring.unmask(port)) {
            // It may have been closed meanwhile.
            let _ = evtchn.unmask(port);
        }
    }

    /// Waits for anything, at most `timeout`; not at all where that is zero. It may return before, with nothing.
    /// Sources are waited for where they are `at_work`; else they may be left out, as the kernel has work with each
    /// request that ends meanwhile.
    pub(super) fn wait(
        &mut self,
        evtchn: &mut dyn EventChannels,
        at_work: bool,
        timeout: Duration,
    ) -> Result<WakeReasons, Errno> {
        if let Some(ring) = &mut self.ring {
            let woken = ring.wait(evtchn, at_work || self.has_streams, timeout)?;
            if self.has_streams {
                ready(&self.epoll, Duration::ZERO, &mut self.ready)?;
            }
            return Ok(woken);
        }
        let woken = ready(&self.epoll, timeout, &mut self.ready)?;
        Ok(WakeReasons { events: woken.events || (self.shared && woken.store), ..woken })
    }
}

fn add(epoll: &OwnedFd, fd: BorrowedFd<'_>, who: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(who), epoll::EventFlags::IN)
}

/// Those in the epoll set that have something; sources have their say anyway. Adds the streams among them to `found`.
fn ready(
    epoll: &OwnedFd,
    timeout: Duration,
    found: &mut Vec<DescriptorId>,
) -> Result<WakeReasons, Errno> {
    let none =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [none; FOUND_MAX];
    let limit = Timespec::try_from(timeout).ok();
    let count = match epoll::wait(epoll, &mut events[..], limit.as_ref()) {
        Err(Errno::INTR) => 0,
        count => count?,
    };
    let names = events[..count].iter().filter_map(|event| event.data.u64().checked_sub(STREAM));
    found.extend(names.map(DescriptorId));
    let has = |who| events[..count].iter().any(|event| event.data.u64() == who);
    Ok(WakeReasons { store: has(STORE), events: has(EVENTS) })
}

/// The waiter's io_uring, which waits for the same descriptors.
struct WaiterRing {
    ring: IoUring,
    /// The store, the device of the event channels, and the epoll set of the sources.
    store: PolledDescriptor,
    device: PolledDescriptor,
    sources: PolledDescriptor,
    /// The buffer that the kernel writes to while it waits for the device.
    fired: Box<[u8; PORTS * 4]>,
    /// Ports to be written to the device, and how many.
    unmasked: (Box<[u8; PORTS * 4]>, usize),
}

/// A descriptor, and whether the kernel waits for it.
struct PolledDescriptor {
    fd: types::Fd,
    armed: bool,
}

impl PolledDescriptor {
    fn new(fd: BorrowedFd<'_>) -> Self {
        Self { fd: types::Fd(fd.as_raw_fd()), armed: false }
    }

    /// Returns the entry that makes the kernel wait for the descriptor; `None` if it waits already.
    fn arm(&mut self, name: u64) -> Option<squeue::Entry> {
        let poll = || opcode::PollAdd::new(self.fd, libc::POLLIN as u32).build().user_data(name);
        let entry = (!self.armed).then(poll);
        self.armed = true;
        entry
    }
}

/// Further names of what the kernel does, beside [`STORE`], [`EVENTS`] and [`SOURCE`].
const READ: u64 = 3;
const UNMASK: u64 = 4;

impl WaiterRing {
    /// `None` where the kernel has no io_uring, or one that cannot do that (before Linux 5.17).
    fn new(store: BorrowedFd<'_>, evtchn: BorrowedFd<'_>, sources: BorrowedFd<'_>) -> Option<Self> {
        let ring = IoUring::new(8).ok()?;
        let able =
            ring.params().is_feature_ext_arg() && ring.params().is_feature_skip_cqe_on_success();
        able.then(|| Self {
            ring,
            store: PolledDescriptor::new(store),
            device: PolledDescriptor::new(evtchn),
            sources: PolledDescriptor::new(sources),
            fired: Box::new([0; PORTS * 4]),
            unmasked: (Box::new([0; PORTS * 4]), 0),
        })
    }

    /// Says whether there was room.
    fn unmask(&mut self, port: Port) -> bool {
        if !self.ring.submission().is_empty() {
            return false;
        }
        let (bytes, count) = &mut self.unmasked;
        let Some(place) = bytes.as_chunks_mut::<4>().0.get_mut(*count) else { return false };
        *place = port.0.to_ne_bytes();
        *count += 1;
        true
    }

    /// Queues what the kernel does not wait for yet, where it has taken all of the last time.
    fn arm(&mut self, at_work: bool) {
        if !self.ring.submission().is_empty() {
            return;
        }
        let quiet = squeue::Flags::SKIP_SUCCESS;
        let mut entries = [const { None }; 5];
        if self.unmasked.1 > 0 {
            let len = (std::mem::take(&mut self.unmasked.1) * 4) as u32;
            let write = opcode::Write::new(self.device.fd, self.unmasked.0.as_ptr(), len).build();
            entries[0] = Some(write.flags(quiet).user_data(UNMASK));
        }
        if let Some(poll) = self.device.arm(EVENTS) {
            entries[1] = Some(poll.flags(quiet | squeue::Flags::IO_LINK));
            let (at, len) = (self.fired.as_mut_ptr(), self.fired.len() as u32);
            let read = opcode::Read::new(self.device.fd, at, len).build();
            entries[2] = Some(read.user_data(READ));
        }
        entries[3] = self.store.arm(STORE);
        entries[4] = if at_work { self.sources.arm(SOURCE) } else { None };
        for entry in entries.iter().flatten() {
            // SAFETY: both buffers are this ring's. The kernel writes to `fired` until it has said that it is done, and
            // has read `unmasked` once it has taken the entry: the device does not make it wait (`is_device`).
            let pushed = unsafe { self.ring.submission().push(entry) };
            pushed.unwrap_or_else(|_| unreachable!("eight places, all of them free"));
        }
    }

    /// As [`Waiter::wait`].
    fn wait(
        &mut self,
        evtchn: &mut dyn EventChannels,
        at_work: bool,
        timeout: Duration,
    ) -> Result<WakeReasons, Errno> {
        // What the kernel has said meanwhile of the store and of sources may be old: it says so again when it is asked.
        let said = self.take(evtchn)?;
        // Entries that the kernel did not take the last time go first. With them alone not all is waited for, so that
        // this once nobody sleeps.
        let left = !self.ring.submission().is_empty();
        self.arm(at_work);
        let limit = types::Timespec::from(timeout.min(TIMEOUT_MAX));
        let args = types::SubmitArgs::new().timespec(&limit);
        let called = if !said.events && !timeout.is_zero() && !left {
            self.ring.submitter().submit_with_args(1, &args)
        } else if self.ring.submission().is_empty() {
            Ok(0)
        } else {
            self.ring.submit()
        };
        match called.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            Ok(_) | Err(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
            Err(errno) => return Err(errno),
        }
        let found = self.take(evtchn)?;
        Ok(WakeReasons { store: found.store, events: said.events || found.events })
    }

    /// Takes the completions of the ring.
    fn take(&mut self, evtchn: &mut dyn EventChannels) -> Result<WakeReasons, Errno> {
        let mut woken = WakeReasons::default();
        for entry in self.ring.completion() {
            match (entry.user_data(), entry.result()) {
                (READ, len) => {
                    self.device.armed = false;
                    match usize::try_from(len) {
                        Ok(len) => {
                            let bytes = self.fired.get(..len).unwrap_or_default();
                            evtchn.take_read(bytes, self.fired.len());
                            woken.events = true;
                        }
                        // Somebody else was there first.
                        Err(_) if [-libc::EAGAIN, -libc::ECANCELED].contains(&len) => {}
                        // It will say that to who asks, too.
                        Err(_) => woken.events = true,
                    }
                }
                (_, error) if error < 0 => return Err(Errno::from_raw_os_error(-error)),
                (STORE, _) => (self.store.armed, woken.store) = (false, true),
                (SOURCE, _) => self.sources.armed = false,
                _ => {}
            }
        }
        Ok(woken)
    }
}

impl Drop for WaiterRing {
    /// The kernel may write there until it has taken the ring apart, some time later.
    fn drop(&mut self) {
        if self.device.armed {
            std::mem::forget(std::mem::replace(&mut self.fired, Box::new([0; PORTS * 4])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;
    use xen::evtchn::{PortStatus, Virq};
    use xen::{DomId, Error};

    /// A stand-in for `/dev/xen/evtchn`: `ours` is the process's end, the other end the kernel's.
    struct EvtchnDevice {
        ours: UnixStream,
        is_device: bool,
        came: Vec<Port>,
    }

    impl EvtchnDevice {
        fn new(is_device: bool) -> (Self, UnixStream) {
            let (ours, kernels) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            kernels.set_nonblocking(true).unwrap();
            (Self { ours, is_device, came: Vec::new() }, kernels)
        }

        /// Returns the ports that have fired, if `woken` tells of events.
        fn ports(&mut self, woken: WakeReasons) -> Vec<u32> {
            let mut ports = Vec::new();
            while woken.events
                && let Some(port) = self.pending().unwrap()
            {
                ports.push(port.0);
            }
            ports
        }
    }

    impl EventChannels for EvtchnDevice {
        fn fd(&self) -> BorrowedFd<'_> {
            self.ours.as_fd()
        }
        fn is_device(&self) -> bool {
            self.is_device
        }
        fn take_read(&mut self, bytes: &[u8], room: usize) {
            assert!(bytes.len() <= room);
            let words = bytes.as_chunks::<4>().0;
            self.came.extend(words.iter().map(|word| Port(u32::from_ne_bytes(*word))));
        }
        fn pending(&mut self) -> Result<Option<Port>, Error> {
            if self.came.is_empty() && !self.is_device {
                let mut word = [0; 4];
                if self.ours.read_exact(&mut word).is_ok() {
                    self.came.push(Port(u32::from_ne_bytes(word)));
                }
            }
            Ok((!self.came.is_empty()).then(|| self.came.remove(0)))
        }
        fn unmask(&self, port: Port) -> Result<(), Error> {
            (&self.ours).write_all(&port.0.to_ne_bytes()).map_err(|_| Error::Inval)
        }
        fn notify(&self, _: Port) -> Result<(), Error> {
            Err(Error::NoSys)
        }
        fn alloc_unbound(&mut self, _: DomId) -> Result<Port, Error> {
            Err(Error::NoSys)
        }
        fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, Error> {
            Err(Error::NoSys)
        }
        fn bind_virq(&mut self, _: Virq) -> Result<Port, Error> {
            Err(Error::NoSys)
        }
        fn close(&mut self, _: Port) -> Result<(), Error> {
            Err(Error::NoSys)
        }
        fn status(&mut self, _: Port) -> Result<PortStatus, Error> {
            Err(Error::NoSys)
        }
    }

    /// A waiter for such a device, whose other end is the kernel's, and for a store.
    fn scene(is_device: bool) -> (Waiter, EvtchnDevice, UnixStream, OwnedFd) {
        let (device, kernel) = EvtchnDevice::new(is_device);
        let store = signal();
        let waiter = Waiter::new(store.as_fd(), &device).unwrap();
        (waiter, device, kernel, store)
    }

    /// Returns the outcome of a wait. The kernel may interrupt a sleep, as for a signal, but not
    /// each one.
    fn woken(
        waiter: &mut Waiter,
        device: &mut EvtchnDevice,
        timeout: Duration,
    ) -> Option<WakeReasons> {
        let mut sleeps = (0..10).map(|_| waiter.wait(device, true, timeout).unwrap());
        sleeps.find(|woken| *woken != WakeReasons::default())
    }

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(5);

    fn words(ports: impl IntoIterator<Item = u32>) -> Vec<u8> {
        ports.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn signal() -> OwnedFd {
        eventfd(0, EventfdFlags::NONBLOCK).unwrap()
    }

    fn raise(fd: &OwnedFd) {
        rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
    }

    fn clear(fd: &OwnedFd) {
        rustix::io::read(fd, &mut [0; 8]).unwrap();
    }

    #[test]
    fn ports_fire_and_are_let_fire_again() {
        for is_device in [true, false] {
            let (mut waiter, mut device, mut kernel, _store) = scene(is_device);
            assert_eq!(waiter.ring.is_some(), is_device, "this kernel has an io_uring");
            assert_eq!(waiter.wait(&mut device, true, Duration::ZERO), Ok(WakeReasons::default()));
            assert_eq!(waiter.wait(&mut device, true, SHORT), Ok(WakeReasons::default()));
            for round in 0..100 {
                kernel.write_all(&words([round, 7])).unwrap();
                let woken = woken(&mut waiter, &mut device, LONG).expect("it has fired");
                assert_eq!(woken, WakeReasons { store: false, events: true }, "{is_device}");
                assert_eq!(device.ports(woken), [round, 7], "{is_device}");
                // More than there is room for, too.
                let again: Vec<u32> = (0..=round).collect();
                for port in &again {
                    waiter.unmask(&device, Port(*port));
                }
                assert_eq!(
                    waiter.wait(&mut device, true, Duration::ZERO),
                    Ok(WakeReasons::default())
                );
                let mut got = vec![0; again.len() * 4];
                kernel.read_exact(&mut got).unwrap();
                got.as_chunks_mut::<4>().0.sort_by_key(|word| u32::from_ne_bytes(*word));
                assert_eq!(got, words(again), "{is_device}");
            }
        }
    }

    #[test]
    fn the_store_and_the_event_channels_are_told_apart() {
        for is_device in [true, false] {
            let (mut waiter, mut device, mut kernel, store) = scene(is_device);
            raise(&store);
            for _ in 0..2 {
                let woken = woken(&mut waiter, &mut device, LONG);
                let store = Some(WakeReasons { store: true, events: false });
                assert_eq!(woken, store, "it is still readable");
            }
            clear(&store);
            assert_eq!(
                waiter.wait(&mut device, true, SHORT),
                Ok(WakeReasons::default()),
                "{is_device}"
            );
            kernel.write_all(&words([5])).unwrap();
            let woken = woken(&mut waiter, &mut device, LONG).expect("it has fired");
            assert_eq!((woken.store, device.ports(woken)), (false, vec![5]), "{is_device}");
        }
    }

    #[test]
    fn a_store_behind_the_event_channels_shares_their_descriptor() {
        let (mut device, mut kernel) = EvtchnDevice::new(false);
        let mut waiter = Waiter::new(device.ours.try_clone().unwrap().as_fd(), &device).unwrap();
        assert!(!waiter.shared);
        let fd = device.ours.as_raw_fd();
        // SAFETY: open as long as the device.
        waiter = Waiter::new(unsafe { BorrowedFd::borrow_raw(fd) }, &device).unwrap();
        kernel.write_all(&words([5])).unwrap();
        let woken = waiter.wait(&mut device, true, LONG).unwrap();
        assert_eq!(woken, WakeReasons { store: true, events: true });
    }

    #[test]
    fn sources_are_waited_for_while_they_are_at_work() {
        let (mut waiter, mut device, _kernel, _store) = scene(true);
        let source = signal();
        waiter
            .watch([(DescriptorId::new(), source.as_fd())].into_iter(), std::iter::empty())
            .unwrap();
        raise(&source);
        for at_work in [false, true, false] {
            let begin = Instant::now();
            waiter.wait(&mut device, at_work, if at_work { LONG } else { SHORT }).unwrap();
            let slept = begin.elapsed() >= SHORT;
            assert!(at_work || slept, "it is not asked for sources that are not at work");
            assert!(begin.elapsed() < LONG, "it has missed a source");
        }
    }

    #[test]
    fn streams_are_told_by_name_and_once() {
        for is_device in [true, false] {
            let (mut waiter, mut device, _kernel, _store) = scene(is_device);
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (other, _kept) = UnixStream::pair().unwrap();
            let (name, quiet) = (DescriptorId::new(), DescriptorId::new());
            let streams = [(name, ours.as_fd()), (quiet, other.as_fd())];
            waiter.watch(std::iter::empty(), streams.into_iter()).unwrap();
            // Both can be written at first.
            waiter.wait(&mut device, false, LONG).unwrap();
            assert_eq!(waiter.take_ready().collect::<Vec<_>>(), [name, quiet], "{is_device}");
            for _ in 0..3 {
                waiter.wait(&mut device, false, SHORT).unwrap();
                assert_eq!(waiter.take_ready().count(), 0, "{is_device}: it is told once");
                theirs.write_all(b"typed").unwrap();
                let mut found = Vec::new();
                let begin = Instant::now();
                while found.is_empty() && begin.elapsed() < LONG {
                    waiter.wait(&mut device, false, LONG).unwrap();
                    found.extend(waiter.take_ready());
                }
                assert_eq!(found, [name], "{is_device}: it is not read, and told again");
            }
        }
    }

    #[test]
    fn a_very_long_time_is_not_none() {
        for is_device in [true, false] {
            let (mut waiter, mut device, mut kernel, _store) = scene(is_device);
            let writer = std::thread::spawn(move || {
                std::thread::sleep(SHORT * 4);
                kernel.write_all(&words([5])).unwrap();
                kernel
            });
            let woken = woken(&mut waiter, &mut device, Duration::MAX);
            assert_eq!(woken, Some(WakeReasons { store: false, events: true }));
            writer.join().unwrap();
        }
    }

    #[test]
    fn sources_come_and_go_behind_the_same_number() {
        for is_device in [true, false] {
            let (mut waiter, mut device, _kernel, _store) = scene(is_device);
            let mut source = signal();
            for number in 0..4 {
                let name = DescriptorId::new();
                waiter.watch([(name, source.as_fd())].into_iter(), std::iter::empty()).unwrap();
                waiter.watch([(name, source.as_fd())].into_iter(), std::iter::empty()).unwrap();
                raise(&source);
                let begin = Instant::now();
                assert_eq!(waiter.wait(&mut device, true, LONG), Ok(WakeReasons::default()));
                assert!(begin.elapsed() < LONG, "{is_device}: source {number} is not waited for");
                // That one is closed, and the next has its number.
                rustix::io::dup2(signal(), &mut source).unwrap();
            }
        }
    }
}
