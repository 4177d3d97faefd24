//! Causes of the backend's process or domain.

use crate::doctor::subject::{FaultSubject, Remedy};
use crate::host::service::DomainAbsence;
use crate::text;
use xen::DomId;
use xen_block::back::{LIMIT_BYTES, LIMIT_REQUESTS};

/// A fault of the backend's process or domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendFault {
    /// No process serves its kind.
    Down {
        /// The kind of the backend.
        kind: String,
        /// The domain of the backend.
        domid: DomId,
    },
    /// The process is stopped, by SIGSTOP or a debugger.
    Stopped {
        /// The kind of the backend.
        kind: String,
        /// The process.
        pid: i32,
    },
    /// The domain that serves the device does not run.
    DomainAway {
        /// Its number.
        domid: DomId,
        /// The reason.
        absence: DomainAbsence,
    },
    /// Nothing in a driver domain has looked at the device, or serves it any more.
    NoneInDomain {
        /// The kind of the backend.
        kind: String,
        /// The domain's number.
        domid: DomId,
    },
    /// The supervisor of a driver domain has answered before, and does not any more.
    SupervisorSilent {
        /// The domain's number.
        domid: DomId,
    },
    /// The supervisor reports that the backend ends again and again.
    KeepsEnding {
        /// The domain of the backend.
        domid: DomId,
        /// The report, in the words of that domain.
        fault: String,
    },
    /// A driver of the kernel has the device, which cannot serve its target.
    TakenByKernel {
        /// The kind of the backend.
        kind: String,
    },
    /// Requests wait for a limit of the device.
    Throttled {
        /// The limit of bytes a second.
        bytes: Option<u64>,
        /// The limit of requests a second.
        requests: Option<u64>,
    },
    /// The server of the device's data is away.
    ServerGone {
        /// The target.
        target: String,
    },
    /// The frontend is ready, and the backend has not connected: nothing else is known.
    Undecided,
}

impl BackendFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Down { .. } => "backend-down",
            Self::Stopped { .. } => "backend-stopped",
            Self::DomainAway { .. } => "backend-domain-away",
            Self::NoneInDomain { .. } => "backend-domain-without-backend",
            Self::SupervisorSilent { .. } => "backend-supervisor-silent",
            Self::KeepsEnding { .. } => "backend-keeps-ending",
            Self::TakenByKernel { .. } => "backend-taken-by-kernel",
            Self::Throttled { .. } => "throttled",
            Self::ServerGone { .. } => "server-gone",
            Self::Undecided => "undecided",
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Down { kind, domid } => format!("nothing serves {kind} in domain {domid}"),
            Self::Stopped { kind, pid } => {
                format!("the process {pid} that serves {kind} is stopped")
            }
            Self::DomainAway { domid, absence } => {
                format!("domain {domid}, which serves it, {}", absence.words())
            }
            Self::NoneInDomain { kind, domid } => {
                format!("domain {domid}, which is to serve it, runs nothing that serves {kind}")
            }
            Self::SupervisorSilent { domid } => {
                format!("the xb devd of domain {domid}, which serves it, does not answer any more")
            }
            Self::KeepsEnding { domid, fault } => {
                format!("its backend in domain {domid} keeps ending: {}", text::foreign(fault))
            }
            Self::TakenByKernel { kind } => format!(
                "the kernel's driver has taken it, which serves every {kind} of this domain and not this target"
            ),
            Self::Throttled { bytes, requests } => {
                let bytes = bytes.map(|bytes| format!("{} a second", text::size(bytes)));
                let requests = requests.map(|requests| format!("{requests} requests a second"));
                let limits: Vec<String> = bytes.into_iter().chain(requests).collect();
                match limits.is_empty() {
                    true => {
                        "its requests wait for the limit that its backend was started with".into()
                    }
                    false => format!("its requests wait for its limit of {}", limits.join(" and ")),
                }
            }
            Self::ServerGone { target } => {
                format!("the server of {} is away", text::foreign(target))
            }
            Self::Undecided => "the frontend is ready, and its backend is still at work".into(),
        }
    }

    pub(super) fn remedy(&self, of: &FaultSubject) -> Remedy {
        match self {
            Self::Down { .. } if of.hosted => of.xb("start it with", "host up"),
            Self::Down { .. } => Remedy::new("start it with", "systemctl start xen-blockd"),
            Self::Stopped { pid, .. } => {
                Remedy::new("let it go on with", format!("kill -CONT {pid}"))
            }
            Self::DomainAway { domid, absence: DomainAbsence::Paused } => {
                let command = if of.hosted { &of.xb } else { "xl" };
                Remedy::new("let it go on with", format!("{command} unpause {domid}"))
            }
            Self::DomainAway { .. } | Self::ServerGone { .. } => {
                of.detach("start that again, or take the device away with")
            }
            Self::NoneInDomain { domid, .. } | Self::SupervisorSilent { domid } if of.hosted => {
                of.xb("see what that domain prints with", &format!("log {domid}"))
            }
            Self::NoneInDomain { .. } => {
                Remedy::new("start it in that domain with", "systemctl restart xb-devd")
            }
            Self::SupervisorSilent { .. } => {
                Remedy::new("start it again in that domain with", "systemctl restart xb-devd")
            }
            Self::KeepsEnding { domid, .. } if *domid == DomId::DOM0 => of.backend_log(),
            Self::KeepsEnding { domid, .. } if of.hosted => {
                of.xb("see what that domain prints with", &format!("log {domid}"))
            }
            Self::KeepsEnding { .. } => {
                Remedy::new("see in that domain with", "journalctl -u xb-devd -u xen-blockd")
            }
            Self::TakenByKernel { .. } => {
                let command = "rmmod xen-blkback && systemctl restart xen-blockd";
                Remedy::new("once no guest uses it, unload it with", command)
            }
            Self::Throttled { .. } => {
                // A value of 0 also lifts the limit that the backend was started with.
                let lifted = [LIMIT_BYTES, LIMIT_REQUESTS].map(|limit| {
                    let node = text::shell_word(&format!("{}/{limit}", of.backend));
                    format!("{node} 0")
                });
                of.xb("lift it with", &format!("store write {}", lifted.join(" ")))
            }
            Self::Undecided => of.backend_log(),
        }
    }
}
