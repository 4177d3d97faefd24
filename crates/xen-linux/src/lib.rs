//! Real Xen, as Linux offers it: the traits of [`xen`] over `/dev/xen/*`.
//!
//! The promise: every ioctl and hypercall of the project is in this crate, made directly, with no C
//! library between; and whatever another domain does to its side of a page or a channel, the calls
//! here return. Nothing in it can be tried without Xen: `cargo xtask xen` boots one, and
//! `header-check` compares [`abi`] with the C headers.
//!
//! | module | what it is |
//! |---|---|
//! | [`abi`] | numbers and layouts of Xen's and Linux's headers |
//! | `sys` | opening, calling and mapping a device |
//! | [`evtchn`] | event channels: `/dev/xen/evtchn` |
//! | [`gntdev`] | mapping and copying granted pages: `/dev/xen/gntdev` |
//! | [`gntalloc`] | granting pages: `/dev/xen/gntalloc` |
//! | [`privcmd`] | hypercalls and foreign memory: `/dev/xen/privcmd`, `/dev/xen/hypercall` |
//! | [`domctl`] | domain control, for whichever version of it this Xen speaks |
//! | [`sysctl`] | the hypervisor's own console |
//! | [`manage`] | which domains came, shut down, died; the ring of the own kernel |

pub mod abi;
pub mod domctl;
mod error;
pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod manage;
pub mod privcmd;
mod sys;
pub mod sysctl;

pub use error::Error;

/// The role of this machine under Xen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// No Xen.
    Bare,
    /// A domain of a Xen host that controls no others.
    Guest,
    /// The domain that controls the host (domain 0).
    Control,
}

/// Returns the role of this machine, from `/sys/hypervisor/type` and `/proc/xen/capabilities` or,
/// if that is not mounted, from the devices that only the control domain has.
#[must_use]
pub fn machine() -> Machine {
    let kind = std::fs::read_to_string("/sys/hypervisor/type").unwrap_or_default();
    if kind.trim() != "xen" {
        return Machine::Bare;
    }
    let control = match std::fs::read_to_string("/proc/xen/capabilities") {
        Ok(text) => text.split_whitespace().any(|word| word == "control_d"),
        Err(_) => std::path::Path::new("/dev/xen/xenbus_backend").exists(),
    };
    if control { Machine::Control } else { Machine::Guest }
}

/// The requests to these devices that a daemon makes once it serves, for its system-call filter:
/// event channels bound, grants mapped, hypercalls.
pub const IOCTLS_OF_A_DAEMON: &[u32] = &[
    abi::IOCTL_EVTCHN_BIND_INTERDOMAIN,
    abi::IOCTL_EVTCHN_UNBIND,
    abi::IOCTL_EVTCHN_NOTIFY,
    abi::IOCTL_EVTCHN_RESET,
    abi::IOCTL_GNTDEV_MAP_GRANT_REF,
    abi::IOCTL_GNTDEV_UNMAP_GRANT_REF,
    abi::IOCTL_PRIVCMD_HYPERCALL,
];

/// The requests to these devices that a reader of the hypervisor's console makes once it serves:
/// hypercalls, and the reset of the list of events after its overflow.
pub const IOCTLS_OF_A_CONSOLE_READER: &[u32] =
    &[abi::IOCTL_PRIVCMD_HYPERCALL, abi::IOCTL_EVTCHN_RESET];

/// The requests to these devices that a backend makes once it serves: event channels bound, grants mapped and copied.
pub const IOCTLS_OF_A_BACKEND: &[u32] = &[
    abi::IOCTL_EVTCHN_BIND_INTERDOMAIN,
    abi::IOCTL_EVTCHN_UNBIND,
    abi::IOCTL_EVTCHN_NOTIFY,
    abi::IOCTL_EVTCHN_RESET,
    abi::IOCTL_GNTDEV_MAP_GRANT_REF,
    abi::IOCTL_GNTDEV_UNMAP_GRANT_REF,
    abi::IOCTL_GNTDEV_GRANT_COPY,
];
