//! A domain as a process: its configuration, its sandbox, its limits.

pub(crate) mod cgroup;
mod config;
mod delegation;
pub(crate) mod devices;
pub(crate) mod filter;
mod missing_feature;
mod root;
pub(crate) mod sandbox;
mod script;
mod terminal;
pub(crate) mod user;

pub use config::{ConsoleTerminal, Devices, DomainConfig, Files, Lifetime, PROGRAMS};
pub use filter::system_calls;
pub(crate) use missing_feature::MISSING_FEATURES;
pub use missing_feature::MissingFeature;

use xen::domwatch::ShutdownReason;

/// A program that ends with this exit status plus a shutdown reason's number ends its domain for that
/// reason. 0 is power-off; any other status, and any signal, is a crash.
pub const SHUTDOWN_STATUS: u8 = 0x40;

/// Returns the reason of a domain's end, from the exit status of its first process.
pub(crate) fn reason(exit_status: Option<i32>) -> ShutdownReason {
    match exit_status.map(u8::try_from) {
        Some(Ok(0)) => ShutdownReason::Poweroff,
        Some(Ok(status)) => match status.checked_sub(SHUTDOWN_STATUS) {
            Some(code) if code <= ShutdownReason::SoftReset.code() => {
                ShutdownReason::from_code(code)
            }
            _ => ShutdownReason::Crash,
        },
        _ => ShutdownReason::Crash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_is_a_reason() {
        assert_eq!(reason(Some(0)), ShutdownReason::Poweroff);
        assert_eq!(reason(Some(1)), ShutdownReason::Crash);
        assert_eq!(reason(None), ShutdownReason::Crash);
        assert_eq!(reason(Some(0x41)), ShutdownReason::Reboot);
        assert_eq!(reason(Some(0x45)), ShutdownReason::SoftReset);
        assert_eq!(reason(Some(0x46)), ShutdownReason::Crash);
    }
}
