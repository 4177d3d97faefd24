//! The two classes of callers: domain 0's, and the guests'.

use crate::perms::Caller;

/// A class of callers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallerClass {
    Privileged,
    Guest,
}

impl CallerClass {
    pub(super) fn of(caller: &Caller) -> Self {
        if caller.privileged { Self::Privileged } else { Self::Guest }
    }
}
