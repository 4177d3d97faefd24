//! The limits of the store, all named in one place.
//!
//! There are three kinds: limits of the wire protocol (`io/xs_wire.h`, `docs/misc/xenstore.txt`),
//! limits that an administrator may set (the quotas, in [`crate::quota`]), and limits of this
//! implementation that keep a peer from making it grow (the rest of this file).

/// The longest payload of any message, in bytes, in both directions (`XENSTORE_PAYLOAD_MAX`). A
/// longer one ends the connection.
pub const PAYLOAD_MAX: usize = 4096;
/// The size of a message header in bytes: four 32-bit words in the peer's own byte order.
pub const HEADER_SIZE: usize = 16;
/// The bytes that a ring holds in each direction (`XENSTORE_RING_SIZE`).
pub const RING_BYTES: usize = 1024;
/// The longest absolute path in bytes (`XENSTORE_ABS_PATH_MAX`). Longer ones are refused with
/// EINVAL.
pub const ABS_PATH_MAX: usize = 3072;
/// The longest relative path in bytes (`XENSTORE_REL_PATH_MAX`). Longer ones are refused with
/// EINVAL.
pub const REL_PATH_MAX: usize = 2048;
/// The first domid that is no real domain (`DOMID_FIRST_RESERVED`, `xen.h`).
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
/// `DOMID_SELF` (`xen.h`): the caller's own domain.
pub const DOMID_SELF: u16 = 0x7ff0;
/// `DOMID_ANY` (`xen.h`): in a permission entry, every domain.
pub const DOMID_ANY: u16 = 0x7ff5;

/// The longest time, in microseconds, for which a transaction with the turn may delay others.
pub const HOLD_MAX_US: u64 = 10_000;
/// The microseconds of a turn that cost its holder as much as one simple request.
pub const HOLD_COST_US: u64 = 4;
/// The weight of a domain without a configured one; see [`crate::server::Server::weight`].
pub const WEIGHT_DEFAULT: u32 = 256;
/// The largest weight of a domain.
pub const WEIGHT_MAX: u32 = 65_536;
/// The microseconds for which a guest takes no turn after one of its turns has lasted its full
/// time.
pub const TURN_PAUSE_US: u64 = 1_000_000;
/// The most requests of a guest's transaction that may take a turn: bringing a longer one up to
/// date costs too much.
pub const TURN_LOG_MAX: usize = 256;
/// The bytes of replaced state that the snapshots of guests' open transactions may keep alive.
/// Above that the oldest is brought up to date, if it is also older than [`HOLD_MAX_US`].
pub const SNAPSHOT_BYTES: u64 = 2 * 1024 * 1024;
/// The most bytes that all of these snapshots together may keep alive at the end of a round. Above
/// that the oldest is brought up to date whatever its age, or given up if there were too many for
/// that.
pub const SNAPSHOT_BYTES_MAX: u64 = 8 * SNAPSHOT_BYTES;
/// The number of requests of such transactions that are run again in one round. The log of the last
/// transaction is always run to its end.
pub const SNAPSHOT_WORK_MAX: usize = 256;
/// The microseconds for which a path counts as contested after a transaction was refused on it.
pub const CONTESTED_US: u64 = 1_000_000;
/// The most paths remembered as contested at any time. Above that, the oldest path of the domain
/// with the most of them is forgotten.
pub const CONTESTED_MAX: usize = 256;
/// The most that background work may cost at one time, in simple requests. The rest of it is done
/// in the next round.
pub const SLICE_COST: u32 = 1024;
/// The most nodes of a removed subtree that are taken off their owners' accounts at once. The nodes
/// of a larger one are taken off in slices.
pub const DISOWN_MAX: usize = 2048;
/// The most that running a guest's transaction again may cost, in simple requests, for each node
/// that it may access (the quota `transaction-nodes`).
pub const COST_PER_NODE: u32 = 2;
/// The most requests of one connection that may wait at the same time. While so many wait, no
/// further request of the connection is taken, so the limit is higher than the number that a
/// connection of many users has.
pub const DELAYED_MAX: usize = 1024;

/// The bytes of unread replies and events at which a connection's further requests are not read
/// until it has read some.
pub const UNREAD_SOFT_BYTES: usize = 64 * 1024;
/// The bytes of unread replies and events at which a connection is no longer served.
pub const UNREAD_MAX_BYTES: usize = 8 * 1024 * 1024;
/// The default of the watch-event timeout (`-w watch-event`), in microseconds: a guest that leaves
/// an event unread for so long is no longer served.
pub const WATCH_EVENT_TIMEOUT_US: u64 = 20_000_000;

/// The bytes of a watch, besides its path and token, for the quota `memory`: its entries in the
/// index, in the list of all watches and in its connection's list.
pub const WATCH_WEIGHT: i64 = 384;
/// The bytes of a node, besides its name, value, permissions and the names of its children, for the
/// quota `memory`: its entry in the list of children, its own list, the allocator's overhead.
pub const NODE_WEIGHT: i64 = 160;
/// The bytes of an open transaction without any request.
pub const TRANSACTION_WEIGHT: i64 = 512;
/// The bytes of a request in a transaction's log, besides its path and value.
pub const LOGGED_WEIGHT: i64 = 224;
/// The bytes of a request that waits for a turn, besides its payload and path.
pub const DELAYED_WEIGHT: i64 = 192;
/// The bytes of an unsent event besides its path and token, header included.
pub const EVENT_WEIGHT: usize = HEADER_SIZE + 80;

/// The shortest time between two log lines on the same quota of the same domain, in microseconds.
pub const REFUSAL_LOG_US: u64 = 10_000_000;
/// The most notices kept for the daemon to log. When the list is full the newest are counted, not
/// kept.
pub const NOTICES_MAX: usize = 1024;
