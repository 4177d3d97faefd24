//! Roles that this program plays where a test, or the broker for it, has started it.

use crate::support::{self, actor};
use crate::{faults, host, platform};

/// Plays the role that the environment names; not a test of its own.
#[test]
fn role() {
    let Some(role) = support::role() else { return };
    let status = match role.as_str() {
        "store" => {
            let _ = support::play_store();
            1
        }
        "puppet" => actor::play(),
        "name-reader" => host::read_name(),
        "reboot" => 0x41,
        "frontend" => faults::play_frontend(),
        "backend" => faults::play_backend(),
        other => {
            match other {
                "lender" => platform::lend(),
                "borrower" => platform::borrow(),
                "mapper" => platform::map_without_calls(),
                "sleeper" => rustix::event::pause(),
                _ => panic!("no role {other:?}"),
            }
            0
        }
    };
    std::process::exit(status);
}
