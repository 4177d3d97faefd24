//! Memory that the broker shares with its peers: the counters of each peer, and the identities of
//! all domains.

use std::os::fd::OwnedFd;
use xen::{DomId, Port};

/// Bytes of the table of identities: 8 for each number that a domain can have.
pub(crate) const IDENTITIES_LEN: usize = DomId::FIRST_RESERVED.0 as usize * 8;

/// The number of words before those of the ports, in the memory of a peer's counters.
const COUNTERS_HEAD: usize = 8;

/// The length of a peer's counters for `ports_max` ports, in bytes.
pub(crate) fn counters_len(ports_max: u32) -> usize {
    (COUNTERS_HEAD + ports_max as usize) * 8
}

/// A counter of a peer. The broker can read it at any moment.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    /// Pages granted now.
    Granted,
    /// Pages mapped now.
    Mapped,
    /// Calls that the library refused this process without asking the broker.
    Refused,
    /// Messages that the broker has sent this peer without a request (written by the broker).
    Told,
    /// Notifications received at this port.
    Received(Port),
}

impl Counter {
    /// Returns the offset of the counter in bytes.
    pub(crate) fn offset(self) -> usize {
        8 * match self {
            Self::Granted => 0,
            Self::Mapped => 1,
            Self::Told => 2,
            Self::Refused => 3,
            Self::Received(port) => COUNTERS_HEAD + port.0 as usize,
        }
    }
}

/// Reads a counter of a peer. The peer may write any value there; the result is only a number.
pub(crate) fn read_counter(counters: &OwnedFd, counter: Counter) -> u64 {
    let mut word = [0; 8];
    match rustix::io::pread(counters, &mut word, counter.offset() as u64) {
        Ok(8) => u64::from_ne_bytes(word),
        _ => 0,
    }
}
