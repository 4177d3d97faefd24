//! The platform's part of the suite: event channels, grants and the life of domains, as the traits
//! of `xen` promise them, on any provider.
//!
//! A case takes two domains and returns `Ok`, or one line with the expected and the actual result.
//! On real Xen both may be domain 0: a domain may bind to itself and map its own grants.
//!
//! | module | subject |
//! |---|---|
//! | [`evtchn`] | binding, notifying, masking, closing |
//! | [`grants`] | offering, mapping, copying, ending |
//! | [`life`] | domains that exist, start, shut down and die; control |

mod case;
pub mod evtchn;
pub mod grants;
pub mod life;

pub use case::{CaseResult, Party, PartyCase};

/// Returns all cases of event channels and of grants, by name.
#[must_use]
pub fn cases() -> Vec<(&'static str, PartyCase)> {
    [evtchn::CASES, grants::CASES].concat()
}
