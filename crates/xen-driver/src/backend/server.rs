//! The loop that serves all devices of a backend's domain: one thread, one place where it sleeps.

use super::Backend;
use super::devices::{Buses, DeviceSet};
use super::waiter::Waiter;
use rustix::io::Errno;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xen::Port;
use xen::evtchn::EventChannels;
use xenbus::bus::DeviceNews;
use xenbus::{Bus, Driver, Error};
use xenstore::Client;

/// The longest time that the server polls for more work, after some was found, before it sleeps:
/// about as long as falling asleep and waking up take together.
const SPIN_MAX: Duration = Duration::from_micros(20);
/// A sleep that was shorter than this would have been better spent looking.
const SHORT_SLEEP: Duration = Duration::from_micros(20);
/// The longest wait for the requests of one device; all other work waits during that time.
const PATIENCE: Duration = Duration::from_millis(2);
/// The longest time that events of the store and the ports wait while there is work.
const ASK_STORE: Duration = Duration::from_millis(1);
/// The interval between two looks at a device that waits for something without a descriptor.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Most events of the store that are taken in a turn.
const EVENTS_MAX: u32 = 64;
/// The time for looking at devices in one turn. A look that has begun by its end is completed.
const LOOKS_MAX: Duration = Duration::from_micros(200);

/// A server of the devices of one domain: those of a kind (`vbd`), or of several that are served alike.
pub struct BackendServer<D: DeviceSet> {
    store: Client,
    devices: D,
    evtchn: Rc<RefCell<dyn EventChannels>>,
    waiter: Waiter,
    /// Sources may have come or gone since the waiter was told of them.
    sources_changed: bool,
    /// Ports with an event that was taken, to be unmasked before sleeping.
    masked: Vec<Port>,
    /// Devices that wait for something that no event tells of.
    waiting: Vec<D::Key>,
    busy_until: Instant,
    /// The time for which it pays to poll for more work at the moment.
    spin: Duration,
    /// The longest that it may become.
    spin_max: Duration,
    /// When the store and the event channels are looked at next, while there is work.
    ask_at: Instant,
    /// When devices that wait are looked at next.
    look_at: Instant,
    /// The store was asked something: events may have come with the answers, and no poll tells of them.
    asked_store: bool,
    /// The devices have more to do besides their own work.
    tend_again: bool,
    /// When they have more to do.
    tend_at: Option<Instant>,
    /// A backend may have a complaint that nobody was told of.
    complaints: bool,
    /// Requests were taken or answered since this was last asked.
    progressed: bool,
    /// When the clock was read last, and whether that will do for the turn that is next.
    clock: (Instant, ClockUse),
}

impl<D: DeviceSet> std::fmt::Debug for BackendServer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendServer").field("masked", &self.masked).finish_non_exhaustive()
    }
}

impl<D: DeviceSet> BackendServer<D> {
    /// Serves `devices`, which use these event channels.
    ///
    /// # Errors
    /// The store or the event channels cannot be waited for.
    pub fn start(
        store: Client,
        evtchn: Rc<RefCell<dyn EventChannels>>,
        devices: D,
    ) -> Result<Self, Error> {
        let spin_max = if processors() > 1 { SPIN_MAX } else { Duration::ZERO };
        let now = Instant::now();
        let waiter = Waiter::new(store.as_fd(), &*evtchn.borrow()).map_err(waiting)?;
        Ok(Self {
            store,
            devices,
            evtchn,
            waiter,
            sources_changed: true,
            masked: Vec::new(),
            waiting: Vec::new(),
            busy_until: now,
            spin: spin_max,
            spin_max,
            ask_at: now,
            look_at: now,
            asked_store: true,
            tend_again: false,
            tend_at: None,
            complaints: false,
            progressed: false,
            clock: (now, ClockUse::Old),
        })
    }

    /// The devices, to look at between two turns.
    pub fn devices(&mut self) -> &mut D {
        &mut self.devices
    }

    /// Does what there is to do; where there is nothing, waits for it, at most `timeout`. Returns what has
    /// happened to devices.
    ///
    /// # Errors
    /// The store or the event channels are gone. What goes wrong with one device ends that device.
    pub fn turn(&mut self, timeout: Duration) -> Result<Vec<DeviceNews>, Error> {
        let now = self.now();
        if self.asked_store {
            self.take_store_events()?;
        }
        let moved = self.work_all(now)?;
        let idle = moved == TurnProgress::Nothing && now >= self.busy_until && !self.tend_again;
        match if idle { self.before_sleep(now)? } else { None } {
            Some(until) if !self.asked_store => self.sleep(timeout, until, now)?,
            found => {
                if moved == TurnProgress::Something || (idle && found.is_none()) {
                    self.keep_looking(now);
                }
                // While there is work the rings are looked at anyway; all else now and then.
                if now >= self.ask_at {
                    self.wait(Duration::ZERO)?;
                }
            }
        }
        self.look_again(now);
        let tended = self.devices.tend(&mut self.store, now)?;
        self.sources_changed |= tended.streams_changed;
        self.tend_again = tended.more;
        self.tend_at = tended.again_at;
        self.asked_store |= tended.asked_store;
        Ok(self.devices.take_news())
    }

    /// The time. In a PV domain whose clock is Xen's, to read it may be a system call; so where nobody looks for more
    /// work, a turn takes the time at which the one before has shown its answers, or else began.
    fn now(&mut self) -> Instant {
        let (last, clock) = self.clock;
        if clock == ClockUse::Once && self.spin_max.is_zero() {
            self.clock.1 = ClockUse::Old;
            return last;
        }
        let now = Instant::now();
        if clock == ClockUse::Asked {
            // From now: where a turn takes longer than that, each would ask once more than it has to.
            self.ask_at = now + ASK_STORE;
        }
        self.clock = (now, ClockUse::Once);
        now
    }

    /// There was work: there may be more at once.
    fn keep_looking(&mut self, now: Instant) {
        // What is under way elsewhere wakes this thread when it is done, later than looking would pay.
        self.busy_until = if self.is_at_work() || self.spin.is_zero() {
            now
        } else {
            // From the end of the work: what is copied on the way may take longer than that.
            Instant::now() + self.spin
        };
    }

    fn is_at_work(&self) -> bool {
        self.devices.backends_ref().any(|(_, back)| back.is_at_work())
    }

    /// True if a backend has had something for [`Backend::complaint`] since this was last asked.
    pub fn take_complaints(&mut self) -> bool {
        std::mem::take(&mut self.complaints)
    }

    /// True if requests were taken or answered since this was last asked: counters have changed.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Takes some of what the store has to tell, and looks at some of the devices that it is about, one of
    /// each kind in turn: a guest that writes its state without end has one look a turn like every other,
    /// and all rings are served in between.
    fn take_store_events(&mut self) -> Result<(), Error> {
        self.asked_store = false;
        self.sources_changed = true;
        let mut left = EVENTS_MAX;
        while left > 0
            && let Some(event) = self.store.poll_event()?
        {
            left -= 1;
            self.devices.note(&mut self.store, &event)?;
        }
        let end = Instant::now() + LOOKS_MAX;
        let mut looked = true;
        while looked && Instant::now() < end {
            looked = self.devices.look_next(&mut self.store)?;
            // Events may have come with the answers.
            self.asked_store |= looked;
        }
        self.asked_store |= left == 0 || self.devices.is_due();
        self.waiting.clear();
        self.waiting.extend(self.devices.waiting());
        Ok(())
    }

    fn take_port_events(&mut self) -> Result<(), Error> {
        let mut evtchn = self.evtchn.borrow_mut();
        while let Some(port) = evtchn.pending().map_err(Error::platform("event channels"))? {
            self.masked.push(port);
        }
        Ok(())
    }

    /// Serves every device once, whoever has notified: looking into a ring costs less than finding out.
    fn work_all(&mut self, now: Instant) -> Result<TurnProgress, Error> {
        let mut moved = TurnProgress::Nothing;
        let mut failed = Vec::new();
        let lone = self.only_port();
        let is_lone =
            |back: &D::Backend| lone.is_some_and(|port| back.ports().any(|own| own == port));
        // The one that is waited for comes last: the others' requests are on their way by then.
        for patience in [None, Some(PATIENCE)] {
            for (key, back) in self.devices.backends() {
                if is_lone(back) != patience.is_some() {
                    continue;
                }
                match back.work(now, patience) {
                    Ok(worked) => {
                        if worked.moved > 0 || worked.more {
                            moved = TurnProgress::Something;
                            self.progressed = true;
                        }
                        self.complaints |= worked.complains;
                        if let Some(shown) = worked.shown {
                            self.clock = (shown, ClockUse::Once);
                        }
                    }
                    Err(error) => failed.push((key, error)),
                }
            }
        }
        self.fail(failed)?;
        Ok(moved)
    }

    /// The port of the device whose requests may be waited for by themselves: where nobody looks for more, one frontend
    /// has notified, and no other device is at work. Requests that are given to the kernel and waited for at once
    /// cost a system call less, and the kernel breaks off no sleep for their ends; several that end together are
    /// shown together.
    fn only_port(&mut self) -> Option<Port> {
        let [port] = self.masked[..] else { return None };
        if !self.spin_max.is_zero() {
            return None;
        }
        let others_at_work = (self.devices.backends_ref())
            .any(|(_, back)| back.is_at_work() && back.ports().all(|own| own != port));
        (!others_at_work).then_some(port)
    }

    /// Ends the devices with which something is wrong.
    fn fail(&mut self, failed: Vec<(D::Key, Error)>) -> Result<(), Error> {
        for (key, error) in failed {
            self.asked_store = true;
            self.sources_changed = true;
            self.devices.fail(&mut self.store, key, error)?;
        }
        Ok(())
    }

    /// Lets the frontends notify again; `None` where there is something to do already, else when a limit
    /// allows the next request.
    #[expect(clippy::option_option, reason = "something to do; nothing, with or without an end")]
    fn before_sleep(&mut self, now: Instant) -> Result<Option<Option<Instant>>, Error> {
        let (mut until, mut more) = (None::<Instant>, false);
        let (mut failed, mut held) = (Vec::new(), Vec::new());
        for (key, back) in self.devices.backends() {
            let limited = back.limited_until(now);
            until = [until, limited].into_iter().flatten().min();
            if limited.is_some() {
                // It is not served before that, whatever its frontend notifies.
                held.extend(back.ports());
                continue;
            }
            match back.final_check() {
                Ok(found) => more |= found,
                Err(error) => failed.push((key, error)),
            }
        }
        self.fail(failed)?;
        let evtchn = self.evtchn.borrow();
        self.masked.retain(|port| {
            let stays = held.contains(port);
            if !stays {
                self.waiter.unmask(&*evtchn, *port);
            }
            stays
        });
        Ok(if more { None } else { Some(until) })
    }

    fn sleep(
        &mut self,
        timeout: Duration,
        until: Option<Instant>,
        now: Instant,
    ) -> Result<(), Error> {
        let mut left = timeout;
        if let Some(until) = [until, self.tend_at].into_iter().flatten().min() {
            left = left.min(until.saturating_duration_since(now));
        }
        if !self.waiting.is_empty() {
            left = left.min(LOOK_AGAIN);
        }
        self.wait(left)?;
        if !self.spin_max.is_zero() {
            // Looking has not paid this time; it would have, had the sleep been a short one.
            self.spin = if now.elapsed() < SHORT_SLEEP {
                (self.spin * 2).clamp(Duration::from_micros(1), self.spin_max)
            } else {
                self.spin / 2
            };
        }
        Ok(())
    }

    /// Waits for anything to happen, and takes what the store and the event channels have to tell. They are
    /// asked only where they have, as to ask takes system calls, which cost most in a PV domain 0.
    fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        if std::mem::take(&mut self.sources_changed) {
            let backends = self.devices.backends_ref();
            let sources = backends.flat_map(|(_, back)| back.sources());
            self.waiter.watch(sources, self.devices.streams()).map_err(waiting)?;
        }
        let (evtchn, at_work) = (Rc::clone(&self.evtchn), self.is_at_work());
        let woken =
            self.waiter.wait(&mut *evtchn.borrow_mut(), at_work, timeout).map_err(waiting)?;
        for stream in self.waiter.take_ready() {
            self.devices.ready(stream);
        }
        if woken.store {
            self.take_store_events()?;
        }
        if woken.events {
            self.take_port_events()?;
        }
        self.clock.1 = ClockUse::Asked;
        Ok(())
    }

    /// Looks at devices whose driver waits for something.
    fn look_again(&mut self, now: Instant) {
        if self.waiting.is_empty() || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_AGAIN;
        for key in std::mem::take(&mut self.waiting) {
            self.asked_store = true;
            self.devices.note_device(key);
        }
    }
}

impl<B: Driver + Backend> BackendServer<Buses<B>> {
    /// The devices of a kind and their drivers, if this kind is served.
    pub fn bus(&mut self, kind: &str) -> Option<&mut Bus<B>> {
        self.sources_changed = true;
        self.devices.bus(kind)
    }

    /// Looks whether devices have changed ([`Backend::changes`]), and tells the frontends.
    ///
    /// # Errors
    /// The store is gone.
    pub fn announce_changes(&mut self) -> Result<(), Error> {
        self.asked_store |= self.devices.announce_changes(&mut self.store)?;
        Ok(())
    }
}

fn waiting(errno: Errno) -> Error {
    Error::Driver(format!("waiting for work: {errno}"))
}

/// Returns the number of processors that this thread may run on. On a single processor, polling for
/// work keeps the thread that would bring it from running.
fn processors() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count())
}

/// The use made of a reading of the clock since it was taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClockUse {
    /// Nothing: it will do once more.
    Once,
    /// A turn that took it for its own.
    Old,
    /// The store and the event channels were asked, and perhaps waited for.
    Asked,
}

/// The outcome of a turn: work was found, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TurnProgress {
    Something,
    Nothing,
}
