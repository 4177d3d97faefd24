//! Control of domains, for domain 0 alone.
//!
//! Building a domain differs too much between platforms to be one call; operations on an existing
//! domain do not.
//!
//! Source: `xen/include/public/domctl.h` and `sched.h`.

use crate::domwatch::ShutdownReason;
use crate::{DomId, Error};

/// The run state of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RunState {
    /// It runs, or would if it had anything to do.
    Running,
    /// It was paused by [`DomainControl::pause`].
    Paused,
    /// The domain has ended itself, and waits for the toolstack to destroy it.
    Shutdown(ShutdownReason),
    /// The domain was destroyed, and disappears when its last reference is given up.
    Dying,
}

/// The activity of a domain's virtual processors at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuActivity {
    /// One of them runs on a processor.
    Running,
    /// None runs, and one would if it got a processor.
    Ready,
    /// All of them wait for events.
    Blocked,
}

/// The properties of a domain (`XEN_DOMCTL_getdomaininfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainInfo {
    /// Its number.
    pub domid: DomId,
    /// The handle given at its creation, which identifies it under any number.
    pub handle: [u8; 16],
    /// Its run state.
    pub state: RunState,
    /// Memory that it has, in KiB.
    pub memory_kib: u64,
    /// Memory that it may have, in KiB.
    pub memory_max_kib: u64,
    /// Processors that it uses.
    pub vcpus_online: u32,
    /// Processors that it was made with.
    pub vcpus: u32,
    /// Their activity; `None` where the platform does not tell.
    pub activity: Option<VcpuActivity>,
    /// The identifier of its security label; `None` where the platform has none.
    pub ssid: Option<u32>,
    /// Processor time that it has used, in ns.
    pub cpu_time_ns: u64,
}

/// The parameters by which processor time is shared (credit scheduler).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scheduling {
    /// Its share against others, 1 to 65535; 256 by default.
    pub weight: u16,
    /// At most this many hundredths of one processor; 0 is no bound.
    pub cap: u16,
}

/// The operations of a toolstack on domains.
pub trait DomainControl {
    /// All domains, by number.
    ///
    /// # Errors
    /// [`Error::Perm`] for any domain but domain 0, here and below.
    fn list(&mut self) -> Result<Vec<DomainInfo>, Error>;

    /// One domain.
    ///
    /// # Errors
    /// [`Error::Srch`] no such domain, here and below.
    fn info(&mut self, domid: DomId) -> Result<DomainInfo, Error>;

    /// Pauses the domain. Pauses are not counted: one [`DomainControl::unpause`] ends them.
    ///
    /// # Errors
    /// As above; [`Error::Inval`] a domain that pauses itself.
    fn pause(&mut self, domid: DomId) -> Result<(), Error>;

    /// Ends the pause of the domain.
    ///
    /// # Errors
    /// As above; [`Error::Inval`] it is not paused.
    fn unpause(&mut self, domid: DomId) -> Result<(), Error>;

    /// Shuts the domain down with `reason`, without its consent. (A request for that is a write to
    /// its node `control/shutdown`.)
    ///
    /// # Errors
    /// As above.
    fn shutdown(&mut self, domid: DomId, reason: ShutdownReason) -> Result<(), Error>;

    /// Destroys the domain and frees its resources.
    ///
    /// # Errors
    /// As above.
    fn destroy(&mut self, domid: DomId) -> Result<(), Error>;

    /// Sets the most memory that the domain may have, in KiB.
    ///
    /// # Errors
    /// As above; [`Error::NoMem`] more than there is.
    fn set_memory_max(&mut self, domid: DomId, memory_max_kib: u64) -> Result<(), Error>;

    /// Returns the domain's share of the processors.
    ///
    /// # Errors
    /// As above.
    fn scheduling(&mut self, domid: DomId) -> Result<Scheduling, Error>;

    /// Sets the domain's share of the processors.
    ///
    /// # Errors
    /// As above; [`Error::Inval`] a weight of 0.
    fn set_scheduling(&mut self, domid: DomId, scheduling: Scheduling) -> Result<(), Error>;
}
