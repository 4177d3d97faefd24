//! Response times of domain 0 beside hostile guests. This is a program of its own, as tests beside
//! it would affect the times.

use conformance::{Daemon, DaemonKind, Peer};
use std::time::{Duration, Instant};

/// The number of writes of domain 0 for one figure.
const WRITES: usize = 4000;
/// The number of rounds of both figures. The best of each counts: other work of the machine affects
/// some rounds, but the guests would affect every round.
const ROUNDS: usize = 5;
/// The most rounds, if one figure had a quiet moment of the machine and the other has had none yet.
const ROUNDS_MAX: usize = 30;

/// Returns the time within which 99 of 100 writes of domain 0 are answered.
fn p99(dom0: &mut Peer) -> Duration {
    let mut times: Vec<Duration> = (0..WRITES)
        .map(|at| {
            let start = Instant::now();
            dom0.expect_ok("WRITE", format!("/shared|{at}"));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[WRITES * 99 / 100]
}

/// 100 guests leave 10 transactions open each, all of which have read the node that domain 0
/// writes.
#[test]
fn ours_open_transactions_of_guests_do_not_move_domain_0s_p99() {
    let Some(daemon) = Daemon::start(DaemonKind::Ours) else { return };
    let mut dom0 = daemon.connect();
    dom0.expect_ok("WRITE", "/shared|0");
    dom0.expect_ok("SET_PERMS", "/shared|r0|");
    let mut guests: Vec<Peer> = (1..=100).map(|domid| daemon.introduce(&mut dom0, domid)).collect();
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    let unmoved = |with: Duration, without: Duration| with < without * 3 / 2;
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS && unmoved(with, without) {
            break;
        }
        without = without.min(p99(&mut dom0));
        let open: Vec<(usize, u32)> =
            (0..guests.len() * 10).map(|at| (at / 10, guests[at / 10].start())).collect();
        for (guest, tx) in &open {
            guests[*guest].ask_in(*tx, "READ", "/shared|");
        }
        with = with.min(p99(&mut dom0));
        for (guest, tx) in open {
            guests[guest].ask_in(tx, "TRANSACTION_END", "F|");
        }
    }
    assert!(unmoved(with, without), "p99 {with:?} with open transactions, {without:?} without");
}
