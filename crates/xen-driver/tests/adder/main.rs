//! A whole device type: wire, backend, frontend, both programs, and the backend killed at work.

mod back;
mod front;
mod wire;

use back::AdderBackend;
use front::AdderFrontend;
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::time::Duration;
use xen::DomId;
use xen_driver::backend::{BackendServer, Buses, Rings};
use xen_driver::process::{BackendProgram, ProgramStart, guest::GuestConnections};
use xenbus::toolstack::{self, NewDevice};
use xenbus::{Bus, Id, Side};

/// Plays the backend or the guest, where the environment says so; not a test of its own.
#[test]
fn part() {
    testhost::play(&[("backend", backend), ("guest", guest)]);
}

fn backend() {
    let confine =
        |_: &[u32]| confine::capabilities::keep(CapabilitySet::empty()).map_err(|e| e.to_string());
    let program =
        BackendProgram { name: "adder", unfiltered: "ADDER_UNFILTERED", kernel: None, confine };
    let served = program.serve(&[wire::KIND.into()], None, |start| {
        let options = start.rings();
        let ProgramStart { mut store, domid, kinds, platform, .. } = start;
        let evtchn = platform.evtchn.clone();
        let make = move |_| AdderBackend::new(Rings::new(platform.clone(), options.clone()));
        let buses = Buses::start(&mut store, domid, kinds, make)?;
        BackendServer::start(store, evtchn, buses)
    });
    panic!("{}", served.unwrap_err());
}

/// Asks for sums without end, and tells of each thousand. Each is answered once, and before many later ones.
fn guest() {
    let mut open = GuestConnections::open().unwrap();
    let (store, platform) = (&mut open.store, open.platform.clone());
    let make = move |_| AdderFrontend::new(platform.clone());
    let mut bus = Bus::start(store, Side::Frontend, open.domid, wire::KIND, make).unwrap();
    let (mut guest, mut count, mut open) = (open.guest(), 0_u32, BTreeSet::new());
    let mut next = 0_u32;
    loop {
        guest.turn(&mut [&mut bus], Duration::from_secs(1), &[]).unwrap();
        for (_, front) in bus.drivers() {
            for ((a, b), sum) in front.sums.drain(..) {
                assert_eq!(sum, u64::from(a) + u64::from(b));
                assert!(open.remove(&a), "{a} was answered before");
                count += 1;
                if count % 1000 == 0 {
                    println!("> {count} sums");
                }
            }
            while front.wanted.len() < 64 {
                front.wanted.push_back((next, u32::MAX - next));
                open.insert(next);
                next += 1;
            }
            assert!(open.first().is_none_or(|first| next - first < 1000), "{open:?} are lost");
        }
    }
}

#[test]
fn a_backend_is_killed_at_work() {
    let Some(mut host) = testhost::Host::start("a_backend_is_killed_at_work") else { return };
    let mut backend = host.program("backend", testhost::player("part", "backend"));
    let guest = testhost::Guest::create(&mut host, "part", |_| {});
    let id = Id { frontend: guest.domid, devid: 0 };
    toolstack::add(&mut host.tool, &NewDevice::new(wire::KIND, id, DomId::DOM0)).unwrap();
    for thousands in 1..=10 {
        guest.heard(&format!("{thousands}000 sums"));
        backend.kill_and_restart();
    }
    guest.heard("11000 sums");
    let log = host.log("backend.log");
    let again: Vec<_> = log.lines().filter(|line| line.contains("done again")).collect();
    assert!(again.len() > 10 && again.iter().any(|line| !line.contains(" 0 ")), "{log}");
}
