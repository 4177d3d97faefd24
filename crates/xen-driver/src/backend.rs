//! The backend's end of a device type.
//!
//! A [`Backend`] serves one device; a [`BackendServer`] has all of them, in one thread that sleeps in one place.
//! [`Rings`] gives a backend the rings and event channels that a frontend has named, and takes them over from a process
//! that was killed.
//!
//! | module | what it is |
//! |---|---|
//! | [`server`] | the loop that serves all devices of a domain |
//! | [`devices`] | the devices of a server: those of buses, or found in another way |
//! | [`rings`] | the rings of one device: connected, taken over, given back |
//! | [`ring`] | one ring: requests taken, answered, shown, each recorded |
//! | [`pages`] | the guest's pages, mapped for one request or for good |
//! | [`connects`] | a limit of how often a frontend may connect |
//! | [`throttle`] | limits of bytes and requests a second |
//! | [`histogram`] | how long requests took |
//! | `record` | what was taken and not answered, in memory that outlives the process |
//! | `waiter` | where the loop sleeps |
//!
//! `record::memory`, `pages::page` and `waiter` are the only modules of the crate with `unsafe`.

pub mod connects;
pub mod devices;
pub mod histogram;
pub mod pages;
mod record;
pub mod ring;
pub mod rings;
pub mod server;
pub mod throttle;
mod waiter;

pub use devices::{Buses, DeviceSet, TendOutcome};
pub use rings::Rings;
pub use server::BackendServer;

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xen::Port;
use xen::evtchn::EventChannels;
use xen::gnttab::GrantMap;
use xenbus::Error;

/// Event channels and grants, as a backend's process has them from its platform.
#[derive(Clone)]
pub struct Platform {
    /// The event channels of this process.
    pub evtchn: Rc<RefCell<dyn EventChannels>>,
    /// The grants that it maps.
    pub grants: Rc<RefCell<dyn GrantMap>>,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}

/// The backend of one device, whose rings a [`BackendServer`] has served.
///
/// The server calls [`work`](Backend::work) for every device in each of its turns, whoever has notified, as to look into
/// a ring costs less than to find out.
pub trait Backend {
    /// Takes what is in the rings, answers what is done, notifies. Waits for what it has begun with `patience` alone,
    /// and then no longer.
    ///
    /// # Errors
    /// The frontend has broken a ring, or the event channel is gone: the device is to be closed.
    fn work(&mut self, now: Instant, patience: Option<Duration>) -> Result<TurnOutcome, Error>;

    /// Lets the frontend notify again, before the server sleeps. True if there is something in the rings after all.
    ///
    /// # Errors
    /// As [`Backend::work`].
    fn final_check(&mut self) -> Result<bool, Error>;

    /// The ports of its rings.
    fn ports(&self) -> impl Iterator<Item = Port>;

    /// When its limits allow the next request, if they do not now.
    fn limited_until(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        None
    }

    /// Descriptors that poll readable when there is something for it besides requests: what it has asked of a disk, a
    /// packet of a network. Each has a name of its own ([`DescriptorId::new`]).
    fn sources(&self) -> impl Iterator<Item = (DescriptorId, BorrowedFd<'_>)> {
        std::iter::empty()
    }

    /// True while one of its sources may poll readable: something is under way there.
    fn is_at_work(&self) -> bool {
        false
    }

    /// Nodes of this end that are to be written anew, upon which the frontend looks at them: a new size. The server asks
    /// now and then.
    fn changes(&mut self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// A sentence for the log on what has gone wrong since this was last asked, where [`TurnOutcome::complains`] has told of it.
    fn complaint(&mut self) -> Option<String> {
        None
    }

    /// A few words for the log when it is connected: what it serves.
    fn summary(&self) -> String {
        String::new()
    }

    /// Its counters since it was connected, for the statistics of its process: words and numbers with spaces between.
    fn statistics(&self) -> String {
        String::new()
    }
}

/// The outcome of a turn of [`Backend::work`].
#[derive(Clone, Copy, Default, Debug)]
pub struct TurnOutcome {
    /// Requests taken and answers shown.
    pub moved: u32,
    /// There is more to be taken at once.
    pub more: bool,
    /// When answers were shown.
    pub shown: Option<Instant>,
    /// There is something for [`Backend::complaint`] to tell.
    pub complains: bool,
}

/// The name of a descriptor that a server waits for. A descriptor's number is soon another's; no two of a process have
/// the same name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DescriptorId(u64);

impl DescriptorId {
    /// A name for a descriptor that was just opened.
    #[expect(clippy::new_without_default, reason = "each is another")]
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(COUNT.fetch_add(1, Ordering::Relaxed))
    }
}
