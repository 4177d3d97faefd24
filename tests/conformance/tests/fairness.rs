//! What guests do to domain 0's response times.

use conformance::{Daemon, Kind, Peer};
use std::time::{Duration, Instant};

/// Writes of domain 0 that one figure is made of.
const WRITES: usize = 4000;
/// How often both figures are taken. The best of each counts: the machine has other things to do, too, and what the
/// guests do to domain 0 they would do in every round.
const ROUNDS: usize = 5;

/// The time below which 99 of 100 writes of domain 0 are answered.
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

/// 100 guests leave 10 transactions open each, all of which have read what domain 0 writes.
#[test]
fn ours_open_transactions_of_guests_do_not_move_domain_0s_p99() {
    let Some(daemon) = Daemon::start(Kind::Ours) else { return };
    let mut dom0 = daemon.connect();
    dom0.expect_ok("WRITE", "/shared|0");
    dom0.expect_ok("SET_PERMS", "/shared|r0|");
    let mut guests: Vec<Peer> = (1..=100).map(|domid| daemon.introduce(&mut dom0, domid)).collect();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(p99(&mut dom0));
        let open: Vec<(usize, u32)> =
            (0..guests.len() * 10).map(|at| (at / 10, guests[at / 10].start())).collect();
        for (guest, tx) in &open {
            guests[*guest].ask_in(*tx, "READ", "/shared|");
        }
        with.push(p99(&mut dom0));
        for (guest, tx) in open {
            guests[guest].ask_in(tx, "TRANSACTION_END", "F|");
        }
    }
    let best = |times: Vec<Duration>| times.into_iter().min().unwrap_or_default();
    let (without, with) = (best(without), best(with));
    assert!(with < without * 3 / 2, "p99 {with:?} with open transactions, {without:?} without");
}
