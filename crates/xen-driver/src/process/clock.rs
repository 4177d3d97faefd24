//! The time, for who asks often.

use std::time::Duration;

/// Most that a coarse clock is behind.
pub(super) const COARSE: Duration = Duration::from_millis(10);

/// The time, for who asks often: this clock takes no system call, whatever the domain's source of time is.
pub(super) fn coarse_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    time.try_into().unwrap_or_default()
}
