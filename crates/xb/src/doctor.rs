//! The diagnosis of devices that do not work: what each is waiting for, and the command that helps.
//!
//! Facts are gathered once, each with the path that it was read from. A pure function then finds the
//! cause: the first in a fixed order that the facts show. A cause is data; a table gives its sentence
//! and its remedy. What a platform does not tell is listed as unknown.
//!
//! | module | what it is |
//! |---|---|
//! | `facts` | the facts about a host, a guest and a device |
//! | `read` | gathers them from the store, the hypervisor, processes and files |
//! | `judge` | finds causes in facts |
//! | `cause` | [`FaultCause`]: the causes, with their sentences and remedies |
//! | `subject` | [`FaultSubject`]: the device, guest or host that a cause is about |
//! | `rounds` | `DoctorRounds`: the domains of a host, some at a time |
//! | `examine` | [`examine`]: all of it for a host; [`reason`] for what is waited for |

pub mod cause;
mod examine;
pub mod facts;
pub mod judge;
mod read;
mod rounds;
pub mod subject;

pub use cause::FaultCause;
pub use examine::{
    Diagnosis, examine, examine_host, examine_processes, guest_reason, host_reason, reason,
};
pub use judge::Finding;
pub(crate) use read::name_of;
pub(crate) use rounds::DoctorRounds;
pub use subject::{FaultSubject, Remedy};
