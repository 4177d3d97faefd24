//! The daemon on a real hosted host: guests write and read their consoles, print into their FIFOs, the
//! daemon is killed, its files are moved, its disk is full. Tests of advisories have the advisory's name.
//!
//! | module | contents |
//! |---|---|
//! | `scene` | the host with a daemon, and the part of a guest |
//! | `served` | consoles with rings and terminals |
//! | `further` | further consoles, and the part of a guest that has some |
//! | `channels` | channels |
//! | `clients` | clients of the daemon's socket |
//! | `printed` | the FIFOs that guests print into |
//! | `repeats` | comparing a log with what was printed, over kills |

mod channels;
mod clients;
mod further;
mod printed;
mod repeats;
mod scene;
mod served;

/// Plays the guest, where the environment says so; not a test of its own.
#[test]
fn part() {
    testhost::play(&[("guest", scene::guest), ("consoles", further::guest)]);
}
