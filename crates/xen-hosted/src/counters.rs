//! Memory that the broker shares with its peers: what each of them counts, and the identities of all
//! domains.

use std::os::fd::OwnedFd;
use xen::{DomId, Port};

/// Bytes of the table of identities: 8 for each number that a domain can have.
pub(crate) const IDENTITIES_LEN: usize = DomId::FIRST_RESERVED.0 as usize * 8;

/// Words before those of the ports in the memory where a peer counts.
const COUNTERS_HEAD: usize = 8;

/// Bytes of that memory for so many ports.
pub(crate) fn counters_len(ports_max: u32) -> usize {
    (COUNTERS_HEAD + ports_max as usize) * 8
}

/// Something that a peer counts, for the broker to read at any moment.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    /// Pages granted now.
    Granted,
    /// Pages mapped now.
    Mapped,
    /// Calls that this process was refused without the broker being asked.
    Refused,
    /// Messages that the broker has sent this peer unasked (written by the broker).
    Told,
    /// Notifications received at this port.
    Received(Port),
}

impl Counter {
    /// Its offset in bytes.
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

/// The count of a peer; whatever it wrote there is a number.
pub(crate) fn read_counter(counters: &OwnedFd, counter: Counter) -> u64 {
    let mut word = [0; 8];
    match rustix::io::pread(counters, &mut word, counter.offset() as u64) {
        Ok(8) => u64::from_ne_bytes(word),
        _ => 0,
    }
}
