//! Causes of the guest.

use crate::doctor::facts::QuotaUse;
use crate::doctor::subject::{FaultSubject, Remedy};
use crate::host::service::CONSOLE_UNIT;
use crate::text;

/// A fault of the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestFault {
    /// It is paused.
    Paused,
    /// It has ended, by a crash or otherwise.
    Ended {
        /// The reason in a word: `crashed`.
        reason: String,
        /// The exit status of its program.
        status: Option<u8>,
    },
    /// It is destroyed and does not go.
    Dying {
        /// Pages that it grants; `None` where the platform does not tell.
        granted: Option<u64>,
    },
    /// Nothing in it has looked at the device.
    NoDriver,
    /// A quota of the store is used up.
    QuotaUsedUp(QuotaUse),
    /// It can grant no more pages.
    OutOfPages {
        /// The frontend's text.
        text: String,
    },
    /// It has no free port.
    OutOfPorts {
        /// Ports in use.
        used: u64,
        /// The most that it may have.
        limit: u64,
    },
    /// It has no memory for the device.
    OutOfMemory {
        /// The frontend's text.
        text: String,
    },
    /// It has connected too often, and has to wait.
    TooManyConnects {
        /// Connects in the last seconds.
        connects: u32,
    },
    /// The device was asked for, and the guest uses it.
    InUse {
        /// True if the host's kernel may have mounted it.
        mounted: bool,
    },
    /// The device was asked for, and the guest has not closed it.
    Keeps,
    /// The frontend has given the device up for another reason.
    Refuses {
        /// The frontend's text.
        text: String,
    },
    /// Nothing serves its console.
    ConsoleUnserved,
    /// The process that serves its console is stopped.
    ConsoleStopped {
        /// The process.
        pid: i32,
    },
}

impl GuestFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Paused => "guest-paused",
            Self::Ended { .. } => "guest-ended",
            Self::Dying { .. } => "guest-dying",
            Self::NoDriver => "guest-without-driver",
            Self::QuotaUsedUp(_) => "quota-used-up",
            Self::OutOfPages { .. } => "out-of-grants",
            Self::OutOfPorts { .. } => "out-of-ports",
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::TooManyConnects { .. } => "too-many-connects",
            Self::InUse { .. } => "in-use",
            Self::Keeps => "guest-keeps",
            Self::Refuses { .. } => "guest-refuses",
            Self::ConsoleUnserved => "console-unserved",
            Self::ConsoleStopped { .. } => "console-stopped",
        }
    }

    pub(super) fn text(&self, of: &FaultSubject) -> String {
        let name = &of.domain;
        match self {
            Self::Paused => format!("{name} is paused"),
            Self::Ended { reason, status } => {
                let status = status.map(|status| format!(", exit status {status}"));
                format!("{name} has ended ({reason}{})", status.unwrap_or_default())
            }
            Self::Dying { granted: Some(pages @ 1..) } => format!(
                "{name} is dying, and does not go while the {pages} pages that it grants are mapped"
            ),
            Self::Dying { .. } => format!("{name} is dying, and something of it does not end"),
            Self::NoDriver => {
                format!("{name} runs, and no driver in it has taken the device yet")
            }
            Self::QuotaUsedUp(quota) => {
                let QuotaUse { name: of, used, limit, .. } = quota;
                format!("{name} has used up its quota {of} of the store: {used} of {limit}")
            }
            Self::OutOfPages { text } => {
                format!(
                    "{name} can grant no more pages for one more device (it says: {})",
                    text::foreign(text)
                )
            }
            Self::OutOfPorts { used, limit } => {
                format!("{name} has no free event channel: {used} of {limit}")
            }
            Self::OutOfMemory { text } => {
                format!("{name} has no memory for it (it says: {})", text::foreign(text))
            }
            Self::TooManyConnects { connects } => format!(
                "{name} has connected it {connects} times within seconds, and has to wait a moment"
            ),
            Self::InUse { mounted: true } => {
                format!("{name} uses it: it is open there, or mounted")
            }
            Self::InUse { mounted: false } => format!("{name} uses it"),
            Self::Keeps => format!("{name} has not closed it yet"),
            Self::Refuses { text } => {
                format!("the driver in {name} has given it up (it says: {})", text::foreign(text))
            }
            Self::ConsoleUnserved => format!("nothing serves the console of {name}"),
            Self::ConsoleStopped { pid } => {
                format!("the process {pid} that serves the console of {name} is stopped")
            }
        }
    }

    pub(super) fn remedy(&self, of: &FaultSubject) -> Remedy {
        let domain = of.domain_word();
        match self {
            Self::Paused if of.hosted => of.xb("let it go on with", &format!("unpause {domain}")),
            Self::Paused => Remedy::new("let it go on with", format!("xl unpause {domain}")),
            Self::Ended { .. } | Self::NoDriver | Self::TooManyConnects { .. } => of.guest_log(),
            Self::Refuses { .. } => of.guest_log(),
            Self::Dying { .. } => {
                of.xb("see what is connected to it with", &format!("disk list {domain}"))
            }
            Self::QuotaUsedUp(_) => {
                let domid = of.domid.map_or(0, |domid| domid.0);
                of.xb("see all of them with", &format!("store control quota {domid}"))
            }
            Self::OutOfPages { .. } | Self::OutOfMemory { .. } | Self::OutOfPorts { .. } => {
                let effect = "give it more (memory=), or detach one of its devices; list them with";
                of.xb(effect, &format!("disk list {domain}"))
            }
            Self::InUse { mounted: true } => {
                of.xb("unmount it with", &format!("disk unmount {domain}"))
            }
            Self::InUse { mounted: false } | Self::Keeps => {
                of.detach("take it away all the same with")
            }
            Self::ConsoleUnserved if of.hosted => of.xb("start it with", "host up"),
            Self::ConsoleUnserved => {
                Remedy::new("start it with", format!("systemctl start {CONSOLE_UNIT}"))
            }
            Self::ConsoleStopped { pid } => {
                Remedy::new("let it go on with", format!("kill -CONT {pid}"))
            }
        }
    }
}
