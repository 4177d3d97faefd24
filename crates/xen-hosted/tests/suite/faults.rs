//! The deaths of processes at any instant, in an order that a seed decides: all others continue,
//! and nothing is left.
//!
//! `FAULT_SEEDS=17..18` runs that seed alone, `FAULT_SEEDS=0..500` more of them.

use crate::support::puppet::{self, Puppet};
use crate::support::{self, BrokerHost, DIR, ROLE, ended, entries, introduce, playing, until};
use rustix::process::{Signal, pidfd_send_signal};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xen::domctl::{DomainControl, RunState};
use xen::domwatch::{DomainEvent, DomainWatch, ShutdownReason};
use xen::evtchn::{EventChannels, PortStatus};
use xen::gnttab::{GrantMap, GrantOffer, PageAccess};
use xen::{DomId, GrantRef, Port};
use xen_hosted::domain::Lifetime;
use xen_hosted::domctl::Control;
use xen_hosted::{HostDir, Platform, Role};

/// Offers a page and two ports to domain 0 and goes on using them and its ring to the store.
pub(crate) fn play_frontend() -> i32 {
    let mut store = support::GuestStore::open();
    let offered = store.offers.offer(DomId::DOM0, PageAccess::ReadWrite).unwrap();
    let [port, other] = [(); 2].map(|()| store.channels.alloc_unbound(DomId::DOM0).unwrap());
    puppet::play(|words| {
        if words == ["status"] {
            return format!("{:?}", store.channels.status(port).unwrap());
        }
        for round in 0..10_000_u32 {
            offered.page().store_u32(0, round).unwrap();
            // Refused from when it is being destroyed on, until it is dead.
            if store.poke().and_then(|()| store.channels.notify(port)).is_err() {
                break;
            }
            while let Ok(Some(port)) = store.channels.pending() {
                let _ = store.channels.unmask(port);
            }
        }
        format!("{} {port} {other}", offered.grant())
    })
}

/// Binds the port and maps the page that the environment names, and goes on using both.
pub(crate) fn play_backend() -> i32 {
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
        let mapped = grants.map(of, GrantRef(number("GRANT")), PageAccess::ReadWrite);
        let Ok(mapping) = mapped else { return 0 };
        let _ = mapping.page().load_u32(0).unwrap();
        let _ = channels.notify(port);
        let Ok(Some(port)) = channels.wait(Some(Duration::from_millis(1))) else { continue };
        let _ = channels.unmask(port);
    }
}

struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn start_backend(host: &BrokerHost, domid: DomId, offer: &[u32; 3]) -> Child {
    let [grant, port, _] = offer.map(|number| number.to_string());
    Command::new(std::env::current_exe().unwrap())
        .args(support::PLAYING)
        .env(ROLE, "backend")
        .env(DIR, host.host().path())
        .envs([("DOMID", domid.to_string().as_str()), ("GRANT", &grant), ("PORT", &port)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills a domain's first process, as any process with the right may.
fn kill(control: &mut Control, domid: DomId) {
    let process = control.process(domid).unwrap();
    // It may have ended by itself.
    let _ = pidfd_send_signal(&process, Signal::KILL);
}

/// An observer of the host. It is told of each change that Xen would tell it of.
struct Observer {
    watch: xen_hosted::domwatch::BrokerWatch,
    channels: xen_hosted::evtchn::Channels,
}

impl Observer {
    fn of(host: &BrokerHost) -> Self {
        // Without VIRQ_DOM_EXC, which the store has.
        let watch = Platform::connect(&host.host(), Role::Store).unwrap().watch();
        let backend = Platform::connect(&host.host(), Role::Backend).unwrap();
        Self { watch, channels: backend.channels().unwrap() }
    }

    /// Returns all changes since the last call, once the domain's death was reported.
    fn events_until_death(&mut self, domid: DomId) -> Vec<DomainEvent> {
        let mut told = Vec::new();
        until("the death is told", || {
            while let Some(event) = self.watch.poll_change().unwrap() {
                told.push(event);
            }
            told.contains(&DomainEvent::Died(domid))
        });
        told
    }
}

/// Waits until the store has said that a domain was released.
fn await_release(client: &mut xenstore::Client) {
    let event = client.next_event(Some(support::WITHIN)).unwrap().expect("the store says so");
    assert_eq!(event.path, b"@releaseDomain");
}

/// Runs a domain's life with deaths of other processes.
fn round(host: &mut BrokerHost, chance: &mut SeededRandom) {
    let mut control = host.control();
    let mut onlooker = Observer::of(host);
    let mut guest = Puppet::start_with(&mut control, &playing("frontend"));
    let domid = guest.domid();
    let offer: Vec<u32> = guest.ask("go on").split(' ').map(|word| word.parse().unwrap()).collect();
    let offer: [u32; 3] = offer.try_into().unwrap();
    let mine = onlooker.channels.bind_interdomain(domid, Port(offer[2])).unwrap();
    introduce(&mut host.client(), &guest.created);
    let mut backend = start_backend(host, domid, &offer);
    guest.tell("go on");
    std::thread::sleep(Duration::from_micros(chance.below(8000)));
    let what = chance.below(5);
    if what == 0 {
        backend.kill().unwrap();
        backend.wait().unwrap();
        assert!(guest.hear().is_some(), "the guest outlives its backend");
        let unbound = format!("{:?}", PortStatus::Unbound(DomId::DOM0));
        until("its end is unbound", || guest.ask("status") == unbound);
        // Another backend takes over.
        backend = start_backend(host, domid, &offer);
        let said = BufReader::new(backend.stdout.take().unwrap());
        assert!(said.lines().any(|line| line.unwrap() == "bound"), "the next backend binds");
    }
    if what == 1 {
        let store = host.store.as_mut().unwrap();
        store.kill().unwrap();
        store.wait().unwrap();
        host.start_store();
        introduce(&mut host.client(), &guest.created);
        assert!(guest.hear().is_some(), "the guest outlives the store");
    }
    let mut client = host.client();
    client.watch("@releaseDomain", "t").unwrap();
    // Every watch begins with an event.
    await_release(&mut client);
    let crash = ShutdownReason::Crash;
    if what < 4 {
        if what == 3 {
            kill(&mut control, domid);
        } else {
            control.shutdown(domid, crash).unwrap();
        }
        let info = ended(&mut control, domid);
        assert_eq!(info.state, RunState::Shutdown(crash));
        await_release(&mut client);
        let status = PortStatus::Interdomain { remote: domid, remote_port: Port(offer[2]) };
        assert_eq!(onlooker.channels.status(mine), Ok(status), "it has its ports yet");
        std::thread::sleep(Duration::from_micros(chance.below(2000)));
    }
    control.destroy(domid).unwrap();
    assert_eq!(onlooker.channels.status(mine), Ok(PortStatus::Unbound(domid)));
    let told = onlooker.events_until_death(domid);
    let shutdown = DomainEvent::Shutdown(domid, crash);
    let all = [DomainEvent::Came(domid), shutdown, DomainEvent::Died(domid)];
    let expected = if what < 4 { all.to_vec() } else { vec![all[0], all[2]] };
    assert_eq!(told, expected, "in the order in which it came to pass");
    await_release(&mut client);
    until("the store lets go of the dead domain", || {
        !client.is_domain_introduced(domid.0).unwrap()
    });
    until("the backend ends with its frontend", || backend.try_wait().unwrap().is_some());
}

/// Kills a domain before it runs: while its sandbox is set up, when that is complete, or while the
/// store is told of it.
fn killed_before_it_runs(host: &BrokerHost, chance: &mut SeededRandom) {
    let mut control = host.control();
    let mut makes = host.control();
    let before = children(host);
    let building = std::thread::spawn(move || {
        support::create_with(&mut makes, &playing("frontend"), &support::this_program())
    });
    std::thread::sleep(Duration::from_micros(chance.below(3000)));
    for pid in children(host).into_iter().filter(|pid| !before.contains(pid)) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    // The kill was too early, or the broker was told; then the broker has cleaned up by itself.
    if let Ok(created) = building.join().unwrap() {
        control.destroy(created.domid).unwrap();
    }
    let created = support::create(&mut control, "frontend");
    if chance.below(2) == 0 {
        kill(&mut control, created.domid);
        introduce(&mut host.client(), &created);
    } else {
        let mut client = host.client();
        let of = created.clone();
        let introducing = std::thread::spawn(move || introduce(&mut client, &of));
        std::thread::sleep(Duration::from_micros(chance.below(300)));
        kill(&mut control, created.domid);
        introducing.join().unwrap();
    }
    let state = ended(&mut control, created.domid).state;
    assert_eq!(state, RunState::Shutdown(ShutdownReason::Crash));
    control.destroy(created.domid).unwrap();
    let mut client = host.client();
    until("the store lets go of who never ran", || {
        !client.is_domain_introduced(created.domid.0).unwrap()
    });
    until("domain 0 alone is left", || control.list().unwrap().len() == 1);
}

/// Returns the broker's children: the first processes of domains.
fn children(host: &BrokerHost) -> Vec<i32> {
    let broker = host.broker.id();
    let text = std::fs::read_to_string(format!("/proc/{broker}/task/{broker}/children"));
    text.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Returns the number of control groups of the host's domains, in all hierarchies.
pub(crate) fn groups(host: &BrokerHost) -> usize {
    let below = host_groups(host).into_iter().map(|group| {
        let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
    });
    below.sum()
}

/// Returns the groups above them.
pub(crate) fn host_groups(host: &BrokerHost) -> Vec<PathBuf> {
    let meta = std::fs::metadata(host.host().path()).unwrap();
    let name = format!("xenbus-{:x}-{:x}", meta.dev(), meta.ino());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let mut above: Vec<PathBuf> =
        hierarchies.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect();
    let mut found = Vec::new();
    while let Some(folder) = above.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == name.as_str() {
                    found.push(entry.path());
                }
                above.push(entry.path());
            }
        }
    }
    found
}

/// Returns the memory of the broker itself, in KiB.
fn memory_kib(host: &BrokerHost) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.broker.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Lists the descriptors of a process by kind, as numbers of sockets and the like change with each.
fn opened(pid: u32) -> Vec<String> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let targets = entries(&folder).into_iter().filter_map(|fd| {
        let target = std::fs::read_link(folder.join(fd)).ok()?.to_string_lossy().into_owned();
        Some(target.split(":[").next().unwrap_or_default().to_owned())
    });
    let mut targets: Vec<String> = targets.collect();
    targets.sort();
    targets
}

/// Lists the mappings of shared memory in a process: arenas and counters.
fn shared(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let names = maps.lines().filter_map(|line| line.split_once("/memfd:"));
    let mut names: Vec<String> = names.map(|(_, name)| name.to_owned()).collect();
    names.sort();
    names
}

/// The state of a host that must be the same before and after. A namespace lives as long as a
/// process, a descriptor or a mount has it, shared memory as long as a descriptor or a mapping.
#[derive(PartialEq, Debug)]
struct HostState {
    broker: [Vec<String>; 2],
    store: [Vec<String>; 2],
    mounts: String,
    interfaces: Vec<String>,
    children: usize,
    groups: usize,
}

fn host_state(host: &BrokerHost) -> HostState {
    let of = |pid| [opened(pid), shared(pid)];
    HostState {
        broker: of(host.broker.id()),
        store: of(host.store.as_ref().unwrap().id()),
        mounts: std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        interfaces: entries(Path::new("/sys/class/net")),
        children: children(host).len(),
        groups: groups(host),
    }
}

/// Returns that state once it does not change: the store releases a client's resources after the
/// client has gone.
fn settled_state(host: &BrokerHost) -> HostState {
    let mut last = host_state(host);
    until("all is at rest", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = host_state(host);
        let same = now == last;
        last = now;
        same
    });
    last
}

#[test]
fn deaths_in_any_order_leave_nothing_behind() {
    let seeds = std::env::var("FAULT_SEEDS").unwrap_or_else(|_| "0..40".to_owned());
    let (from, to) = seeds.split_once("..").expect("FAULT_SEEDS=FROM..TO");
    let mut host = BrokerHost::start();
    host.start_store();
    let before = settled_state(&host);
    let memory_before = memory_kib(&host);
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        eprintln!("seed {seed}");
        let mut chance = SeededRandom(seed);
        chance.below(2);
        round(&mut host, &mut chance);
        killed_before_it_runs(&host, &mut chance);
    }
    let begin = Instant::now();
    while host_state(&host) != before {
        let now = host_state(&host);
        assert!(begin.elapsed() < support::WITHIN, "left behind: {now:?}, before: {before:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(host.control().list().unwrap().len(), 1);
    let memory = memory_kib(&host);
    assert!(memory < memory_before + 1024, "{memory_before} KiB before, {memory} KiB after");
}

#[test]
fn what_a_creator_holds_ends_with_it() {
    let host = BrokerHost::start();
    let mut looker = host.control();
    let create = |control: &mut Control, lifetime| {
        let mut config = playing("frontend");
        config.lifetime = lifetime;
        support::create_with(control, &config, &support::this_program()).unwrap().domid
    };
    let (mut creator, mut other) = (host.control(), host.control());
    let unheld = create(&mut creator, Lifetime::OfTheHost);
    let [paused, runs, kept, taken] = [(); 4].map(|()| create(&mut creator, Lifetime::Held));
    creator.unpause(runs).unwrap();
    creator.keep(kept).unwrap();
    // As a process hands over that starts a domain again for another one.
    let others = create(&mut other, Lifetime::Held);
    let holder = other.holder(others).unwrap().unwrap();
    assert_eq!(creator.holder(kept), Ok(None));
    assert_eq!(other.hand_over(taken, holder), Err(xen::Error::Inval), "it is not its own");
    creator.hand_over(taken, holder).unwrap();
    creator.keep(taken).unwrap();
    let mut are_there = |domids: &[DomId]| {
        let there: Vec<DomId> = looker.list().unwrap().iter().map(|info| info.domid).collect();
        there == domids
    };
    assert!(are_there(&[DomId::DOM0, unheld, paused, runs, kept, taken, others]));
    drop(creator);
    until("what it held is gone", || are_there(&[DomId::DOM0, unheld, kept, taken, others]));
    drop(other);
    until("and what the other held", || are_there(&[DomId::DOM0, unheld, kept]));
    // A domain that is handed to a connection which is gone ends at once.
    let mut control = host.control();
    let late = create(&mut control, Lifetime::Held);
    control.hand_over(late, holder).unwrap();
    until("it is gone", || are_there(&[DomId::DOM0, unheld, kept]));
    assert_eq!(host.control().holder(taken), Err(xen::Error::Srch));
    assert_eq!(host.control().keep(DomId::DOM0), Err(xen::Error::Inval));
}

#[test]
fn the_brokers_end_is_its_domains() {
    let mut host = BrokerHost::start();
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
    // The store ends too, and logs its reason.
    let mut store = host.store.take().unwrap();
    until("the store ends", || store.try_wait().unwrap().is_some());
    let gone = format!("the broker of {} is gone", host.dir.path().display());
    assert!(host.store_log().contains(&gone), "{}", host.store_log());
    // The next broker in the directory begins without domains, and cleans up.
    host.restart_broker();
    assert_eq!(host.control().list().unwrap().len(), 1);
    let mut guest = Puppet::start_with(&mut host.control(), &playing("frontend"));
    assert_eq!(guest.domid(), DomId(1));
    assert_eq!(guest.ask("go on"), "8 3 4");
}

#[test]
fn a_broker_that_dies_at_work_leaves_what_the_next_one_clears_up() {
    let mut host = BrokerHost::start();
    for seed in 0..10 {
        let mut chance = SeededRandom(seed);
        chance.below(2);
        let mut control = host.control();
        let busy = std::thread::spawn(move || {
            // Until the broker is gone.
            while let Ok(created) =
                support::create_with(&mut control, &playing("frontend"), &support::this_program())
            {
                let _ = control.unpause(created.domid);
            }
        });
        std::thread::sleep(Duration::from_micros(5000 + chance.below(20_000)));
        let born = children(&host);
        host.broker.kill().unwrap();
        host.broker.wait().unwrap();
        busy.join().unwrap();
        host.restart_broker();
        assert_eq!(groups(&host), 0, "seed {seed}: control groups");
        let alive = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie waits for the process that inherited it.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        until("its domains are gone", || !born.iter().any(alive));
        assert_eq!(host.control().list().unwrap().len(), 1, "seed {seed}");
    }
}
