//! The settings of a store.

use crate::id::DomId;
use crate::limits::{SLICE_COST, WATCH_EVENT_TIMEOUT_US};

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain that the store itself runs in and that socket clients speak for.
    pub store_domain: DomId,
    /// The privileged domain; usually the same.
    pub priv_domain: DomId,
    /// Microseconds a guest may leave an event unread; 0 for ever.
    pub watch_event_timeout_us: u64,
    /// Nodes of a dead domain stay and become the privileged domain's (`--keep-orphans`).
    pub orphans: Orphans,
    /// The secret under which digests of what transactions have seen are taken. Nobody outside may know it.
    pub secret: [u64; 2],
    /// The most that work which is no request's own may cost at one time, in simple requests; at least 1.
    pub slice_cost: u32,
}

/// The fate of nodes of a domain that died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphans {
    /// They are removed.
    Remove,
    /// They are given to the privileged domain (a security risk, as the option says).
    Keep,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store_domain: DomId(0),
            priv_domain: DomId(0),
            watch_event_timeout_us: WATCH_EVENT_TIMEOUT_US,
            orphans: Orphans::Remove,
            secret: [0; 2],
            slice_cost: SLICE_COST,
        }
    }
}
