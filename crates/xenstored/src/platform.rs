//! The parts of Xen, or of its substitute, that the daemon needs.

use xen::domwatch::DomainWatch;
use xen::evtchn::EventChannels;
use xen::gnttab::GrantMap;

/// The parts of Xen, or of its substitute, that the daemon needs.
pub struct Platform {
    /// Event channels to the domains.
    pub evtchn: Box<dyn EventChannels>,
    /// The mapping of the domains' ring pages.
    pub grants: Box<dyn GrantMap>,
    /// The watch for domains that start and end.
    pub domains: Box<dyn DomainWatch>,
    /// The ioctl requests that these three make once the daemon serves. No others pass its filter.
    pub ioctls: &'static [u32],
    /// The kind and place of the platform, for error messages.
    pub name: String,
}

/// The platform that the caller of [`main_with`](crate::main_with) has found.
pub enum PlatformChoice {
    /// A platform with domains.
    Platform(Platform),
    /// No platform, for this reason: only the socket is served.
    SocketOnly(&'static str),
}
