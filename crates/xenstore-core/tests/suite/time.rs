//! The processor time of this thread. The core does all its work in the thread that calls it, so
//! this is the time of a call, whatever else the machine does meanwhile.

#![allow(unreachable_pub, missing_docs, reason = "each test program has it as a module")]

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A point in time, in terms of the processor time that the thread has used until then.
#[derive(Clone, Copy)]
pub struct Moment(Duration);

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Self(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
    }

    /// Returns the processor time that the thread has used since.
    pub fn elapsed(self) -> Duration {
        Self::now().0 - self.0
    }
}
