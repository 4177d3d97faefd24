//! Xen, or what stands in for it.

use xen::domwatch::DomainWatch;
use xen::evtchn::EventChannels;
use xen::gnttab::GrantMap;

/// The parts of Xen, or of its substitute, that the daemon needs.
pub struct Platform {
    /// Event channels to the domains.
    pub evtchn: Box<dyn EventChannels>,
    /// Their ring pages.
    pub grants: Box<dyn GrantMap>,
    /// Their coming and going.
    pub domains: Box<dyn DomainWatch>,
    /// The ioctl requests that the three make once the daemon serves; no others pass its filter.
    pub ioctls: &'static [u32],
    /// Its kind and its place, as an error names it.
    pub name: String,
}

/// The platform that the caller of [`main_with`](crate::main_with) has found.
pub enum Provided {
    /// A platform with domains.
    Platform(Platform),
    /// None, and why: only the socket is served.
    SocketOnly(&'static str),
}
