//! Counters of a device: what it has done, and how long requests took.

use rustix::io::Errno;
use xen_driver::backend::histogram::Histogram;

/// What one kind of request came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kind {
    /// Requests answered.
    pub requests: u64,
    /// Sectors of 512 bytes in them.
    pub sectors: u64,
    /// Segments that lay behind one another in memory and became one.
    pub merges: u64,
    /// Requests that the disk has failed.
    pub errors: u64,
    /// From taking a request off the ring to showing its answer.
    pub latency: Histogram,
}

/// What a device has done since it was connected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Reads.
    pub read: Kind,
    /// Writes.
    pub write: Kind,
    /// Flushes, and barriers without data.
    pub flush: Kind,
    /// Discards.
    pub discard: Kind,
    /// Requests refused before the disk was asked: they make no sense, or their pages cannot be reached.
    /// They are counted nowhere else.
    pub wrong: u64,
    /// Requests taken over from a process that was killed.
    pub replayed: u64,
    /// Pages that are mapped for good at the moment (persistent grants).
    pub persistent: u64,
    /// Requests that the disk has failed and nobody was told of yet, and the error of the first.
    pub(crate) failures: Option<(u64, Errno)>,
}

impl Stats {
    /// Notes that the disk has failed a request.
    pub(crate) fn fail(&mut self, errno: Errno) {
        let (count, first) = self.failures.unwrap_or((0, errno));
        self.failures = Some((count.saturating_add(1), first));
    }
}
