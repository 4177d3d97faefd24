//! The settings of a store.

use crate::id::DomId;
use crate::limits::{SLICE_COST, WATCH_EVENT_TIMEOUT_US};

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain in which the store runs, and to which its socket clients belong.
    pub store_domain: DomId,
    /// The privileged domain, usually the same one.
    pub priv_domain: DomId,
    /// The microseconds for which a guest may leave an event unread; 0 for no limit.
    pub watch_event_timeout_us: u64,
    /// The treatment of a dead domain's nodes: with `--keep-orphans` they stay and become the
    /// privileged domain's.
    pub orphans: Orphans,
    /// The secret of the digests of transactions' answers. It must stay unknown outside.
    pub secret: [u64; 2],
    /// The most that background work may cost at one time, in simple requests; at least 1.
    pub slice_cost: u32,
}

/// The treatment of the nodes of a dead domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphans {
    /// The nodes are removed.
    Remove,
    /// The nodes are given to the privileged domain (a security risk, as the option says).
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
