//! Xen's services as types and traits: the vocabulary of everything above a platform.
//!
//! The promise: this crate names no provider, does no I/O of its own, and is the only owner of
//! access to memory that another domain can change while it is read. A provider (real Xen, a
//! hosted platform, a test bed) implements the traits; everything else takes them as objects.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | [`DomId`], [`GrantRef`], [`Port`], [`Gfn`], [`PageAccess`](types::PageAccess) |
//! | [`error`] | [`Error`]: what the hypervisor or its drivers answered |
//! | `status` | [`GrantStatus`](gnttab::GrantStatus): what a grant operation ended with |
//! | [`evtchn`] | [`EventChannels`](evtchn::EventChannels): notifications between domains |
//! | [`gnttab`] | [`GrantMap`](gnttab::GrantMap): reaching pages that a domain has granted; [`GrantOffer`](gnttab::GrantOffer): granting them |
//! | [`domwatch`] | [`DomainWatch`](domwatch::DomainWatch): which domains came, shut down, died |
//! | [`foreignmem`] | [`ForeignMemory`](foreignmem::ForeignMemory): pages that nobody granted |
//! | [`domctl`] | [`DomainControl`](domctl::DomainControl): pausing, ending, bounding domains |
//! | [`conring`] | [`HypervisorConsole`](conring::HypervisorConsole): what Xen itself has printed |
//! | [`shared`] | [`SharedPage`](shared::SharedPage): copies in and out of one shared page |

pub mod conring;
pub mod domctl;
pub mod domwatch;
pub mod error;
pub mod evtchn;
pub mod foreignmem;
pub mod gnttab;
pub mod shared;
mod status;
pub mod types;

pub use error::Error;
pub use types::{DomId, Gfn, GrantRef, Port};

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
