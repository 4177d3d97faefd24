//! What Xen offers, as types and traits: the vocabulary that everything above a platform is written in.
//!
//! The promise: this crate names no provider, does no I/O of its own, and is the only owner of
//! access to memory that another domain can change while it is read. A provider (real Xen, a
//! hosted platform, a test bed) implements the traits; everything else takes them as objects.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | [`DomId`], [`GrantRef`], [`Port`], [`Gfn`] |
//! | [`error`] | [`Error`]: what the hypervisor or its drivers answered |
//! | [`evtchn`] | [`EventChannels`](evtchn::EventChannels): notifications between domains |
//! | [`gnttab`] | [`GrantMap`](gnttab::GrantMap): mapping a page that a domain has granted |
//! | [`domwatch`] | [`DomainWatch`](domwatch::DomainWatch): which domains exist, shut down, died |
//! | [`shared`] | [`SharedPage`](shared::SharedPage): copies in and out of one shared page |

pub mod domwatch;
pub mod error;
pub mod evtchn;
pub mod gnttab;
pub mod shared;
pub mod types;

pub use error::Error;
pub use types::{DomId, Gfn, GrantRef, Port};
