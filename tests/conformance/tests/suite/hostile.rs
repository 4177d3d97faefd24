//! Attacks of hostile guests on their rings, without Xen; `conformance-dom0` runs the same on Xen.

use conformance::hostile::{ATTACKS, attack};
use conformance::{Daemon, DaemonKind};

fn on_all(name: &str) {
    let case = ATTACKS.iter().find(|case| case.name == name).expect("an attack of this name");
    for kind in case.on {
        eprintln!("daemon `{}`", kind.name());
        let Some(mut daemon) = Daemon::start(*kind) else { continue };
        attack(&mut daemon, case);
    }
}

macro_rules! attacks {
    ($($name:ident)*) => {
        $(#[test] fn $name() { on_all(stringify!($name)); })*

        #[test]
        fn none_is_left_out() {
            let here = [$(stringify!($name)),*];
            assert!(ATTACKS.iter().all(|case| here.contains(&case.name)));
            assert!(ATTACKS.iter().all(|case| case.on.contains(&DaemonKind::Ours)));
        }
    };
}

attacks!(
    xsa_038_producer_beyond_the_ring
    xsa_038_producer_runs_backwards
    xsa_038_consumer_of_responses_out_of_range
    xsa_038_message_longer_than_allowed
    xsa_038_reset_while_a_request_is_half_read
    xsa_038_introduced_again_while_a_request_is_half_read
    xsa_038_header_that_changes_under_the_reader
    xsa_038_indices_that_change_under_the_reader
    xsa_038_events_without_end_and_without_bytes
);
