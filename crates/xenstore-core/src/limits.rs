//! Every bound of the store, named in one place.
//!
//! Three kinds: what the wire protocol fixes (`io/xs_wire.h`, `docs/misc/xenstore.txt`), what an
//! administrator may set (the quotas, in [`crate::quota`]), and what this implementation bounds so
//! that no peer can make it grow (the rest of this file).

/// Longest payload of any message, in bytes, in both directions (`XENSTORE_PAYLOAD_MAX`).
/// A longer one ends the connection.
pub const PAYLOAD_MAX: usize = 4096;
/// Size of a message header in bytes: four 32-bit words in the peer's own byte order.
pub const HEADER_SIZE: usize = 16;
/// Bytes that a ring takes each way (`XENSTORE_RING_SIZE`).
pub const RING_BYTES: usize = 1024;
/// Longest absolute path in bytes (`XENSTORE_ABS_PATH_MAX`); longer ones are refused with EINVAL.
pub const ABS_PATH_MAX: usize = 3072;
/// Longest relative path in bytes (`XENSTORE_REL_PATH_MAX`); longer ones are refused with EINVAL.
pub const REL_PATH_MAX: usize = 2048;
/// First domid that is no real domain (`DOMID_FIRST_RESERVED`, `xen.h`).
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
/// `DOMID_SELF` (`xen.h`): the caller's own domain.
pub const DOMID_SELF: u16 = 0x7ff0;
/// `DOMID_ANY` (`xen.h`): in a permission entry, every domain.
pub const DOMID_ANY: u16 = 0x7ff5;

/// Longest time, in microseconds, that a transaction whose turn it is may delay others.
pub const HOLD_MAX_US: u64 = 10_000;
/// Microseconds of a turn that cost its holder as much as one simple request.
pub const HOLD_COST_US: u64 = 4;
/// Weight of a domain that was given none; see [`crate::server::Server::weight`].
pub const WEIGHT_DEFAULT: u32 = 256;
/// Largest weight of a domain.
pub const WEIGHT_MAX: u32 = 65_536;
/// Microseconds for which a guest takes no turns after it has let one last its full time.
pub const TURN_PAUSE_US: u64 = 1_000_000;
/// A guest's transaction with more requests than this takes no turn: bringing it up to date is work.
pub const TURN_LOG_MAX: usize = 256;
/// Bytes that the snapshots of guests' open transactions may keep alive of what has been replaced since: then the
/// oldest is brought up to date, if it is also older than [`HOLD_MAX_US`].
pub const SNAPSHOT_BYTES: u64 = 2 * 1024 * 1024;
/// Most bytes that they may keep alive, all of them together, at the end of a round: then the oldest is brought up to
/// date whatever its age, or given up where there were too many for that.
pub const SNAPSHOT_BYTES_MAX: u64 = 8 * SNAPSHOT_BYTES;
/// Requests of such transactions that are run again in one round; the last one's in full.
pub const SNAPSHOT_WORK_MAX: usize = 256;
/// Microseconds for which a path on which a transaction was refused counts as contested.
pub const CONTESTED_US: u64 = 1_000_000;
/// Most paths remembered as contested at any time; of the domain with most of them the oldest is forgotten.
pub const CONTESTED_MAX: usize = 256;
/// The most that work which is no request's own may cost at one time, in simple requests; the rest of it comes in the
/// next round.
pub const SLICE_COST: u32 = 1024;
/// Nodes of a removed subtree that are taken off their owners' accounts at once; those of a larger one are in slices.
pub const DISOWN_MAX: usize = 2048;
/// The most that it may cost to run a guest's transaction again, in simple requests, for each node that it may access
/// (the quota `transaction-nodes`).
pub const COST_PER_NODE: u32 = 2;
/// Most requests of one connection that may wait at the same time. While so many wait, no further
/// request of that connection is taken, so this is more than one that carries many users' has.
pub const DELAYED_MAX: usize = 1024;

/// A connection with this many bytes of unread replies and events is not asked for further
/// requests until it has read some.
pub const UNREAD_SOFT_BYTES: usize = 64 * 1024;
/// A connection with this many bytes of unread replies and events is no longer served.
pub const UNREAD_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Default of the watch-event timeout (`-w watch-event`), in microseconds: a guest that leaves an
/// event unread for so long is no longer served.
pub const WATCH_EVENT_TIMEOUT_US: u64 = 20_000_000;

/// Bytes that a watch counts for the quota `memory` beside its path and token: its entries in the index, in the
/// list of all and in its connection's.
pub const WATCH_WEIGHT: i64 = 384;
/// Bytes that a node counts for the quota `memory` beside its name, value, permissions and the names of its
/// children: its entry in the list of children, a list of its own, what the allocator adds.
pub const NODE_WEIGHT: i64 = 160;
/// Bytes that an open transaction counts before it has asked for anything.
pub const TRANSACTION_WEIGHT: i64 = 512;
/// Bytes that a request in a transaction's log counts beside its path and value.
pub const LOGGED_WEIGHT: i64 = 224;
/// Bytes that a request which waits for a turn counts beside its payload and path.
pub const DELAYED_WEIGHT: i64 = 192;
/// Bytes that an event which is not sent yet counts beside its path and token, header included.
pub const EVENT_WEIGHT: usize = HEADER_SIZE + 80;

/// At least this many microseconds between two log lines on the same quota of the same domain.
pub const REFUSAL_LOG_US: u64 = 10_000_000;
/// Most notices kept for the daemon to log; when it is full the newest are counted, not kept.
pub const NOTICES_MAX: usize = 1024;
