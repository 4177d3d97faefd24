//! Every bound of the platform, by name.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's limit of descriptors to the system's maximum, as each port takes
/// [`PORT_DESCRIPTORS`] and a user's session starts programs with 1024. A program that uses
/// `select` must not call it. Returns the limit.
pub fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Refused where a sandbox forbids it; then the limit stays lower.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Ports that a domain can have at most, port 0 included, which is never used (the 2-level ABI of
/// event channels on 64-bit, `EVTCHN_2L_NR_CHANNELS`).
pub const PORTS_MAX: u32 = 4096;
/// Ports of domain 0, as with FIFO event channels (`EVTCHN_FIFO_NR_CHANNELS`).
pub const DOM0_PORTS_MAX: u32 = 131_072;
/// Descriptors of a process that holds them for one port.
pub const PORT_DESCRIPTORS: u32 = 2;
/// Pages that an arena grants at most.
pub const ARENA_PAGES: u32 = 1024;
/// Arenas of one granting domain at most, and of one process of domain 0 for one peer; the broker holds one or two
/// descriptors for each. Eight devices with four queues each, their backends in domains of their own, take two arenas
/// for each backend, and one for domain 0.
pub const ARENAS_MAX: usize = 32;
/// Arenas of domain 0 at most: four for every other domain, as they are charged to no account.
pub const DOM0_ARENAS_MAX: usize = 4096;
/// Arenas of others that a domain's process has looked up at most. Each raises its domain's limit
/// of memory by its size, so there is a limit, also where their granters come and go. A driver
/// domain has one or two for each guest.
pub const MAPPED_ARENAS_MAX: usize = 256;
/// Processes of one domain that can map from the same arena at the same time.
pub const HOLDERS_MAX: u32 = 32;
/// Bytes of a request or reply.
pub const PACKET_MAX: usize = 4096;
/// Bytes of a request to create a domain.
pub const CREATE_MAX: usize = 64 * 1024;
/// Descriptors that one message carries.
pub const PACKET_FDS: usize = 4;
/// Bytes that may wait in the socket of a peer that does not read; the kernel counts its own
/// bookkeeping too, so this is some 64 messages.
pub const UNREAD_MAX: usize = 64 * 1024;
/// Requests that a guest may make at once: all its ports, twice.
pub const REQUESTS_BURST: u32 = 8192;
/// Requests a second that are added to a guest's burst. Each takes some 10 us of a processor that
/// is not charged to the guest, so they have to be fewer than 1 in 100 of what a busy neighbour
/// does.
pub const REQUESTS_PER_S: u32 = 500;
/// Requests that the broker takes from one peer before it looks at the others.
pub const REQUESTS_A_TURN: u32 = 16;
/// The longest time that a request may wait for the broker's answer, in seconds.
pub const ANSWER_WITHIN_S: u64 = 30;
/// Connections of domain 0's processes.
pub const PEERS_MAX: usize = 4096;
/// Connections of a guest's processes besides that of its first.
pub const PROCESS_CONNECTIONS_MAX: usize = 4;
/// Pages of the memory that a domain's successor gets after it: the requests in flight of some 60 devices
/// with four rings of 16 pages each, and of many more with smaller ones.
pub const KEEPSAKE_PAGES: u32 = 4096;
/// Default memory of a domain, in KiB.
pub const MEMORY_DEFAULT_KIB: u64 = 64 * 1024;
/// The least memory that a domain can have, in KiB.
pub const MEMORY_MIN_KIB: u64 = 8 * 1024;
/// Default number of processes and threads of a domain.
pub const TASKS_DEFAULT: u32 = 256;
/// Domains that [`DomainControl::list`](xen::domctl::DomainControl::list) gets with one request.
pub const LISTED_AT_ONCE: usize = 32;
/// Changes of domains in one answer.
pub const CHANGES_AT_ONCE: usize = 64;
/// Signals with a value that may wait for a domain's processes.
pub const SIGNALS_MAX: u64 = 256;
/// Columns of a domain's terminal until its program is told of others: those of a VT100.
pub const TERMINAL_COLUMNS: u16 = 80;
/// Rows of a domain's terminal until its program is told of others.
pub const TERMINAL_ROWS: u16 = 24;
/// Bytes of a program that is a script, its end included.
pub const SCRIPT_MAX: usize = 1 << 20;
