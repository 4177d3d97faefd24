//! A hostile domain tries what it must not be able to do: each attempt is an error, and a neighbour does
//! not notice.

mod support;

use std::time::Instant;
use support::puppet::{self, Puppet};
use support::{Host, ended, entries, introduce, playing, raw, until};
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::ShutdownReason;
use xen::evtchn::EventChannels;
use xen::gnttab::{Access, GrantOffer};
use xen::{DomId, Error, Port};
use xen_hosted::domain::Lack;
use xen_hosted::domctl::Control;
use xen_hosted::{Platform, Role};
use xenstore_core::wire::MsgType;

/// Plays what the environment says; not a test of its own.
#[test]
fn role() {
    let Some(role) = support::role() else { return };
    let status = match role.as_str() {
        "store" => {
            let _ = support::play_store();
            1
        }
        "puppet" => support::actor::play(),
        "reader" => play_reader(),
        "flooder" => play_flooder(),
        other => panic!("no role {other:?}"),
    };
    std::process::exit(status);
}

#[test]
fn grants_are_for_one_peer_and_one_access() {
    let host = Host::start();
    let mut a = Puppet::start(&host);
    let mut b = Puppet::start(&host);
    let mut c = Puppet::start(&host);
    let (of_a, of_b) = (a.domid(), b.domid());
    // A page of A for B, which B maps and C does not.
    let grant = a.ask(&format!("offer {of_b}"));
    assert_eq!(b.ask(&format!("map {of_a} {grant} rw")), "done");
    assert_eq!(c.ask(&format!("map {of_a} {grant} rw")), "GNTST_general_error");
    assert_eq!(c.ask(&format!("map {of_a} 1 ro")), "GNTST_general_error", "the store's page");
    assert_eq!(c.ask(&format!("map {of_a} 999999 ro")), "GNTST_bad_gntref");
    assert_eq!(c.ask("map 4000 8 ro"), "GNTST_bad_domain");
    assert_eq!(c.ask("map 32752 8 ro"), "GNTST_general_error", "DOMID_SELF: its own, for domain 0");
    // The next page was not granted.
    let next = grant.parse::<u32>().unwrap() + 1;
    assert_eq!(b.ask(&format!("map {of_a} {next} rw")), "GNTST_general_error");
    // The grant ends: what is mapped stays, and cannot be mapped again.
    assert_eq!(a.ask("take-back"), "done");
    assert_eq!(b.ask(&format!("write {grant}")), "done");
    assert_eq!(b.ask(&format!("unmap {grant}")), "true");
    assert_eq!(b.ask(&format!("map {of_a} {grant} rw")), "GNTST_general_error");
    let accounts = host.control().accounts(c.domid()).unwrap();
    assert_eq!(accounts.refused, 5, "refusals are counted: {accounts:?}");
}

#[test]
fn a_page_for_reading_is_not_written_by_any_means() {
    let host = Host::start();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let offered = offers.offer(guest.domid(), Access::Read).unwrap();
    offered.page().copy_in(0, b"as it was").unwrap();
    let grant = offered.grant();
    assert_eq!(guest.ask(&format!("map 0 {grant} rw")), "GNTST_general_error");
    assert_eq!(guest.ask(&format!("map 0 {grant} ro")), "done");
    assert_eq!(guest.ask(&format!("write {grant}")), "the page is mapped for reading only");
    let slot = grant.0 / xen_hosted::limits::ARENA_PAGES;
    assert_eq!(
        guest.ask(&format!("abuse 0 {slot}")),
        "map=1 mprotect=13 pwrite=1 truncate=1 grow=1 punch=1 seal=1"
    );
    let mut bytes = [0; 9];
    offered.page().copy_out(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"as it was");
}

#[test]
fn a_writable_arena_cannot_be_cut_or_sealed() {
    let host = Host::start();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let offered = offers.offer(guest.domid(), Access::ReadWrite).unwrap();
    offered.page().copy_in(0, b"as it was").unwrap();
    let slot = offered.grant().0 / xen_hosted::limits::ARENA_PAGES;
    // What it shares it may write, and empty; its peer does not fault.
    assert_eq!(
        guest.ask(&format!("abuse 0 {slot}")),
        "map=done mprotect=done pwrite=done truncate=1 grow=1 punch=done seal=1"
    );
    offered.page().copy_out(0, &mut [0; 4096]).unwrap();
    offered.page().copy_in(0, &[1; 4096]).unwrap();
}

#[test]
fn ports_of_others_are_out_of_reach() {
    let host = Host::start();
    let mut a = Puppet::start(&host);
    let mut b = Puppet::start(&host);
    let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
    let mut channels = backend.channels().unwrap();
    let of_a = a.domid();
    let port = a.ask("alloc 0");
    // For domain 0, and not for B.
    assert!(b.ask(&format!("bind {of_a} {port}")).starts_with("EINVAL"));
    assert!(b.ask(&format!("notify {port}")).starts_with("EINVAL"));
    assert!(b.ask(&format!("close {port}")).starts_with("EINVAL"));
    assert!(b.ask("bind 4000 1").starts_with("ESRCH"));
    assert!(b.ask("bind-virq").starts_with("EPERM"));
    let mine = channels.bind_interdomain(of_a, Port(port.parse().unwrap())).unwrap();
    // A binding begins with an event.
    assert_eq!(channels.wait(Some(support::WITHIN)).unwrap(), Some(mine));
    channels.unmask(mine).unwrap();
    assert_eq!(channels.pending().unwrap(), None);
    assert_eq!(a.ask(&format!("notify {port}")), "done");
    assert_eq!(channels.wait(Some(support::WITHIN)).unwrap(), Some(mine));
    // Masked: kept, as one.
    assert_eq!(a.ask(&format!("flood {port} 1000")), "done");
    assert_eq!(channels.pending().unwrap(), None);
    channels.unmask(mine).unwrap();
    assert_eq!(channels.pending().unwrap(), Some(mine));
    assert_eq!(channels.pending().unwrap(), None);
    // Closed and bound anew: the old end wakes nobody.
    assert_eq!(a.ask(&format!("close {port}")), "done");
    let state = channels.status(mine).unwrap();
    assert_eq!(state, xen::evtchn::Status::Unbound(of_a));
    assert_eq!(b.ask("control"), "9", "all are EPERM");
    assert!(host.control().accounts(b.domid()).unwrap().refused >= 12);
}

#[test]
fn bounds_hold_and_neighbours_do_not_notice() {
    let mut host = Host::start();
    host.start_store();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let mut neighbour = Puppet::start(&host);
    // Two of them are there from the start, and port 0 is none.
    assert_eq!(guest.ask("alloc-all"), "4093 ENOSPC: no free port or grant entry");
    assert_eq!(guest.ask("offer-all 0"), "1016 ENOSPC: no free port or grant entry");
    let broker_fds = format!("/proc/{}/fd", host.broker.id());
    let before = entries(std::path::Path::new(&broker_fds)).len();
    assert_eq!(guest.ask("attach 1000"), "done");
    let after = entries(std::path::Path::new(&broker_fds)).len();
    assert!(after <= before, "{before} descriptors before, {after} after");
    guest.tell("nonsense 100000");
    let begin = Instant::now();
    for _ in 0..100 {
        control.info(neighbour.domid()).unwrap();
    }
    let each = begin.elapsed() / 100;
    assert!(each.as_millis() < 100, "the broker answers others: {each:?}");
    assert_eq!(neighbour.ask("alloc 0"), "3");
    let forks = neighbour.ask("fork-all");
    let (count, error) = forks.split_once(' ').unwrap();
    assert!(count.parse::<u32>().unwrap() < 256 && error == "WouldBlock", "{forks}");
    control.destroy(neighbour.domid()).unwrap();
    until("all its processes are gone", || {
        control.info(neighbour.domid()).is_err_and(|error| error == Error::Srch)
    });
    // Memory without end is the end of the domain.
    let mut greedy = Puppet::start(&host);
    greedy.tell("memory 512");
    assert_eq!(greedy.hear(), None);
    let info = ended(&mut control, greedy.domid());
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Crash));
    assert!(host.client().is_domain_introduced(0).unwrap());
}

#[test]
fn a_domain_sees_nobody_else() {
    let mut host = Host::start();
    host.start_store();
    let mut guest = Puppet::start(&host);
    let mut other = Puppet::start(&host);
    let who = guest.ask("who");
    assert_eq!(who, "pid=1 uid=1000 capabilities=0");
    let files = guest.ask("files");
    assert!(!files.contains("proc") && !files.contains("tmp") && files.contains("usr"), "{files}");
    assert!(files.ends_with("Err(ReadOnlyFilesystem)"), "{files}");
    for path in [host.socket(), host.host().socket(Role::Control)] {
        let connected = guest.ask(&format!("connect {}", path.display()));
        assert_eq!(connected, "Err(NotFound)");
    }
    assert_eq!(guest.ask("network"), "Err(Some(38))");
    for pid in [50, host.broker.id(), std::process::id()] {
        assert_eq!(guest.ask(&format!("kill {pid}")), "Err(3)");
    }
    assert_eq!(guest.ask("blocking"), "setfl=38 fionbio=38");
    assert_eq!(guest.ask("outlive"), "Err(38)");
    assert_eq!(other.ask("alloc 0"), "3");
}

/// There is no namespace to hide others in: what names them is refused instead.
#[test]
fn without_namespaces_others_are_out_of_reach_too() {
    let mut host = Host::start_without_namespaces();
    host.start_store();
    let mut guest = Puppet::start(&host);
    assert!(guest.created.lacks.contains(&Lack::Namespaces));
    if guest.created.lacks.contains(&Lack::Landlock) {
        conformance::skip("files without namespaces", "this kernel has no Landlock");
    } else {
        let files = guest.ask("files");
        assert_eq!(files, "; Err(PermissionDenied)", "Landlock");
    }
    for path in [host.socket(), host.host().socket(Role::Control)] {
        let connected = guest.ask(&format!("connect {}", path.display()));
        assert_eq!(connected, "Err(Unsupported)", "seccomp");
    }
    assert_eq!(guest.ask("network"), "Err(Some(38))");
    assert_eq!(guest.ask("fork-all"), "0 Unsupported");
    for pid in [host.broker.id(), std::process::id()] {
        assert_eq!(guest.ask(&format!("kill {pid}")), "Err(38)");
        let said = guest.ask(&format!("others {pid}"));
        assert_eq!(said, "setpriority=38 prlimit=38 affinity=38 setown=38 dgram=38");
    }
    assert_eq!(guest.ask("alloc 0"), "3", "what it may do it still can");
    guest.tell("memory 512");
    assert_eq!(guest.hear(), None, "RLIMIT_DATA");
}

#[test]
fn a_domain_has_no_descriptor_of_its_brokers_starter() {
    // As a careless shell leaves it open to all that it starts.
    let left_open = rustix::io::dup(std::io::stderr()).unwrap();
    let host = Host::start();
    drop(left_open);
    let mut guest = Puppet::start(&host);
    assert_eq!(guest.ask("descriptors"), "0 1 2 3");
}

#[test]
fn nothing_of_a_dead_domain_is_kept() {
    let host = Host::start();
    let mut control = host.control();
    let mut guest = Puppet::start(&host);
    let frontend = Platform::connect(&host.host(), Role::Frontend).unwrap();
    let mut offers = frontend.offers();
    let mut offered = Vec::new();
    offers.offer_batch(guest.domid(), Access::ReadWrite, 1016, &mut offered).unwrap();
    assert_eq!(offers.offer(guest.domid(), Access::ReadWrite).unwrap_err(), Error::NoSpc);
    let grant = offered[0].grant();
    assert_eq!(guest.ask(&format!("map 0 {grant} rw")), "done");
    // Mapped, its page is not used for another; its hold ends with its life.
    offered.remove(0).end();
    assert_eq!(offers.offer(guest.domid(), Access::ReadWrite).unwrap_err(), Error::NoSpc);
    guest.tell("end");
    let info = ended(&mut control, guest.domid());
    assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Poweroff));
    until("the dead domain's hold is gone", || {
        offers.offer(guest.domid(), Access::ReadWrite).is_ok()
    });
    // Destroyed, it is no domain at all.
    control.destroy(guest.domid()).unwrap();
    let gone = offers.offer(guest.domid(), Access::ReadWrite).unwrap_err();
    assert_eq!(gone, Error::Srch);
}

#[test]
fn a_pause_stops_it_and_a_cap_slows_it() {
    let host = Host::start();
    let mut control = host.control();
    let mut config = playing("puppet");
    config.cap = 20;
    let mut guest = Puppet::start_with(&mut control, &config);
    assert_eq!(guest.ask("alloc 0"), "3");
    guest.tell("spin");
    let used = |control: &mut Control| control.info(guest.domid()).unwrap().cpu_time_ns;
    let (begin, before) = (Instant::now(), used(&mut control));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let share = (used(&mut control) - before) as f64 / begin.elapsed().as_nanos() as f64;
    assert!(share < 0.35, "20 of 100, and it used {share:.2}");
    control.pause(guest.domid()).unwrap();
    assert_eq!(control.info(guest.domid()).unwrap().state, RunState::Paused);
    // Frozen where it is; the group may take a moment to get there.
    until("it uses no processor time", || {
        let before = used(&mut control);
        std::thread::sleep(std::time::Duration::from_millis(200));
        used(&mut control) == before
    });
    control.unpause(guest.domid()).unwrap();
    assert_eq!(control.unpause(guest.domid()), Err(Error::Inval));
    assert_eq!(control.info(guest.domid()).unwrap().state, RunState::Running);
    control.destroy(guest.domid()).unwrap();
}

/// The time of a read from the store at the 99th percentile of many, as the puppet finds it.
fn p99_us(guest: &mut Puppet) -> u64 {
    guest.ask("p99").parse().unwrap()
}

/// So often may what else the machine does be in the way, other tests among it. `cargo xtask bench platform` has the
/// figures of a machine that does nothing else.
const ATTEMPTS: u32 = 10;

#[test]
fn a_neighbour_is_as_fast_beside_a_hostile_domain_as_beside_a_harmless_one() {
    let mut host = Host::start();
    host.start_store();
    let mut control = host.control();
    let mut client = host.client();
    let mut good = {
        let mut config = playing("reader");
        config.weight = 1024;
        Puppet::start_with(&mut control, &config)
    };
    introduce(&mut client, &good.created);
    let capped = |what: &str, control: &mut Control, client: &mut xenstore::Client| {
        let mut config = playing(if what == "spin" { "puppet" } else { "flooder" });
        config.cap = 25;
        let mut other = Puppet::start_with(control, &config);
        introduce(client, &other.created);
        other.tell(what);
        other
    };
    // Alternating, so that what else the machine does falls on all alike; the best of each counts, and the whole is
    // tried again where that was not enough.
    for attempt in 1.. {
        let mut best = [u64::MAX; 3];
        for _ in 0..3 {
            for (at, what) in ["spin", "notifications", "requests"].iter().enumerate() {
                let other = capped(what, &mut control, &mut client);
                // Not counted: it may spend its burst of requests first.
                p99_us(&mut good);
                best[at] = best[at].min(p99_us(&mut good));
                control.destroy(other.domid()).unwrap();
            }
        }
        let [harmless, notifications, requests] = best;
        eprintln!("p99: {harmless} us; beside floods {notifications} and {requests} us");
        if notifications.max(requests) * 2 <= harmless * 3 {
            break;
        }
        assert!(
            attempt < ATTEMPTS,
            "{notifications} and {requests} us beside it, else {harmless} us"
        );
    }
}

/// Reads from the store and says how long that takes.
fn play_reader() -> i32 {
    let mut store = support::GuestStore::open();
    puppet::play(|words| {
        assert_eq!(words, ["p99"]);
        // Five times the 100 ms after which a cap begins anew: the other is held still in the most of each.
        let end = Instant::now() + std::time::Duration::from_millis(500);
        let mut times = Vec::new();
        while Instant::now() < end {
            let begin = Instant::now();
            store.ask(MsgType::Directory, b"/\0");
            times.push(begin.elapsed().as_micros());
        }
        times.sort_unstable();
        times[times.len() * 99 / 100].to_string()
    })
}

/// Floods the store with notifications, or the broker with requests and what is none.
fn play_flooder() -> i32 {
    let mut store = support::GuestStore::open();
    puppet::play(|words| {
        loop {
            match words {
                ["notifications"] => store.channels.notify(store.port).unwrap(),
                _ => {
                    let _ = store.channels.status(Port(1));
                    let _ = store.channels.bind_interdomain(DomId(4000), Port(1));
                    raw::send(b"nonsense");
                }
            }
        }
    })
}
