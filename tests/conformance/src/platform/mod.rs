//! The platform's part of the suite: event channels, grants and the life of domains, as the traits
//! of `xen` promise them, on any provider.
//!
//! A case takes two domains and answers `Ok`, or one line that says what was expected and what came.
//! On real Xen both may be domain 0: a domain may bind to itself and map what it has granted itself.
//!
//! | module | what it is about |
//! |---|---|
//! | [`evtchn`] | binding, notifying, masking, closing |
//! | [`grants`] | offering, mapping, copying, ending |
//! | [`life`] | who exists, who came, shut down, died; control |

mod case;
pub mod evtchn;
pub mod grants;
pub mod life;

pub use case::{Case, Party, Verdict};

/// All cases of event channels and of grants, by name.
#[must_use]
pub fn cases() -> Vec<(&'static str, Case)> {
    [evtchn::CASES, grants::CASES].concat()
}
