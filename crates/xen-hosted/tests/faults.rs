//! Processes die at any instant, in an order that a seed decides: the rest goes on, and nothing is left.
//!
//! `FAULT_SEEDS=17..18` runs that seed alone, `FAULT_SEEDS=0..500` more of them.

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::puppet::{self, Puppet};
use support::{DIR, Host, ROLE, ended, entries, introduce, playing, until};
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::ShutdownReason;
use xen::evtchn::EventChannels;
use xen::gnttab::{Access, GrantMap, GrantOffer};
use xen::{DomId, GrantRef, Port};
use xen_hosted::{HostDir, Platform, Role};

/// Plays what the environment says; not a test of its own.
#[test]
fn role() {
    let Some(role) = support::role() else { return };
    let status = match role.as_str() {
        "store" => {
            let _ = support::play_store();
            1
        }
        "frontend" => play_frontend(),
        "backend" => play_backend(),
        other => panic!("no role {other:?}"),
    };
    std::process::exit(status);
}

/// Offers a page and a port to domain 0 and goes on using both.
fn play_frontend() -> i32 {
    let platform = Platform::guest().unwrap();
    let mut channels = platform.channels().unwrap();
    let mut offers = platform.offers();
    let offered = offers.offer(DomId::DOM0, Access::ReadWrite).unwrap();
    let port = channels.alloc_unbound(DomId::DOM0).unwrap();
    puppet::play(|_| {
        for round in 0..10_000_u32 {
            offered.page().store_u32(0, round).unwrap();
            // Refused from when it is being destroyed on, until it is dead.
            if channels.notify(port).is_err() {
                break;
            }
            while let Ok(Some(port)) = channels.pending() {
                let _ = channels.unmask(port);
            }
        }
        format!("{} {}", offered.grant(), port)
    })
}

/// Binds and maps what the environment names, and goes on using both.
fn play_backend() -> i32 {
    let host = HostDir::new(std::env::var_os(DIR).unwrap());
    let number = |name: &str| std::env::var(name).unwrap().parse::<u32>().unwrap();
    let of = DomId(u16::try_from(number("DOMID")).unwrap());
    let platform = Platform::connect(&host, Role::Backend).unwrap();
    let mut channels = platform.channels().unwrap();
    let mut grants = platform.grants();
    // The frontend may be destroyed at any time, from before this on.
    let Ok(port) = channels.bind_interdomain(of, Port(number("PORT"))) else { return 0 };
    println!("\nbound");
    loop {
        let mapped = grants.map(of, GrantRef(number("GRANT")), Access::ReadWrite);
        let Ok(mapping) = mapped else { return 0 };
        let _ = mapping.page().load_u32(0).unwrap();
        let _ = channels.notify(port);
        let Ok(Some(port)) = channels.wait(Some(Duration::from_millis(1))) else { continue };
        let _ = channels.unmask(port);
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn start_backend(host: &Host, domid: DomId, offer: &str) -> Child {
    let (grant, port) = offer.split_once(' ').unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["role", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, "backend")
        .env(DIR, host.host().path())
        .envs([("DOMID", domid.to_string().as_str()), ("GRANT", grant), ("PORT", port)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// One domain's life with deaths around it.
fn round(host: &mut Host, chance: &mut Chance) {
    let mut control = host.control();
    let mut guest = Puppet::start_with(&mut control, &playing("frontend"));
    let domid = guest.domid();
    let offer = guest.ask("go on");
    introduce(&mut host.client(), &guest.created);
    let mut backend = start_backend(host, domid, &offer);
    guest.tell("go on");
    std::thread::sleep(Duration::from_micros(chance.below(8000)));
    let what = chance.below(4);
    if what == 0 {
        backend.kill().unwrap();
        backend.wait().unwrap();
        // Its end of the channel is unbound and its mapping gone: another takes over.
        backend = start_backend(host, domid, &offer);
        let said = BufReader::new(backend.stdout.take().unwrap());
        assert!(said.lines().any(|line| line.unwrap() == "bound"), "the next backend binds");
        assert!(guest.hear().is_some(), "the guest outlives its backend");
    }
    if what == 1 {
        let store = host.store.as_mut().unwrap();
        store.kill().unwrap();
        store.wait().unwrap();
        host.start_store();
        introduce(&mut host.client(), &guest.created);
        assert!(guest.hear().is_some(), "the guest outlives the store");
    }
    if what < 3 {
        control.shutdown(domid, ShutdownReason::Crash).unwrap();
        let info = ended(&mut control, domid);
        assert_eq!(info.state, RunState::Shutdown(ShutdownReason::Crash));
        std::thread::sleep(Duration::from_micros(chance.below(2000)));
    }
    control.destroy(domid).unwrap();
    let mut client = host.client();
    until("the store lets go of the dead domain", || {
        !client.is_domain_introduced(domid.0).unwrap()
    });
    until("the backend ends with its frontend", || backend.try_wait().unwrap().is_some());
}

/// Control groups of the host's domains, in all hierarchies.
fn groups(host: &Host) -> usize {
    let meta = std::fs::metadata(host.host().path()).unwrap();
    let name = format!("xenbus-{:x}-{:x}", meta.dev(), meta.ino());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let mut above: Vec<PathBuf> =
        hierarchies.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect();
    let mut count = 0;
    while let Some(folder) = above.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                count += usize::from(folder.ends_with(&name));
                above.push(entry.path());
            }
        }
    }
    count
}

/// Memory that is the broker's own, in KiB.
fn memory_kib(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.broker.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What must be afterwards as it was before. A domain's namespaces live as long as its processes, which are
/// the broker's children.
fn left(host: &Host) -> (usize, usize, String, Vec<String>, usize, usize) {
    let fds = entries(Path::new(&format!("/proc/{}/fd", host.broker.id()))).len();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", host.broker.id())).unwrap();
    let arenas = maps.lines().filter(|line| line.contains("memfd:arena")).count();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let interfaces = entries(Path::new("/sys/class/net"));
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", host.broker.id()))
            .unwrap_or_default();
    (fds, arenas, mounts, interfaces, children.split_whitespace().count(), groups(host))
}

#[test]
fn deaths_in_any_order_leave_nothing_behind() {
    let seeds = std::env::var("FAULT_SEEDS").unwrap_or_else(|_| "0..40".to_owned());
    let (from, to) = seeds.split_once("..").expect("FAULT_SEEDS=FROM..TO");
    let mut host = Host::start();
    host.start_store();
    let before = left(&host);
    let memory_before = memory_kib(&host);
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        eprintln!("seed {seed}");
        let mut chance = Chance(seed);
        chance.below(2);
        round(&mut host, &mut chance);
    }
    let begin = Instant::now();
    while left(&host) != before {
        let now = left(&host);
        assert!(begin.elapsed() < support::WITHIN, "left behind: {now:?}, before: {before:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(host.control().list().unwrap().len(), 1);
    let memory = memory_kib(&host);
    assert!(memory < memory_before + 1024, "{memory_before} KiB before, {memory} KiB after");
}

#[test]
fn the_brokers_end_is_its_domains() {
    let mut host = Host::start();
    host.start_store();
    let mut control = host.control();
    let mut guest = Puppet::start_with(&mut control, &playing("frontend"));
    guest.ask("go on");
    let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
    let mut channels = backend.channels().unwrap();
    host.broker.kill().unwrap();
    host.broker.wait().unwrap();
    assert_eq!(guest.hear(), None, "the domain has ended");
    assert_eq!(channels.wait(Some(support::WITHIN)), Err(xen::Error::NoDev));
    assert_eq!(control.list().unwrap_err(), xen::Error::NoDev);
    // The store ends too, and says what it has lost.
    let mut store = host.store.take().unwrap();
    until("the store ends", || store.try_wait().unwrap().is_some());
    let gone = format!("the broker of {} is gone", host.dir.display());
    assert!(host.store_log().contains(&gone), "{}", host.store_log());
    // The next one in the directory begins anew, and clears up.
    host.restart_broker();
    assert_eq!(host.control().list().unwrap().len(), 1);
    let mut guest = Puppet::start_with(&mut host.control(), &playing("frontend"));
    assert_eq!(guest.domid(), DomId(1));
    assert_eq!(guest.ask("go on"), "8 3");
}
